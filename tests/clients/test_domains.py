"""Domains: which are listed, and that what a watch reports is so, in every order of events."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xsproto import Domain, DomainEvent
from xsproto import requests as rq
from xsproto.clients.domains import DomainTable, domains
from xsproto.clients.event_queue import WatchEvent
from xsproto.clients.operations import resume
from xsproto.errors import (
    AccessDenied,
    ConnectionClosed,
    TimedOut,
    XenStoreError,
)

from ..support.in_memory import AsyncMemory, BlockingMemory, Cancelled, Daemon, Task, run, settle
from ..support.served import Served

HOMES = b"/local/domain"


def home(domid: int, name: bytes = b"") -> bytes:
    return b"%b/%d%b" % (HOMES, domid, name)


def daemon_with(**names: bytes) -> Daemon:
    """A daemon with domains, such as ``d5=b"web"``."""
    daemon = Daemon()
    for domid, name in names.items():
        daemon.change(home(int(domid[1:]), b"/name"), name)
    return daemon


def listed(daemon: Daemon) -> list[Domain]:
    """What both clients list, by the same requests."""
    daemon.seen.clear()
    found = BlockingMemory(daemon).domains()
    seen, daemon.seen = daemon.seen, []
    assert run(AsyncMemory(daemon).domains()) == found
    assert daemon.seen == seen
    return found


def taken(daemon: Daemon, *changes: Callable[[], object]) -> list[DomainEvent]:
    """The events of a blocking watch, after each change in turn."""
    events = []
    client = BlockingMemory(daemon)
    with client.watch_domains() as watch:
        for change in (lambda: None, *changes):
            change()
            try:
                while True:
                    events.append(watch.get(timeout=1))
            except TimedOut:
                pass
    return events


# Listing


def test_the_domains_are_listed_with_their_names() -> None:
    daemon = daemon_with(d0=b"Domain-0", d12=b"odd\xff", d5=b"")
    for name in (b"/none", b"/05", b"/32752", b"/99999", b"/100000", b"/7"):
        daemon.change(HOMES + name, b"")
    assert listed(daemon) == [
        Domain(0, "Domain-0"),
        Domain(5, ""),
        Domain(7),
        Domain(12, "odd\\xff"),
    ]
    assert len(daemon.seen) == 1 + 3 * 4
    assert [type(request) for request, _ in daemon.seen[:4]] == [
        *(rq.Directory, rq.Read, rq.IsDomainIntroduced, rq.Read),
    ]


def test_without_homes_there_are_no_domains() -> None:
    daemon = Daemon()
    assert listed(daemon) == []
    daemon.change(HOMES, b"")
    assert listed(daemon) == []


def test_a_home_alone_is_no_domain() -> None:
    daemon = daemon_with(d5=b"dead")
    daemon.answers[rq.IsDomainIntroduced] = False
    assert listed(daemon) == []


@pytest.mark.parametrize("code", ["EACCES", "ENOSYS", "EINVAL"])
def test_where_the_daemon_does_not_tell_a_home_will_do(code: str) -> None:
    daemon = daemon_with(d5=b"web")
    daemon.script[rq.IsDomainIntroduced] = code
    assert listed(daemon) == [Domain(5, "web")]


def test_a_guest_sees_itself() -> None:
    daemon = daemon_with(d5=b"me", d6=b"other")
    daemon.script = {rq.Directory: "EACCES", rq.IsDomainIntroduced: "EACCES"}
    daemon.nodes[b"domid"] = b"5"
    assert listed(daemon) == [Domain(5, "me")]


@pytest.mark.parametrize("domid", [None, b"", b"five"])
def test_a_guest_without_an_id_is_told_why(domid: bytes | None) -> None:
    daemon = daemon_with(d5=b"me")
    daemon.script[rq.Directory] = "EACCES"
    if domid is not None:
        daemon.nodes[b"domid"] = domid
    with pytest.raises(AccessDenied, match=r"Directory\(path=b'/local/domain'\)"):
        BlockingMemory(daemon).domains()


def test_a_home_that_goes_during_the_listing_is_left_out() -> None:
    operation = domains()
    resume(operation, None)
    requests = resume(operation, [b"5", b"6"])
    assert isinstance(requests, list)
    gone, denied = (error(message) for error, message in [(AccessDenied, ""), (AccessDenied, "")])
    with pytest.raises(StopIteration) as stop:
        resume(operation, [gone, True, gone, b"", True, denied])
    assert stop.value.value == [Domain(6)]


@pytest.mark.parametrize("at", [0, 1, 2])
def test_other_errors_are_raised(at: int) -> None:
    operation = domains()
    resume(operation, None)
    resume(operation, [b"5"])
    outcomes: list[Any] = [b"", True, b"web"]
    outcomes[at] = ConnectionClosed("gone")
    with pytest.raises(ConnectionClosed):
        resume(operation, outcomes)


# Watching


def test_a_watch_begins_with_those_that_are_there() -> None:
    daemon = daemon_with(d7=b"b", d5=b"a")
    client = AsyncMemory(daemon)

    async def first() -> list[DomainEvent]:
        async with client.watch_domains() as watch:
            assert repr(watch) == "<DomainWatch of 0 domains: 3 events waiting>"
            events = [await watch.get(), await anext(watch)]
            assert repr(watch) == "<DomainWatch of 2 domains: 0 events waiting>"
        return events

    expected = [DomainEvent("introduced", 5, "a"), DomainEvent("introduced", 7, "b")]
    assert run(first()) == expected
    run(client.read(b"/"))
    assert daemon.watches == []
    assert taken(daemon) == expected
    assert {request.path for request, _ in daemon.seen if isinstance(request, rq.Watch)} == {
        b"@introduceDomain",
        b"@releaseDomain",
        HOMES,
    }


def test_what_becomes_of_a_domain() -> None:
    daemon = daemon_with(d5=b"a")

    def remove() -> None:
        del daemon.nodes[home(5)], daemon.nodes[home(5, b"/name")]
        daemon._fire(home(5), daemon.watches)

    assert taken(
        daemon,
        lambda: daemon.change(home(6, b"/data"), b""),
        lambda: daemon.change(home(6, b"/name"), b"late"),
        lambda: daemon.change(home(6, b"/name"), b"later"),
        remove,
    ) == [
        DomainEvent("introduced", 5, "a"),
        DomainEvent("introduced", 6),
        DomainEvent("renamed", 6, "late"),
        DomainEvent("renamed", 6, "later"),
        DomainEvent("released", 5, "a"),
    ]


def test_a_release_comes_before_an_introduction() -> None:
    daemon = daemon_with(d6=b"old")

    def swap() -> None:
        daemon.change(home(5, b"/name"), b"new")
        del daemon.nodes[home(6)], daemon.nodes[home(6, b"/name")]
        daemon._fire(b"@releaseDomain", [(b"@releaseDomain", b"")])
        daemon._fire(HOMES, daemon.watches)

    assert taken(daemon, swap)[1:] == [
        DomainEvent("released", 6, "old"),
        DomainEvent("introduced", 5, "new"),
    ]


def test_what_a_guest_does_in_its_home_costs_nothing() -> None:
    daemon = daemon_with(d5=b"a")
    daemon.change(home(6, b"/name"), b"b")
    client = AsyncMemory(daemon)
    watch = client.watch_domains()
    run(watch.__aenter__())
    assert [run(watch.get()).domid, run(watch.get()).domid] == [5, 6]
    waiting = Task(watch.get())
    settle(waiting)
    daemon.seen.clear()
    for domid in (5, 6):
        daemon.change(home(domid, b"/data"), b"")
        daemon.change(home(domid, b"/name/below"), b"")
    daemon.change(HOMES + b"/none", b"")
    settle(waiting)
    assert daemon.seen == []
    daemon.change(home(5, b"/name"), b"c")
    settle(waiting)
    assert waiting.result() == DomainEvent("renamed", 5, "c")
    assert [type(request) for request, _ in daemon.seen] == [
        *(rq.Read, rq.IsDomainIntroduced, rq.Read)
    ]


@pytest.mark.parametrize("limit", [1024, 2])
def test_a_look_is_for_all_events_that_wait(limit: int) -> None:
    daemon = daemon_with(d5=b"a", d6=b"b")
    client, other = BlockingMemory(daemon), AsyncMemory(daemon)
    blocking, asynchronous = client.watch_domains(limit=limit), other.watch_domains(limit=limit)

    def rename(name: bytes) -> None:
        for domid in (5, 6):
            daemon.change(home(domid, b"/data"), name)
            daemon.change(home(domid, b"/name"), name)

    with blocking:
        assert [blocking.get().domid, blocking.get().domid] == [5, 6]
        rename(b"c")
        expected = [DomainEvent("renamed", 5, "c"), DomainEvent("renamed", 6, "c")]
        assert [blocking.get(timeout=1), blocking.get(timeout=1)] == expected
    daemon.watches.clear()
    run(asynchronous.__aenter__())
    assert [run(asynchronous.get()).domid, run(asynchronous.get()).domid] == [5, 6]
    rename(b"d")
    expected = [DomainEvent("renamed", 5, "d"), DomainEvent("renamed", 6, "d")]
    assert [run(asynchronous.get()), run(asynchronous.get())] == expected


def entered_blocking(daemon: Daemon) -> None:
    BlockingMemory(daemon).watch_domains().__enter__()


def entered_async(daemon: Daemon) -> None:
    run(AsyncMemory(daemon).watch_domains().__aenter__())


@pytest.mark.parametrize("enter", [entered_blocking, entered_async])
def test_a_watch_that_is_refused_leaves_none(enter: Callable[[Daemon], None]) -> None:
    daemon = Daemon()
    daemon.script[rq.Watch] = "ENOSPC"
    with pytest.raises(XenStoreError, match="ENOSPC"):
        enter(daemon)
    assert daemon.watches == []


def test_a_blocking_watch_can_be_iterated_over() -> None:
    with BlockingMemory(daemon_with(d5=b"a", d6=b"b")).watch_domains() as watch:
        assert repr(watch) == "<DomainWatch of 0 domains: 3 events waiting>"
        assert [event.domid for event in islice(watch, 2)] == [5, 6]


def test_an_overflow_has_all_listed_again() -> None:
    daemon = daemon_with(d5=b"a")
    client = BlockingMemory(daemon)
    with client.watch_domains(limit=2) as watch:
        watch.get()
        daemon.nodes[home(5, b"/name")] = b"b"  # without an event of its own
        for number in range(5):
            daemon.change(home(5, b"/data/%d" % number), b"")
        assert watch.get() == DomainEvent("renamed", 5, "b")


def test_a_look_that_fails_is_made_up_for() -> None:
    daemon = daemon_with(d5=b"a")
    client = BlockingMemory(daemon)
    with client.watch_domains() as watch:
        daemon.script[rq.Directory] = "EAGAIN"
        for _ in range(2):
            with pytest.raises(XenStoreError, match="EAGAIN"):
                watch.get(timeout=0)
        daemon.script.clear()
        assert watch.get(timeout=0) == DomainEvent("introduced", 5, "a")


def test_events_for_nothing_call_for_nothing() -> None:
    table = DomainTable()
    for path in (b"/local/domain/x", b"/local/domain/05/name", b"/local/domain/99999"):
        table.note(WatchEvent(path, b""))
    assert not table.stale
    for path in (b"/", b"/local", HOMES, b"@introduceDomain", b"@releaseDomain"):
        table = DomainTable()
        table.note(WatchEvent(path, b""))
        assert table.stale, path


# A model of domains that come and go

DOMIDS = st.sampled_from([1, 2, 3])
NAMES = st.sampled_from([b"a", b"b"])
actions = st.one_of(
    st.tuples(st.just("add"), DOMIDS),
    st.tuples(st.just("remove"), DOMIDS),
    st.tuples(st.just("home"), DOMIDS),
    st.tuples(st.just("no home"), DOMIDS),
    st.tuples(st.just("name"), DOMIDS, NAMES),
    st.tuples(st.just("no name"), DOMIDS),
    st.tuples(st.just("deep"), DOMIDS),
    st.tuples(st.just("no homes")),
    st.tuples(st.just("cancel")),
    st.tuples(st.just("flood")),
)


class Model:
    """What is so in the store, and what a watch has told of it."""

    def __init__(self) -> None:
        self.store = Served()
        self.served: set[int] = set()
        self.homes: dict[int, bytes | None] = {}
        self.ever: set[tuple[int, str | None]] = set()
        self.told: dict[int, str | None] = {}
        self.client = AsyncMemory(self.store)  # type: ignore[arg-type]
        self.watch = self.client.watch_domains(limit=6)
        self.waiting: Task[DomainEvent] | None = None

    @property
    def there(self) -> dict[int, str | None]:
        return {
            domid: None if name is None else name.decode()
            for domid, name in self.homes.items()
            if domid in self.served
        }

    def act(self, what: str, *arguments: Any) -> None:
        domid = arguments[0] if arguments else 0
        match what:
            case "add":
                self.served.add(domid)
                self.store.add_domain(domid)
            case "remove":
                self.served.discard(domid)
                self.store.remove_domain(domid)
            case "home":
                self.homes.setdefault(domid, None)
                self.store.do(rq.Mkdir(home(domid)))
            case "no home":
                self.homes.pop(domid, None)
                self.store.do(rq.Rm(home(domid)))
            case "name":
                self.homes[domid] = arguments[1]
                self.store.do(rq.Write(home(domid, b"/name"), arguments[1]))
            case "no name":
                if domid in self.homes:
                    self.homes[domid] = None
                self.store.do(rq.Rm(home(domid, b"/name")))
            case "deep":  # which makes the home, without an event of its own
                self.homes.setdefault(domid, None)
                self.store.do(rq.Write(home(domid, b"/data/x/y"), b""))
            case "no homes":
                self.homes.clear()
                self.store.do(rq.Rm(b"/local"))
            case "flood":
                for number in range(9):
                    self.store.do(rq.Write(HOMES + b"/x/%d" % number, b""))
            case "cancel":
                if self.waiting is not None and not self.waiting.done:
                    self.waiting.cancel()
                    with pytest.raises(Cancelled):
                        self.waiting.result()
                self.waiting = None
        self.ever |= self.there.items()

    def step(self) -> bool:
        """Take the watch one step further; return whether it moved."""
        if self.waiting is None:
            self.waiting = Task(self.watch.get())
        moved = self.waiting.step()
        if self.waiting.done:
            self.follow(self.waiting.result())
            self.waiting = None
        return moved

    def follow(self, event: DomainEvent) -> None:
        if event.what == "released":
            assert self.told.pop(event.domid) == event.name
            return
        assert (event.domid, event.name) in self.ever, f"{event} was never so"
        if event.what == "renamed":
            assert self.told[event.domid] != event.name
        else:
            assert event.domid not in self.told
        self.told[event.domid] = event.name


def test_a_home_may_come_with_a_node_far_below_it() -> None:
    """The daemon makes the home then, without an event of its own. So it does when it comes again.

    In the second round, the home comes and goes while the domain is not served.
    """
    model = Model()
    run(model.watch.__aenter__())
    steps: list[tuple[tuple[Any, ...], dict[int, str | None]]] = [
        (("add", 1), {}),
        (("deep", 1), {1: None}),
        (("no home", 1), {}),
        (("deep", 1), {1: None}),
        (("remove", 1), {}),
        (("no home", 1), {}),
        (("deep", 1), {}),
        (("no home", 1), {}),
        (("add", 1), {}),
        (("deep", 1), {1: None}),
        (("no homes",), {}),
        (("deep", 1), {1: None}),
    ]
    for action, told in steps:
        model.act(*action)
        while model.step():
            pass
        assert model.told == told, action


@given(
    st.lists(actions, max_size=4),
    st.lists(st.tuples(st.integers(0, 4), actions), max_size=12),
)
def test_what_is_told_is_so(
    before: list[tuple[Any, ...]], meanwhile: list[tuple[int, tuple[Any, ...]]]
) -> None:
    model = Model()
    for action in before:
        model.act(*action)
    run(model.watch.__aenter__())
    for steps, action in meanwhile:
        for _ in range(steps):
            model.step()
        model.act(*action)
    while model.step():
        pass
    assert model.told == model.there
    model.act("cancel")
    model.watch.close()
    run(model.client.read(b"/"))
    assert model.store.watches == {}
