"""`xsproto_sync.compat.xenstore_utils` against Debian's xenstore-utils: equal to the byte.

Both play the same script, each over a C xenstored of its own; the trees in the end are the same,
too. (Scripts without line breaks in words: each line is a command.)
"""

from __future__ import annotations

import fcntl
import os
import random
import signal
import struct
import subprocess
import sys
import termios
from concurrent.futures import ThreadPoolExecutor
from errno import EAGAIN, EIO
from io import BytesIO
from types import SimpleNamespace
from typing import Final

import pytest

from xsproto.clients.retries import TRANSACT_SECONDS
from xsproto_sync import EmbeddedXenStore
from xsproto_sync.compat import xenstore_utils
from xsproto_sync.compat.libxenstore import Handle
from xsproto_sync.compat.xenstore_utils import run

from ..daemon.test_foreign_clients import Side, play_script, require_tools, theirs
from ..support import daemons
from ..support.foreign import scripts

pytestmark = pytest.mark.environment("plain", "programs")

#: The program, under a name that follows.
MAIN: Final = [
    sys.executable,
    "-c",
    "import sys; del sys.argv[0]; from xsproto_sync.compat.xenstore_utils import main; main()",
]


def run_ours(side: Side, command: list[str], *, guest: bool) -> tuple[int, bytes, bytes]:
    out, err = BytesIO(), BytesIO()
    path = side.guest if guest else side.socket
    status = run([os.fsencode(word) for word in command], out, err, lambda: Handle(path))
    return status, out.getvalue(), err.getvalue()


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(getattr(scripts, name), id=name.lower())
        for name in vars(scripts)
        if name[0].isalpha() and name.isupper()
    ],
)
def test_they_print_and_do_the_same(script: str) -> None:
    daemons.require("c")
    require_tools()
    with theirs() as one, theirs() as other, ThreadPoolExecutor(1) as pool:
        their = pool.submit(play_script, script, other.run)
        our = play_script(script, lambda command, guest: run_ours(one, command, guest=guest))
        assert our == their.result()
        assert one.tree() == other.tree()


#: More than Python's calls may be deep; a guest's paths have room for them.
LEVELS: Final = 1020
BOTTOM: Final = b"/deep" + b"/d" * LEVELS


def test_a_tree_may_be_as_deep_as_a_guest_makes_it() -> None:
    daemons.require("c")
    require_tools()
    with theirs() as one, theirs() as other:
        for side in (one, other):
            Handle(side.socket).write(0, BOTTOM, b"at the bottom")
            Handle(side.socket).write(0, b"/later", b"")
        for words in (
            ["ls"],
            ["ls", "-p", "/deep"],
            ["ls", "-fp"],
            ["chmod", "-u", os.fsdecode(BOTTOM), "b5"],
        ):
            command = [f"xenstore-{words[0]}", *words[1:]]
            our = run_ours(one, command, guest=False)
            assert our == other.run(command, guest=False)
            assert (our[0], our[2][-90:]) == (0, b"")
        assert one.tree() == other.tree()


def test_deep_trees_are_changed_as_a_whole() -> None:
    # Debian's chmod -r goes wrong or crashes where a path has more than 255 bytes.
    with EmbeddedXenStore({BOTTOM: b""}) as store, store.client(domid=7) as guest:
        for words in ([b"chmod", b"-r", b"/deep", b"n0", b"r7"], [b"rm", b"-t", BOTTOM]):
            out, err = BytesIO(), BytesIO()
            connect = Handle(store.socket_path())
            assert run([b"xenstore", *words], out, err, lambda: connect) == 0  # noqa: B023
            assert err.getvalue() == b""
            if words[0] == b"chmod":
                nodes = store.client().walk(b"/deep")
                assert len([*nodes]) == LEVELS + 1
                assert guest.exists(BOTTOM)
        assert store.client().list(b"/") == [b"tool"]


def on_a_terminal(columns: int, command: list[str], socket: str) -> bytes:
    """What a command prints on a terminal of this width."""
    terminal, other = os.openpty()
    with open(terminal, "rb", buffering=0) as reader, open(other, "wb", buffering=0) as writer:
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
        subprocess.run(
            command,
            stdout=writer,
            check=True,
            timeout=20,
            env={**os.environ, "PATH": "/usr/bin:/bin", "XENSTORED_PATH": socket},
        )
        writer.close()
        printed = b""
        try:
            while part := reader.read(100_000):  # one read may have a part only
                printed += part
        except OSError as error:
            if error.errno != EIO:  # the end of a terminal
                raise
        return printed


def test_a_listing_is_as_wide_as_the_terminal() -> None:
    daemons.require("c")
    require_tools()
    with theirs() as side:
        handle = Handle(side.socket)
        for size in (10, 30, 50):
            handle.write(0, b"/a/" + b"n" * size, b"v" * size)
        for columns in (0, 5, 40, 200):
            for command in (["xenstore-ls"], ["xenstore-ls", "-p"], ["xenstore-ls", "-fp"]):
                our = on_a_terminal(columns, [*MAIN, *command], side.socket)
                assert our == on_a_terminal(columns, command, side.socket)


def test_as_programs_they_end_as_programs_in_c_do() -> None:
    with EmbeddedXenStore({b"/a": b"1"}) as store:
        environment = {**os.environ, "XENSTORED_PATH": store.socket_path()}

        def ended(*words: str) -> tuple[int, bytes, bytes]:
            result = subprocess.run([*MAIN, *words], env=environment, capture_output=True)
            return result.returncode, result.stdout, result.stderr

        assert ended("/bin/xenstore-read", "/a") == (0, b"1\n", b"")
        assert ended("xsproto-xenstore", "read", "-p", "/a") == (0, b"/a: 1\n", b"")
        usage = b"xsproto-xenstore: Usage: xsproto-xenstore <mode> [-h] [...]\n"
        assert ended("xsproto-xenstore") == (1, b"", usage)
        watching = subprocess.Popen(
            [*MAIN, "xenstore-watch", "/a"], env=environment, stdout=subprocess.PIPE
        )
        assert watching.stdout is not None
        with watching.stdout as lines:
            assert lines.readline() == b"/a\n"
            watching.send_signal(signal.SIGINT)
            assert watching.wait(20) == -signal.SIGINT


@pytest.mark.parametrize(
    ("redirection", "status", "err"),
    [
        (">&-", 0, b""),
        (">/dev/full", 1, b"xenstore-read: write error: No space left on device\n"),
        ("2>&-", 0, b""),
        ("<&-", 0, b""),
    ],
)
def test_where_they_cannot_write_there_is_no_traceback(
    redirection: str, status: int, err: bytes
) -> None:
    with EmbeddedXenStore({b"/a": b"1"}) as store:
        result = subprocess.run(
            ["sh", "-c", f'exec "$@" {redirection}', "sh", *MAIN, "xenstore-read", "/a"],
            env={**os.environ, "XENSTORED_PATH": store.socket_path()},
            capture_output=True,
            timeout=20,
        )
    assert (result.returncode, result.stderr) == (status, err)
    assert result.stdout == (b"" if redirection.startswith(">") else b"1\n")


def test_without_a_daemon_they_say_so() -> None:
    out, err = BytesIO(), BytesIO()
    assert run([b"xenstore-ls"], out, err, lambda: Handle("/nowhere")) == 1
    assert err.getvalue() == b"xenstore-ls: xs_open: No such file or directory\n"


def test_watching_ends_with_the_daemon() -> None:
    out, err = BytesIO(), BytesIO()
    with EmbeddedXenStore() as store, ThreadPoolExecutor(1) as pool:
        handle = Handle(store.socket_path())
        ended = pool.submit(run, [b"xenstore-watch", b"/a"], out, err, lambda: handle)
        store.kill()
        assert ended.result(20) == 1
    assert err.getvalue().startswith(b"xenstore-watch: ")


def test_a_transaction_that_loses_is_done_again_and_prints_once() -> None:
    with EmbeddedXenStore({b"/a": b"1", b"/b": b"2"}) as store:
        disturbed: list[int] = []

        class Disturbed(Handle):
            def transaction_end(self, tx_id: int, abort: bool) -> None:
                if not disturbed:
                    disturbed.append(tx_id)
                    with store.client() as client:
                        client.write(b"/a", b"changed")
                super().transaction_end(tx_id, abort)

        out, err = BytesIO(), BytesIO()
        handle = Disturbed(store.socket_path())
        assert run([b"xenstore", b"read", b"/a", b"/b"], out, err, lambda: handle) == 0
        assert (disturbed, out.getvalue(), err.getvalue()) == ([1], b"changed\n2\n", b"")


def test_a_transaction_that_always_loses_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    # Debian's tries for ever, and never waits.
    waited: list[float] = []
    clock = SimpleNamespace(monotonic=lambda: sum(waited) + len(waited), sleep=waited.append)
    monkeypatch.setattr(xenstore_utils, "time", clock)
    monkeypatch.setattr(random, "random", lambda: 0.5)

    class Losing(Handle):
        def transaction_end(self, tx_id: int, abort: bool) -> None:
            super().transaction_end(tx_id, abort=True)
            raise OSError(EAGAIN, "")

    with EmbeddedXenStore({b"/a": b"1"}) as store:
        out, err = BytesIO(), BytesIO()
        handle = Losing(store.socket_path())
        assert run([b"xenstore", b"read", b"/a", b"/a"], out, err, lambda: handle) == 1
    assert (out.getvalue(), err.getvalue()) == (b"", b"xenstore: couldn't end transaction\n")
    assert len(waited) < 40
    assert sum(waited) <= TRANSACT_SECONDS


def test_posixly_correct_options_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    with EmbeddedXenStore({b"/a": b"1"}) as store:
        for correct, printed in ((False, b"/a: 1\n"), (True, b"1\n")):
            if correct:
                monkeypatch.setenv("POSIXLY_CORRECT", "1")
            out, err = BytesIO(), BytesIO()
            connect = Handle(store.socket_path())
            status = run([b"xenstore-read", b"/a", b"-p"], out, err, lambda: connect)  # noqa: B023
            assert (status, out.getvalue()) == (int(correct), printed)
