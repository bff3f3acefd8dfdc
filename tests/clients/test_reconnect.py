"""What follows from the end of a connection: in memory, on the blocking and asynchronous loops."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xsproto import ReconnectPolicy, WatchEvent
from xsproto import requests as rq
from xsproto.adapters.blocking import BlockingBackend
from xsproto.adapters.reconnecting import BlockingReconnecting
from xsproto.clients.blocking import BlockingClient
from xsproto.clients.reconnect import check_can_reconnect, policy_of
from xsproto.errors import (
    AccessDenied,
    CommitUnknown,
    ConnectFailed,
    ConnectionClosed,
    Forked,
    InvalidArgument,
    InvalidType,
    LocalProtocolError,
    QuotaExceeded,
    TimedOut,
    TransactionLost,
    XenStoreError,
)
from xsproto.perms import Permission

from ..support.in_memory import DROP, BlockingMemory, Daemon

seconds = st.floats(0.001, 100)


# The policy


@given(first=seconds, longest=seconds, attempt=st.integers(0, 5000), random=st.floats(0, 1))
def test_pauses_are_random_and_bounded(
    first: float, longest: float, attempt: int, random: float
) -> None:
    policy = ReconnectPolicy(first=first, longest=longest)
    assert policy.delay(0, random) == 0
    window = policy.delay(attempt + 1, 1)
    assert window <= longest
    assert window == min(longest, first) if attempt == 0 else window >= policy.delay(attempt, 1)
    assert policy.delay(attempt + 1, random) == pytest.approx(random * window)
    assert policy.delay(100, 1) == longest


@pytest.mark.parametrize("name", ["first", "longest", "silence"])
def test_a_policy_is_checked(name: str) -> None:
    for wrong in (0, -1, float("inf"), float("nan")):
        with pytest.raises(InvalidArgument, match=name):
            ReconnectPolicy(**{name: wrong})
    for odd in ("1", None, True):
        with pytest.raises(InvalidType, match=name):
            ReconnectPolicy(**{name: odd})  # type: ignore[arg-type]


def test_the_argument_of_clients() -> None:
    policy = ReconnectPolicy(longest=1)
    assert policy_of(policy) is policy
    assert policy_of(False) is None
    assert policy_of(True) == ReconnectPolicy()
    for wrong in (1, None, "yes"):
        with pytest.raises(InvalidType, match="reconnect must be"):
            policy_of(wrong)
    check_can_reconnect(None)
    with pytest.raises(InvalidArgument, match="a client of stream 5 cannot reconnect"):
        check_can_reconnect("stream 5")


# The loops


class Time:
    """A clock that a pause puts forward; the backend and the clock of a client."""

    endless = True

    def __init__(self) -> None:
        self.time = 0.0
        self.pauses: list[float | None] = []
        self.on_pause: Callable[[], object] = lambda: None
        self.new_lock = threading.RLock
        self.new_event = lambda: self
        self.on = False

    def now(self) -> float:
        return self.time

    def set(self) -> None:
        self.on = True

    def wait(self, timeout: float | None) -> None:
        self.pauses.append(timeout)
        self.time += timeout or 0
        self.on_pause()

    def deadline_for(self, timeout: Any) -> float | None:
        return timeout if isinstance(timeout, float) else None


class Inner(BlockingMemory):
    """A blocking connection that can be closed."""

    def __init__(self, daemon: Daemon, time: Time) -> None:
        super().__init__(daemon)
        self.guard = self._lock = threading.RLock()  # type: ignore[assignment]
        self.clock: Any = time
        self.transport = "memory"
        self.checked = 0

    def flush(self) -> None:
        self._lock = _Held(self.guard)  # type: ignore[assignment]
        super().flush()

    def check_owner(self) -> None:
        self.checked += 1

    def close(self, reason: XenStoreError) -> None:
        self.step(lambda session: session.close(reason))


class _Held:
    """A lock that an RLock stands for."""

    def __init__(self, guard: Any) -> None:
        self._guard = guard

    def locked(self) -> bool:
        return bool(self._guard._is_owned())


class World:
    """A client that reconnects, and the daemons that it finds one after the other."""

    def __init__(self, *daemons: Daemon | XenStoreError) -> None:
        self.time = time = cast(Any, Time())
        self.daemons = list(daemons)
        self.opened: list[Inner] = []
        policy = ReconnectPolicy(first=1, longest=4)
        self.connection: BlockingReconnecting = BlockingBackend.make_reconnecting(
            time, self.open(None), policy, self.open, time
        )
        self.connection.random = lambda: 1.0
        self.client = BlockingClient.__new__(BlockingClient)
        self.client._connection = self.connection
        self.client._tx_id = 0

    def open(self, timeout: float | None) -> Inner:
        daemon = self.daemons.pop(0) if len(self.daemons) > 1 else self.daemons[0]
        if isinstance(daemon, XenStoreError):
            raise daemon
        self.opened.append(Inner(daemon, self.time))
        return self.opened[-1]


def end(daemon: Daemon) -> None:
    """Have a daemon die before it receives anything more."""
    daemon.room, daemon.dead = 0, True


@contextmanager
def dying(daemon: Daemon, request: type[rq.Request[Any]], sent: bool) -> Iterator[None]:
    """Have a daemon die before, or after, it has received a request."""
    if sent:
        daemon.script[request] = DROP
    else:
        daemon.room = 0
    daemon.dead = True
    yield


HARMLESS: list[rq.Request[Any]] = [
    rq.Read(b"/a"),
    rq.Directory(b"/"),
    rq.DirectoryPart(b"/"),
    rq.GetPerms(b"/a"),
    rq.GetDomainPath(5),
    rq.IsDomainIntroduced(5),
    rq.GetFeature(),
    rq.GetQuota(b"nodes"),
    rq.TransactionStart(),
    rq.ResetWatches(),
]
HARMFUL: list[rq.Request[Any]] = [
    rq.Write(b"/a", b""),
    rq.Mkdir(b"/a"),
    rq.Rm(b"/a"),
    rq.SetPerms(b"/a", (Permission(0),)),
    rq.Introduce(5, 1, 1),
    rq.Release(5),
    rq.Resume(5),
    rq.SetTarget(5, 6),
    rq.SetFeature(5, 1),
    rq.SetQuota(b"nodes", 1),
    rq.Control(b"check"),
]


def test_every_request_is_one_or_the_other() -> None:
    known = {type(request) for request in HARMLESS + HARMFUL}
    others = {rq.Watch, rq.Unwatch, rq.TransactionEnd}
    assert known | others == set(rq.REQUESTS.values())


@given(request=st.sampled_from(HARMLESS + HARMFUL), sent=st.booleans(), batch=st.booleans())
def test_a_request_is_repeated_if_it_does_no_harm(
    request: rq.Request[Any], sent: bool, batch: bool
) -> None:
    first, second = Daemon(a=b"1"), Daemon(a=b"2")
    world = World(first, second)
    with dying(first, type(request), sent):
        if batch and not request.changes_state:
            (exchange,) = world.connection.exchange_all([request], 0, None)
        else:
            try:
                exchange = world.connection.exchange(request, 0, None)
            except ConnectionClosed as error:
                exchange = None
                assert error.sent
    seen = [seen for seen, _ in second.seen]
    if sent and request in HARMFUL:
        assert request not in seen
        if exchange is not None:
            assert isinstance(exchange.error, ConnectionClosed)
            assert exchange.error.sent
    else:
        assert exchange is not None
        assert exchange.error is None
        assert seen.count(request) == 1 + (request == rq.GetDomainPath(0))
    assert first.seen.count((request, 0)) == sent


def test_the_rest_of_a_batch_is_repeated() -> None:
    first, second = Daemon(a=b"1"), Daemon(a=b"2")
    world = World(first, second)
    first.script[rq.GetPerms] = DROP
    first.dead = True
    requests: list[rq.Request[Any]] = [rq.Read(b"/a"), rq.GetPerms(b"/a"), rq.Write(b"/b", b"")]
    one, two, three = world.connection.exchange_all(requests, 0, None)
    assert one.result() == b"1"
    assert two.error is None
    assert three.result() is None
    assert [request for request, _ in second.seen[1:]] == [rq.GetPerms(b"/a")]


def test_the_part_of_a_list_is_not_one_of_another_daemon() -> None:
    names = {"a": b""} | {f"a/{at:04}": b"" for at in range(900)}
    first, second = Daemon(**names), Daemon(**names)
    world = World(first, second)
    seen = first.seen

    class Script(dict[type[rq.Request[Any]], str]):
        def get(self, kind: Any, default: Any = None) -> Any:
            if kind is rq.DirectoryPart and len(seen) == 3:
                first.dead = True
                return DROP
            return super().get(kind, default)

    first.script = Script()
    assert len(world.client.list(b"/a")) == 900
    parts = [request.offset for request, _ in second.seen if isinstance(request, rq.DirectoryPart)]
    assert parts[0] == 0


def test_attempts_are_apart() -> None:
    gone = ConnectFailed("nobody listens")
    first = Daemon()
    world = World(first, gone, gone, gone, gone, Daemon(a=b"2"))
    end(first)
    assert world.client.read(b"/a") == b"2"
    assert world.time.pauses == [1, 2, 4, 4]


def test_a_daemon_that_dies_again_and_again_is_asked_more_and_more_seldom() -> None:
    def poisoned() -> Daemon:
        daemon = Daemon()
        daemon.script[rq.Read] = DROP
        return daemon

    daemons = [poisoned() for _ in range(3)]
    world = World(*daemons, Daemon(a=b"1"))
    opened = world.opened

    wait: Any = Inner._wait

    def die(self: Any, waiter: Any) -> None:
        daemon = self.daemon
        if daemon.script and any(isinstance(seen, rq.Read) for seen, _ in daemon.seen):
            daemon.dead = True
        wait(self, waiter)

    Inner._wait = die  # type: ignore[method-assign]
    try:
        assert world.client.read(b"/a") == b"1"
    finally:
        Inner._wait = wait  # type: ignore[method-assign]
    assert len(opened) == 4
    assert world.time.pauses == [1, 2]


@pytest.mark.parametrize("sent", [True, False])
def test_time_limits_hold_while_the_daemon_is_away(sent: bool) -> None:
    first, gone = Daemon(), ConnectFailed("nobody listens")
    world = World(first, gone)
    with dying(first, rq.Read, sent), pytest.raises(TimedOut, match="nobody listens") as caught:
        world.client.read(b"/a", timeout=10.0)
    assert caught.value.sent is sent
    assert caught.value.path == b"/a"
    assert world.time.time == 10
    with pytest.raises(TimedOut, match="2 requests: not sent"):
        world.connection.exchange_all([rq.Read(b"/a")] * 2, 0, 20.0)


def test_a_lock_that_another_caller_holds() -> None:
    first = Daemon()
    world = World(first, Daemon(a=b"1"))
    end(first)
    lock = world.connection._lock
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            done.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(10)
    with pytest.raises(TimedOut, match="another call is still at it"):
        world.client.read(b"/a", timeout=0.05)
    done.set()
    holder.join()
    assert world.client.read(b"/a") == b"1"


def test_watches_move_to_the_next_session() -> None:
    first, second = Daemon(a=b"1"), Daemon()
    world = World(first, second)
    with world.client.watch(b"/a") as watch, world.client.monitor() as monitor:
        monitor.watch(b"/b", b"t", depth=2)
        token = watch.token
        monitor.get(), watch.get()
        end(first)
        assert world.client.read(b"/a", None) is None
        assert watch.get() == WatchEvent(b"/a", token or b"", overflow=True)
        assert [request for request, _ in second.seen[:2]] == [
            rq.Watch(b"/a", token or b""),
            rq.Watch(b"/b", b"t", 2),
        ]
        assert monitor.get().overflow
        second.change(b"/b", b"")
        assert monitor.get().path == b"/b"
        with world.client.watch(b"/c") as third:  # no token is chosen twice
            assert third.token not in (token, b"t")
    assert second.watches == []


def test_a_watch_that_is_refused_ends() -> None:
    first, second = Daemon(), Daemon()
    world = World(first, second)
    second.script[rq.Watch] = "ENOSPC"
    with world.client.watch(b"/a") as watch:
        end(first)
        world.client.read(b"/a", None)
        with pytest.raises(QuotaExceeded):
            watch.get()
        assert watch.watched == frozenset()
        second.script.clear()
        end(second)
        world.daemons = [Daemon()]
        world.client.read(b"/a", None)
        with pytest.raises(QuotaExceeded):
            watch.get()


def test_a_queue_that_is_closed_while_its_watch_is_set_again() -> None:
    first, second = Daemon(), Daemon()
    world = World(first, second)
    watch = world.client.watch(b"/a")
    watch.__enter__()
    end(first)
    adopt = world.connection.adopt

    def adopt_and_close(connection: Any) -> Any:
        watches = adopt(connection)
        watch.close()
        return watches

    world.connection.adopt = adopt_and_close  # type: ignore[method-assign]
    world.client.read(b"/a", None)
    world.client.read(b"/a", None)  # the answer to the UNWATCH comes before its own
    assert second.watches == []


def test_a_watch_that_is_being_set() -> None:
    first, second = Daemon(), Daemon()
    world = World(first, second)
    with dying(first, rq.Watch, sent=True), world.client.watch(b"/a") as watch:
        assert second.watches == [(b"/a", watch.token)]
        assert watch.get().overflow


def test_the_end_of_watches_that_is_no_end_of_the_connection() -> None:
    world = World(Daemon())
    with world.client.watch(b"/a") as watch:
        watch.get()
        world.client.reset_watches()
        with pytest.raises(ConnectionClosed, match="RESET_WATCHES"):
            watch.get()
    assert len(world.opened) == 1


def test_a_wait_for_an_event_ends_in_time() -> None:
    first = Daemon()
    world = World(first, ConnectFailed("nobody listens"))
    with world.client.watch(b"/a") as watch:
        watch.get()
        end(first)
        with pytest.raises(TimedOut, match="no event of b'/a' in time"):
            watch.get(timeout=10.0)
        world.opened[0].daemon.dead = False
    world = World(Daemon())
    with world.client.watch(b"/a") as watch:
        watch.get()
        with pytest.raises(TimedOut):
            watch.get()


@pytest.mark.parametrize("sent", [True, False])
@pytest.mark.parametrize("batch", [True, False])
def test_transactions_are_lost(sent: bool, batch: bool) -> None:
    first, second = Daemon(a=b"1"), Daemon(a=b"2")
    world = World(first, second)
    tx = world.client.transaction()

    def use() -> None:
        with tx:
            assert tx.read_many([b"/a"]) == [b"1"]
            with dying(first, rq.Read, sent):
                if batch:
                    tx.read_many([b"/a"])
                else:
                    tx.read(b"/a")

    with pytest.raises(TransactionLost, match="transaction 1 was lost with its connection"):
        use()
    with world.client.transaction() as other:
        assert other.id == tx.id == 1
        assert other.read(b"/a") == b"2"
        assert tx._connection is not other._connection


@pytest.mark.parametrize("commit", [True, False])
@pytest.mark.parametrize("sent", [True, False])
def test_the_end_of_a_transaction(sent: bool, commit: bool) -> None:
    first = Daemon(a=b"1")
    world = World(first, Daemon())

    def end() -> None:
        with world.client.transaction() as tx, dying(first, rq.TransactionEnd, sent):
            if not commit:
                tx.rollback()

    if not commit:
        end()
        return
    with pytest.raises(CommitUnknown if sent else TransactionLost):
        end()


def test_a_closed_client_stays_closed() -> None:
    first = Daemon()
    world = World(first, ConnectFailed("nobody listens"))
    with world.client.transaction() as tx, world.client.watch(b"/a") as watch:
        watch.get()
        closed = ConnectionClosed("the client was closed")
        end(first)
        world.time.on_pause = lambda: world.connection.close(closed)
        with pytest.raises(ConnectionClosed, match=r"closed; Read\(.*\) was not sent"):
            world.client.read(b"/b")
        assert world.connection.closed is closed
        assert world.time.on
        for use in (
            lambda: world.client.read(b"/b"),
            lambda: world.client.read_many([b"/b"]),
            watch.get,
            lambda: tx.read(b"/b"),
            lambda: tx.read_many([b"/b"]),
        ):
            with pytest.raises(ConnectionClosed):
                use()
        world.connection.close(ConnectionClosed("again"))
        assert world.connection.closed is closed
        tx.rollback()


def test_a_client_that_is_closed_while_a_connection_is_prepared() -> None:
    first, second = Daemon(), Daemon()
    world = World(first, second)
    end(first)
    adopt = world.connection.adopt

    def adopt_and_close(connection: Any) -> Any:
        watches = adopt(connection)
        world.connection.close(ConnectionClosed("the client was closed"))
        return watches

    world.connection.adopt = adopt_and_close  # type: ignore[method-assign]
    with pytest.raises(ConnectionClosed, match="the client was closed"):
        world.client.read(b"/a")
    assert world.opened[1].session.closed is not None


@pytest.mark.parametrize("at", [rq.Watch, rq.GetDomainPath])
@pytest.mark.parametrize("sent", [True, False])
def test_a_connection_that_ends_while_it_is_prepared(at: type[rq.Request[Any]], sent: bool) -> None:
    first, second, third = Daemon(), Daemon(), Daemon()
    world = World(first, second, third)
    with world.client.watch(b"/a") as watch:
        watch.get()
        end(first)
        with dying(second, at, sent):
            assert world.client.read(b"/a", None) is None
        assert third.watches == [(b"/a", watch.token)]
        assert watch.get().overflow
    assert len(world.opened) == 3


def test_a_daemon_that_does_not_answer_the_first_question() -> None:
    first, second, third = Daemon(), Daemon(), Daemon(a=b"3")
    world = World(first, second, third)
    end(first)
    with dying(second, rq.GetDomainPath, sent=True):
        assert world.client.read(b"/a") == b"3"


def test_an_interrupt_while_a_connection_takes_its_place() -> None:
    first, second = Daemon(), Daemon(a=b"2")
    world = World(first, second)
    end(first)
    connection: Any = world.connection
    succeed = connection.succeed

    def be_interrupted(new: Any) -> None:
        succeed(new)
        raise KeyboardInterrupt

    connection.succeed = be_interrupted
    with pytest.raises(KeyboardInterrupt):
        world.client.read(b"/a")
    assert world.client.read(b"/a") == b"2"
    assert len(world.opened) == 2


def test_a_client_that_is_closed_at_the_last_moment() -> None:
    first, second = Daemon(), Daemon()
    world = World(first, second)
    end(first)
    connection = world.connection
    succeed = connection.succeed

    def close_and_succeed(new: Any) -> None:
        connection.ended = ConnectionClosed("the client was closed")
        succeed(new)

    connection.succeed = close_and_succeed  # type: ignore[assignment,method-assign]
    with pytest.raises(ConnectionClosed, match="the client was closed"):
        world.client.read(b"/a")
    assert world.opened[1].session.closed is not None


def test_a_connection_of_a_forked_child_is_not_followed() -> None:
    world = World(Daemon())
    world.opened[0].close(Forked("it is the parent's"))
    with pytest.raises(Forked):
        world.client.read(b"/a")
    assert isinstance(world.connection.closed, Forked)
    assert len(world.opened) == 1


def test_mistakes_are_not_repeated() -> None:
    first = Daemon()
    world = World(first, LocalProtocolError("not here"))
    with pytest.raises(InvalidArgument):
        world.client.write(b"/a", b"x" * 5000)
    end(first)
    with pytest.raises(LocalProtocolError, match="not here"):
        world.client.read(b"/a")
    with pytest.raises(LocalProtocolError, match="not here"), world.client.transaction():
        pass


def test_errors_of_the_daemon_are_passed_on() -> None:
    first = Daemon()
    world = World(first)
    first.script[rq.TransactionStart] = first.script[rq.GetPerms] = "EACCES"
    with pytest.raises(AccessDenied), world.client.transaction():
        pass
    with pytest.raises(AccessDenied):
        world.client.get_perms(b"/a")
    assert len(world.opened) == 1


def test_what_the_connection_of_the_moment_has() -> None:
    world = World(Daemon())
    connection, inner = world.connection, world.opened[0]
    connection.check_owner()
    assert inner.checked
    assert connection.transport == "memory"
    assert connection.forgetful is False
    assert connection.defer(len, ((1, 2),)) == 2
    with connection.guard:
        connection.flush()


# The XenBus device


class Silent(Inner):
    """A connection whose daemon may be silent until a call's time is over."""

    def exchange(self, request: Any, tx_id: int, deadline: Any, waiter: Any = None) -> Any:
        return self._until(deadline, super().exchange, request, tx_id, deadline, waiter)

    def exchange_all(self, requests: Any, tx_id: int, deadline: Any) -> Any:
        return self._until(deadline, super().exchange_all, requests, tx_id, deadline)

    def take_event(self, queue: Any, deadline: Any) -> Any:
        return self._until(deadline, super().take_event, queue, deadline)

    def _until(self, deadline: float | None, method: Callable[..., Any], *args: Any) -> Any:
        try:
            return method(*args)
        except TimedOut:
            assert deadline is not None, "it would wait for ever"
            self.clock.time = max(self.clock.time, deadline)
            raise


class Device(World):
    """A client on the device, with a connection for requests and one for watches."""

    def __init__(self, *daemons: Daemon) -> None:
        super().__init__(*daemons)
        self.connection.on_device = True
        self.watches = BlockingReconnecting(
            self.open(None),
            self.connection.policy,
            self.open,
            self.time,
            self.time,
            on_device=True,
            requests=self.connection,
        )
        self.client._watch_connection = lambda: self.watches  # type: ignore[method-assign]

    def open(self, timeout: float | None) -> Inner:
        daemon = self.daemons[0]
        assert isinstance(daemon, Daemon)
        self.opened.append(Silent(daemon, self.time))
        return self.opened[-1]


def silence(daemon: Daemon) -> None:
    daemon.script |= dict.fromkeys(rq.REQUESTS.values(), DROP)


def test_a_silent_device_is_opened_again() -> None:
    first, second = Daemon(a=b"1"), Daemon(a=b"2")
    device = Device(first)
    client, time = device.client, device.time
    assert client.read(b"/a") == b"1"
    with client.watch(b"/a") as watch:
        watch.get()
        silence(first)
        with pytest.raises(TimedOut):
            client.read(b"/a", timeout=10.0)  # that is no silence yet
        assert device.connection.current.session.closed is None
        device.daemons = [second]
        assert client.read_many([b"/a"], timeout=None) == [b"2"]
        assert time.time == 40
        assert watch.get().overflow
        assert second.watches == [(b"/a", watch.token)]


def test_short_calls_find_out_together() -> None:
    first, second = Daemon(a=b"1"), Daemon(a=b"2")
    device = Device(first)
    silence(first)
    for at in range(1, 5):
        with pytest.raises(TimedOut):
            device.client.read(b"/a", timeout=10.0 * at)
    assert device.connection.current.session.closed is not None
    device.daemons = [second]
    assert device.client.read(b"/a") == b"2"


def test_a_change_on_a_silent_device() -> None:
    first = Daemon(a=b"1")
    device = Device(first)
    silence(first)
    with pytest.raises(ConnectionClosed, match="no answer for too long") as caught:
        device.client.write(b"/a", b"", timeout=None)
    assert caught.value.sent
    assert device.time.time == 30


def test_a_transaction_on_a_silent_device() -> None:
    first = Daemon(a=b"1")
    device = Device(first)
    tx = device.client.transaction()

    def use() -> None:
        with tx:
            silence(first)
            tx.read(b"/a", timeout=None)

    with pytest.raises(TransactionLost):
        use()


def test_a_wait_for_an_event_asks_whether_the_daemon_is_there() -> None:
    first, second = Daemon(a=b"1"), Daemon(a=b"2")
    device = Device(first)
    with device.client.watch(b"/a") as watch:
        watch.get()
        with pytest.raises(TimedOut):
            watch.get(timeout=100.0)
        assert device.time.time == 100
        assert len(device.opened) == 2
        silence(first)
        device.time.on_pause = lambda: setattr(device, "daemons", [second])
        assert watch.get().overflow
        silence(second)
        with pytest.raises(TimedOut, match="no event"):
            watch.get(timeout=device.time.time + 50.0)
