"""What a second interrupt leaves to `ConnectionBase.defer`, on connections that are told to fail.

`test_interrupts` tries all of it on real connections, in the background.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from xsproto.clients.blocking import Transaction
from xsproto.clients.connection import ConnectionBase
from xsproto.clients.session import Session, Waiter
from xsproto.errors import ConnectionClosed, LocalProtocolError
from xsproto.requests import TransactionEnd, TransactionStart
from xsproto.wire import Op, Packet, PacketReader


class Interrupt(BaseException):
    pass


class Connection(ConnectionBase):
    """A connection whose steps are interrupted."""

    def __init__(self) -> None:
        self.session = Session()
        self.deferred: list[Callable[..., object]] = []

    def flush(self) -> None:
        raise Interrupt

    def now(self) -> float:
        raise NotImplementedError

    def defer(self, function: Callable[..., object], arguments: tuple[Any, ...]) -> object:
        self.deferred.append(function)
        return super().defer(function, arguments)


def test_an_interrupted_step_ends_the_connection() -> None:
    connection = Connection()
    with pytest.raises(Interrupt):
        connection.abandon(Waiter())
    assert len(connection.deferred) == 1
    assert isinstance(connection.session.closed, ConnectionClosed)
    assert "interrupted its bookkeeping" in str(connection.session.closed)
    assert not connection.session.changing


def test_a_rollback_may_find_that_another_threads_clean_up_was_faster() -> None:
    class Calm(Connection):
        def flush(self) -> None:
            pass

    class Lock:
        """Held by a clean-up, which rolls back, until it is taken."""

        def __enter__(self) -> None:
            session.post(TransactionEnd(commit=False), 7)

        def __exit__(self, *_: object) -> None:
            pass

    connection = Calm()
    session = connection.session
    start = session.engine.send(TransactionStart())
    session.engine.data_to_send()
    session.received(Packet(Op.TRANSACTION_START, start.id, 0, b"7\0").encode())
    connection.guard = Lock()
    connection.roll_back(7)
    packets = PacketReader().receive_data(session.engine.data_to_send())
    assert [packet.op for packet in packets] == [Op.TRANSACTION_END]


class Clock:
    endless = True

    def deadline_for(self, timeout: Any) -> None: ...


class Blocking:
    """A blocking connection whose calls are interrupted; `interrupts` counts the clean-ups."""

    clock = Clock()

    def __init__(self) -> None:
        self.interrupts = 1
        self.cleaned: list[str] = []

    def exchange(self, request: Any, tx_id: int, deadline: None, waiter: Waiter) -> Any:
        waiter.exchanges = (object(),)  # type: ignore[assignment]
        raise Interrupt

    def _clean(self, what: str) -> None:
        if self.interrupts:
            self.interrupts -= 1
            raise Interrupt
        self.cleaned.append(what)

    def abandon(self, waiter: Waiter) -> None:
        self._clean("abandon")

    def roll_back(self, tx_id: int) -> None:
        self._clean("roll_back")

    def defer(self, function: Callable[..., object], arguments: tuple[Any, ...]) -> object:
        return function(*arguments)


def test_a_transaction_whose_start_is_interrupted_twice_is_abandoned() -> None:
    connection: Any = Blocking()
    with pytest.raises(Interrupt), Transaction(connection):
        pytest.fail("it has started")
    assert connection.cleaned == ["abandon"]


def test_a_transaction_whose_rollback_is_interrupted_is_rolled_back() -> None:
    connection: Any = Blocking()
    connection.interrupts = 2
    transaction = Transaction(connection)
    with pytest.raises(Interrupt):
        transaction.__exit__(ValueError, ValueError(), None)
    assert connection.cleaned == ["roll_back"]
    transaction._entered = True  # else its end would warn


def test_a_rollback_from_a_wrong_place_is_refused_once() -> None:
    class Elsewhere(Blocking):
        refusals = 0

        def roll_back(self, tx_id: int) -> None:
            self.refusals += 1
            raise LocalProtocolError("this is another loop")

        def defer(self, function: Callable[..., object], arguments: tuple[Any, ...]) -> object:
            pytest.fail("a refusal is no interrupt")

    connection: Any = Elsewhere()
    transaction = Transaction(connection)
    with pytest.raises(LocalProtocolError, match="another loop"):
        transaction.__exit__(ValueError, ValueError(), None)
    assert connection.refusals == 2  # the second time in the clean-up of the first
    transaction._entered = True
