"""Greenlets that share a client on the device are killed, at each switch and at random.

See `tests.adapters.test_gevent_storms`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import gevent
import pytest

from xsproto_gevent import Client

from ...adapters.test_gevent_storms import (
    CALLS,
    WOKEN,
    Kill,
    Storm,
    fill,
    kill_at_each_switch,
    list_all,
    outcome,
    read,
    transact,
    watch,
)
from ...support.daemons import Daemon, require
from ...support.fake_device import device_of, set_modes
from .test_gevent import PATIENCE, descriptors_of

pytestmark = pytest.mark.environment("gevent")


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    require("c")
    with Daemon("c") as running:
        fill(running)
        yield running
        running.kill()


@pytest.fixture
def open_client(daemon: Daemon) -> Iterator[Callable[[], Client]]:
    set_modes("strict")
    yield lambda: Client(xen_bus_path=device_of(daemon.socket_path), timeout=PATIENCE)
    set_modes()


def assert_clean(client: Client) -> None:
    """It answers, and nothing is left of what was killed."""
    with client.watch(b"/clean") as events:
        events.get(timeout=PATIENCE)  # answered after what takes a watch back
    client.read(b"/")
    requests, watches = client._connection, client._watch_connection()
    with gevent.Timeout(PATIENCE):
        while requests.session.engine.outstanding or watches.session.engine.outstanding:
            for connection in (requests, watches):
                connection._receive()
                connection.flush()
            gevent.sleep(0.001)
    gevent.idle()
    for descriptor in descriptors_of(client).values():
        assert descriptor.asked is None
        assert not descriptor.transactions
    for connection in (requests, watches):
        session, engine = connection.session, connection.session.engine
        assert session.closed is None
        assert not session.waiting
        assert not session.to_wake
        assert not engine.outstanding
        assert not engine._queue
        assert not engine.transactions
        assert not engine.watches
        assert not session._listeners
        assert not connection.transport.reader.active


@WOKEN
@pytest.mark.parametrize("call", [call for call in CALLS if call is not list_all])
def test_a_greenlet_killed_at_any_switch_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
    open_client: Callable[[], Client],
    call: Callable[[Client], None],
    woken: bool,
) -> None:
    kill_at_each_switch(monkeypatch, open_client, call, woken, assert_clean)


@pytest.mark.parametrize("call", [read, transact, watch])
def test_those_behind_one_that_is_killed_do_not_notice(
    open_client: Callable[[], Client], daemon: Daemon, call: Callable[[Client], None]
) -> None:
    with open_client() as client:
        for _ in range(10):
            daemon.suspend()
            killed = gevent.spawn(outcome, call, client)
            gevent.sleep(0)
            others = [gevent.spawn(outcome, other, client) for other in (read, transact, watch)]
            gevent.sleep(0)
            killed.kill(Kill, block=False)
            gevent.sleep(0)
            daemon.resume()
            assert isinstance(killed.get(timeout=PATIENCE), Kill)
            assert [other.get(timeout=PATIENCE) for other in others] == [None] * 3
        assert_clean(client)


@pytest.mark.parametrize("seed", range(3))
def test_in_a_storm_of_kills_nobody_else_notices_anything(
    open_client: Callable[[], Client], seed: int
) -> None:
    storm = Storm(open_client(), seed)
    with storm.client:
        storm.rage(300)
        storm.join()
        assert storm.ended["killed"] > 20
        assert storm.ended["out of time"] > 20
        assert storm.ended["done"] > 20
        assert storm.ended["closed"] == 0
        assert_clean(storm.client)
