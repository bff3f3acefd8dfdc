"""The trials run: here on the fake device, and in small, so that they do when there is a Xen
host."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from ..support import ROOT
from ..support.daemons import Daemon, Op, skip
from ..support.fake_device import LIBRARY, Preload, device_of
from .probes.device import OK

GUEST = 5


@pytest.fixture(scope="module")
def preload() -> Iterator[Preload]:
    if reason := LIBRARY.missing():
        skip(reason)
    with Preload() as preload:
        yield preload


def command(device: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "tests.device.trials", device, *arguments]


@pytest.mark.parametrize(
    "name",
    [
        "threads_share_a_client",
        "threads_have_a_client_each",
        "watching_while_others_read",
        "close_ends_a_wait_for_an_event",
        "close_ends_a_wait_for_an_answer",
        "processes_killed_while_watching",
    ],
)
def test_trial(name: str, daemon: Daemon, preload: Preload) -> None:
    """But for those that look at how a real kernel waits."""
    arguments = command(
        device_of(daemon.socket_path), "--daemon", str(daemon.pid), "--rounds", "50", name
    )
    ended = preload.run(arguments, modes="strict")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith(f"{name}: "), ended.stdout


def test_agent_and_host(daemon: Daemon, preload: Preload) -> None:
    home, guest = f"/local/domain/{GUEST}", daemon.guest(GUEST)
    for node, perms in ("data", f"n{GUEST}"), ("domid", f"n0\0r{GUEST}"):
        path = f"{home}/{node}\0".encode()
        assert daemon.request(Op.WRITE, path + b"%d" % GUEST) == (Op.WRITE, OK)
        assert daemon.request(Op.SET_PERMS, path + perms.encode() + b"\0") == (Op.SET_PERMS, OK)
    agent = subprocess.Popen(
        command(device_of(guest.socket_path), "agent"),
        env=preload.environment("strict"),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        asked = preload.run(
            command(device_of(daemon.socket_path), "--domid", str(GUEST), "--seconds", "1", "host"),
            modes="strict",
        )
        assert asked.returncode == 0, asked.stderr
        assert "none lost, none wrong" in asked.stdout
        assert "make the sum of" in asked.stdout
        said, _ = agent.communicate(timeout=60)
        assert agent.returncode == 0
        assert "without an error" in said
    finally:
        agent.kill()
        agent.communicate()


def test_a_trial_that_lacks_something_says_so(daemon: Daemon, preload: Preload) -> None:
    ended = preload.run(command(device_of(daemon.socket_path), "host"))
    assert (ended.returncode, ended.stdout) == (2, "host: it needs --domid\n")
    ended = preload.run(command(device_of(daemon.socket_path), "nothing"))
    assert ended.returncode == 2
    assert "there is no trial nothing" in ended.stderr
