"""`xsproto_sync.compat.lowlevel` against Xen's own `xen.lowlevel.xs`: the same programs, the same
output.

Each program of `tests.support.foreign` runs with both, over a C xenstored of its own. What differs
on purpose, and is in none of them, is in docs/howto/migrating.md.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from errno import E2BIG, EACCES, EAGAIN, EBADF, EINVAL, EIO, ENOENT, ENOSYS, ETIMEDOUT
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from xsproto import errors
from xsproto_sync import EmbeddedXenStore
from xsproto_sync.compat import libxenstore, lowlevel
from xsproto_sync.compat.libxenstore import Handle

from ..daemon.test_foreign_clients import XEN, run_program, theirs
from ..support import ROOT, daemons
from ..support.daemons import Daemon
from ..support.fake_device import Preload, device_of
from ..support.foreign import PROGRAMS

#: Debian's Python with Xen's module, and this one with ours in its place.
THEIRS = ["env", f"PYTHONPATH={XEN}/lib/python", "/usr/bin/python3"]
OURS = [
    sys.executable,
    "-c",
    "import runpy, sys; from xsproto_sync.compat import lowlevel; lowlevel.install(); "
    "del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')",
]


def require_theirs() -> None:
    daemons.require("c")
    if subprocess.run([*THEIRS, "-c", "import xen.lowlevel.xs"], capture_output=True).returncode:
        daemons.skip("xen.lowlevel.xs for Debian's Python is missing: install xen-utils-4.17.")


@pytest.mark.parametrize("name", ["lowlevel.py", "lowlevel_odd.py"])
def test_a_program_cannot_tell_it_from_xens_own(name: str) -> None:
    require_theirs()

    def play(python: list[str]) -> list[bytes]:
        with theirs() as side:
            return run_program(side, python, name)

    with ThreadPoolExecutor(2) as pool:
        our, their = pool.map(play, (OURS, THEIRS))
    assert our == their
    assert len(our) > 150


def test_after_the_daemons_death_neither() -> None:
    require_theirs()

    def play(python: list[str]) -> str:
        with Daemon("c") as daemon:
            process = subprocess.Popen(
                [*python, str(PROGRAMS / "lowlevel_killed.py")],
                env={**os.environ, "XENSTORED_PATH": daemon.socket_path},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            try:
                assert process.stdout is not None
                begun = process.stdout.readline() + process.stdout.readline()
                daemon.kill()
                return begun + process.communicate("\n", timeout=30)[0]
            finally:
                process.kill()
                process.wait()

    with ThreadPoolExecutor(2) as pool:
        our, their = pool.map(play, (OURS, THEIRS))
    assert our == their
    assert our.endswith("close None\nclose (22, 'Invalid argument')\n")


def test_nor_can_it_on_the_device() -> None:
    require_theirs()

    def play(python: list[str]) -> str:
        with Daemon("c") as daemon, Preload() as preload:
            result = preload.run(
                [*python, str(PROGRAMS / "lowlevel_device.py")],
                variables={"XENSTORED_PATH": device_of(daemon.socket_path)},
            )
            assert (result.returncode, result.stderr) == (0, "")
            return result.stdout

    with ThreadPoolExecutor(2) as pool:
        our, their = pool.map(play, (OURS, THEIRS))
    assert our == their
    assert len(our.splitlines()) == 17


@pytest.fixture
def store() -> Iterator[EmbeddedXenStore]:
    with EmbeddedXenStore() as store:
        yield store


# On purpose not as there


def test_wrong_arguments_are_type_errors_where_xens_own_is_confused(
    store: EmbeddedXenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XENSTORED_PATH", store.socket_path())
    for wrong in (5, None, "n0"):
        with pytest.raises(TypeError, match="a permission must be a dict"):
            # What mypy refuses must be refused by the methods, too.
            lowlevel.xs().set_permissions("0", "/", [wrong])  # type: ignore[list-item]
    with pytest.raises(TypeError):
        lowlevel.xs(bogus=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        lowlevel.xs("x")  # type: ignore[arg-type]


def test_what_would_kill_a_daemon_is_refused(
    store: EmbeddedXenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XENSTORED_PATH", store.socket_path())
    with pytest.raises(lowlevel.Error) as raised:
        lowlevel.xs().set_permissions("0", "/tool", [{"dom": 0}, {"dom": 32757, "read": 1}])
    assert raised.value.args == (EINVAL, "Invalid argument")


class _Disturbed(dict[bytes, Any]):
    """Tokens. Between a look at one and what is made of it, another thread sets a watch."""

    other: Thread | None = None

    def __setitem__(self, sent: bytes, kept: Any) -> None:
        if self.other is not None:
            other, self.other = self.other, None
            other.start()
            other.join(0.2)  # its token is counted by then, or waits for ours
        super().__setitem__(sent, kept)


def test_two_threads_that_watch_keep_their_token(
    store: EmbeddedXenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XENSTORED_PATH", store.socket_path())
    handle = lowlevel.xs()
    tokens = _Disturbed()
    monkeypatch.setattr(handle, "_tokens", tokens)
    tokens.other = other = Thread(target=handle.watch, args=("/b", "token"))
    handle.watch("/a", "token")
    other.join()
    handle.unwatch("/a", "token")
    assert {handle.read_watch() for _ in range(2)} == {("/a", "token"), ("/b", "token")}
    handle.unwatch("/b", "token")
    assert not tokens


# In the place of Xen's own

INSTALLED = """
import sys
from importlib.util import find_spec
from xsproto_sync.compat import lowlevel
module = lowlevel.install()
import xen.lowlevel.xs
from xen.lowlevel import xs
assert xen.lowlevel.xs is xs is module is lowlevel.install()
assert find_spec("xen") and find_spec("xen.lowlevel") and find_spec("xen.lowlevel.xs")
print(xs.Error is lowlevel.Error, xs.xs is lowlevel.xs, getattr(xs, "mark", None))
"""


@pytest.mark.parametrize(
    ("files", "printed"),
    [
        ({}, "True True None"),
        ({"xen/__init__.py": ""}, "True True None"),
        ({"xen/lowlevel/xc.py": ""}, "True True None"),
        (
            {"xen/lowlevel/xs.py": "class Error(Exception): pass\nclass xs: pass\nmark = 5"},
            "False False 5",
        ),
    ],
    ids=["nothing", "xen", "xen.lowlevel", "all"],
)
def test_installed_it_is_found_where_xens_own_is_not(
    tmp_path: Path, files: dict[str, str], printed: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    result = subprocess.run(
        [sys.executable, "-c", INSTALLED],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert (result.stdout.strip(), result.stderr) == (printed, "")


# libxenstore


def test_events_that_wait_can_be_dropped_with_their_watch(store: EmbeddedXenStore) -> None:
    for unwatch_filter, left in ((False, [b"/a/b", b"/ab", b"/a"]), (True, [b"/ab"])):
        handle = Handle(store.socket_path(), unwatch_filter=unwatch_filter)
        for path, token in ((b"/a", b"1"), (b"/a/b", b"2"), (b"/ab", b"1")):
            handle.watch(path, token)
            assert handle.read_watch() == (path, token)
        handle.write(0, b"/a/b", b"")
        handle.write(0, b"/ab", b"")
        handle.rm(0, b"/a")
        handle.read(0, b"/")
        handle.unwatch(b"/a", b"1")
        handle.unwatch(b"/a/b", b"2")
        found = []
        while True:
            try:
                found.append(handle.check_watch())
            except OSError as error:
                assert error.errno == EAGAIN
                break
        assert [path for path, token in found if token == b"1"] == left
        handle.close()


def test_events_are_kept_to_a_bound(
    store: EmbeddedXenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libxenstore, "EVENTS_MAX", 10)
    handle = Handle(store.socket_path())
    for token in (b"1", b"2"):
        handle.watch(b"/a", token)
        handle.read_watch()

    def events() -> list[tuple[bytes, bytes]]:
        handle.write(0, b"/a/end", b"")
        handle.read(0, b"/")
        found = [handle.read_watch()]
        while found[-1] != (b"/a/end", b"2"):
            found.append(handle.read_watch())
        return found

    for _ in range(100):  # the same ones again and again, each answer after two of them
        handle.write(0, b"/a/b", b"")
    few = events()
    assert len(few) <= 10
    assert {(b"/a/b", b"1"), (b"/a/b", b"2"), (b"/a/end", b"1")} <= set(few)
    for number in range(100):
        handle.write(0, b"/a/%d" % number, b"")
    many = events()
    assert len(many) <= 10
    assert {(b"/a", b"1"), (b"/a", b"2")} <= set(many)


def test_who_waits_for_an_event_is_told_of_the_end(store: EmbeddedXenStore) -> None:
    handle = Handle(store.socket_path())
    handle.watch(b"/a", b"1")
    handle.read_watch()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(handle.read_watch)
        handle.write(0, b"/b", b"")
        handle.close()
        with pytest.raises(OSError, match="Invalid argument"):
            waiting.result(20)


def test_a_handle_that_nobody_has_is_closed(store: EmbeddedXenStore) -> None:
    handle = Handle(store.socket_path())
    connection = handle._client
    del handle
    assert connection.closed is not None


@pytest.mark.parametrize(
    ("error", "errno"),
    [
        (errors.error_from_code("EACCES"), EACCES),
        (errors.error_from_code("EQUOTA"), EINVAL),
        (errors.error_from_code("EBOGUS"), EINVAL),
        (errors.ConnectFailed("no"), ENOENT),
        (errors.ConnectionClosed("no"), EBADF),
        (errors.Forked("no"), EBADF),
        (errors.TimedOut("no"), ETIMEDOUT),
        (errors.InvalidArgument("too long"), E2BIG),
        (errors.TransactionEnded("no"), ENOENT),
        (errors.NotSupported("no"), ENOSYS),
        (errors.RemoteProtocolError("no"), EIO),
    ],
    ids=lambda value: f"{value}",
)
def test_each_error_has_the_errno_of_libxenstore(error: errors.XenStoreError, errno: int) -> None:
    found = libxenstore._os_error(error)
    assert (found.errno, found.strerror) == (errno, os.strerror(errno))


def test_watches_of_a_depth(store: EmbeddedXenStore) -> None:
    handle = Handle(store.socket_path())
    handle.watch(b"/a", b"1", depth=0)
    assert handle.read_watch() == (b"/a", b"1")
    handle.write(0, b"/a/b", b"")
    handle.write(0, b"/a", b"")
    assert handle.read_watch() == (b"/a", b"1")
    with pytest.raises(OSError, match="File exists"):
        handle.watch(b"/a", b"1")


def test_a_path_below_another() -> None:
    for parent, child, expected in (
        (b"/a", b"/a", True),
        (b"/a", b"/a/b", True),
        (b"/a", b"/ab", False),
        (b"/a/b", b"/a", False),
        (b"/", b"/", True),
        (b"/", b"/a", False),
    ):
        assert libxenstore.path_is_subpath(parent, child) is expected


def test_the_port_by_which_a_guest_is_told_to_suspend(store: EmbeddedXenStore) -> None:
    path = b"/local/domain/7/device/suspend/event-channel"
    with store.client() as client:
        for value, port in ((None, None), (b"", None), (b"19", 19), (b"x", None)):
            if value is not None:
                client.write(path, value)
            assert libxenstore.suspend_evtchn_port(client, 7) == port
