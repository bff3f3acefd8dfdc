"""Clients that reach a XenStore on another host by ssh, on every adapter."""

from __future__ import annotations

import gc
import os
import posix
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from xsproto.errors import ConnectFailed, ConnectionClosed, InvalidArgument, InvalidType
from xsproto_sync import EmbeddedXenStore

from ..support.descriptors import open_descriptors
from ..support.loopback_sshd import LoopbackSshd, require, tool_directory
from .test_streams import World, close, every, talk


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
    """No process and no descriptor is left behind."""
    spawn = posix.posix_spawnp
    pids: list[int] = []

    def spawn_and_note(*arguments: Any, **options: Any) -> int:
        pids.append(spawn(*arguments, **options))
        return pids[-1]

    monkeypatch.setattr(posix, "posix_spawnp", spawn_and_note)
    yield
    gc.collect()
    for pid in pids:
        with pytest.raises(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def program(directory: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Have `ssh` be this program."""
    path = directory / "ssh"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
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


@every
def test_what_ssh_cannot_do_is_told(
    world: type[World], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, monkeypatch, "echo 'root@h: Permission denied (publickey).' >&2; exit 255")

    async def main(made: World) -> None:
        with pytest.raises(ConnectFailed) as caught:
            await made.open(host="root@h")
        assert "it needs a key" in str(caught.value)
        assert "Permission denied (publickey)" in str(caught.value)
        for host in ("", "-oProxyCommand=x", "http://h"):
            with pytest.raises(InvalidArgument):
                await made.open(host=host)
        with pytest.raises(InvalidType):
            await made.open(host=5)

    made = world()
    made.run(main(made))
