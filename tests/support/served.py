"""The embedded daemon in memory, as the other end of `tests.support.in_memory`'s clients."""

from __future__ import annotations

from typing import Any

import xsproto
from xsproto import requests as rq
from xsproto.daemon import Daemon as Store

__all__ = ["Served"]


class Served:
    """The embedded daemon, in the place of `in_memory.Daemon`; others change its store."""

    dead = False
    room = None

    def __init__(self) -> None:
        self._store = Store()
        self._connection: Any = self._store.connect()
        self._other: Any = self._store.connect()
        self._out: list[bytes] = []

    @property
    def watches(self) -> dict[Any, Any]:
        watches: dict[Any, Any] = self._connection.caller.watches
        return watches

    def write(self, data: bytes) -> int:
        self._serve(self._connection, data)
        return len(data)

    @property
    def readable(self) -> bool:
        return bool(self._out) or self.dead

    def read(self) -> list[bytes]:
        data, self._out = self._out, []
        return [*data, b""] if self.dead else data

    def do(self, request: rq.Request[Any]) -> None:
        """Do something as somebody else."""
        payload = request.payload()
        self._serve(self._other, xsproto.Packet(request.op, 1, 0, payload).encode())

    def add_domain(self, domid: int) -> None:
        """Create a domain and introduce it, unless that is done."""
        self._store.add_domain(domid)
        self.do(rq.Introduce(domid, 1, 1))

    def remove_domain(self, domid: int) -> None:
        """Destroy a domain, if there is one."""
        if domid in self._store.store.domains.existing:
            self._store.remove_domain(domid)
        self._send()

    def _serve(self, connection: Any, data: bytes) -> None:
        self._store.receive_data(connection, data)
        self._send()

    def _send(self) -> None:
        for to, answers in self._store.data_to_send():
            if to is self._connection:
                self._out.append(answers)
