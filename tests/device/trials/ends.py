"""Trials of ends: of a client, of a process, of the daemon."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from xsproto.errors import ConnectionClosed, TimedOut
from xsproto_sync import Client

from .trial import BASE, LIMIT, Caller, Setting, states, told, trial, until, write_blocked

NODE: Final = BASE + b"/ends"

#: Seconds that a call may take where the daemon is dead.
PATIENCE: Final = 2.0
#: Seconds in which a process ends that can.
LINGERS: Final = 10.0


def _goes_on(client: Client) -> None:
    """It reads, writes and watches."""
    for number in range(100):
        value = b"%d" % number
        client.write(NODE, value)
        assert client.read(NODE) == value
    with client.watch(NODE) as watch:
        assert watch.get(timeout=LIMIT).path == NODE


# The end of a client


@trial()
def close_ends_a_wait_for_an_event(setting: Setting) -> str:
    """Close a client while a thread waits for an event."""

    def once() -> tuple[float, float]:
        client = setting.client()
        with client.watch(NODE) as watch:
            watch.get(timeout=LIMIT)
            return _close(client, watch.get, lambda: client._watch_connection().session.leader)

    times = [once() for _ in range(setting.rounds // 10)]
    _no_descriptor_is_left(setting.device)
    return f"{len(times)} times; {_slowest(times)}"


@trial("daemon")
def close_ends_a_wait_for_an_answer(setting: Setting) -> str:
    """Close a client while a thread waits for an answer of the daemon, which is stopped."""

    def once() -> tuple[float, float]:
        client = setting.client()
        with setting.stopped_daemon():
            return _close(
                client, lambda: client.read(NODE), lambda: client._connection.session.leader
            )

    times = [once() for _ in range(setting.rounds // 10)]
    with setting.client() as client:
        _goes_on(client)
    _no_descriptor_is_left(setting.device)
    return f"{len(times)} times; {_slowest(times)}; others go on"


@trial("daemon")
def close_ends_a_wait_for_a_watch(setting: Setting) -> str:
    """Close a client while WATCH is in the kernel, and the daemon is stopped."""
    times, seen, left = [], set(), 0.0
    for _ in range(setting.rounds // 100):
        client = setting.client()
        set_watch = client.watch(NODE).__enter__
        with setting.stopped_daemon():
            times.append(_close(client, set_watch, lambda: write_blocked(os.getpid())))
            seen |= {state for state in states(os.getpid()) if state.startswith("D")}
        left = max(left, until(lambda: not write_blocked(os.getpid()), "end of that thread"))
    with setting.client() as client:
        _goes_on(client)
    _no_descriptor_is_left(setting.device)
    return (
        f"{len(times)} times; {_slowest(times)}; meanwhile one thread {' or '.join(seen)}, which "
        f"ends within {left:.3f} s once the daemon goes on; others go on"
    )


def _close(
    client: Client, call: Callable[[], object], waits: Callable[[], object]
) -> tuple[float, float]:
    """Close the client while another thread is in `call`: how long that takes, and for that one."""
    waiter = Caller(call)
    until(waits, "thread that waits")
    start = time.monotonic()
    client.close()
    closed = time.monotonic() - start
    outcome = waiter.outcome()
    assert isinstance(outcome, ConnectionClosed), outcome
    return closed, waiter.ended_at - start


def _slowest(times: list[tuple[float, float]]) -> str:
    closed, ended = (max(column) for column in zip(*times, strict=True))
    return f"close() took at most {closed:.3f} s, and the wait ended within {ended:.3f} s of it"


def _descriptors(device: str) -> int:
    entries = Path("/proc/self/fd").iterdir()
    return sum(os.path.realpath(entry) == os.path.realpath(device) for entry in entries)


def _no_descriptor_is_left(device: str) -> None:
    # One of watches is closed by its thread, when that ends.
    until(lambda: not _descriptors(device), "end of the last descriptor")


# The end of a process


@trial()
def processes_killed_while_watching(setting: Setting) -> str:
    """Kill processes, at any point, that set watches and read as fast as they can."""
    count = setting.rounds // 50
    with setting.client() as client, client.watch(NODE) as watch:
        watch.get(timeout=LIMIT)
        for _ in range(count):
            process = setting.start("watches_for_ever")
            assert process.stdout is not None
            assert process.stdout.readline()
            for number in range(25):
                client.write(NODE, b"%d" % number)
                assert client.read(NODE) == b"%d" % number
            process.kill()
            process.wait(LIMIT)
            watch.get(timeout=LIMIT)
        _goes_on(client)
    return f"{count} processes; a client beside them lost no answer and no watch"


@trial(named_only="others start and kill it")
def watches_for_ever(setting: Setting) -> str:
    """Set and unset a watch, and read, for ever."""
    with setting.client() as client:
        client.write(NODE, b"")
        while True:
            with client.watch(NODE) as watch:
                watch.get(timeout=LIMIT)
            client.read(NODE)
            print("still here", flush=True)


@trial("daemon")
def a_process_killed_in_a_watch(setting: Setting) -> str:
    """Kill a process whose WATCH is in the kernel; the daemon is stopped meanwhile."""
    with setting.client(PATIENCE) as client:
        client.write(NODE, b"value")
        process = setting.start("sets_a_watch_when_told")
        _wait_for_line(process, "ready")
        with setting.stopped_daemon():
            _tell(process)
            until(lambda: write_blocked(process.pid), "thread in WATCH")
            process.kill()
            lingers = not _ends(process)
            seen = ", ".join(states(process.pid))
            try:
                client.read(NODE)
            except TimedOut:
                pass
            else:
                raise AssertionError("a stopped daemon answered")
        took = until(lambda: process.poll() is not None, "end of the killed process")
        _goes_on(client)
    with setting.client() as client:
        _goes_on(client)
    what = f"is not gone after {LINGERS:g} s (its threads: {seen})" if lingers else "ends at once"
    return (
        f"the killed process {what}; {took:.3f} s after the daemon goes on it is gone; "
        "clients from before and after go on"
    )


@trial(named_only="others start and kill it")
def sets_a_watch_when_told(setting: Setting) -> str:
    """Set a watch when told to."""
    with setting.client() as client:
        client.read(b"domid", None)
        told("ready")
        with client.watch(NODE):
            return "the watch is set"


# The end of the daemon


@trial(named_only="it ends the daemon, or waits for its end: until the next boot")
def the_daemon_dies(setting: Setting) -> str:
    """Have processes use it as before; kill the daemon if it is here, else wait for its end."""
    roles = {
        "requests alone": setting.start("reads_after_the_daemons_death"),
        "a watch as well": setting.start("watches_after_the_daemons_death"),
    }
    for process in roles.values():
        _wait_for_line(process, "ready")
    with setting.client(PATIENCE) as client:
        if setting.daemon is not None:
            setting.kill_daemon()
        else:
            client.write(BASE + b"/ready", b"for the daemon's end")
            while _answers(client):
                time.sleep(0.1)
    lines = []
    for role, process in roles.items():
        _tell(process)
        report = json.loads(_wait_for_line(process, "{"))
        start = time.monotonic()
        if _ends(process):
            end = f"the process ended after {time.monotonic() - start:.3f} s"
        else:
            end = f"{LINGERS:g} s later the process is there (threads: {states(process.pid)})"
        lines.append(f"{role}: {report}; {end}")
    # Not by a longer way, which would wait for them.
    print("the_daemon_dies: " + "\n  ".join(["", *lines]), flush=True)
    os._exit(0)


def _answers(client: Client) -> bool:
    try:
        client.exists(BASE)
    except TimedOut:
        return False
    return True


@trial(named_only="others start it")
def reads_after_the_daemons_death(setting: Setting) -> str:
    """Read and wait for events, when the daemon is dead."""
    client = setting.client(PATIENCE)
    with client.watch(NODE) as watch:
        watch.get(timeout=LIMIT)
        told("ready")
        return _report(setting, client, _times_out(watch.get, timeout=PATIENCE))


@trial(named_only="others start it")
def watches_after_the_daemons_death(setting: Setting) -> str:
    """Set a watch, when the daemon is dead."""
    client = setting.client(PATIENCE)
    client.read(b"domid", None)
    told("ready")
    return _report(setting, client, _times_out(client.watch(NODE).__enter__))


def _report(setting: Setting, client: Client, of_watch: float) -> str:
    """Have calls end, and the client; print how."""
    start = time.monotonic()
    readers = [Caller(lambda: client.read(NODE)) for _ in range(4)]
    outcomes = [reader.outcome() for reader in readers]
    assert all(isinstance(outcome, TimedOut) for outcome in outcomes), outcomes
    of_reads = [round(reader.ended_at - start, 3) for reader in readers]
    for _ in range(40):
        _times_out(client.read, NODE, timeout=0.05)
    open_then = _descriptors(setting.device)
    start = time.monotonic()
    client.close()
    closed = time.monotonic() - start
    until(lambda: _descriptors(setting.device) <= 1, "end of the descriptors")
    report: dict[str, Any] = {
        "WATCH or get() with a limit of 2 s ended after": round(of_watch, 3),
        "reads ended after": of_reads,
        "descriptors after 40 more": open_then,
        "close() took": round(closed, 3),
        "descriptors then": _descriptors(setting.device),
        "threads then": states(os.getpid()),
    }
    print(json.dumps(report), flush=True)
    return "that is all"


def _times_out(call: Any, *arguments: Any, **keywords: Any) -> float:
    start = time.monotonic()
    try:
        call(*arguments, **keywords)
    except TimedOut:
        return time.monotonic() - start
    raise AssertionError(f"{call} did not time out")


# Processes


def _wait_for_line(process: subprocess.Popen[str], begin: str) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(begin):
            return line
    raise AssertionError(f"the process has ended with {process.wait()}, without {begin!r}")


def _tell(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go on\n")


def _ends(process: subprocess.Popen[str]) -> bool:
    try:
        process.wait(LINGERS)
    except subprocess.TimeoutExpired:
        return False
    return True
