"""Clients that reach a XenStore on another host by ssh, on every adapter."""

from __future__ import annotations

import asyncio
import gc
import os
import posix
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gevent
import pytest
import trio

from xsproto.adapters.ssh import CONNECT_TIMEOUT
from xsproto.errors import ConnectFailed, ConnectionClosed, InvalidArgument, InvalidType
from xsproto_sync import EmbeddedXenStore

from ..support import loopback_sshd
from ..support.callers import until
from ..support.descriptors import open_descriptors
from ..support.loopback_sshd import LoopbackSshd, black_hole, require, tool_directory
from .test_streams import ALL, Gevent, Trio, World, blocking, close, every, talk

#: Makes a program, of a directory for what it needs.
Program = Callable[[Path], str]


@pytest.fixture(scope="module")
def store() -> Iterator[EmbeddedXenStore]:
    with EmbeddedXenStore() as running:
        yield running


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackSshd]:
    require("socat")
    directory = tmp_path_factory.mktemp("sshd")
    tools = tool_directory(directory / "tools", ["socat"])
    (directory / "keys").mkdir()
    with LoopbackSshd(directory / "keys", tools) as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No process is left behind."""
    spawn = posix.posix_spawnp
    pids: list[int] = []

    def spawn_and_note(*arguments: Any, **options: Any) -> int:
        pids.append(spawn(*arguments, **options))
        return pids[-1]

    monkeypatch.setattr(posix, "posix_spawnp", spawn_and_note)
    yield
    gc.collect()
    for pid in pids:
        until(partial(is_collected, pid))  # a thread may be at it still


def is_collected(pid: int) -> bool:
    """Whether a child has ended, and its status is taken."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return True
    return False


def program(directory: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Have `ssh` be this program."""
    loopback_sshd.program(directory, text)
    monkeypatch.setenv("PATH", f"{directory}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture
def host(sshd: LoopbackSshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of the loopback host, which the command `ssh` reaches."""
    command = ["/usr/bin/ssh", *sshd.ssh[1:]]
    program(tmp_path, monkeypatch, f'exec {shlex.join(command)} "$@"')
    return f"ssh://127.0.0.1:{sshd.port}"


@every
def test_all_ways_to_name_a_host(
    world: type[World], host: str, store: EmbeddedXenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main(made: World) -> None:
        for places in ({"unix_socket_path": url}, {"host": url}, {}):
            client = await made.open(**places)
            await talk(client)
            close(client)
            with pytest.raises(ConnectionClosed):
                await client.read(b"/")

    url = host + store.socket_path()
    monkeypatch.setenv("XSPROTO_HOST", url)
    before = open_descriptors()
    made = world()
    if hasattr(made, "open_path"):  # its first argument is the path
        made.open = lambda unix_socket_path=None, **places: made.open_path(  # type: ignore[method-assign]
            unix_socket_path, **places
        )
    made.run(main(made))
    deadline = time.monotonic() + 5
    while open_descriptors() > before + 3 and time.monotonic() < deadline:
        time.sleep(0.01)  # a loop, and what is made once
    assert open_descriptors() <= before + 3


@every
def test_the_death_of_ssh_says_what_ssh_said(
    world: type[World],
    tmp_path: Path,
    store: EmbeddedXenStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    require("socat")
    tools = tool_directory(tmp_path / "bin", ["socat"])
    mark = tmp_path / "die"
    # Not with `exec`: it outlives the tool, as ssh does, and says why.
    program(
        tmp_path,
        monkeypatch,
        f"for last; do :; done\nexec 3<&0\n"
        f"env -i PATH={tools} XENSTORED_PATH={store.socket_path()} "
        f'sh -c "exec $last" <&3 3<&- &\nwhile ! test -e {mark}; do sleep 0.02; done\n'
        'echo "client_loop: send disconnect: Broken pipe" >&2\nkill $!\nexec 3<&-\nexit 255',
    )

    async def main(made: World) -> None:
        client = await made.open(host="somewhere")
        await client.write(b"/tool/a", b"1")
        mark.touch()

        async def read_on() -> None:
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                await client.read(b"/tool/a")

        with pytest.raises(ConnectionClosed) as caught:
            await read_on()
        text = str(caught.value)
        assert "ssh://somewhere: ssh has ended: " in text
        assert "client_loop: send disconnect: Broken pipe" in text
        close(client)

    made = world()
    made.run(main(made))


def runs(text: str, tools: Sequence[str] = ()) -> Program:
    """A program in the shell, with the command for the far end in `$last`."""

    def make(directory: Path) -> str:
        return f"for last; do :; done; bin={tool_directory(directory / 'bin', tools)}; {text}"

    return make


SAID = "ssh could not connect; "


@every
@pytest.mark.parametrize(
    ("make", "words"),
    [
        pytest.param(
            runs("echo 'root@h: Permission denied (publickey).' >&2; exit 255"),
            f"{SAID}ssh must not ask for a password here; it needs a key, or an agent that has "
            "one; it said: root@h: Permission denied (publickey).",
            id="password",
        ),
        pytest.param(
            runs("echo 'Host key verification failed.' >&2; exit 255"),
            f"{SAID}the host's key is not known; connect once by hand with ssh, and check the key; "
            "it said: Host key verification failed.",
            id="host-key",
        ),
        pytest.param(
            runs("echo 'connect to host h port 22: Connection timed out' >&2; exit 255"),
            f"{SAID}the host does not answer, or a firewall drops what is sent to it; it said: ",
            id="no-answer",
        ),
        pytest.param(
            runs('exec env -i PATH=$bin XENSTORED_PATH=/nowhere/socket sh -c "$last"'),
            "no daemon has its socket at /nowhere/socket there; is xenstored running?",
            id="no-daemon",
        ),
        pytest.param(
            runs('exec env -i PATH=$bin XENSTORED_PATH=$SOCKET sh -c "$last"'),
            "nothing there can connect to a socket: install one of these there: xsproto with its "
            "extra cli, socat, netcat, python3",
            id="no-tool",
        ),
        pytest.param(runs("kill -KILL $$"), "ssh was ended by signal 9", id="killed"),
        pytest.param(
            runs("echo This account is not available.; exit 1"),
            "ended with exit status 1 before it printed a greeting; the last line that it printed: "
            "This account is not available.",
            id="no-shell",
        ),
    ],
)
def test_the_step_that_failed_is_told(
    world: type[World],
    make: Program,
    words: str,
    tmp_path: Path,
    store: EmbeddedXenStore,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    program(tmp_path, monkeypatch, make(tmp_path))
    monkeypatch.setenv("SOCKET", store.socket_path())

    async def main(made: World) -> None:
        with pytest.raises(ConnectFailed) as caught:
            await made.open(host="root@h")
        assert str(caught.value).startswith("cannot connect to XenStore at ssh://root@h: ")
        told = str(caught.value)
        if world is Gevent and "ssh has ended the connection" in told:
            # Once anything has forked by gevent, its loop takes the status of every child.
            assert words.startswith(SAID) <= (words.removeprefix(SAID) in told)
        else:
            assert words in told

    made = world()
    made.run(main(made))
    assert capfd.readouterr() == ("", "")


@every
def test_without_an_ssh_there_is_no_way(
    world: type[World], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main(made: World) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(ConnectFailed, match=r"cannot run ssh: .*; install OpenSSH's client"):
            await made.open(host="root@h")
        monkeypatch.undo()

    made = world()
    made.run(main(made))


@every
def test_what_is_no_host_is_refused(world: type[World]) -> None:
    async def main(made: World) -> None:
        for host in ("", "-oProxyCommand=x", "http://h"):
            with pytest.raises(InvalidArgument):
                await made.open(host=host)
        with pytest.raises(InvalidType):
            await made.open(host=5)

    made = world()
    made.run(main(made))


# What takes too long

#: A program that hangs, whatever it is told.
HANGS = "trap '' HUP INT TERM; while :; do sleep 1000; done"


@every
def test_a_host_that_swallows_packets_is_given_up_by_default(
    world: type[World], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require("ssh")
    program(tmp_path, monkeypatch, 'exec /usr/bin/ssh -F /dev/null "$@"')
    assert CONNECT_TIMEOUT == 60
    monkeypatch.setattr("xsproto.adapters.ssh.CONNECT_TIMEOUT", 2.5)

    async def main(made: World) -> None:
        with black_hole() as port, pytest.raises(ConnectFailed) as caught:
            await made.open(host=f"ssh://127.0.0.1:{port}")
        assert "ssh could not connect; the host does not answer, or a firewall drops" in str(
            caught.value
        )
        assert f"connect to host 127.0.0.1 port {port}: Connection timed out" in str(caught.value)

    made = world()
    made.run(main(made))


@every
def test_all_steps_together_have_a_time_limit_by_default(
    world: type[World], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, monkeypatch, HANGS)
    monkeypatch.setattr("xsproto.adapters.ssh.CONNECT_TIMEOUT", 0.2)

    async def main(made: World) -> None:
        began = time.monotonic()
        with pytest.raises(ConnectFailed) as caught:
            await made.open(host="h")
        assert 0.2 <= time.monotonic() - began < 1.5
        assert "not within 0.2 s: it is connecting, or the far end prints no greeting" in str(
            caught.value
        )

    made = world()
    made.run(main(made))


@blocking
def test_a_clients_own_time_limit_holds_for_connecting(
    world: type[World], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main(made: World) -> None:
        program(tmp_path, monkeypatch, HANGS)
        with pytest.raises(ConnectFailed, match=r"not within 0\.2 s: "):
            await made.open(host="h", timeout=0.2)
        program(tmp_path, monkeypatch, 'echo "$@" >&2; exit 255')
        for timeout, words in ((5, "-o ConnectTimeout=4 "), (1000, "-o ConnectTimeout=30 ")):
            with pytest.raises(ConnectFailed, match=words):
                await made.open(host="h", timeout=timeout)
        with pytest.raises(ConnectFailed) as caught:
            await made.open(host="h", timeout=None)
        assert "BatchMode=yes" in str(caught.value)
        assert "ConnectTimeout" not in str(caught.value)

    made = world()
    made.run(main(made))


@pytest.mark.parametrize("world", [case for case in ALL if case.id != "sync"])
def test_connecting_ends_at_once_when_it_is_cancelled(
    world: type[World],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    mark = tmp_path / "mark"
    program(tmp_path, monkeypatch, f"touch {mark}; {HANGS}")

    async def main(made: Any) -> None:
        began = time.monotonic()
        if isinstance(made, Gevent):
            with pytest.raises(gevent.Timeout), gevent.Timeout(0.3):
                await made.open(host="h")
        elif isinstance(made, Trio):
            with trio.move_on_after(0.3) as scope:
                await made.open(host="h")
            assert scope.cancelled_caught
        else:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await made.open(host="h")
        assert time.monotonic() - began < 1.5
        assert mark.exists()
        await made.sleep(0.2)  # for what a loop might print

    made = world()
    made.run(main(made))
    assert capfd.readouterr() == ("", "")


@every
def test_closing_holds_nothing_up_where_ssh_hangs(
    world: type[World], tmp_path: Path, store: EmbeddedXenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    require("socat")
    tools = tool_directory(tmp_path / "bin", ["socat"])
    program(
        tmp_path,
        monkeypatch,
        f"for last; do :; done; exec 3<&0; env -i PATH={tools} "
        f'XENSTORED_PATH={store.socket_path()} sh -c "exec $last" <&3 3<&- & {HANGS}',
    )

    async def main(made: World) -> None:
        client = await made.open(host="h")
        await talk(client)
        began = time.monotonic()
        close(client)
        assert time.monotonic() - began < 1

    made = world()
    made.run(main(made))
