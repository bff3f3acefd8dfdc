"""The adapter of docs/howto/writing-an-adapter.md, and how its author is told what is wrong with
it.

That it is right is seen elsewhere: it is one of the adapters of
`tests/conformance/test_conformance.py`, and one of the loops of
`tests/adapters/test_asynchronous.py`.
"""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import Any

import callback_loop
import check_adapter
import pytest
import selectors_adapter

import xsproto_sync
from xsproto.adapters.discovery import Location
from xsproto.errors import ConnectFailed, ConnectionClosed, LocalProtocolError, TimedOut
from xsproto.testing import Client
from xsproto_sync import EmbeddedXenStore
from xsproto_sync.testing import EmbeddedDaemon, check

from ..support import ROOT

EXAMPLES = ROOT / "docs" / "examples" / "adapter"


def test_it_is_under_ninety_lines() -> None:
    assert len((EXAMPLES / "selectors_adapter.py").read_text().splitlines()) < 90


def test_the_bare_engine_needs_no_adapter() -> None:
    with EmbeddedXenStore() as store:
        ended = subprocess.run(
            [sys.executable, EXAMPLES / "bare_engine.py"],
            env={"PYTHONPATH": str(ROOT), "XENSTORED_PATH": store.socket_path()},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    # (How the one event and the other, and the replies, come one after another is the daemon's.)
    assert "reply: Read(path=b'/tool/example') -> b'hello'\n" in ended.stdout
    assert "event: b'/tool/example' b'mine'\n" in ended.stdout
    assert "error: ENOENT: Read(path=b'/none'): there is no such node\n" in ended.stdout
    assert ended.stderr == ""


def test_it_belongs_to_its_thread() -> None:
    async def main(elsewhere: Any) -> None:
        async with selectors_adapter.open_client(loop, store.socket_path()) as client:
            loop.thread += 1  # as if another one called
            with pytest.raises(LocalProtocolError, match="belongs to the event loop"):
                await client.read(b"/")
            loop.thread -= 1
            assert await client.read(b"/") == b""

    loop = callback_loop.Loop()
    with EmbeddedXenStore() as store:
        loop.run(main(None))


def test_it_belongs_to_the_run_of_its_loop_wherever_that_was_made() -> None:
    async def begin() -> None:
        opened.append(await stack.enter_async_context(open_client(loop, store.socket_path())))
        assert await opened[0].read(b"/") == b""

    async def elsewhere() -> None:
        with pytest.raises(LocalProtocolError, match="belongs to the event loop"):
            await opened[0].read(b"/")

    def in_a_thread() -> None:
        loop.run(begin())
        callback_loop.Loop().run(elsewhere())
        loop.run(stack.aclose())

    open_client = selectors_adapter.open_client
    opened: list[Any] = []
    stack = AsyncExitStack()
    loop = callback_loop.Loop()
    with EmbeddedXenStore() as store, ThreadPoolExecutor(1) as pool:
        pool.submit(in_a_thread).result()


def test_an_adapter_need_not_know_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("io", "select", "start_thread"):
        monkeypatch.delattr(selectors_adapter.LoopBackend, name)
    loop = callback_loop.Loop()
    backend = selectors_adapter.LoopBackend(loop)
    backend.make_connection = lambda *_: pytest.fail("it was opened")  # type: ignore[method-assign]
    with pytest.raises(ConnectFailed, match="/dev/x, a XenBus device, which this adapter cannot"):
        loop.run(backend.open_connections(Location("device", "/dev/x")))


def test_an_adapter_need_not_know_ssh() -> None:
    loop = callback_loop.Loop()
    with pytest.raises(ConnectFailed, match="cannot reach ssh://host by ssh; xsproto_sync can"):
        loop.run(selectors_adapter.LoopBackend(loop).open_ssh("ssh://host"))


def test_a_loop_may_call_once_more_than_it_should(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with selectors_adapter.open_client(loop, store.socket_path()) as client:
            connection = client._connection
        monkeypatch.setattr(
            connection.transport, "read_now", None
        )  # its descriptor may be another's now
        assert connection.receive() is False

    loop = callback_loop.Loop()
    with EmbeddedXenStore() as store:
        loop.run(main())


def test_a_sleep_ends_though_the_loop_was_held_up_as_it_began(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Selector:
        def select(self, seconds: float | None) -> list[Any]:
            assert seconds is not None, "it sleeps for ever"
            return []

    times = iter([0.0, 0.005])
    monkeypatch.setattr(callback_loop, "monotonic", lambda: next(times, 0.01))
    loop = callback_loop.Loop()
    monkeypatch.setattr(loop, "_selector", Selector())
    loop.run(loop.sleep(0.01))


# What the kit says


def test_a_daemon_that_is_killed_while_it_is_suspended_does_nothing() -> None:
    with EmbeddedDaemon() as daemon, xsproto_sync.Client(daemon.socket_path) as client:
        thread = daemon._store._server._thread
        assert thread is not None
        daemon.suspend()
        with pytest.raises(TimedOut) as caught:
            client.write(b"/a", b"", timeout=0.01)
        assert caught.value.sent
        daemon.kill()
        assert not thread.is_alive(), "it goes on"
        with pytest.raises(ConnectionClosed):
            client.read(b"/")
        assert b"/a" not in daemon._store._daemon.store.nodes


def test_of_a_right_one_the_kit_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["clients_come_and_go", "the_device_refuses_what_its_kernel_would_do_wrongly"]
    assert check(check_adapter.Harness, names) == 0
    first, second, last = capsys.readouterr().out.splitlines()
    assert first == f"{names[0]} ... ok"
    assert second == f"{names[1]} ... left out: the harness has no device"
    assert last == "1 ok, 1 left out, 0 FAILED"


async def _swallow(self: selectors_adapter.Connection, waiter: Any, role: object) -> None:
    """Goes on after a cancellation as if there had been none."""
    waiter.handle = self._loop.current
    while not waiter.done:
        try:
            await callback_loop.suspend()
        except callback_loop.Cancelled:
            return


async def _open_dom0s(self: check_adapter.Harness, domid: int = 0, **options: Any) -> Client:
    opening = selectors_adapter.open_client(self.loop, self.socket_path())
    return await self.stack.enter_async_context(opening)


@pytest.mark.parametrize(
    ("owner", "method", "wrong", "scenario"),
    [
        (selectors_adapter.Connection, "wait", _swallow, "a_write_that_is_given_up_may_take_place"),
        (selectors_adapter.Connection, "unregister", lambda _: None, "clients_come_and_go"),
        (check_adapter.Harness, "open", _open_dom0s, "a_guest_watches"),
    ],
)
def test_of_a_wrong_one_the_kit_says_what(
    owner: Any,
    method: str,
    wrong: Any,
    scenario: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(owner, method, wrong)
    assert check(check_adapter.Harness, [scenario], limit=20) == 1
    first, second, *_, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{scenario} ... FAILED: {scenario}, on embedded 4.23: ")
    assert second.startswith("  what should hold: ")
    assert last == "0 ok, 0 left out, 1 FAILED"


def test_a_scenario_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="there are no scenarios bogus"):
        check(check_adapter.Harness, ["a_guest_watches", "bogus"])


def test_where_it_sleeps_for_ever_the_kit_shows_where() -> None:
    program = (
        "import check_adapter, selectors_adapter\n"
        "from xsproto_sync.testing import check\n"
        "selectors_adapter.Connection.wake = lambda *_: None\n"
        "check(check_adapter.Harness, ['twenty_tasks_on_one_client'], limit=0.2)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": f"{EXAMPLES}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stdout == "twenty_tasks_on_one_client "
    assert "Timeout" in ended.stderr
    assert "callback_loop.py" in ended.stderr


def test_the_program_that_checks_it_takes_names_of_scenarios() -> None:
    ended = subprocess.run(
        [sys.executable, EXAMPLES / "check_adapter.py", "waits_for_an_event"],
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert ended.stdout == "waits_for_an_event ... ok\n1 ok, 0 left out, 0 FAILED\n"
    assert ended.stderr == ""
