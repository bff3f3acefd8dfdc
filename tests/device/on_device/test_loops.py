"""The clients of event loops on the device: what the conformance kit does not ask."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from xsproto.adapters.device import POOL_MAX
from xsproto.errors import ConnectionClosed, TransactionEnded, TransactionLost
from xsproto.testing import Cancelled

from ...support.daemons import Daemon
from ...support.event_loops import LOOPS, Loop, Run, cancelled, enter, runner, turns
from ...support.fake_device import device_of, set_modes, suspend


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest) -> Loop:
    return LOOPS[request.param]()


@pytest.fixture
def run(loop: Loop, device: str) -> Run:
    return runner(loop, device)


def test_a_watch_that_hangs_hangs_nobody_else(loop: Loop, run: Run) -> None:
    async def main(client: Any) -> None:
        set_modes("dead")
        watching = loop.spawn(enter(client.watch(b"/a")))
        await turns(loop)  # others progress
        assert not watching.done
        await cancelled(loop, client.read(b"/a"))
        await cancelled(loop, enter(client.watch(b"/b")))
        client.close()
        with pytest.raises(ConnectionClosed):
            await watching.result()

    run(main)


def test_what_is_given_up_leaves_the_client_usable(loop: Loop, run: Run) -> None:
    async def main(client: Any) -> None:
        set_modes("dead")
        for _ in range(POOL_MAX + 3):
            await cancelled(loop, client.read(b"/a"))
        await cancelled(loop, enter(client.watch(b"/a", token=b"t")))
        patient = loop.spawn(client.read_many([b"/a", b"/none"], None))
        await turns(loop)
        set_modes()
        assert await patient.result() == [b"value", None]
        async with client.watch(b"/a", token=b"t") as watch:
            assert (await watch.get()).path == b"/a"

    run(main)


def test_who_waits_behind_a_request_that_is_given_up_is_served(
    loop: Loop, run: Run, daemon: Daemon
) -> None:
    async def main(client: Any) -> None:
        tx = await enter(client.transaction())
        doomed = await enter(client.transaction())
        daemon.suspend()
        first = loop.spawn(client.read(b"/a"))
        await turns(loop)
        patient = [loop.spawn(client.read_many([b"/a", b"/none"], None)) for _ in range(3)]
        await turns(loop)
        inside, lost = loop.spawn(tx.read(b"/a")), loop.spawn(doomed.read(b"/a"))
        await turns(loop)
        first.cancel()
        with pytest.raises(Cancelled):
            await first.result()
        daemon.resume()
        for task in patient:
            assert await task.result() == [b"value", None]
        assert await inside.result() == b"value"
        await lost.result()
        await tx.commit()
        await doomed.rollback()
        with pytest.raises(TransactionEnded):
            await doomed.read(b"/a")
        assert await client.read(b"/a") == b"value"

    run(main)


def test_a_transaction_begins_though_requests_are_given_up(loop: Loop, run: Run) -> None:
    async def main(client: Any) -> None:
        transaction = client.transaction()
        set_modes("dead")
        await cancelled(loop, client.read(b"/a"))
        waiting = loop.spawn(client.transact(lambda tx: tx.read(b"/a")))
        await turns(loop)
        await cancelled(loop, client.read(b"/a"))
        set_modes()
        assert await waiting.result() == b"value"
        async with transaction as tx:
            await tx.write(b"/b", b"%d" % tx.id)
            assert await tx.read(b"/b") == b"%d" % tx.id
        assert await client.read(b"/b") == b"%d" % tx.id

    run(main)


def test_tasks_use_several_descriptors_and_one_too_many_waits(
    loop: Loop, run: Run, daemon: Daemon
) -> None:
    async def main(client: Any) -> None:
        descriptors = client._connection.transport._descriptors
        async with client.transaction() as tx:
            daemon.suspend()
            inside = loop.spawn(tx.read_many([b"/a"] * 3))
            tasks = [loop.spawn(client.read(b"/a")) for _ in range(POOL_MAX + 1)]
            await turns(loop)
            assert len(descriptors) == POOL_MAX
            assert all(descriptor.asked for descriptor in descriptors.values())
            # Two of the transaction wait for its descriptor, and two others for any.
            assert len(client._connection.session.engine.waiting()) == 4
            daemon.resume()
            assert [await task.result() for task in tasks] == [b"value"] * (POOL_MAX + 1)
            assert await inside.result() == [b"value"] * 3
        assert not any(descriptor.asked for descriptor in descriptors.values())

    run(main)


def test_transactions_over_suspend_and_resume(loop: Loop, run: Run, daemon: Daemon) -> None:
    device = device_of(daemon.socket_path)
    tried = []

    async def function(tx: Any) -> None:
        tried.append(tx.id)
        await tx.write(b"/b", b"%d" % len(tried))
        if len(tried) == 1:
            suspend(device)
        assert await tx.read(b"/none", None) is None

    async def main(client: Any) -> None:
        async with client.transaction() as tx:
            suspend(device)
            with pytest.raises(TransactionLost):
                await tx.read(b"/a", b"a default")
        async with client.watch(b"/w") as watch:
            await watch.get()
            await client.transact(function)
            assert (await watch.get()).path == b"/w"
        assert await client.read(b"/b") == b"2"

    run(main)


HANG = """
import ctypes, sys, warnings
kind, device = sys.argv[1:]
library = kind.removeprefix("sync on ")
if library == "patched gevent":
    from gevent import monkey
    monkey.patch_all()
elif library == "patched eventlet":
    warnings.simplefilter("ignore")
    import eventlet
    eventlet.monkey_patch()
else:
    import asyncio, trio, xsproto_asyncio, xsproto_trio
import xsproto_sync
from xsproto.errors import TimedOut
ctypes.CDLL(None).fake_device_modes(b"dead")

def blocking(adapter):
    with adapter.Client(xen_bus_path=device, timeout=0.1) as client:
        try:
            client.watch(b"/a").__enter__()
        except TimedOut:
            print("given up")

async def watch_asyncio():
    async with xsproto_asyncio.open_client(xen_bus_path=device) as client:
        try:
            async with asyncio.timeout(0.1):
                await client.watch(b"/a").__aenter__()
        except TimeoutError:
            print("given up")

async def watch_trio():
    async with xsproto_trio.open_client(xen_bus_path=device) as client:
        with trio.move_on_after(0.1):
            await client.watch(b"/a").__aenter__()
        print("given up")

if kind.startswith("sync"):
    blocking(xsproto_sync)
elif "gevent" in kind:
    import xsproto_gevent
    blocking(xsproto_gevent)
elif kind == "asyncio":
    asyncio.run(watch_asyncio())
else:
    trio.run(watch_trio)
print("over")
"""


@pytest.mark.parametrize(
    "kind",
    [
        *("sync", "asyncio", "trio", "gevent", "patched gevent"),
        *("sync on patched gevent", "sync on patched eventlet"),
    ],
)
def test_the_interpreter_ends_though_a_watch_hangs(kind: str, daemon: Daemon) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", HANG, kind, device_of(daemon.socket_path)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.stdout.split("\n") == ["given up", "over", ""], ended.stderr
    assert ended.returncode == 0
