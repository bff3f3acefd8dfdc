"""The embedded XenStore in the place of a real daemon: in this process, or as one of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from xsproto.store import PROFILES
from xsproto.testing import DomainState
from xsproto_sync.embedded import EmbeddedXenStore

__all__ = ["COMMAND", "KINDS", "EmbeddedDaemon", "serving"]

#: The command ``xsproto``, wherever it is installed.
COMMAND = [sys.executable, "-c", "from xsproto_sync.command_line import main; main()"]

#: The kinds of the embedded XenStore, by test id: the profile, and the Xen that it is like.
KINDS = {"embedded": ("c", (4, 23)), "embedded-4.17": ("c-4.17", (4, 17))}


class EmbeddedGuest:
    """A simulated domain."""

    def __init__(self, store: EmbeddedXenStore, domid: int, introduce: bool) -> None:
        self._store = store
        self._domid = domid
        store.add_domain(domid)
        if introduce:
            with store.client() as dom0:
                dom0.introduce_domain(domid, 1, 1)

    @property
    def socket_path(self) -> str:
        return self._store.socket_path(self._domid)

    def set_state(self, state: DomainState) -> None:
        if state != "dying":
            self._store.shutdown_domain(self._domid)

    def destroy(self) -> None:
        self._store.remove_domain(self._domid)


class EmbeddedDaemon:
    """As `tests.daemons.Daemon`, as far as `SyncHarness` uses it."""

    kind = "embedded"

    def __init__(self, kind: str) -> None:
        profile, self.version = KINDS[kind]
        self._store = EmbeddedXenStore(profile=PROFILES[profile])
        self._suspended = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.resume()
        self._store.close()

    @property
    def socket_path(self) -> str:
        return self._store.socket_path()

    def guest(self, domid: int, introduce: bool = True) -> EmbeddedGuest:
        return EmbeddedGuest(self._store, domid, introduce)

    def kill(self) -> None:
        self.resume()
        self._store.kill()

    def suspend(self) -> None:
        self._store._server.lock.acquire()
        self._suspended = True

    def resume(self) -> None:
        if self._suspended:
            self._suspended = False
            self._store._server.lock.release()


@contextmanager
def serving(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """``xsproto serve``, which serves; killed at the end."""
    process = subprocess.Popen([*COMMAND, "serve", *arguments], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        assert process.stderr.readline().startswith("serving on ")
        yield process
    finally:
        process.kill()
        process.wait(10)
        process.stderr.close()
