"""The tables of `xsproto.states`: they are whole, and a `ClientConnection` moves by them."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import pytest
from attrs import define
from hypothesis import given
from hypothesis import strategies as st

from xsproto.client import ClientConnection, Exchange
from xsproto.errors import AlreadyExists, TransactionEnded, TransactionLost
from xsproto.events import Reset
from xsproto.requests import (
    Read,
    Request,
    ResetWatches,
    TransactionEnd,
    TransactionStart,
    Unwatch,
    Watch,
)
from xsproto.states import (
    HELD,
    TRANSACTION,
    WATCH,
    ImpossibleMove,
    TransactionInput,
    TransactionState,
    WatchInput,
    WatchState,
    next_state,
)
from xsproto.wire import Op, Packet

PATH, TOKEN = b"/a", b"token"
WATCHED, UNWATCHED = Watch(PATH, TOKEN), Unwatch(PATH, TOKEN)
TX = 7

# The tables by themselves

Table = Mapping[tuple[StrEnum, StrEnum], StrEnum]
TABLES = pytest.mark.parametrize(
    ("table", "states", "inputs", "first"),
    [
        (TRANSACTION, TransactionState, TransactionInput, TransactionState.STARTED),
        (WATCH, WatchState, WatchInput, WatchState.UNSET),
    ],
    ids=["transactions", "watches"],
)


@TABLES
def test_each_state_is_reached_and_each_input_used(
    table: Table, states: type[StrEnum], inputs: type[StrEnum], first: StrEnum
) -> None:
    reached, waiting = {first}, [first]
    while waiting:
        state = waiting.pop()
        new = {to for (before, _), to in table.items() if before is state} - reached
        reached |= new
        waiting += new
    assert reached == {*states}
    assert {happens for _, happens in table} == {*inputs}


@TABLES
def test_keys_and_values_are_members_of_the_enumerations(
    table: Table, states: type[StrEnum], inputs: type[StrEnum], first: StrEnum
) -> None:
    for (state, happens), to in table.items():
        assert (type(state), type(happens), type(to)) == (states, inputs, states)


def test_a_transaction_ends_once_and_from_every_state() -> None:
    final = {*TransactionState} - {state for state, _ in TRANSACTION}
    assert final == {TransactionState.ENDED}
    for state in {*TransactionState} - final:
        assert TRANSACTION[state, TransactionInput.ANSWER] is TransactionState.ENDED


def test_callers_alone_can_ask_for_what_a_transaction_lacks() -> None:
    """The other inputs come from the daemon, or from callers that give up: at any time."""
    of_callers = {TransactionInput.USE, TransactionInput.COMMIT, TransactionInput.ROLLBACK}
    for state in {*TransactionState} - {TransactionState.ENDED}:
        lacking = {happens for happens in TransactionInput if (state, happens) not in TRANSACTION}
        assert lacking <= of_callers


def test_a_watch_is_moved_by_a_request_and_then_by_its_end() -> None:
    ends = {WatchInput.ANSWER, WatchInput.REFUSAL, WatchInput.WITHDRAW}
    at_rest = {WatchState.UNSET, WatchState.SET}
    for state in WatchState:
        taken = {happens for happens in WatchInput if (state, happens) in WATCH}
        if state in at_rest:
            assert not taken & ends
            begun = {WATCH[state, happens] for happens in taken - {WatchInput.RESET}}
            assert len(begun) == 2, "a WATCH and an UNWATCH can come to the head of the line"
            assert not begun & at_rest
        else:
            assert ends <= taken <= ends | {WatchInput.RESET}
            assert {WATCH[state, end] for end in ends} <= at_rest


def test_a_request_that_is_withdrawn_leaves_a_watch_as_it_was() -> None:
    for (before, happens), state in WATCH.items():
        if (state, WatchInput.WITHDRAW) in WATCH and before in (WatchState.UNSET, WatchState.SET):
            assert WATCH[state, WatchInput.WITHDRAW] is before, happens


def test_a_reset_reaches_the_watches_that_the_daemon_has() -> None:
    assert {state for state, happens in WATCH if happens is WatchInput.RESET} == HELD
    for state in HELD:
        assert WATCH[state, WatchInput.RESET] not in HELD


@TABLES
def test_a_move_that_the_table_lacks_is_an_error(
    table: Table, states: type[StrEnum], inputs: type[StrEnum], first: StrEnum
) -> None:
    for state in states:
        for happens in inputs:
            if (state, happens) in table:
                assert next_state(table, state, happens) is table[state, happens]
            else:
                with pytest.raises(ImpossibleMove, match="a bug in xsproto") as caught:
                    next_state(table, state, happens)
                assert repr(state) in str(caught.value)
                assert repr(happens) in str(caught.value)


# Transactions: a connection makes the moves of the table, and no other

OPEN = {*TransactionState} - {TransactionState.ENDED}


class Transactions:
    """A connection, and one transaction id that its daemon gives again and again.

    The starts and resets are sent first, so that the daemon can answer one at any time. `state` is
    moved by the table. After each step the connection must agree with it.
    """

    def __init__(self) -> None:
        self.client = ClientConnection()
        self.starts = [self.client.send(TransactionStart()) for _ in range(9)]
        self.resets = [self.client.send(ResetWatches()) for _ in range(9)]
        self.client.data_to_send()
        self.requests: list[Exchange] = []  # in the transaction
        self.state = TransactionState.ENDED
        self.moves: list[tuple[TransactionState, TransactionInput]] = []

    def go(self, *steps: str) -> None:
        for step in steps:
            getattr(self, f"do_{step}")()
            assert dict(self.client.transactions) == (
                {TX: self.state} if self.state in OPEN else {}
            )

    def move(self, happens: TransactionInput) -> None:
        self.moves.append((self.state, happens))
        self.state = TRANSACTION[self.state, happens]

    def reply(self, exchange: Exchange, payload: bytes, op: int | None = None) -> None:
        packet = Packet(exchange.request.op if op is None else op, exchange.id, 0, payload)
        self.client.receive_data(packet.encode())
        self.client.events_received()

    def do_start(self) -> None:
        if not self.starts:
            return
        self.reply(self.starts.pop(), b"%d\0" % TX)
        if self.state in OPEN:
            self.move(TransactionInput.FORGET)
        else:
            self.state = TransactionState.STARTED

    def do_reset(self) -> None:
        if self.resets:
            self.reply(self.resets.pop(), b"OK\0")
            self.state = TransactionState.ENDED

    def ask(self, request: Request[Any], happens: TransactionInput) -> None:
        if (self.state, happens) in TRANSACTION:
            self.requests.append(self.client.send(request, TX))
            self.move(happens)
            return
        lost = self.state is TransactionState.LOST
        with pytest.raises(TransactionLost if lost else TransactionEnded):
            self.client.send(request, TX)

    def do_use(self) -> None:
        self.ask(Read(b"/a"), TransactionInput.USE)

    def do_commit(self) -> None:
        self.ask(TransactionEnd(commit=True), TransactionInput.COMMIT)

    def do_rollback(self) -> None:
        self.ask(TransactionEnd(commit=False), TransactionInput.ROLLBACK)

    def do_write(self) -> None:
        self.client.data_to_send()

    def do_abandon(self) -> None:
        """Give up the latest request that has no answer."""
        for exchange in reversed(self.requests):
            if exchange.answer is None and not (exchange.abandoned or exchange.withdrawn):
                self.client.abandon(exchange)
                if self.state in OPEN:
                    self.move(TransactionInput.ABANDON)
                return

    def ends(self) -> list[Exchange]:
        """The ends that have none themselves."""
        return [
            one
            for one in self.requests
            if one.request.op == Op.TRANSACTION_END and one.answer is None and not one.withdrawn
        ]

    def do_withdraw(self) -> None:
        """Withdraw the latest end, if it is unsent."""
        for exchange in self.ends()[-1:]:
            if self.client.withdraw(exchange) and self.state in OPEN:
                self.move(TransactionInput.WITHDRAW)

    def answer(self, payload: bytes, op: int) -> None:
        self.client.data_to_send()
        for exchange in self.ends()[:1]:
            self.reply(exchange, payload, op)
            if self.state in OPEN:
                self.move(TransactionInput.ANSWER)

    def do_answer(self) -> None:
        """Answer the first end."""
        self.answer(b"OK\0", Op.TRANSACTION_END)

    def do_refuse(self) -> None:
        self.answer(b"EAGAIN\0", Op.ERROR)

    def do_nonsense(self) -> None:
        self.answer(b"nonsense", Op.TRANSACTION_END)


STEPS = [name.removeprefix("do_") for name in vars(Transactions) if name.startswith("do_")]


@given(st.lists(st.sampled_from(STEPS), max_size=30))
def test_transactions_do_what_the_table_says(steps: list[str]) -> None:
    Transactions().go(*steps)


#: Steps to each state of a transaction, with a request in it that is unanswered.
TO_TRANSACTION: Mapping[TransactionState, list[str]] = {
    TransactionState.STARTED: ["start", "use"],
    TransactionState.DOOMED: ["start", "use", "use", "abandon"],
    TransactionState.LOST: ["start", "use", "start"],
    TransactionState.ENDING: ["start", "use", "commit"],
    TransactionState.ENDING_LOST: ["start", "use", "commit", "start"],
}


@pytest.mark.parametrize(("state", "happens"), TRANSACTION)
def test_a_connection_makes_each_move_of_a_transaction(
    state: TransactionState, happens: TransactionInput
) -> None:
    transactions = Transactions()
    # The end of an earlier transaction with this id is there, to be withdrawn and answered.
    transactions.go("start", "commit", "reset", *TO_TRANSACTION[state])
    assert transactions.state is state
    transactions.go("start" if happens is TransactionInput.FORGET else happens)
    assert transactions.moves[-1] == (state, happens)


@pytest.mark.parametrize("last", ["abandon", "withdraw", "answer", "refuse"])
def test_an_input_for_a_transaction_that_has_ended_moves_nothing(last: str) -> None:
    transactions = Transactions()
    transactions.go("start", "use", "commit", "reset")
    moves = [*transactions.moves]
    transactions.go(last)
    assert transactions.moves == moves
    assert not transactions.client.transactions


def test_an_end_that_is_queued_twice_is_a_bug_and_not_a_guess() -> None:
    transactions = Transactions()
    transactions.go("start")
    client = transactions.client
    end = client.send(TransactionEnd(commit=True), TX)
    with pytest.raises(ImpossibleMove, match=r"COMMIT.*TransactionState\.ENDING"):
        client._begin(end)
    assert dict(client.transactions) == {TX: TransactionState.ENDING}


# Watches: the table and the line agree with a plain record of the requests that took effect


@define
class Asked:
    """A WATCH or UNWATCH, and how it ended: None, True, False or "withdrawn"."""

    exchange: Exchange
    end: bool | str | None = None

    @property
    def sets(self) -> bool:
        return self.exchange.request.op == Op.WATCH


class Watches:
    """A connection and one watch, with a record of its requests that uses no table.

    `held` is whether the daemon has the watch after the requests before `waiting`.
    """

    def __init__(self) -> None:
        self.client = ClientConnection()
        self.resets = [self.client.send(ResetWatches()) for _ in range(9)]
        self.client.data_to_send()
        self.waiting: list[Asked] = []
        self.held = False

    def go(self, *steps: tuple[str, int] | str) -> None:
        for step in steps:
            name, which = (step, 0) if isinstance(step, str) else step
            getattr(self, f"do_{name}")(which)
            while self.waiting and self.waiting[0].end is not None:
                first = self.waiting.pop(0)
                if first.end != "withdrawn" and (first.end or not first.sets):
                    self.held = first.sets
            assert self.client.watch_state(PATH, TOKEN) is self.shown
            known = {} if self.shown is WatchState.UNSET else {(PATH, TOKEN): self.shown}
            assert self.client.watches == known
            assert bool(self.client._watches) == bool(known), "an unset watch is forgotten"

    @property
    def shown(self) -> WatchState:
        for last in reversed(self.waiting):
            if last.end != "withdrawn":
                return WatchState.SETTING if last.sets else WatchState.UNSETTING
        return WatchState.SET if self.held else WatchState.UNSET

    @property
    def state(self) -> WatchState:
        """The state that the connection keeps, of the request at the head of the line."""
        watched = self.client._watches.get(TOKEN, {}).get(PATH)
        return WatchState.UNSET if watched is None else watched.state

    def do_watch(self, which: int) -> None:
        if self.shown in (WatchState.SETTING, WatchState.SET):
            with pytest.raises(AlreadyExists):
                self.client.send(WATCHED)
        else:
            self.waiting.append(Asked(self.client.send(WATCHED)))

    def do_unwatch(self, which: int) -> None:
        self.waiting.append(Asked(self.client.send(UNWATCHED)))

    def do_write(self, which: int) -> None:
        self.client.data_to_send()

    def pick(self, which: int) -> list[Asked]:
        """One of the requests that have not ended, if there are any."""
        choice = [asked for asked in self.waiting if asked.end is None]
        return [choice[which % len(choice)]] if choice else []

    def do_withdraw(self, which: int) -> None:
        for asked in self.pick(which):
            if self.client.withdraw(asked.exchange):
                asked.end = "withdrawn"

    def answer(self, which: int, payload: bytes, *, op: int | None = None) -> None:
        self.client.data_to_send()
        for asked in self.pick(which):
            exchange = asked.exchange
            packet = Packet(exchange.request.op if op is None else op, exchange.id, 0, payload)
            self.client.receive_data(packet.encode())
            asked.end = op != Op.ERROR  # an answer without a value may have any payload

    def do_answer(self, which: int) -> None:
        self.answer(which, b"OK\0")

    def do_refusal(self, which: int) -> None:
        self.answer(which, b"EEXIST\0", op=Op.ERROR)

    def do_nonsense(self, which: int) -> None:
        self.answer(which, b"nonsense")

    def do_reset(self, which: int) -> None:
        if self.resets:
            self.client.events_received()
            reset = Packet(Op.RESET_WATCHES, self.resets.pop().id, 0, b"OK\0")
            self.client.receive_data(reset.encode())
            assert self.client.events_received()[0] == Reset(((PATH, TOKEN),) * self.held, ())
            self.held = False


WATCH_STEPS = st.tuples(
    st.sampled_from([name.removeprefix("do_") for name in vars(Watches) if name[:3] == "do_"]),
    st.integers(0, 9),
)


@given(st.lists(WATCH_STEPS, max_size=40))
def test_watches_agree_with_the_requests_that_took_effect(steps: list[tuple[str, int]]) -> None:
    watches = Watches()
    watches.go(*steps)
    watches.go(*["answer"] * len(watches.waiting))
    assert watches.state is (WatchState.SET if watches.held else WatchState.UNSET)


#: Steps to each state of a watch.
TO_WATCH: Mapping[WatchState, list[str]] = {
    WatchState.UNSET: [],
    WatchState.SETTING: ["watch"],
    WatchState.SET: ["watch", "answer"],
    WatchState.UNSETTING: ["watch", "answer", "unwatch"],
    WatchState.SETTING_AGAIN: ["watch", "answer", "unwatch", "watch", "withdraw"],
    WatchState.UNSETTING_NOTHING: ["unwatch"],
}


@pytest.mark.parametrize(("state", "happens"), WATCH)
def test_a_connection_makes_each_move_of_a_watch(state: WatchState, happens: WatchInput) -> None:
    watches = Watches()
    watches.go(*TO_WATCH[state])
    assert watches.state is state
    if happens is WatchInput.WATCH_AGAIN:
        watches.go("unwatch", "watch", "withdraw")
    else:
        watches.go(happens)
    assert watches.state is WATCH[state, happens]


def test_a_watch_that_was_asked_for_again_is_set_whatever_the_daemon_says() -> None:
    """The daemon has the watch: the UNWATCH was withdrawn, so it refuses the second WATCH."""
    watches = Watches()
    watches.go("watch", "answer", "unwatch", "watch", "withdraw")
    assert watches.shown is WatchState.SETTING
    watches.go("refusal")
    assert watches.client.watches == {(PATH, TOKEN): WatchState.SET}


def test_requests_behind_the_head_of_the_line_take_effect_in_their_turn() -> None:
    watches = Watches()
    watches.go("watch", "unwatch", "watch", ("answer", 2), ("answer", 1))
    states = [watches.state]
    watches.go("answer")
    assert [*states, watches.state] == [WatchState.SETTING, WatchState.SET]
