"""`xsproto_sync.compat.pyxs` on the device."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import xsproto_sync.compat.pyxs as pyxs
from xsproto_sync.compat.pyxs._device import _XenBusTransport
from xsproto_sync.compat.pyxs._internal import NUL, Op
from xsproto_sync.compat.pyxs.connection import XenBusConnection
from xsproto_sync.compat.pyxs.exceptions import ConnectionError, InvalidPermission

from ...compat.test_pyxs import refusal
from ...compat.test_pyxs_router import AgentsRouter
from ...support import daemons
from ...support.callers import Caller
from ...support.daemons import Daemon
from ...support.descriptors import open_descriptors
from ...support.fake_device import device_of, set_modes
from ..runs import device_for
from .test_client import until


@pytest.fixture(params=["c", "oxenstored"])
def daemon(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    daemons.require(request.param)
    with Daemon(request.param) as running:
        yield running
        set_modes()
        running.kill()


@pytest.fixture
def device(daemon: Daemon) -> str:
    return device_of(daemon.socket_path)


@pytest.fixture(params=[pyxs.Router, AgentsRouter])
def client(device: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    with pyxs.Client(router=request.param(XenBusConnection(device))) as client:
        yield client


def test_nodes_and_transactions(client: Any) -> None:
    client[b"/a/b"] = b"value\0"
    assert client[b"/a/b"] == b"value\0"
    assert client.list(b"/a") == [b"b"]
    client.transaction()
    client[b"/a/c"] = b""
    assert client.commit() is True
    assert client.exists(b"/a/c")
    with refusal(errno.ENOENT):
        client.read(b"/missing")


def test_a_permission_may_be_for_all_domains(daemon: Daemon) -> None:
    """It is asked of a guest: dom0's fake device is over a socket, where newer daemons crash."""
    with pyxs.Client(xen_bus_path=device_for(daemon, 5)) as client:
        client.set_perms(b"data", [b"n5", b"r32757"])
        assert client.get_perms(b"data") == [b"n5", b"r32757"]
    with pyxs.Client(daemon.socket_path) as client, pytest.raises(InvalidPermission):
        client.set_perms(b"/local", [b"n0", b"r32757"])


@pytest.mark.parametrize("modes", [(), ("slow",), ("strict",), ("old-kernel",), ("wrong-ids",)])
def test_any_number_of_threads(client: Any, modes: tuple[str, ...]) -> None:
    # Rule 9: answers of the same length would be mixed up.
    for number in range(8):
        client.write(b"/t/%d" % number, b"%d" % number * 10)
    set_modes(*modes)

    def read(number: int) -> None:
        for _ in range(3 if "slow" in modes else 20):
            assert client.read(b"/t/%d" % number) == b"%d" % number * 10

    callers = [Caller(read, number) for number in range(8)]
    for caller in callers:
        caller.result()


@pytest.mark.parametrize("modes", [(), ("event-first",), ("old-kernel",)])
def test_watches(client: Any, modes: tuple[str, ...]) -> None:
    # 20
    set_modes(*modes)
    stop = threading.Event()

    def keep_reading() -> None:
        while not stop.is_set():
            client.read(b"/")

    reading = [Caller(keep_reading) for _ in range(3)]
    try:
        with client.monitor() as monitor:
            monitor.watch(b"/m", b"token")
            monitor.watch(b"@releaseDomain", b"special")
            events = monitor.wait()
            assert {next(events), next(events)} == {
                (b"/m", b"token"),
                (b"@releaseDomain", b"special"),
            }
            client.write(b"/m/x", b"")
            assert next(events) == (b"/m/x", b"token")
            monitor.unwatch(b"/m", b"token")
        with client.monitor() as monitor:
            monitor.watch(b"/m", b"token")
            assert next(monitor.wait()) == (b"/m", b"token")
    finally:
        stop.set()
        for caller in reading:
            caller.result()


def test_watches_are_refused_as_on_a_socket(client: Any) -> None:
    with client.monitor() as monitor:
        with refusal(errno.ENOENT):
            monitor.unwatch(b"/m", b"token")
        monitor.watch(b"/m", b"token")
        with refusal(errno.EEXIST):
            monitor.watch(b"/m", b"token")
        with refusal(errno.ENOENT):
            monitor.unwatch(b"/m", b"other")
        monitor.unwatch(b"/m", b"token")
        with refusal(errno.ENOENT):
            monitor.unwatch(b"/m", b"token")
        # Rule 14: the daemon's refusal is an errno of write().
        with refusal(errno.EINVAL):
            client.ack(Op.WATCH, b"//" + NUL + b"token" + NUL)
        with refusal(errno.EINVAL):
            client.ack(Op.UNWATCH, b"//" + NUL)
        # A depth would be ignored.
        with refusal(errno.EINVAL):
            client.ack(Op.WATCH, b"/m" + NUL + b"token" + NUL + b"1" + NUL)
        monitor.watch(b"/m", b"token")


def test_what_the_kernel_would_not_answer_is_refused(client: Any) -> None:
    # Rule 15
    for end in (client.commit, client.rollback):
        with refusal(errno.ENOENT):
            end()
    with refusal(errno.ENOSYS):
        client.ack(Op.RESET_WATCHES, NUL)
    client.write(b"/a", b"x" * 2000)
    # Rule 12: with more than 4080 bytes it says either.
    with pytest.raises(pyxs.PyXSError) as caught:
        client.write(b"/a", b"x" * 4080)
    assert caught.value.args[0] in (errno.EINVAL, errno.E2BIG)
    assert client.read(b"/a") == b"x" * 2000


def test_an_empty_request_is_answered(client: Any) -> None:
    # oxenstored answers it once more bytes come.
    with refusal(errno.ENOSYS):
        client.execute_command(Op.GET_FEATURE)


def test_a_dead_daemon_keeps_nobody_from_ending(device: str) -> None:
    # Rule 16
    client = pyxs.Client(xen_bus_path=device)
    with client, client.monitor() as monitor:
        monitor.watch(b"/m", b"token")
        next(monitor.wait())
        set_modes("dead")
        waiting = [
            Caller(client.read, b"/"),
            Caller(client.read, b"/"),
            Caller(monitor.watch, b"/n", b"token"),
            Caller(monitor.unwatch, b"/m", b"token"),
            Caller(next, monitor.wait()),
        ]
        while len(client.router.rvars) < 4:
            pass
        client.router.terminate()
        for caller in waiting:
            with pytest.raises(ConnectionError, match="terminated"):
                caller.result()


def test_it_can_be_connected_again_and_leaves_nothing(device: str) -> None:
    client = pyxs.Client(xen_bus_path=device)
    with client:
        pass  # what the fake device has opened stays
    before = open_descriptors()
    for _ in range(3):
        with client, client.monitor() as monitor:
            monitor.watch(b"/m", b"token")
            assert next(monitor.wait()) == (b"/m", b"token")
        until(lambda: open_descriptors() == before)  # a thread closes some
    assert repr(client) == f"Client(XenBusConnection({device!r}))"


def test_a_handle_finds_the_device(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # 41
    monkeypatch.setenv("XENSTORED_PATH", device)
    handle = pyxs.xs()
    handle.watch("/m", "token")
    assert handle.read_watch() == (b"/m", "token")
    handle.close()


def test_without_epoll_it_says_so(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("select.epoll")
    with pytest.raises(ConnectionError, match="needs epoll"):
        _XenBusTransport(device)
