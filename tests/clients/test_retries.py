"""How long `transact` waits between two attempts, and when it gives up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.in_memory import AsyncMemory, BlockingMemory, Daemon, run
from xsproto.clients import asynchronous, blocking
from xsproto.clients.connection import DEFAULT, ConnectionBase
from xsproto.clients.retries import TRANSACT_SECONDS, WINDOW_MAX, Retries
from xsproto.errors import (
    ConflictError,
    InvalidArgument,
    RetriesExhausted,
    TransactionLost,
    XenStoreError,
)

CONFLICT = ConflictError("conflict")


@given(st.lists(st.tuples(st.floats(0.0001, 10), st.floats(0, 1)), min_size=1, max_size=100))
def test_the_wait_is_random_in_a_window_that_grows(attempts: list[tuple[float, float]]) -> None:
    retries = Retries(None, 0, None, endless=True)
    now = 0.0
    for number, (took, random) in enumerate(attempts, 1):
        wait = retries.wait(CONFLICT, now, now + took, random)
        shortest = min(took for took, _ in attempts[:number])
        assert wait == pytest.approx(random * shortest * min(2**number, WINDOW_MAX), rel=1e-3)
        now += took + wait


def test_a_clock_that_does_not_move_does_not_keep_callers_from_waiting() -> None:
    assert 0 < Retries(None, 5, None).wait(CONFLICT, 5, 5, 1) < 0.001


@given(st.none() | st.floats(0, 50), st.floats(0.2, 5), st.floats(0, 1))
def test_time_is_the_limit(until: float | None, took: float, random: float) -> None:
    """No attempt begins after the limit, and one begins at the limit."""
    limit = TRANSACT_SECONDS if until is None else until
    retries = Retries(None, 0, until)
    now, tried, starts = 0.0, 0, list[float]()
    while True:
        starts.append(now)
        tried += 1
        now += took
        try:
            now += retries.wait(CONFLICT, starts[-1], now, random)
        except RetriesExhausted as error:
            assert f"none of {tried} attempts in {now:.3g} s" in str(error)
            break
    assert max(starts) <= limit * (1 + 1e-9)
    assert now >= limit


@given(st.integers(1, 50))
def test_the_number_is_the_limit_where_it_is_given(attempts: int) -> None:
    retries = Retries(attempts, 0, None)
    now = 0.0
    for _ in range(attempts - 1):
        now += 3600
        now += retries.wait(CONFLICT, now - 3600, now, 1)
    with pytest.raises(RetriesExhausted, match=f"none of {attempts} attempts"):
        retries.wait(CONFLICT, now, now, 1)
    retries = Retries(2, 0, 7)
    with pytest.raises(RetriesExhausted, match="none of 1 attempts in 8 s"):
        retries.wait(CONFLICT, 0, 8, 1)


def test_it_is_told_what_was_lost() -> None:
    retries = Retries(3, 0, None)
    retries.paths.add(b"/a")
    failures: list[XenStoreError] = [CONFLICT, TransactionLost("lost")]
    for failure in failures:
        retries.wait(failure, 0, 0, 0)
    with pytest.raises(RetriesExhausted) as caught:
        retries.wait(CONFLICT, 0, 1, 0)
    assert "2 conflicted with changes by others, 1 were lost" in str(caught.value)
    assert "b'/a'" in str(caught.value)


def test_there_must_be_an_attempt() -> None:
    with pytest.raises(InvalidArgument, match="attempts 0"):
        Retries(0, 0, None)


# The two clients


class Contended:
    """A store in which somebody else changes a node during each transaction."""

    def __init__(self) -> None:
        self.daemon = Daemon(n=b"")
        self.starts: list[float] = []

    def blocking(self) -> BlockingMemory:
        client = BlockingMemory(self.daemon)

        def lose(tx: blocking.Transaction) -> None:
            self.starts.append(client.time)
            client.time += 0.25
            tx.write(b"/mine", b"")
            tx.list(b"/n")
            self.daemon.change(b"/n", b"%d" % len(self.starts))

        self.lose = lose
        return client

    def asynchronous(self) -> AsyncMemory:
        client = AsyncMemory(self.daemon)

        async def lose(tx: asynchronous.Transaction) -> None:
            self.starts.append(client.time)
            client.time += 0.25
            await tx.write(b"/mine", b"")
            await tx.list(b"/n")
            self.daemon.change(b"/n", b"%d" % len(self.starts))

        self.lose_async = lose
        return client


def test_a_blocking_client_gives_up_in_time() -> None:
    contended = Contended()
    client = contended.blocking()
    with pytest.raises(RetriesExhausted, match=r"in 30\.2 s .* used b'/mine', b'/n'"):
        client.transact(contended.lose)
    assert client.slept[:6] == [0.25, 0.5, 1, 2, 4, 8]
    assert contended.starts[-1] == TRANSACT_SECONDS

    client.slept.clear()
    client.time = 0
    with pytest.raises(RetriesExhausted, match=r"in 2\.25 s"):
        client.transact(contended.lose, timeout=2)
    assert contended.starts[-1] == 2
    # Each request of transact has what was left then.
    assert [limit for limit in client.timeouts if limit is not DEFAULT][-1] == 0

    client.time = 0
    with pytest.raises(RetriesExhausted, match="none of 40 attempts"):
        client.transact(contended.lose, timeout=None, attempts=40)
    assert client.time > TRANSACT_SECONDS


def test_an_asynchronous_client_gives_up_in_time() -> None:
    contended = Contended()
    client = contended.asynchronous()
    with pytest.raises(RetriesExhausted, match=r"in 30\.2 s .* used b'/mine', b'/n'"):
        run(client.transact(contended.lose_async))
    assert client.slept[:6] == [0.25, 0.5, 1, 2, 4, 8]
    assert contended.starts[-1] == TRANSACT_SECONDS

    client.time = 0
    with pytest.raises(RetriesExhausted, match="none of 40 attempts"):
        run(client.transact(contended.lose_async, attempts=40))
    assert client.time > TRANSACT_SECONDS


def test_a_client_draws_random_numbers() -> None:
    client = AsyncMemory(Daemon())
    numbers = {ConnectionBase.random(client) for _ in range(10)}
    assert len(numbers) == 10
    assert all(0 <= number <= 1 for number in numbers)
