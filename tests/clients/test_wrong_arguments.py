"""Every argument of every public method, with wrong types: a typed error, and no byte is sent.

The methods come from the classes and the arguments from their signatures. So a new method, or a
new argument, is tested without a change here, or has to be given its wrong values in `WRONG`.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterable, Iterator
from math import inf, nan
from typing import Any

import pytest

import xsproto_asyncio
import xsproto_sync
from xsproto import XenbusState
from xsproto.clients import asynchronous, blocking
from xsproto.errors import LocalProtocolError, XenStoreError
from xsproto.perms import Permission
from xsproto_sync import EmbeddedXenStore

PATHS: list[Any] = [None, 5, bytearray(b"/a"), [b"/a"], object(), b"", "", b"/a/", "/\ud800"]
VALUES: list[Any] = [None, 5, "secret", bytearray(b"secret"), memoryview(b"secret"), [b"secret"]]
INTS: list[Any] = ["5", b"5", 5.0, nan, True, [5], object()]
DOMIDS: list[Any] = [*INTS, -1, 0x7FF0]
TOKENS: list[Any] = [5, "t", bytearray(b"t"), [b"t"], b"a\0b"]
PERMS: list[Any] = [5, object(), "r5", b"r5", Permission(5), Permission, [], ["r5"], [5], [None]]
PERMS += [[b"x5"], [Permission("5")], {"r5": 1}]  # type: ignore[arg-type]
COUNTS: list[Any] = [*INTS, None, 0, -1]
FLAGS: list[Any] = [None, 0, 1, "no", []]
FUNCTIONS: list[Any] = [None, 5, "f", []]

#: The wrong values of each argument; of a single method's where its name is before the argument's.
WRONG: dict[str, list[Any]] = {
    "path": PATHS,
    "paths": [None, 5, b"/a", "/a", object(), [None], [5], [b"/a", bytearray(b"/a")]],
    "top": PATHS,
    "base": PATHS,
    "topdown": FLAGS,
    "missing_ok": FLAGS,
    "value": VALUES,
    "set_quota.value": [*COUNTS[:-2], -1],
    "text": [None, 5, b"secret", ["secret"], "\ud800"],
    "mapping": [None, 5, "x", b"x", [b"x"], {"x": b""}, {5: b""}, {b"x": "secret"}, {b"x/": b""}],
    "perms": PERMS,
    "permissions": [None, *PERMS],
    "timeout": ["5", b"5", nan, -1, -inf, True, [], object()],
    "seconds": ["5", b"5", nan, -1, -inf, True, [], object()],
    "domid": [None, *DOMIDS],
    "get_feature.domid": DOMIDS,
    "get_quota.domid": [5, *DOMIDS],  # without a name, none is right
    "set_quota.domid": DOMIDS,
    "target": [None, *DOMIDS],
    "gfn": [None, *INTS, 1 << 63],
    "evtchn": [None, *INTS, -1, 1 << 32],
    "features": [None, *INTS, -1, 1 << 32],
    "command": [None, 5, "help", b"", b"a\0b"],
    "parameters": [None, 5, "on", [b"on"], b"a\0b"],
    "name": [5, "nodes", b"", b"a\0b", [b"nodes"]],
    "set_quota.name": [None, 5, "nodes", b"", b"a\0b"],
    "function": FUNCTIONS,
    "condition": FUNCTIONS,
    "attempts": [*INTS, 0, -1],
    "depth": [*INTS, -1, 1 << 31],
    "token": TOKENS,
    "unwatch.token": TOKENS[:-1],
    "limit": COUNTS,
    "states": [None, 4, b"4", "CLOSED", []],
    "state": [None, 4, b"4", "CLOSED", [], XenbusState.UNKNOWN],
    "values": [5, "x", [b"x"], {"x": b""}, {5: b""}, {b"x": "secret"}, {b"x/": b""}, {b"/x": b""}],
}

#: What each argument is while another one is wrong.
RIGHT: dict[str, Any] = {
    "path": b"/a",
    "paths": [b"/a"],
    "top": b"/a",
    "base": b"/a",
    "value": b"v",
    "set_quota.value": 5,
    "text": "v",
    "mapping": {b"x": b""},
    "permissions": [b"n0"],
    "domid": 5,
    "target": 6,
    "gfn": 1,
    "evtchn": 1,
    "features": 1,
    "command": b"help",
    "set_quota.name": b"nodes",
    "function": lambda tx: None,
    "condition": lambda view: True,
    "states": XenbusState.CLOSED,
    "state": XenbusState.CLOSED,
}

#: These have no wrong value.
ANY = {"self", "default"}


def of_method(table: dict[str, Any], method: str, name: str) -> Any:
    return table[f"{method}.{name}"] if f"{method}.{name}" in table else table[name]


def arguments(parameters: Iterable[inspect.Parameter], wrong: str, value: Any, method: str) -> Any:
    """The positional and the named arguments of a call in which one is wrong."""
    positional: list[Any] = []
    named: dict[str, Any] = {}
    for parameter in parameters:
        name = parameter.name
        if name == wrong:
            chosen = value
        elif parameter.default is not parameter.empty or name in ("self", "parameters"):
            continue
        else:
            chosen = of_method(RIGHT, method, name)
        if parameter.kind is parameter.VAR_POSITIONAL:
            positional, named = [*named.values(), chosen], {}
        else:
            named[name] = chosen
    return positional, named


def cases(*classes: type) -> list[Any]:
    """Each argument of each public method, with the calls in which it is wrong."""
    found = []
    for cls in classes:
        for method in sorted(name for name in dir(cls) if name[0] != "_"):
            function = getattr(cls, method)
            parameters = inspect.signature(function).parameters if callable(function) else {}
            for name in [name for name in parameters if name not in ANY]:
                calls = [
                    arguments(parameters.values(), name, value, method)
                    for value in of_method(WRONG, method, name)
                ]
                case = f"{cls.__name__}.{method}-{name}"
                found.append(pytest.param(cls, method, calls, id=case))
    return found


@pytest.fixture(scope="module")
def store() -> Iterator[EmbeddedXenStore]:
    with EmbeddedXenStore({b"/a": b"1"}) as store:
        yield store


class Counted:
    """The number of writes of a client's transport."""

    def __init__(self, client: Any) -> None:
        transport = client._connection.transport
        self._send = transport._send
        self.calls = 0
        transport._send = self

    def __call__(self, *arguments: Any) -> Any:
        self.calls += 1
        return self._send(*arguments)


def use(target: Any, method: str, positional: Any, named: Any) -> object:
    """Call a method, and use what it returns, if it does nothing before."""
    result = getattr(target, method)(*positional, **named)
    if isinstance(result, (blocking.Watch, blocking.DomainWatch)) or method == "deadline":
        with result:
            return result
    return list(result) if inspect.isgenerator(result) else result


BLOCKING = [
    xsproto_sync.Client,
    blocking.Transaction,
    blocking.Watch,
    blocking.Monitor,
    blocking.DomainWatch,
    blocking.Device,
]


@pytest.mark.parametrize(("cls", "method", "calls"), cases(*BLOCKING))
def test_an_argument_of_a_blocking_method(
    store: EmbeddedXenStore, cls: type, method: str, calls: Any
) -> None:
    with (
        store.client() as client,
        client.transaction() as tx,
        client.watch(b"/a") as watch,
        client.monitor() as monitor,
    ):
        targets: list[Any] = [client, tx, watch, monitor]
        targets += [client.watch_domains(), client.device(b"/a")]
        target = next(each for each in targets if isinstance(each, cls))
        writes = Counted(client)
        for positional, named in calls:
            with pytest.raises(LocalProtocolError) as caught:
                use(target, method, positional, named)
            assert "secret" not in str(caught.value)
        assert writes.calls == 0
        assert tx.read(b"/a") == client.read(b"/a") == b"1"  # all are as good as before
        assert writes.calls == 2


async def use_asynchronous(target: Any, method: str, positional: Any, named: Any) -> None:
    """Call a method, and use what it returns."""
    result = getattr(target, method)(*positional, **named)
    if isinstance(result, (asynchronous.Watch, asynchronous.DomainWatch)):
        async with result:
            return
    elif inspect.isawaitable(result):
        await result
    elif hasattr(result, "__anext__"):
        await anext(result)


ASYNCHRONOUS = [
    xsproto_asyncio.Client,
    asynchronous.Transaction,
    asynchronous.Watch,
    asynchronous.Monitor,
    asynchronous.Device,
]


@pytest.mark.parametrize(("cls", "method", "calls"), cases(*ASYNCHRONOUS))
def test_an_argument_of_an_asynchronous_method(
    store: EmbeddedXenStore, cls: type, method: str, calls: Any
) -> None:
    async def main(client: xsproto_asyncio.Client) -> None:
        async with client.transaction() as tx, client.watch(b"/a") as watch:
            targets: list[Any] = [client, tx, watch, client.monitor(), client.device(b"/a")]
            target = next(each for each in targets if isinstance(each, cls))
            writes = Counted(client)
            for positional, named in calls:
                with pytest.raises(LocalProtocolError) as caught:
                    await use_asynchronous(target, method, positional, named)
                assert "secret" not in str(caught.value)
            assert writes.calls == 0
            assert await tx.read(b"/a") == await client.read(b"/a") == b"1"
            assert writes.calls == 2

    async def opened() -> None:
        async with xsproto_asyncio.open_client(store.socket_path()) as client:
            await main(client)

    asyncio.run(opened())


# What makes clients and stores


def test_the_timeout_of_a_client(store: EmbeddedXenStore) -> None:
    for timeout in WRONG["timeout"]:
        with pytest.raises(LocalProtocolError, match="timeout"):
            store.client(timeout=timeout)


@pytest.mark.parametrize(
    "method", ["client", "socket_path", "add_domain", "shutdown_domain", "remove_domain"]
)
def test_the_domain_of_a_store(store: EmbeddedXenStore, method: str) -> None:
    for domid in [None, *DOMIDS]:
        with pytest.raises(LocalProtocolError, match="domain id"):
            getattr(store, method)(domid)


@pytest.mark.parametrize("place", [5, b"/a\0b", "/a\0b", object(), [], 1.5])
def test_the_place_of_a_client(place: Any) -> None:
    for option in ("unix_socket_path", "xen_bus_path", "host"):
        with pytest.raises(XenStoreError):
            xsproto_sync.Client(**{option: place})
