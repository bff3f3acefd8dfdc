"""Callers that share a client, while calls are given up, the client is closed and the daemon dies.

    python -m tests.reliability.storm --adapter trio --rounds 1000 --seed 7

In each round some callers read nodes, each its own, until they are done or the client is. Meanwhile
one of the `DEEDS` happens. Every call must end with the caller's own value or a typed error, and
in the end there must be no descriptor more than before.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import gevent
import trio

import xsproto_asyncio
import xsproto_gevent
import xsproto_sync
import xsproto_trio
from xsproto import Forked, XenStoreError
from xsproto_sync import EmbeddedXenStore

from ..support.descriptors import open_descriptors

__all__ = ["ADAPTERS", "DEEDS", "storm"]

CALLERS: Final = 6
CALLS: Final = 15
#: What happens to a client in a round.
DEEDS: Final = ("nothing", "kill", "stop", "close", "fork", "raise", "cancel")

Outcomes = Counter[str]


class Raised(Exception):
    """What a handler of a signal raises."""


class Round:
    """One client and one daemon, and what comes of the calls."""

    def __init__(self, store: EmbeddedXenStore, deed: str, seed: int, outcomes: Outcomes) -> None:
        self.store = store
        self.path = store.socket_path()
        self.deed = deed
        self.random = random.Random(seed)
        self.at = self.random.randrange(CALLERS * CALLS)
        self.outcomes = outcomes
        self.calls = 0
        self.client: Any = None

    def due(self) -> bool:
        """Whether it is time for the deed, which it is once."""
        self.calls += 1
        return self.calls == self.at

    def do(self) -> None:
        """The deeds that are the same for all."""
        if self.deed == "kill":
            self.store.kill()
        elif self.deed == "stop":
            self.store.close()
        elif self.deed == "raise":
            os.kill(os.getpid(), signal.SIGUSR1)
        elif self.deed == "fork":
            self.fork()

    def fork(self) -> None:
        """A child finds that the client is not its own, and is gone."""
        if threading.current_thread() is not threading.main_thread():
            return
        child = os.fork()
        if not child:
            try:
                self.client.close()
            except Forked:
                pass
            except BaseException:
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert status == 0, "a forked child had something else than Forked"

    def limit(self) -> float | None:
        """The time for a call: sometimes hardly any."""
        return 0.0002 if self.random.random() < 0.2 else 30

    def tell(self, number: int, value: bytes) -> None:
        assert value == b"%d" % number, f"caller {number} got {value!r}"
        self.outcomes["value"] += 1

    def failed(self, error: BaseException) -> None:
        self.outcomes[type(error).__name__] += 1


#: Whether the main thread is in a call, which a handler may interrupt.
_armed = threading.Event()


def _handler(*_: object) -> None:
    if _armed.is_set():
        _armed.clear()
        raise Raised


def of_sync(round_: Round) -> None:
    def call(number: int) -> None:
        for _ in range(CALLS):
            try:
                if round_.due():
                    if round_.deed == "close":
                        round_.client.close()
                    else:
                        round_.do()
                if number == 0:
                    _armed.set()
                value = round_.client.read(b"/known/%d" % number, timeout=round_.limit())
                if number == 0:
                    _armed.clear()
                round_.tell(number, value)
            except (XenStoreError, Raised) as error:
                if number == 0:
                    _armed.clear()
                round_.failed(error)

    with xsproto_sync.Client(round_.path) as round_.client:
        threads = [threading.Thread(target=call, args=(number,)) for number in range(1, CALLERS)]
        for thread in threads:
            thread.start()
        call(0)
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive(), "a caller waits for ever"


def of_gevent(round_: Round) -> None:
    def call(number: int) -> None:
        for _ in range(CALLS):
            try:
                if round_.due():
                    if round_.deed == "close":
                        round_.client.close()
                    elif round_.deed == "cancel":
                        round_.random.choice(greenlets).kill(block=False)
                    elif round_.deed not in ("fork", "raise"):  # the main thread's alone
                        round_.do()
                value = round_.client.read(b"/known/%d" % number, timeout=round_.limit())
                round_.tell(number, value)
            except XenStoreError as error:
                round_.failed(error)

    with xsproto_gevent.Client(round_.path) as round_.client:
        greenlets = [gevent.spawn(call, number) for number in range(CALLERS)]
        gevent.joinall(greenlets, timeout=60, raise_error=True)
        assert all(greenlet.dead for greenlet in greenlets), "a caller waits for ever"


async def _call(round_: Round, number: int, within: Any, cancel: Callable[[], object]) -> None:
    for _ in range(CALLS):
        try:
            if round_.due():
                if round_.deed == "close":
                    round_.client.close()
                elif round_.deed == "cancel":
                    cancel()
                elif round_.deed != "raise":  # in a loop, a handler's exception ends the loop
                    round_.do()
            value = await within(round_.client.read(b"/known/%d" % number), round_.limit())
            round_.tell(number, value)
        except (XenStoreError, TimeoutError, trio.TooSlowError) as error:
            round_.failed(error)


def of_asyncio(round_: Round) -> None:
    async def main() -> None:
        async with xsproto_asyncio.open_client(round_.path) as round_.client:
            tasks: list[Any] = []

            def cancel() -> None:
                round_.random.choice(tasks).cancel()

            tasks += [
                asyncio.create_task(_call(round_, number, asyncio.wait_for, cancel))
                for number in range(CALLERS)
            ]
            results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60)
            for result in results:
                if isinstance(result, asyncio.CancelledError):
                    round_.failed(result)
                elif result is not None:
                    raise result

    asyncio.run(main())


def of_trio(round_: Round) -> None:
    async def within(call: Any, seconds: float) -> Any:
        with trio.fail_after(seconds):
            return await call

    async def main() -> None:
        async with xsproto_trio.open_client(round_.path) as round_.client:
            scopes = [trio.CancelScope() for _ in range(CALLERS)]

            def cancel() -> None:
                round_.random.choice(scopes).cancel()

            async def one(number: int) -> None:
                with scopes[number]:
                    await _call(round_, number, within, cancel)
                if scopes[number].cancelled_caught:
                    round_.outcomes["Cancelled"] += 1

            with trio.fail_after(60):
                async with trio.open_nursery() as nursery:
                    for number in range(CALLERS):
                        nursery.start_soon(one, number)

    trio.run(main)


ADAPTERS: Final[dict[str, Callable[[Round], None]]] = {
    "sync": of_sync,
    "asyncio": of_asyncio,
    "trio": of_trio,
    "gevent": of_gevent,
}


def storm(adapter: str, rounds: int, seed: int) -> Outcomes:
    """Run a storm; return how often each outcome came.

    Raises:
        AssertionError: a call got what is another's, or never ended; or descriptors are left.
    """
    outcomes: Outcomes = Counter()
    before = None
    old = signal.signal(signal.SIGUSR1, _handler)
    try:
        for number in range(rounds):
            with EmbeddedXenStore() as store, store.client() as maker:
                for known in range(CALLERS):
                    maker.write(b"/known/%d" % known, b"%d" % known)
                deed = DEEDS[number % len(DEEDS)]
                ADAPTERS[adapter](Round(store, deed, seed + number, outcomes))
            if before is None:
                before = open_descriptors()
        assert open_descriptors() == before, "descriptors are left"
    finally:
        signal.signal(signal.SIGUSR1, old)
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.reliability.storm")
    parser.add_argument("--adapter", choices=ADAPTERS)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    seed = random.randrange(1 << 31) if options.seed is None else options.seed
    for adapter in [options.adapter] if options.adapter else ADAPTERS:
        started = time.monotonic()
        outcomes = storm(adapter, options.rounds, seed)
        told = ", ".join(f"{name} {count}" for name, count in sorted(outcomes.items()))
        seconds = time.monotonic() - started
        print(f"{adapter}: {options.rounds} rounds, seed {seed}, {seconds:.0f} s: {told}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
