"""Who reads next: every interleaving of a few callers of one `Session`, by a scheduler.

No threads and no sleeping. Actors, each a little program, take their steps in every possible
order; a state that was there before is not explored again. The bounds of the longer explorations
fall with XSPROTO_EXHAUSTIVE=1 in the environment (minutes).
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator, Sequence
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
from xsproto.clients.session import Role, Session, Wait, Waiter
from xsproto.errors import ConnectionClosed, InvalidArgument, LocalProtocolError, NotFound
from xsproto.events import Reset
from xsproto.requests import Read, Request, TransactionEnd, TransactionStart, Watch
from xsproto.wire import HEADER, PAYLOAD_MAX, Op, Packet, split_packets

EXHAUSTIVE = os.environ.get("XSPROTO_EXHAUSTIVE") == "1"
OK = b"OK\0"
WATCHED = b"/watched"
HUGE = HEADER.pack(Op.READ, 1, 0, 0xFFFFFFFF)

Action = tuple[Any, ...]


# -- the world: a session, its callers, and the peer


@frozen
class Plan:
    """What takes part.

    `actors` has a letter for each: ``r`` waits for a reply, ``b`` for the two replies of a batch,
    ``e`` and ``f`` for an event; all ``e`` share one queue, as do all ``f``. ``p`` waits for
    nothing, as `pump`, a reader and an event loop do.
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
    waiter: Wait = field(factory=Waiter)
    phase: str = "new"
    woken: bool = False
    outcome: str = ""

    @property
    def paths(self) -> list[bytes]:
        """What it asks for: the paths of its requests."""
        return {
            "r": [b"/reply/%d" % self.index],
            "b": [b"/reply/%d/%d" % (self.index, at) for at in range(2)],
        }.get(self.kind, [])

    @property
    def exchanges(self) -> Sequence[Exchange]:
        return self.waiter.exchanges if isinstance(self.waiter, Waiter) else (self.waiter,)


class World:
    """All state, made anew for each path through it. `steps` says what can happen now."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.session = Session()
        self.actors = [Actor(index, kind) for index, kind in enumerate(plan.actors)]
        self.unwritten = b""  # what the engine has handed out and the peer has not taken
        self.to_peer = b""  # of a message that the peer does not have whole
        self.begun: set[bytes] = set()  # the paths of all requests that were handed out
        self.pending: dict[bytes, int] = {}  # path -> id, unanswered
        self.rest = b""  # of a packet that the session does not have whole
        self.rest_of = b""  # the path that it answers
        self.inbox: list[bytes | ConnectionClosed] = []  # what the leader has received
        self.arrived: Any = ()  # what that is
        self.write_blocked = False
        self.events = {kind: plan.actors.count(kind) for kind in "ef" if kind in plan.actors}
        self.nonsense = 1
        self.closings = 1
        self.run: Callable[[Callable[[], Any]], Any] = lambda call: call()
        self.told = dict.fromkeys(self.events, 0)
        self.queues = {kind: EventQueue() for kind in self.events}
        for kind, queue in self.queues.items():
            self.session.listen(queue, WATCHED, kind.encode())
            exchange = self.session.engine.send(Watch(WATCHED, kind.encode()))
            self.session.engine.data_to_send()
            self.session.received(Packet(Op.WATCH, exchange.id, 0, OK).encode())
            assert exchange.done

    # The adapter's part

    def step(self, call: Callable[[], Any]) -> Any:
        """Take a step of bookkeeping, which an interrupt may cut short: see `Session.changing`."""

        def whole() -> Any:
            if self.session.changing:
                self.session.break_off()
                self.wake()
            self.session.changing = True
            try:
                result = call()
            except ConnectionClosed:
                self.session.changing = False  # a request was refused, and nothing was changed
                raise
            self.wake()
            self.session.changing = False
            return result

        return self.run(whole)

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
        while True:
            data = self.unwritten
            if not data:
                data = engine.data_to_send()
                self.begun |= _paths_in(data)
            if not data:
                return
            if limit == 0:
                if not self.unwritten:
                    engine.take_back(data)
                    self.begun -= _paths_in(data)
                return
            some, self.unwritten = data[:limit], data[limit or len(data) :]
            limit = None if limit is None else limit - len(some)
            self.to_peer += some
            self._peer_takes()

    def flush(self) -> None:
        self.write(0 if self.write_blocked else None)

    def _peer_takes(self) -> None:
        packets, used, _ = split_packets(self.to_peer, PAYLOAD_MAX)
        for (op, rq_id, _, _), payload in packets:
            path = payload.rstrip(b"\0")
            assert op == Op.READ
            assert path not in self.pending
            self.pending[path] = rq_id
        self.to_peer = self.to_peer[used:]

    # What can happen

    def steps(self) -> list[Action]:
        found: list[Action] = []
        closed = self.session.closed is not None
        for actor in self.actors:
            index, phase = actor.index, actor.phase
            if phase == "new":
                if actor.paths:
                    found.append(("submit", index, "all"))
                    if self.plan.write_blocked and not closed:
                        found += [("submit", index, "none"), ("submit", index, "half")]
                else:
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
            if phase in ("leading", "got", "asleep"):
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
            self.step(lambda: self.session.close(ConnectionClosed("closed by hand")))
            return
        actor = self.actors[index]
        if name == "recv":
            self._receive(actor, *details)
        else:
            getattr(self, f"_{name}")(actor, *details)

    def _submit(self, actor: Actor, how: str) -> None:
        session = self.session
        limit = {"all": None, "none": 0, "half": 10}[how]
        blocked_before = self.write_blocked
        self.write_blocked = blocked_before or how != "all"

        def submit() -> Role:
            requests = [Read(path) for path in actor.paths]
            if actor.kind == "b":
                actor.waiter = Waiter()
                session.send_all(actor.waiter, requests)
            else:
                actor.waiter = session.engine.send(requests[0])
            self.write(0 if blocked_before else limit)
            return session.enter(actor.waiter)

        try:
            role = self.step(submit)
        except ConnectionClosed as error:
            assert not error.sent
            assert session.closed is not None
            self.end(actor, "closed")
            return
        assert role is not Role.DONE
        actor.phase = "leading" if role is Role.LEAD else "asleep"

    def _enter(self, actor: Actor) -> None:
        actor.waiter = Waiter(self.queues.get(actor.kind))
        role = self.step(lambda: self.session.enter(actor.waiter))
        if role is Role.DONE:
            self._done(actor)
        else:
            actor.phase = "leading" if role is Role.LEAD else "asleep"

    def _receive(self, actor: Actor, what: str, *details: Any) -> None:
        self.arrived = (self.rest_of, what, details)
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
        self.inbox.append(ConnectionClosed("ECONNRESET") if what == "reset" else data)
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
        self.step(self.take_in)
        if actor.waiter.done:
            self._done(actor)
        else:
            actor.phase = "leading"

    def take_in(self) -> None:
        """Have the session act on what the leader has received."""
        data = self.inbox.pop()
        if isinstance(data, ConnectionClosed):
            self.session.close(data)
        else:
            self.session.received(data)

    def _flush(self, actor: Actor) -> None:
        self.write_blocked = False
        self.step(self.flush)

    def _awake(self, actor: Actor) -> None:
        actor.woken = False
        if actor.waiter.done:
            self._done(actor)
        elif self.session.leads(actor.waiter):
            actor.phase = "leading"

    def _done(self, actor: Actor) -> None:
        assert actor.waiter.done
        if actor.kind != "r" or self.session.leads(actor.waiter):
            self.step(lambda: self.session.leave(actor.waiter))
        if actor.kind == "p":
            assert self.session.closed is not None
            self.end(actor, "closed")
        elif actor.paths:
            self.end(actor, self._outcome(actor))
        else:
            actor.phase = "took"

    def _outcome(self, actor: Actor) -> str:
        """What came of its requests: every one of them has an answer."""
        outcomes = []
        for path, exchange in zip(actor.paths, actor.exchanges, strict=True):
            try:
                assert exchange.result() == b"value of " + path
                assert int(path[-1:]) % 2 == 0
                outcomes.append("answered")
            except NotFound as error:
                assert error.path == path
                assert int(path[-1:]) % 2 == 1
                outcomes.append("refused")
            except ConnectionClosed as error:
                assert self.session.closed is not None
                # (What an interrupted step was about has but the reason.)
                if "interrupted" not in str(self.session.closed) or error.path is not None:
                    assert error.sent == (path in self.begun)
                    assert error.path == path
                return "closed"
        return outcomes[0]

    def _take(self, actor: Actor) -> None:
        queue = self.queues[actor.kind]
        if queue:
            assert queue.take().token == actor.kind.encode()
            self.told[actor.kind] += 1
            self.end(actor, "told")
        elif queue.ended is not None or self.session.closed is not None:
            self.end(actor, "closed")
        else:
            actor.phase = "new"  # another one was faster

    def _timeout(self, actor: Actor) -> None:
        self.step(lambda: self.give_up(actor, leave=not self.plan.split))
        if self.plan.split:
            actor.phase = "cancelled"
        else:
            self.end(actor, "timed out")

    def give_up(self, actor: Actor, *, leave: bool) -> None:
        """End a wait early, as a part of a step."""
        if self.inbox and self.session.leads(actor.waiter):
            self.take_in()
        unanswered = [one for one in actor.exchanges if one.answer is None]
        sent = self.session.cancel(actor.waiter)
        for exchange in actor.exchanges:
            assert exchange.answer is not None or exchange.withdrawn or exchange.abandoned
        if self.session.closed is not None:
            unanswered = []  # all that its requests can be is done
        for exchange in unanswered:
            # Withdrawn or on its way, an answer that is there already being neither.
            assert exchange.withdrawn == (_path_of(exchange) not in self.begun)
        if unanswered and len(unanswered) == len(actor.exchanges):
            assert sent == any(not exchange.withdrawn for exchange in unanswered)
        if leave:
            self.session.leave(actor.waiter)
        self.flush()

    def _leave(self, actor: Actor) -> None:
        self.step(lambda: self.session.leave(actor.waiter))
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
        if session.changing:
            return  # a step was interrupted: the next one sets all right
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
            if actor.waiter.done and actor.paths:
                answers = [exchange.answer for exchange in actor.exchanges]
                assert None not in answers, "it is done, and has no answer"
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
            assert session.engine.data_to_send() == b"", "after the end, nothing is sent"
        for kind, queue in self.queues.items():
            assert {id(waiter) for waiter in queue.waiters} <= known
            if session.closed is None and not self.inbox:
                fired = self.plan.actors.count(kind) - self.events[kind]
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
                    actor.phase != "new" and actor.waiter.done,
                    [
                        (exchange.answer is not None, exchange.abandoned, exchange.withdrawn)
                        for exchange in actor.exchanges
                    ],
                    [path in self.begun for path in actor.paths],
                )
                if actor.phase != "ended"
                else ()
                for actor in self.actors
            ),
            None if session.leader is None else number.get(id(session.leader), -1),
            [number.get(id(waiter), -1) for waiter in session._waiting],
            session.changing,
            self.arrived if self.inbox else (),
            [
                (list(queue._events), queue.ended is None, len(queue.waiters))
                for queue in self.queues.values()
            ],
            (
                self.rest_of,
                sorted(_paths_in(self.to_peer + self.unwritten)),
                len(self.to_peer),
                [(_path_of(one), one.withdrawn) for one in session.engine._queue],
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


def _path_of(exchange: Exchange) -> bytes:
    path: bytes = getattr(exchange.request, "path")  # noqa: B009 - not every request has one
    return path


def _paths_in(data: bytes) -> set[bytes]:
    """The paths of the requests in `data`, whole messages."""
    packets, used, _ = split_packets(data, PAYLOAD_MAX)
    assert used == len(data)
    return {payload.rstrip(b"\0") for _, payload in packets}


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
    hit_again = ""
    if step[0] == "close" or (step[0] == "process" and world.actors[step[1]].kind == "p"):
        # A call that only closes has nothing to clean up, nor has an event loop that leads, which
        # reads on. The next step of any caller finds that the connection is to be closed.
        if step[0] == "process":
            world.actors[step[1]].phase = "leading"
        assert world.session.changing
        return hit, hit_again
    actor = world.actors[step[1]]

    def clean_up() -> None:
        world.step(lambda: world.give_up(actor, leave=True))

    world.run = lambda call: interrupted_at(again, call)
    try:
        clean_up()
    except Interrupt as interrupt:
        hit_again = str(interrupt)
        world.run = lambda call: call()
        clean_up()
    finally:
        world.run = lambda call: call()
    assert world.session.closed is not None, "a step was cut short, and the session goes on"
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
        Plan("rre", subsets=False, bound=4_000),
        Plan("ref", subsets=False, bound=4_000),
        Plan("ree", bound=4_000),
        Plan("rep", subsets=False),
        Plan("eee"),
        Plan("eef", bound=4_000),
        Plan("bp", **ALL),
        Plan("rb", subsets=False, write_blocked=True),
        Plan("be", subsets=False, half=True),
        Plan("bb", subsets=False),
        Plan("rbe", subsets=False, bound=4_000),
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
    success = {"r": {"answered"}, "b": {"answered"}, "e": {"told"}, "f": {"told"}, "p": set()}
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
        (Plan("b"), 3),
        (Plan("be", subsets=False), 40),
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
    [(Plan("rr"), 2_000), (Plan("re"), 1_200), (Plan("ee"), 800)],
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
            session.send_all(Waiter(), [Read(b"/a"), request])
    assert session.engine.data_to_send() == b""


def test_of_a_batch_with_a_wrong_request_nothing_is_sent() -> None:
    session, waiter = Session(), Waiter()
    with pytest.raises(InvalidArgument):
        session.send_all(waiter, [Read(b"/a"), Read(b"/b" * PAYLOAD_MAX)])
    assert not waiter.exchanges
    assert session.engine.data_to_send() == b""


def test_a_batch_of_nothing_is_done_at_once() -> None:
    session, waiter = Session(), Waiter()
    assert session.send_all(waiter, []) == []
    assert session.enter(waiter) is Role.DONE


def test_a_batch_is_done_with_its_last_answer_in_whichever_order_they_come() -> None:
    session = Session()
    waiter = Waiter()
    exchanges = session.send_all(waiter, [Read(b"/%d" % at) for at in range(3)])
    session.engine.data_to_send()
    session.enter(waiter)
    for exchange in reversed(exchanges):
        assert not waiter.done
        session.received(Packet(Op.READ, exchange.id, 0, b"").encode())
    assert waiter.done


def test_what_is_cancelled_twice_is_withdrawn_once() -> None:
    session, waiter = Session(), Waiter()
    session.send_all(waiter, [Read(b"/a"), Read(b"/b")])
    assert not session.cancel(waiter)
    assert not session.cancel(waiter)
    assert session.engine.data_to_send() == b""


def test_a_rollback_that_is_cancelled_is_sent_all_the_same() -> None:
    session = Session()
    start = session.engine.send(TransactionStart())
    session.engine.data_to_send()
    session.received(Packet(Op.TRANSACTION_START, start.id, 0, b"7\0").encode())
    rollback = session.engine.send(TransactionEnd(commit=False), start.result())
    assert session.cancel(rollback)
    assert (
        session.engine.data_to_send() == Packet(Op.TRANSACTION_END, rollback.id, 7, b"F\0").encode()
    )


def test_an_interrupted_end_is_made_up_for() -> None:
    session = Session()
    leader, follower = session.engine.send(Read(b"/a")), session.engine.send(Read(b"/b"))
    session.enter(leader)
    session.enter(follower)
    session.engine.close(ConnectionClosed("over"))
    session.engine.events.clear()  # as where `received` is interrupted before it acts on them
    session.changing = True
    session.break_off()
    assert leader.done
    assert session.to_wake == [follower]
    assert str(session.closed) == "over"


def test_what_an_interrupted_step_has_lost_has_an_answer() -> None:
    session = Session()
    leader, follower = session.engine.send(Read(b"/a")), session.engine.send(Read(b"/b"))
    session.enter(leader)
    session.enter(follower)
    session.engine._queue.clear()  # as where `data_to_send` is interrupted
    session.changing = True
    session.break_off()
    for exchange in leader, follower:
        with pytest.raises(ConnectionClosed, match="interrupted its bookkeeping"):
            exchange.result()
    assert session.to_wake == [follower]


def test_nobody_waits_for_what_is_posted() -> None:
    session = Session()
    session.post(Read(b"/a"))
    ((header, _),), _, _ = split_packets(session.engine.data_to_send(), PAYLOAD_MAX)
    session.received(Packet(Op.READ, header[1], 0, b"").encode())
    assert session.engine.outstanding == {}
    assert not session.ignored


def test_events_of_one_token_go_to_whoever_watches_their_path() -> None:
    session = Session()
    queues = {path: EventQueue() for path in (b"/a", b"/b")}
    for path, queue in queues.items():
        session.listen(queue, path, b"token")
    session.received(Packet(Op.WATCH_EVENT, 0, 0, b"/b/c\0token\0").encode())
    assert [len(queue) for queue in queues.values()] == [0, 1]


def test_who_listens_to_the_rest_gets_what_nobody_listens_for_and_the_end() -> None:
    session = Session()
    watching, rest = EventQueue(), EventQueue()
    session.listen(watching, b"/a", b"token")
    session.listen_to_rest(rest)
    rest.watches.add((b"/", b"other"))  # so that it is not ready for want of watches
    for payload in (b"/a\0token\0", b"/b\0token\0", b"@c\0other\0"):
        session.received(Packet(Op.WATCH_EVENT, 0, 0, payload).encode())
    assert (len(watching), len(rest)) == (1, 1)
    assert rest.take() == WatchEvent(b"@c", b"other")
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
