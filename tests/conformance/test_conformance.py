"""The conformance kit, on every adapter and every daemon."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from xsproto.errors import NotFound, TooBig
from xsproto.testing import SCENARIOS, ScenarioFailed, run_scenario, scenario
from xsproto.testing import runner as table
from xsproto.wire import Op, Packet

from ..support import daemons
from ..support import embedded_daemon as embedded
from ..support import harnesses as adapters
from ..support.fake_device import is_preloaded

if TYPE_CHECKING:
    from xsproto.clients.asynchronous import AsyncClient
    from xsproto.testing import Client, Harness

    def fits(client: AsyncClient) -> Client:
        """The kit asks of a client what its API has."""
        return client


# In `tests/device/test_conformance.py`'s processes all this runs on the device.
ADAPTERS = adapters.DEVICE_ADAPTERS if is_preloaded() else adapters.ADAPTERS


def cells() -> Iterator[Any]:
    """Each adapter with each daemon and each scenario."""
    for adapter in ADAPTERS:
        for kind in (*daemons.KINDS, *embedded.KINDS):
            if adapters.is_left_out(adapter, kind):
                continue
            marks = []
            if (environment := adapters.ENVIRONMENTS.get(adapter)) is not None:
                marks.append(pytest.mark.environment(environment))
            elif not is_preloaded():
                # In the background: they wait for daemons half of the time.
                marks.append(pytest.mark.environment("plain", adapter.partition("_")[0]))
            for name in SCENARIOS:
                if adapters.ALL_CELLS or name in adapters.USUAL_SCENARIOS.get(adapter, {name}):
                    ident = f"{adapter}-{kind}-{name}"
                    yield pytest.param(adapter, kind, name, marks=marks, id=ident)


@pytest.mark.parametrize(("adapter", "kind", "name"), [*cells()])
def test_conformance(
    adapter: str, kind: str, name: str, record_property: Callable[[str, object], None]
) -> None:
    record_property("conformance", (name, adapter, kind))
    if kind in daemons.KINDS:
        daemons.require(kind)
    with ADAPTERS[adapter](kind) as harness:
        if reason := SCENARIOS[name].why_not(harness):
            pytest.skip(reason)
        harness.run(run_scenario(name, harness))


def test_what_is_usually_run_is_there() -> None:
    assert adapters.USUAL_SCENARIOS.keys() <= adapters.USUAL_TRANSPORTS
    for names in adapters.USUAL_SCENARIOS.values():
        assert names <= SCENARIOS.keys()


# How the kit tells what went wrong


class NoHarness:
    """What a scenario can be asked about without a daemon."""

    kind = "c"
    version = (4, 17)
    can: frozenset[str] = frozenset({"guest"})


@pytest.fixture
def no_harness() -> Any:
    return NoHarness()


@pytest.fixture(autouse=True)
def scenarios_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scenarios of a test's own are forgotten after it."""
    monkeypatch.setattr(table, "_scenarios", dict(table._scenarios))
    monkeypatch.setattr(table, "SCENARIOS", table._scenarios)


def test_a_failure_is_explained(no_harness: Harness) -> None:
    @scenario()
    async def is_so(h: Harness) -> None:
        """It is so."""
        table.expect(b"x" * 1000, b"", "the value")

    with pytest.raises(ScenarioFailed) as failure:
        adapters.run(run_scenario("is_so", no_harness))
    first, second, *_ = str(failure.value).splitlines()
    assert first.startswith("is_so, on c 4.17: the value: got b'xxxx")
    assert first.endswith("xxx' (1000 long), not b''")
    assert second == "  what should hold: It is so."


def test_an_unexpected_error_is_a_failure(no_harness: Harness) -> None:
    @scenario()
    async def is_found(h: Harness) -> None:
        raise NotFound("nothing there")

    with pytest.raises(ScenarioFailed, match=r"on c 4\.17: NotFound: nothing there") as failure:
        adapters.run(run_scenario("is_found", no_harness))
    assert isinstance(failure.value.__cause__, NotFound)


class SloppyHarness(NoHarness):
    """A daemon that acknowledges each request with the payload `ok`."""

    can = frozenset({"raw", "dom0"})

    def __init__(self, ok: bytes) -> None:
        self._ok = ok

    async def open_raw(self) -> SloppyHarness:
        return self

    async def exchange(self, op: int, payload: bytes, tx_id: int = 0) -> Packet:
        return Packet(op, 1, tx_id, b"1\0" if op == Op.TRANSACTION_START else self._ok)

    async def close(self) -> None: ...


@pytest.mark.parametrize("ok", [b"\0", b"", b"OK", b"OK\0\0", b"OK\0 more"])
def test_the_kit_is_stricter_than_a_client(ok: bytes) -> None:
    harness: Any = SloppyHarness(ok)
    with pytest.raises(ScenarioFailed, match="the reply to WRITE"):
        adapters.run(run_scenario("acknowledges_with_ok_and_a_nul", harness))
    harness = SloppyHarness(b"OK\0")
    adapters.run(run_scenario("acknowledges_with_ok_and_a_nul", harness))
    with pytest.raises(ScenarioFailed, match="ENOENT"):
        adapters.run(run_scenario("replies_with_the_ids_of_the_request", harness))


def test_expected_errors() -> None:
    with table.raises(NotFound, "ENOENT") as caught:
        raise NotFound("nothing there", code="ENOENT")
    assert caught[0].message == "nothing there"
    wrong = r"there: no error came, not NotFound \(ENOENT\)"
    with pytest.raises(AssertionError, match=wrong), table.raises(NotFound, "ENOENT", "there"):
        pass
    wrong = "ENOSPC came, not NotFound"
    with pytest.raises(AssertionError, match=wrong), table.raises(NotFound, "ENOENT"):
        raise NotFound("full", code="ENOSPC")
    wrong = "TooBig came, not NotFound: too much"
    with pytest.raises(AssertionError, match=wrong), table.raises(NotFound):
        raise TooBig("too much")


def test_expected_truths() -> None:
    table.expect_that(True, "it is so")
    with pytest.raises(AssertionError, match="it is so"):
        table.expect_that(False, "it is so")


def test_what_is_not_to_be_run(no_harness: Harness) -> None:
    async def nothing(h: Harness) -> None: ...

    needy = table.Scenario("nothing", nothing, frozenset({"guest", "kill"}), {})
    assert needy.why_not(no_harness) == "the harness has no kill"
    odd = table.Scenario("nothing", nothing, frozenset({"guest"}), {"c": "it cannot be"})
    assert odd.why_not(no_harness) == "it cannot be"
    assert table.Scenario("nothing", nothing, frozenset(), {}).why_not(no_harness) is None


def test_names_are_taken_once(no_harness: Harness) -> None:
    @scenario(not_for={"oxenstored": "it does not"})
    async def twice(h: Harness) -> None: ...

    assert table.SCENARIOS["twice"].not_for == {"oxenstored": "it does not"}
    with pytest.raises(ValueError, match="twice"):
        scenario()(twice)
