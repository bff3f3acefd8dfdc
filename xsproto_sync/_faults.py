"""What goes wrong in an embedded XenStore, on request."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from threading import Lock
from types import MappingProxyType
from typing import Any, Final

from attrs import frozen

from xsproto.daemon import Connection
from xsproto.daemon.store import Domain
from xsproto.errors import InvalidArgument
from xsproto.requests import Request
from xsproto.wire import Op, PacketReader

from .server import Server

__all__ = ["Faults"]

#: The quotas that a domain can use up, each with the attribute that counts what it uses.
_COUNTED: Final[Mapping[bytes, str]] = MappingProxyType(
    {b"nodes": "nodes", b"watches": "watches", b"transactions": "transactions"}
)


@frozen
class _Loss:
    """A reply that is to get lost; see `Faults.lose_reply`."""

    request: type[Request[Any]] | None
    domid: int | None
    disconnect: bool

    def concerns(self, domid: int, op: int) -> bool:
        if self.domid is not None and domid != self.domid:
            return False
        return op == self.request.op if self.request is not None else op != Op.WATCH_EVENT


class Faults:
    """What goes wrong in an embedded XenStore, on request; `EmbeddedXenStore.faults` is one.

    Each fault is a method. `clear` ends all of them. Any thread may call them, but no forked child
    (`Forked`).
    """

    def __init__(self, server: Server, check_process: Callable[[], None]) -> None:
        self._check_process = check_process
        self._attach(server)

    def _attach(self, server: Server) -> None:
        """Begin anew with another server."""
        self._server = server
        self._daemon = server.daemon
        self._losses: list[_Loss] = []
        self._limits: dict[Domain, dict[bytes, int]] = {}

    def _locked(self) -> Lock:
        """Return the lock of the server, which a forked child could find locked for ever."""
        self._check_process()
        return self._server.lock

    def __repr__(self) -> str:
        conflicts, losses = self._daemon.store.conflicts, len(self._losses)
        return f"<Faults: {conflicts} conflicts, {losses} lost replies, {len(self._limits)} quotas>"

    def conflict(self, times: int = 1) -> None:
        """Have the next commit fail with EAGAIN, as if another client had changed the same nodes.

        Commits that would fail anyway do not count.

        Arguments:
            times: how many commits fail.
        """
        with self._locked():
            self._daemon.store.conflicts = times

    def lose_reply(
        self,
        request: type[Request[Any]] | None = None,
        *,
        domid: int | None = None,
        disconnect: bool = True,
    ) -> None:
        """Have the daemon act on a request, and the reply get lost. Then all goes well again.

        Arguments:
            request: the class of the request, such as `xsproto.Write`, whose next success is lost;
                None for the next reply of any kind, errors included.
            domid: the domain that asks; None for any.
            disconnect: whether the connection ends in place of the reply, as when a daemon dies.
                Else the client waits until its time limit, and the connection goes on.
        """
        with self._locked():
            self._losses.append(_Loss(request, domid, disconnect))
            self._server.take_output = self._take_output

    def _take_output(self) -> list[tuple[Connection, bytes]]:
        batch = []
        for connection, data in self._daemon.data_to_send():
            kept = b""
            for packet in PacketReader().receive_data(data):
                loss = next(
                    (each for each in self._losses if each.concerns(connection.domid, packet.op)),
                    None,
                )
                if loss is None:
                    kept += packet.encode()
                    continue
                self._losses.remove(loss)
                if loss.disconnect:
                    batch += [(connection, kept)] if kept else []
                    kept = b""
                    batch.append((connection, kept))  # which is the end of the connection
                    break
            if kept or not data:
                batch.append((connection, kept))
        if not self._losses:
            self._server.take_output = self._daemon.data_to_send
        return batch

    def fill_quota(self, domid: int, name: bytes = b"nodes") -> None:
        """Have a domain use up a quota: what it has is all that it may have.

        Arguments:
            domid: a domain that is served. Quotas do not bind dom0.
            name: ``b"nodes"``, ``b"watches"`` or ``b"transactions"``.

        Raises:
            InvalidArgument: there is no such domain, or no such quota.
        """
        if name not in _COUNTED:
            raise InvalidArgument(f"name must be one of {', '.join(map(repr, _COUNTED))}: {name!r}")
        with self._locked():
            domain = self._daemon.store.domains.by_id.get(domid)
            if domain is None or domid == 0:
                raise InvalidArgument(f"the store serves no guest with the domain id {domid}")
            self._limits.setdefault(domain, domain.limits)
            # A copy: in Xen 4.17 all domains have one mapping.
            domain.limits = {**domain.limits, name: getattr(domain, _COUNTED[name])}

    def delay(self, seconds: float) -> None:
        """Have the daemon answer late: it waits before it serves the clients that are ready.

        Arguments:
            seconds: how long; 0 for no longer.
        """
        self._check_process()
        self._server.delay(seconds)

    def stall(self) -> None:
        """Have the daemon answer nobody until `clear`. Clients can still connect."""
        self._check_process()
        self._server.delay(math.inf)

    def clear(self) -> None:
        """End all faults."""
        with self._locked():
            self._daemon.store.conflicts = 0
            self._losses.clear()
            self._server.take_output = self._daemon.data_to_send
            for domain, limits in self._limits.items():
                domain.limits = limits
            self._limits.clear()
        self._server.delay(0)
