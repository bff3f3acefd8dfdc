"""Who reads next: every interleaving of a few callers of one `Session`, by a scheduler.

No threads and no sleeping. Actors, each a little program, take their steps in every possible
order; a state that was there before is not explored again. The bounds of the longer explorations
fall with XSPROTO_EXHAUSTIVE=1 in the environment (minutes).
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator
from itertools import permutations
from types import FrameType
from typing import Any

import pytest
from attrs import define, field, frozen

import xsproto.client
import xsproto.clients.event_queue
import xsproto.clients.session
import xsproto.states
from xsproto.client import Exchange
from xsproto.clients.event_queue import EventQueue, WatchEvent
from xsproto.clients.session import Role, Session, Waiter
from xsproto.errors import ConnectionClosed, LocalProtocolError, NotFound
from xsproto.events import Reset
from xsproto.requests import Read, Request, TransactionStart, Watch
from xsproto.wire import HEADER, Op, Packet

EXHAUSTIVE = os.environ.get("XSPROTO_EXHAUSTIVE") == "1"
OK = b"OK\0"
WATCHED = b"/watched"
HUGE = HEADER.pack(Op.READ, 1, 0, 0xFFFFFFFF)

Action = tuple[Any, ...]


# -- the world: a session, its callers, and the peer


@frozen
class Plan:
    """What takes part.

    `actors` has a letter for each: ``r`` waits for a reply, ``e`` and ``f`` for an event; all
    ``e`` share one queue, as do all ``f``. ``p`` waits for nothing, as `pump` and a reader do.
    """

    actors: str
    write_blocked: bool = False  # whether the peer may stop taking bytes, also within a message
    half: bool = False  # whether packets may come in two portions
    subsets: bool = True  # whether several answers may come at once, in any order
    split: bool = False  # whether others may come in between a cancel and its leave
    bound: int | None = None  # transitions


@define(eq=False)
class Actor:
    index: int
    kind: str
    waiter: Waiter = field(factory=Waiter)
    phase: str = "new"
    woken: bool = False
    outcome: str = ""


class World:
    """All state, made anew for each path through it. `steps` says what can happen now."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.session = Session()
        self.actors = [Actor(index, kind) for index, kind in enumerate(plan.actors)]
        self.to_peer = b""  # of a message that the peer does not have whole
        self.begun: list[bytes] = []  # the paths of all requests of which the peer has a byte
        self.pending: dict[bytes, int] = {}  # path -> id, unanswered
        self.rest = b""  # of a packet that the session does not have whole
        self.rest_of = b""  # the path that it answers
        self.arrived: list[Any] = []  # what was put into the inbox since it was empty
        self.write_blocked = False
        self.events = {kind: plan.actors.count(kind) for kind in "ef" if kind in plan.actors}
        self.nonsense = 1
        self.closings = 1
        self.run: Callable[[Callable[[], Any]], Any] = lambda call: call()
        self.told = dict.fromkeys(self.events, 0)
        self.queues = {kind: EventQueue() for kind in self.events}
        for kind, queue in self.queues.items():
            self.session.listen(queue, WATCHED, kind.encode())
            waiter = Waiter()
            self.session.submit(waiter, [Watch(WATCHED, kind.encode())])
            rq_id = waiter.exchanges[0].rq_id
            data = self.session.engine.outgoing()
            self.session.engine.written.append(len(data))
            self.session.inbox.append(Packet(Op.WATCH, rq_id, 0, OK).encode())
            self.session.received()
            assert waiter.done

    # The adapter's part

    def wake(self) -> None:
        to_wake = self.session.to_wake
        while to_wake:
            for actor in self.actors:
                if actor.waiter is to_wake[-1]:
                    actor.woken = True
            to_wake.pop()

    def write(self, limit: int | None = None) -> None:
        """Hand `limit` bytes to the peer, or all."""
        engine = self.session.engine
        while (data := engine.outgoing()) and limit != 0:
            some = bytes(data[:limit])
            engine.written.append(len(some))
            limit = None if limit is None else limit - len(some)
            self.to_peer += some
            self._peer_takes()

    def _peer_takes(self) -> None:
        data = self.to_peer
        while len(data) >= HEADER.size:
            op, rq_id, _, size = HEADER.unpack_from(data)
            body = data[HEADER.size : HEADER.size + size]
            if len(body) < size:
                break
            path = body.rstrip(b"\0")
            if self.begun[-1:] != [path]:
                self.begun.append(path)
            assert op == Op.READ
            assert path not in self.pending
            self.pending[path] = rq_id
            data = data[HEADER.size + size :]
        self.to_peer = data
        if data:
            begun = _outbox_path(self.session, data)
            if self.begun[-1:] != [begun]:
                self.begun.append(begun)

    # What can happen

    def steps(self) -> list[Action]:
        found: list[Action] = []
        closed = self.session.closed is not None
        for actor in self.actors:
            index, phase = actor.index, actor.phase
            if phase == "new":
                if actor.kind == "r":
                    found.append(("submit", index, "all"))
                    if self.plan.write_blocked and not closed:
                        found += [("submit", index, "none"), ("submit", index, "half")]
                else:
                    found.append(("enter", index))
            elif phase == "submitted":
                found.append(("enter", index))
            elif phase == "leading":
                found += [("recv", index, *what) for what in self._receivable(closed)]
                if self.write_blocked and not closed:
                    found.append(("flush", index))
            elif phase == "got":
                found.append(("process", index))
            elif phase == "asleep" and actor.woken:
                found.append(("awake", index))
            elif phase == "took":
                found.append(("take", index))
            elif phase == "cancelled":
                found.append(("leave", index))
            if phase in ("submitted", "leading", "got", "asleep"):
                found.append(("timeout", index))
        if self.closings and not closed:
            found.append(("close", -1))
        return found

    def _receivable(self, closed: bool) -> Iterator[tuple[Any, ...]]:
        yield ("eof",)
        if closed:
            return
        yield ("huge",)
        yield ("reset",)
        if self.rest:
            yield ("rest",)
        pending = sorted(self.pending)
        for size in range(1, len(pending) + 1 if self.plan.subsets else 2):
            for order in permutations(pending, size):
                yield ("answers", order)
        if self.plan.half:
            for path in pending:
                yield ("half", path)
        for kind, left in self.events.items():
            if left:
                yield ("event", kind)
                if pending and self.plan.subsets:
                    yield ("both", kind, tuple(pending))
        if self.nonsense:
            yield ("nonsense",)

    # Steps

    def perform(self, action: Action) -> None:
        name, index, *details = action
        if name == "close":
            self.closings -= 1
            self.run(lambda: self.session.close(ConnectionClosed("closed by hand")))
            self.wake()
            return
        actor = self.actors[index]
        if name == "recv":
            self._receive(actor, *details)
        else:
            getattr(self, f"_{name}")(actor, *details)
        self.wake()

    def _submit(self, actor: Actor, how: str) -> None:
        session = self.session
        actor.waiter = Waiter()
        try:
            self.run(lambda: session.submit(actor.waiter, [Read(_path(actor))]))
        except ConnectionClosed as error:
            assert not error.sent
            assert session.closed is not None
            self.end(actor, "closed")
            return
        self.write_blocked = self.write_blocked or how != "all"
        if how == "half" and _path(actor) not in self.begun and not self.to_peer:
            self.write(10)
        elif not self.write_blocked:
            self.write()
        elif not self.to_peer:
            session.engine.outgoing()
        actor.phase = "submitted"

    def _enter(self, actor: Actor) -> None:
        if actor.kind == "p":
            actor.waiter = Waiter()
        elif actor.kind != "r":
            actor.waiter = Waiter(queue=self.queues[actor.kind])
        role = self.run(lambda: self.session.enter(actor.waiter))
        if role is Role.DONE:
            self._done(actor)
        else:
            actor.phase = "leading" if role is Role.LEAD else "asleep"

    def _receive(self, actor: Actor, what: str, *details: Any) -> None:
        if not self.session.inbox:
            self.arrived = []
        self.arrived.append((self.rest_of, what, details))
        data = self.rest
        self.rest = self.rest_of = b""
        if what == "eof":
            data = b""
        elif what == "huge":
            data += HUGE
        elif what == "nonsense":
            self.nonsense -= 1
            data += Packet(Op.READ, 999, 0, b"to nobody").encode()
            data += Packet(Op.WATCH_EVENT, 0, 0, WATCHED + b"\0no such token\0").encode()
        elif what == "answers":
            data += b"".join([self._answer(path) for path in details[0]])
        elif what == "half":
            data += self._answer(details[0])
            data, self.rest = data[:-5], data[-5:]
            self.rest_of = details[0]
        elif what == "event":
            data += self._event(details[0])
        elif what == "both":
            data += self._event(details[0])
            data += b"".join([self._answer(path) for path in details[1]])
        if what == "reset":
            error = ConnectionClosed("ECONNRESET")
            self.run(lambda: self.session.close(error))
        else:
            self.session.inbox.append(data)
        actor.phase = "got"

    def _answer(self, path: bytes) -> bytes:
        rq_id = self.pending.pop(path)
        if int(path[-1:]) % 2:
            return Packet(Op.ERROR, rq_id, 0, b"ENOENT\0").encode()
        return Packet(Op.READ, rq_id, 0, b"value of " + path).encode()

    def _event(self, kind: str) -> bytes:
        self.events[kind] -= 1
        path = WATCHED + b"/%d" % self.events[kind]
        return Packet(Op.WATCH_EVENT, 0, 0, path + b"\0" + kind.encode() + b"\0").encode()

    def _process(self, actor: Actor) -> None:
        self.run(self.session.received)
        if actor.waiter.done:
            self._done(actor)
        else:
            actor.phase = "leading"

    def _flush(self, actor: Actor) -> None:
        self.write_blocked = False
        self.write()

    def _awake(self, actor: Actor) -> None:
        actor.woken = False
        if actor.waiter.done:
            self._done(actor)
        elif self.session.leads(actor.waiter):
            actor.phase = "leading"

    def _done(self, actor: Actor) -> None:
        assert actor.waiter.done
        self.run(lambda: self.session.leave(actor.waiter))
        if actor.kind == "p":
            assert self.session.closed is not None
            self.end(actor, "closed")
            return
        if actor.kind != "r":
            actor.phase = "took"
            return
        (exchange,) = actor.waiter.exchanges
        try:
            assert exchange.value() == b"value of " + _path(actor)
            assert actor.index % 2 == 0
            self.end(actor, "answered")
        except NotFound as error:
            assert error.path == _path(actor)
            assert actor.index % 2 == 1
            self.end(actor, "refused")
        except ConnectionClosed as error:
            assert self.session.closed is not None
            assert error.sent == (_path(actor) in self.begun)
            assert error.path == _path(actor)
            self.end(actor, "closed")

    def _take(self, actor: Actor) -> None:
        queue = self.queues[actor.kind]
        if queue:
            taken: list[WatchEvent] = []
            queue.take(taken)
            assert taken[0].token == actor.kind.encode()
            self.told[actor.kind] += 1
            self.end(actor, "told")
        elif queue.ended is not None or self.session.closed is not None:
            self.end(actor, "closed")
        else:
            actor.phase = "new"  # another one was faster

    def _timeout(self, actor: Actor) -> None:
        self.give_up(actor)
        if self.plan.split:
            actor.phase = "cancelled"
        else:
            self._leave(actor)

    def give_up(self, actor: Actor) -> None:
        sent = self.run(lambda: self.session.cancel(actor.waiter))
        for exchange in actor.waiter.exchanges:
            assert exchange.answer is not None or exchange.withdrawn or exchange.abandoned
        if actor.kind == "r" and actor.waiter.exchanges:
            # Withdrawn or on its way, an answer that is there already being neither.
            if actor.waiter.exchanges[0].answer is None:
                assert sent == (_path(actor) in self.begun)
        else:
            assert not sent
        if not self.write_blocked:
            self.write()

    def _leave(self, actor: Actor) -> None:
        self.run(lambda: self.session.leave(actor.waiter))
        self.end(actor, "timed out")

    def end(self, actor: Actor, outcome: str) -> None:
        assert actor.outcome == "", "it ended once"
        actor.outcome = outcome
        actor.phase = "ended"
        actor.woken = False

    # Judgement

    def check(self) -> None:
        """The invariant, and that nothing is where it should not be."""
        session = self.session
        inside = [actor for actor in self.actors if actor.phase in ("leading", "got", "asleep")]
        waiting = [actor for actor in inside if not actor.waiter.done]
        leaders = [
            actor
            for actor in self.actors
            if session.leads(actor.waiter) and (actor.phase != "asleep" or actor.woken)
        ]
        assert not session.to_wake, "all were woken"
        if waiting:
            assert len(leaders) == 1, "somebody waits, and nobody reads"
        for actor in inside:
            if actor.phase == "asleep":
                assert actor.woken or not actor.waiter.done, "it is done, and sleeps on"
                assert actor.woken or actor.waiter in session._waiting, "nobody would wake it"
            else:
                assert session.leads(actor.waiter), "two read"
            if actor.phase == "leading" and session.closed is None:
                assert not actor.waiter.done, "it is done, and reads on"
        assert session.waiting == len(session._waiting)
        leaving = [actor for actor in self.actors if actor.phase == "cancelled"]
        known = {id(actor.waiter) for actor in (*inside, *leaving)}
        left_over = [waiter for waiter in session._waiting if id(waiter) not in known]
        assert not left_over, "one who left is still waited for"
        if session.leader is not None:
            assert id(session.leader) in known, "a ghost leads"
            assert session.leader not in session._waiting, "the leader waits as well"
        if session.closed is not None:
            assert not waiting, "after the end, all are done"
        for kind, queue in self.queues.items():
            assert {id(waiter) for waiter in queue.waiters} <= known
            if session.closed is None and not session.inbox:
                fired = self.plan.actors.count(kind) - self.events[kind]
                # (Twice the same after an interrupt.)
                assert self.told[kind] + len(queue) >= fired, "an event was lost"

    def check_end(self) -> None:
        assert all(actor.phase == "ended" for actor in self.actors)
        assert self.session.leader is None
        assert not self.session._waiting
        assert not self.session.to_wake
        for queue in self.queues.values():
            assert not queue.waiters

    def state(self) -> tuple[Any, ...]:
        """All that the future depends on. Request ids are no part of it."""
        session = self.session
        number = {id(actor.waiter): actor.index for actor in self.actors}
        return (
            tuple(
                (
                    actor.phase,
                    actor.woken,
                    actor.waiter.done,
                    [
                        (exchange.answer is not None, exchange.abandoned, exchange.withdrawn)
                        for exchange in actor.waiter.exchanges
                    ],
                    _path(actor) in self.begun,
                )
                if actor.phase != "ended"
                else ()
                for actor in self.actors
            ),
            None if session.leader is None else number.get(id(session.leader), -1),
            [number.get(id(waiter), -1) for waiter in session._waiting],
            self.arrived if session.inbox else (),
            [
                (list(queue._events), queue.ended is None, len(queue.waiters))
                for queue in self.queues.values()
            ],
            (
                self.rest_of,
                _outbox_of(session),
                sorted(self.pending),
                self.write_blocked,
                self.events,
                self.told,
                self.nonsense,
                self.closings,
            )
            if session.closed is None
            else (),
        )


def _path(actor: Actor) -> bytes:
    return b"/reply/%d" % actor.index


def _path_of(exchange: Exchange) -> bytes:
    path: bytes = getattr(exchange.request, "path")  # noqa: B009 - not every request has one
    return path


def _outbox_of(session: Session) -> tuple[Any, ...]:
    batch, _, written, queue, head = session.engine._outbox
    return (
        tuple(_path_of(exchange) for exchange in batch),
        sum(written),
        tuple((_path_of(exchange), exchange.withdrawn) for exchange in queue[head:]),
    )


def _outbox_path(session: Session, data: bytes) -> bytes:
    """The path of the message that begins with `data`."""
    for exchange in session.engine._outbox[0]:
        if exchange.message.startswith(data):
            return _path_of(exchange)
    raise AssertionError(f"{data!r} begins no message")


# -- the scheduler


@define
class Explored:
    states: int = 0
    transitions: int = 0
    outcomes: set[tuple[str, str]] = field(factory=set)  # kind of actor, how it ended


def replay(plan: Plan, path: tuple[Action, ...]) -> World:
    world = World(plan)
    for action in path:
        world.perform(action)
    return world


Visit = Callable[[tuple[Action, ...], list[Action]], None]


def explore(plan: Plan, visit: Visit | None = None) -> Explored:
    """Take every path. `visit` is told of each new state how to get there, and what can follow."""
    explored = Explored()
    seen: set[str] = set()
    dice = random.Random(0)
    paths: list[tuple[Action, ...]] = [()]
    while paths:
        if plan.bound is not None:
            # What is left out is left out evenly.
            chosen = dice.randrange(len(paths))
            paths[chosen], paths[-1] = paths[-1], paths[chosen]
        path = paths.pop()
        world = replay(plan, path[:-1])
        if path:
            take(world, path)
        while True:
            # Down the last branch without a replay; the others wait their turn.
            explored.transitions += 1
            state = repr(world.state())
            explored.outcomes |= {(a.kind, a.outcome) for a in world.actors if a.outcome}
            if state in seen:
                break
            seen.add(state)
            steps = world.steps()
            if plan.bound is not None:
                dice.shuffle(steps)
            if visit is not None:
                visit(path, steps)
            if all(actor.phase == "ended" for actor in world.actors):
                world.check_end()
                break
            # Time-outs and a close do not count: who is forgotten has nothing else left.
            live = [step for step in steps if step[0] not in ("timeout", "close")]
            assert live, f"nobody can go on after {path}"
            if plan.bound is not None and explored.transitions > plan.bound and not EXHAUSTIVE:
                explored.states = len(seen)
                return explored
            paths += [(*path, step) for step in steps[:-1]]
            path = (*path, steps[-1])
            take(world, path)
    explored.states = len(seen)
    return explored


def take(world: World, path: tuple[Action, ...]) -> None:
    world.perform(path[-1])
    check(world, path)


def check(world: World, path: tuple[Action, ...]) -> None:
    try:
        world.check()
    except AssertionError as error:
        steps = "\n".join(f"  {number}. {step}" for number, step in enumerate(path, 1))
        raise AssertionError(f"{error}; after\n{steps}") from error


# -- an exception at every line


class Interrupt(BaseException):
    """As a signal handler would raise."""


FILES = {
    module.__file__
    for module in (
        xsproto.clients.session,
        xsproto.client,
        xsproto.states,
        xsproto.clients.event_queue,
    )
}


def interrupted_at(nth: int, call: Callable[[], Any]) -> Any:
    """Make a call, with an exception before the `nth` line of those files that it comes to."""
    lines = 0

    def on_line(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal lines
        if event == "line":
            lines += 1
            if lines == nth:
                raise Interrupt(f"at {frame.f_code.co_name}, line {frame.f_lineno}")
        return on_line

    def on_call(frame: FrameType, event: str, argument: Any) -> Any:
        return on_line if frame.f_code.co_filename in FILES else None

    before = sys.gettrace()
    sys.settrace(on_call)
    try:
        return call()
    finally:
        sys.settrace(before)


def finish(world: World, path: tuple[Action, ...], ending: str) -> None:
    """Have the peer answer all, or end the connection, and see that everybody ends."""
    wishes: tuple[str, ...] = ("rest", "answers", "event") if ending == "answers" else ("eof",)

    def rank(step: Action) -> tuple[int, int]:
        what = step[2] if len(step) > 2 and step[0] == "recv" else None
        if what is not None:
            return (1 + wishes.index(what), -len(str(step))) if what in wishes else (99, 0)
        return (99, 0) if step[0] in ("timeout", "close") else (0, 0)

    while any(actor.phase != "ended" for actor in world.actors):
        steps = sorted(world.steps(), key=rank)
        if world.session.closed is not None:
            steps = [step for step in steps if step[0] not in ("timeout", "close")]
        elif rank(steps[0])[0] == 99:
            # Only those who wait for nothing are left.
            assert {a.kind for a in world.actors if a.phase != "ended"} == {"p"}, path
            wishes = ("eof",)
            continue
        path = (*path, steps[0])
        take(world, path)
    world.check_end()


def interrupt_each(plan: Plan, every: int = 1, second: bool = False) -> int:
    """Interrupt each step of every `every`-th state at each line; return how often that was.

    With `second`, the clean-up is interrupted once as well, and done again.
    """
    count = 0
    dice = random.Random(0)
    finished: set[str] = set()

    def interrupt(path: tuple[Action, ...], step: Action) -> None:
        nonlocal count
        nth = 1
        again = 1 if second else 0
        while True:
            world = replay(plan, path)
            hit, hit_again = interrupt_one(world, step, nth, again)
            if not hit:
                return
            count += 1
            where = (*path, (*step, f"interrupted {hit}, {hit_again}"))
            check(world, where)
            state = repr(world.state())
            if state not in finished:
                finished.add(state)
                finish(world, where, "eof")
                if step[0] != "close" and "reset" not in step:
                    world = replay(plan, path)
                    interrupt_one(world, step, nth, again)
                    finish(world, where, "answers")
            if hit_again:
                again += 1
            else:
                nth += 1
                again = 1 if second else 0

    def visit(path: tuple[Action, ...], steps: list[Action]) -> None:
        for step in steps:
            if step[0] not in ("flush", "take") and (EXHAUSTIVE or not dice.randrange(every)):
                interrupt(path, step)

    explore(plan, visit)
    return count


def interrupt_one(world: World, step: Action, nth: int, again: int) -> tuple[str, str]:
    """Where the step was interrupted, and then its clean-up; empty if it was not."""
    world.run = lambda call: interrupted_at(nth, call)
    try:
        world.perform(step)
    except Interrupt as interrupt:
        hit = str(interrupt)
    else:
        return "", ""
    finally:
        world.run = lambda call: call()
    actor = world.actors[step[1]]
    session = world.session
    hit_again = ""

    def clean_up() -> None:
        if step[0] == "close":
            session.close(ConnectionClosed("closed by hand"))
        else:
            session.cancel(actor.waiter)
            session.leave(actor.waiter)

    try:
        interrupted_at(again, clean_up)
    except Interrupt as interrupt:
        hit_again = str(interrupt)
        clean_up()
    world.wake()
    if not world.write_blocked:
        world.write()
    if step[0] != "close":
        world.end(actor, "interrupted")
    return hit, hit_again


# -- the tests

# Without coverage, which would take four times as long and finds no more than the other tests.
in_the_background = pytest.mark.environment("plain", "interleavings")
ALL = {"write_blocked": True, "half": True, "split": True}


@in_the_background
@pytest.mark.parametrize(
    "plan",
    [
        Plan("rr", **ALL),
        Plan("rp", **ALL),
        Plan("re", **ALL),
        Plan("ee", **ALL),
        Plan("ef", **ALL),
        Plan("rrr", subsets=False),
        Plan("rre", subsets=False),
        Plan("ref", subsets=False),
        Plan("ree"),
        Plan("rep", subsets=False),
        Plan("eee"),
        Plan("eef"),
        Plan("rrr", subsets=False, bound=5_000, **ALL),
        Plan("ref", subsets=False, bound=5_000, **ALL),
        Plan("rrrr", subsets=False, bound=4_000),
        Plan("rref", subsets=False, bound=4_000),
        Plan("rree", subsets=False, bound=4_000),
        Plan("reee", subsets=False, bound=4_000),
        Plan("eeff", subsets=False, bound=4_000),
    ],
    ids=str,
)
def test_every_order_of_steps_ends_well(plan: Plan) -> None:
    explored = explore(plan)
    success = {"r": {"answered"}, "e": {"told"}, "f": {"told"}, "p": set()}
    for kind in set(plan.actors):
        seen = {outcome for of, outcome in explored.outcomes if of == kind}
        assert success[kind] | {"timed out", "closed"} <= seen, "there is no other way to end"


@in_the_background
@pytest.mark.parametrize(
    ("plan", "every"),
    [
        (Plan("rr"), 12),
        (Plan("re"), 8),
        (Plan("ee"), 5),
        (Plan("rrp", subsets=False, bound=2_000), 40),
        (Plan("ree", subsets=False, bound=2_000), 40),
        (Plan("rr", bound=2_000, **ALL), 40),
    ],
    ids=str,
)
def test_an_interrupt_at_any_line_harms_nobody_else(plan: Plan, every: int) -> None:
    assert interrupt_each(plan, every) > 300


@in_the_background
@pytest.mark.parametrize(
    ("plan", "every"),
    [(Plan("rr"), 1_000), (Plan("re"), 600), (Plan("ee"), 400)],
    ids=str,
)
def test_nor_does_one_upon_another(plan: Plan, every: int) -> None:
    assert interrupt_each(plan, every, second=True) > 300


# -- single cases


def test_what_moves_the_state_of_the_connection_cannot_be_part_of_a_batch() -> None:
    session = Session()
    movers: list[Request[Any]] = [TransactionStart(), Watch(b"/a", b"token")]
    for request in movers:
        with pytest.raises(LocalProtocolError, match="cannot be part of a batch"):
            session.submit(Waiter(), [Read(b"/a"), request])
    assert not session.engine.has_unsent


def test_a_batch_is_done_with_its_last_answer_in_whichever_order_they_come() -> None:
    session = Session()
    waiter = Waiter()
    session.submit(waiter, [Read(b"/%d" % at) for at in range(3)])
    session.engine.written.append(len(session.engine.outgoing()))
    session.enter(waiter)
    for exchange in reversed(waiter.exchanges):
        assert not waiter.done
        session.inbox.append(Packet(Op.READ, exchange.rq_id, 0, b"").encode())
        session.received()
    assert waiter.done


def test_what_is_cancelled_twice_is_withdrawn_once() -> None:
    session, waiter = Session(), Waiter()
    session.submit(waiter, [Read(b"/a"), Read(b"/b")])
    assert not session.cancel(waiter)
    assert not session.cancel(waiter)
    assert not session.engine.has_unsent


def test_events_of_one_token_go_to_whoever_watches_their_path() -> None:
    session = Session()
    queues = {path: EventQueue() for path in (b"/a", b"/b")}
    for path, queue in queues.items():
        session.listen(queue, path, b"token")
    session.inbox.append(Packet(Op.WATCH_EVENT, 0, 0, b"/b/c\0token\0").encode())
    session.received()
    assert [len(queue) for queue in queues.values()] == [0, 1]


def test_who_listens_to_the_rest_gets_what_nobody_listens_for_and_the_end() -> None:
    session = Session()
    watching, rest = EventQueue(), EventQueue()
    session.listen(watching, b"/a", b"token")
    session.listen_to_rest(rest)
    rest.watches.add((b"/", b"other"))  # so that it is not ready for want of watches
    for payload in (b"/a\0token\0", b"/b\0token\0", b"@c\0other\0"):
        session.inbox.append(Packet(Op.WATCH_EVENT, 0, 0, payload).encode())
    session.received()
    taken: list[WatchEvent] = []
    rest.take(taken)
    assert (len(watching), taken, len(rest)) == (1, [WatchEvent(b"@c", b"other")], 0)
    assert session.events_waiting
    session.close(ConnectionClosed("over"))
    assert isinstance(rest.ended, ConnectionClosed)


def test_a_reset_ends_every_watch_that_was_set_and_no_other() -> None:
    session = Session()
    queues = {path: EventQueue() for path in (b"/a", b"/b")}
    for path, queue in queues.items():
        session.listen(queue, path, b"token")
    session._take(Reset(((b"/b", b"token"),), ()))
    assert queues[b"/a"].ended is None
    assert isinstance(queues[b"/b"].ended, ConnectionClosed)
