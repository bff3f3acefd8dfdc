"""The blocking and the asynchronous client are one: the same methods, parameters, docstrings and
requests.

On the daemon of `tests.support.in_memory`, which needs neither socket nor loop.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import AsyncIterator, Iterator
from types import ModuleType
from typing import Any, get_overloads

import pytest

from xsproto import requests as rq
from xsproto.clients import asynchronous, blocking
from xsproto.clients import connection as connections
from xsproto.clients.operations import Node
from xsproto.errors import (
    InvalidArgument,
    InvalidPath,
    InvalidType,
    InvalidValue,
    NotFound,
    XenStoreError,
)
from xsproto.perms import Permission
from xsproto.wire import op_name

from ..support.in_memory import AsyncMemory, BlockingMemory, Daemon, run

PAIRS = {
    blocking.BlockingOperations: asynchronous.AsyncOperations,
    blocking.BlockingClient: asynchronous.AsyncClient,
    blocking.Transaction: asynchronous.Transaction,
    blocking.Watch: asynchronous.Watch,
    blocking.Monitor: asynchronous.Monitor,
    blocking.View: asynchronous.View,
    blocking.DomainWatch: asynchronous.DomainWatch,
    blocking.Device: asynchronous.Device,
}

# What waits for nothing, on either side: `walk` and the rest give something that does.
SYNCHRONOUS = {
    *("walk", "transaction", "watch", "monitor", "unwatch", "close", "watch_domains", "device"),
}


def public(cls: type) -> set[str]:
    return {name for name in dir(cls) if not name.startswith("_")}


def signature(function: Any) -> list[tuple[str, Any, Any, str]]:
    """Name, kind, default and annotation of each parameter, and what is returned."""
    parameters = [
        (name, parameter.kind, parameter.default, str(parameter.annotation))
        for name, parameter in inspect.signature(function).parameters.items()
    ]
    return [*parameters, ("return", None, None, str(inspect.signature(function).return_annotation))]


def made_awaitable(signed: list[tuple[str, Any, Any, str]]) -> list[tuple[str, Any, Any, str]]:
    """What the signature of a blocking method is on the other side."""
    rules = {
        r"Blocking": "Async",
        r"^Iterator": "AsyncIterator",
        r"Callable\[(.*), T\]": r"Callable[\1, Awaitable[T]]",
    }
    result = []
    for name, kind, default, annotation in signed:
        for pattern, replacement in rules.items():
            annotation = re.sub(pattern, replacement, annotation)
        if name not in ("timeout", "deadline"):  # tasks have the loop's time limits
            result.append((name, kind, default, annotation))
    return result


def compare(one: type, other: type) -> list[str]:
    """How the public methods of a pair differ, one sentence each."""
    found = [f"{name} is on one side only" for name in sorted(public(one) ^ public(other))]
    for name in sorted(public(one) & public(other)):
        first, second = getattr(one, name), getattr(other, name)
        if isinstance(first, property) or isinstance(second, property):
            if type(first) is not type(second):
                found.append(f"{name} is a property on one side only")
            continue
        awaited = name not in SYNCHRONOUS or (name, one) == ("watch", blocking.Monitor)
        if inspect.iscoroutinefunction(second) != awaited or inspect.iscoroutinefunction(first):
            found.append(f"{name} must{' not' * (not awaited)} be awaited")
        forms = [[function, *get_overloads(function)] for function in (first, second)]
        if [made_awaitable(signature(form)) for form in forms[0]] != list(map(signature, forms[1])):
            found.append(f"{name} differs in its parameters or in what it returns")
    return found


@pytest.mark.parametrize(("one", "other"), PAIRS.items(), ids=lambda cls: cls.__name__)
def test_the_public_methods_are_the_same(one: type, other: type) -> None:
    assert compare(one, other) == []


def test_the_public_classes_are_the_same() -> None:
    names = {name.replace("Blocking", "Async") for name in blocking.__all__}
    assert names == set(asynchronous.__all__)


def test_an_adapter_provides_the_same() -> None:
    primitives = connections.AsyncConnection.__abstractmethods__
    assert connections.BlockingConnection.__abstractmethods__ == primitives
    for name in primitives:
        one, other = (
            getattr(cls, name)
            for cls in (connections.BlockingConnection, connections.AsyncConnection)
        )
        assert made_awaitable(signature(one)) == signature(other), name


def test_every_blocking_method_that_waits_takes_a_timeout() -> None:
    no_wait = {"transaction", "monitor", "close", "unwatch", "device"}
    for cls in PAIRS:
        for name in public(cls) - no_wait:
            function = getattr(cls, name)
            if not isinstance(function, property):
                assert "timeout" in inspect.signature(function).parameters, name


def test_the_comparison_sees_differences() -> None:
    class One:
        def read(self, path: bytes, *, timeout: float = 1) -> None: ...
        def write(self, path: bytes) -> None: ...
        def list(self, path: bytes) -> None: ...
        def exists(self) -> None: ...
        @property
        def id(self) -> None: ...
        def same(self, function: Any) -> None: ...

    class Other:
        async def read(self, path: bytes, default: bytes) -> None: ...
        def write(self, path: bytes) -> None: ...
        async def list(self, path: str) -> None: ...
        async def id(self) -> None: ...
        async def same(self, function: Any) -> None: ...

    assert compare(One, Other) == [
        "exists is on one side only",
        "id is a property on one side only",
        "list differs in its parameters or in what it returns",
        "read differs in its parameters or in what it returns",
        "write must be awaited",
    ]


# Docstrings


@pytest.mark.parametrize("module", [blocking, asynchronous], ids=lambda module: module.__name__)
def test_every_public_name_has_a_docstring(module: ModuleType) -> None:
    bare = []
    for cls in (cls for pair in PAIRS.items() for cls in pair if cls.__module__ == module.__name__):
        names = {name for base in cls.__mro__ for name in vars(base) if not name.startswith("_")}
        members = {f"{cls.__name__}.{name}": getattr(cls, name) for name in names}
        bare += [name for name, x in ({cls.__name__: cls} | members).items() if not x.__doc__]
    assert bare == []
    assert module.__doc__


def entries(docstring: str) -> Iterator[tuple[str, str, str]]:
    """What a docstring consists of: (section, entry, text); of the description the entry is ""."""
    section, entry, lines = "", "", list[str]()
    for line in [*inspect.cleandoc(docstring).splitlines(), "End:"]:
        heading = re.fullmatch(r"(\w+):", line)
        start = re.match(r"    (\w+(?:, \w+)*)(?: \(.*\))?: ", line) if section else None
        if heading or start:
            yield section, entry, " ".join(" ".join(lines).split())
            section, lines = heading[1] if heading else section, [] if heading else [line]
            entry = start[1] if start else ""
        else:
            lines.append(line)


def compared(docstring: str | None) -> list[tuple[str, str, str]]:
    """The entries of a docstring without what sets blocking methods and others apart.

    That is the time limits of the one, and how the words of the other are spelled.
    """
    result = []
    for section, entry, text in entries(docstring or ""):
        text = text.replace("``async ", "``")
        text = re.sub(r"Awaitable\[(\w+)\]", r"\1", text)
        if text and entry not in ("timeout", "TimedOut"):
            result.append((section, entry, text))
    return result


def differing_docstrings(one: type, other: type) -> list[str]:
    """The names of the public methods whose docstrings are not the same in both classes."""
    return [
        name
        for name in sorted(public(one) & public(other))
        if compared(getattr(one, name).__doc__) != compared(getattr(other, name).__doc__)
    ]


@pytest.mark.parametrize(("one", "other"), PAIRS.items(), ids=lambda cls: cls.__name__)
def test_the_docstrings_are_the_same(one: type, other: type) -> None:
    assert differing_docstrings(one, other) == []
    if one is not blocking.BlockingClient:  # each of these says which clients are based on it
        assert compared(one.__doc__) == compared(other.__doc__)


def test_the_comparison_of_docstrings_sees_differences() -> None:
    class One:
        def read(self) -> None:
            """Read.

            Arguments:
                path (bytes): the path,
                    absolute.
                timeout (float): seconds,
                    or None.
            """

        def write(self) -> None:
            """Write, for ``with``.

            Arguments:
                timeout: seconds.

            Raises:
                TimedOut: it took too long.
            """

        def list(self) -> None:
            """List.

            Returns:
                The names.
            """

    class Other:
        def read(self) -> None:
            """Read.

            Arguments:
                path (bytes): the path, relative.
            """

        def write(self) -> None:
            """Write, for ``async with``."""

        def list(self) -> None:
            """List."""

    assert differing_docstrings(One, Other) == ["list", "read"]
    Other.list, Other.read = One.list, One.read  # type: ignore[assignment]
    assert differing_docstrings(One, Other) == []


def as_documented(annotation: str) -> str:
    """An annotation in the words of users: type variables of paths are for type checkers."""
    return re.sub(r"\b(AnyStr|PathT)\b", "bytes | str", annotation)


def documented_types(docstring: str) -> dict[str, str]:
    """The arguments that a docstring describes, with the types that it says they have."""
    found = {}
    for section, name, text in entries(docstring):
        if section == "Arguments" and name:
            start = re.match(r"\w+ \((.*?)\): ", text)
            found[name] = start[1] if start else ""
    return found


@pytest.mark.parametrize("cls", [cls for pair in PAIRS.items() for cls in pair])
def test_every_argument_is_described_with_its_type(cls: type) -> None:
    for name in public(cls):
        function = getattr(cls, name)
        if isinstance(function, property):
            continue
        parameters = dict(inspect.signature(function).parameters)
        del parameters["self"]
        expected = {
            name: "float | None" if name == "timeout" else as_documented(parameter.annotation)
            for name, parameter in parameters.items()
        }
        assert documented_types(function.__doc__ or "") == expected, name


def test_every_request_is_named_with_its_section() -> None:
    for name, _, _, request in NODE_CALLS + CLIENT_CALLS:
        if request is not None:
            described = " ".join((getattr(blocking.BlockingClient, name).__doc__ or "").split())
            assert op_name(request.op) in described, name
            assert f'"{section_of(type(request))}"' in described, name


def section_of(request: type) -> str:
    """The section of xenstore.txt under which `xsproto.requests` has a class."""
    before = inspect.getsource(rq).partition(f"\nclass {request.__name__}(")[0]
    headings: list[str] = re.findall(r"^# (.*)$", before, re.M)
    return headings[-1]


def test_the_sections_are_those_of_the_specification() -> None:
    assert section_of(rq.Rm) == "Database read, write and permissions operations"
    assert section_of(rq.Control) == "Miscellaneous"


# The same calls


NAMES = [b"a-rather-long-name-%d" % number for number in range(300)]


def daemon_with_nodes() -> Daemon:
    daemon = Daemon(a=b"1", b=b"")
    daemon.nodes |= {b"/a/b": b"2", b"/a/c": b"3", b"/wide": b"", b"/binary": b"\xff"}
    daemon.nodes |= {b"/wide/" + name: b"" for name in NAMES}
    return daemon


#: What is called, what comes of it, and the first request that goes out.
NODE_CALLS: list[tuple[str, tuple[Any, ...], Any, Any]] = [
    ("read", (b"/a",), b"1", rq.Read(b"/a")),
    ("read", (b"/none", None), None, rq.Read(b"/none")),
    ("read", (b"/none",), NotFound, rq.Read(b"/none")),
    ("read", ("/a",), b"1", rq.Read(b"/a")),
    ("read", ("/none", None), None, rq.Read(b"/none")),
    ("read", (5,), InvalidType, None),
    ("read", ("/a/",), InvalidPath, None),
    ("read_text", (b"/a",), "1", rq.Read(b"/a")),
    ("read_text", (b"/none", None), None, rq.Read(b"/none")),
    ("read_text", (b"/none",), NotFound, rq.Read(b"/none")),
    ("read_text", (b"/binary",), InvalidValue, rq.Read(b"/binary")),
    ("read_int", (b"/a",), 1, rq.Read(b"/a")),
    ("read_int", ("/a/b", 5), 2, rq.Read(b"/a/b")),
    ("read_int", (b"/none", 5), 5, rq.Read(b"/none")),
    ("read_int", (b"/none",), NotFound, rq.Read(b"/none")),
    ("read_int", (b"/b",), InvalidValue, rq.Read(b"/b")),
    ("read_many", ([b"/b", b"/a"],), [b"", b"1"], rq.Read(b"/b")),
    ("read_many", ([b"/none", b"/a"], None), [None, b"1"], rq.Read(b"/none")),
    ("read_many", (["/b", b"/a"],), [b"", b"1"], rq.Read(b"/b")),
    ("read_many", ([],), [], None),
    ("read_many", (b"/a",), InvalidType, None),
    ("write", (b"/new/node", b"x\0"), None, rq.Write(b"/new/node", b"x\0")),
    ("write", ("/new", b"x"), None, rq.Write(b"/new", b"x")),
    ("write", ("/new", "x"), InvalidType, None),
    ("write", ("/new", b"x", None), None, rq.Write(b"/new", b"x")),
    ("write_text", (b"/new", "é"), None, rq.Write(b"/new", b"\xc3\xa9")),
    ("write_text", (b"/new", "\ud800"), InvalidArgument, None),
    ("write_text", (b"/new", b"x"), InvalidType, None),
    ("mkdir", (b"/new",), None, rq.Mkdir(b"/new")),
    ("mkdir", ("/new",), None, rq.Mkdir(b"/new")),
    ("delete", (b"/a",), None, rq.Rm(b"/a")),
    ("delete", (b"/no/such",), NotFound, rq.Rm(b"/no/such")),
    ("delete", (b"/no/such", True), None, rq.Rm(b"/no/such")),
    ("delete", ("/a", False), None, rq.Rm(b"/a")),
    ("delete", ("/a", 1), InvalidType, None),
    ("list", (b"/a",), [b"b", b"c"], rq.Directory(b"/a")),
    ("list", ("/a",), ["b", "c"], rq.Directory(b"/a")),
    ("list", ("/wide",), [name.decode() for name in NAMES], rq.Directory(b"/wide")),
    ("list", (b"/none", []), [], rq.Directory(b"/none")),
    ("list", (b"/wide",), NAMES, rq.Directory(b"/wide")),
    ("list", (b"/none",), NotFound, rq.Directory(b"/none")),
    ("exists", (b"/a",), True, rq.Read(b"/a")),
    ("exists", (b"/none",), False, rq.Read(b"/none")),
    ("get_perms", (b"/a",), [Permission(0), Permission(5, read=True)], rq.GetPerms(b"/a")),
    ("set_perms", (b"/a", [b"r5"]), None, rq.SetPerms(b"/a", (Permission(5, read=True),))),
    ("set_perms", (b"/a", b"r5"), InvalidType, None),
]
CLIENT_CALLS: list[tuple[str, tuple[Any, ...], Any, Any]] = [
    ("get_domain_path", (5,), b"/local/domain/5", rq.GetDomainPath(5)),
    ("is_domain_introduced", (5,), True, rq.IsDomainIntroduced(5)),
    ("introduce_domain", (5, -1, 2), None, rq.Introduce(5, -1, 2)),
    ("release_domain", (5,), None, rq.Release(5)),
    ("resume_domain", (5,), None, rq.Resume(5)),
    ("set_target", (5, 6), None, rq.SetTarget(5, 6)),
    ("reset_watches", (), None, rq.ResetWatches()),
    ("control", (b"log", b"on"), b"done", rq.Control(b"log", (b"on",))),
    ("get_feature", (), 3, rq.GetFeature()),
    ("get_feature", (5,), 3, rq.GetFeature(5)),
    ("set_feature", (5, 1), None, rq.SetFeature(5, 1)),
    ("get_quota", (), [b"4"], rq.GetQuota()),
    ("get_quota", (b"nodes", 5), 4, rq.GetQuota(b"nodes", 5)),
    ("get_quota", (None, 5), InvalidArgument, None),
    ("set_quota", (b"nodes", 9, 5), None, rq.SetQuota(b"nodes", 9, 5)),
]
#: Those that take more than one call, and are tested in the other files.
LONG = {
    *("walk", "transaction", "transact", "watch", "monitor", "wait", "read_tree", "write_tree"),
    *("domains", "watch_domains", "device"),
}


def test_every_method_is_called() -> None:
    called = {name for name, *_ in NODE_CALLS + CLIENT_CALLS}
    assert called | LONG == public(blocking.BlockingClient)


def check(daemon: Daemon, expected: Any, request: Any, tx_id: int, outcome: Any) -> None:
    if isinstance(expected, type):
        assert isinstance(outcome, expected)
    else:
        assert outcome == expected
    seen = [pair for pair in daemon.seen if not isinstance(pair[0], rq.TransactionStart)]
    assert seen[:1] == ([] if request is None else [(request, tx_id)])


@pytest.mark.parametrize(("name", "args", "expected", "request_"), NODE_CALLS + CLIENT_CALLS)
def test_both_do_the_same(name: str, args: Any, expected: Any, request_: Any) -> None:
    timeout = 7
    daemon = daemon_with_nodes()
    client = BlockingMemory(daemon)
    try:
        outcome = getattr(client, name)(*args, timeout=timeout)
    except XenStoreError as error:
        outcome = error
    check(daemon, expected, request_, 0, outcome)
    assert set(client.timeouts) <= {timeout}

    other = daemon_with_nodes()
    try:
        outcome = run(getattr(AsyncMemory(other), name)(*args))
    except XenStoreError as error:
        outcome = error
    check(other, expected, request_, 0, outcome)
    assert other.seen == daemon.seen
    assert other.nodes == daemon.nodes


@pytest.mark.parametrize(("name", "args", "expected", "request_"), NODE_CALLS)
def test_both_do_the_same_in_a_transaction(
    name: str, args: Any, expected: Any, request_: Any
) -> None:
    timeout = 7
    daemon = daemon_with_nodes()
    client = BlockingMemory(daemon)
    with client.transaction() as tx:
        before = list(client.timeouts)
        try:
            outcome = getattr(tx, name)(*args, timeout=timeout)
        except XenStoreError as error:
            outcome = error
        assert set(client.timeouts[len(before) :]) <= {timeout}
        check(daemon, expected, request_, tx.id, outcome)

    async def within_transaction() -> None:
        async with AsyncMemory(other).transaction() as tx:
            try:
                outcome = await getattr(tx, name)(*args)
            except XenStoreError as error:
                outcome = error
            check(other, expected, request_, tx.id, outcome)

    other = daemon_with_nodes()
    run(within_transaction())
    assert other.seen == daemon.seen
    assert other.nodes == daemon.nodes


def walked_blocking(daemon: Daemon, *args: Any) -> list[Node]:
    nodes = []
    for node in BlockingMemory(daemon).walk(*args):
        nodes.append(Node(node.path, node.value, node.children[:]))
        if b"c" in node.children:
            node.children.remove(b"c")
    return nodes


async def walked_async(daemon: Daemon, *args: Any) -> list[Node]:
    nodes = []
    async for node in AsyncMemory(daemon).walk(*args):
        nodes.append(Node(node.path, node.value, node.children[:]))
        if b"c" in node.children:
            node.children.remove(b"c")
    return nodes


@pytest.mark.parametrize("topdown", [True, False])
def test_both_walk_the_same_way(topdown: bool) -> None:
    args = (b"/a", topdown)
    nodes = walked_blocking(daemon_with_nodes(), *args)
    assert run(walked_async(daemon_with_nodes(), *args)) == nodes
    top = Node(b"/a", b"1", [b"b", b"c"])
    b, c = Node(b"/a/b", b"2", []), Node(b"/a/c", b"3", [])
    assert nodes == ([top, b] if topdown else [b, c, top])


def test_both_walk_the_whole_tree() -> None:
    nodes = walked_blocking(daemon_with_nodes(), b"/")
    assert run(walked_async(daemon_with_nodes(), b"/")) == nodes
    assert len(nodes) == len(daemon_with_nodes().nodes) - 1  # /a/c, which was pruned


def test_both_walk_from_nowhere() -> None:
    with pytest.raises(NotFound):
        walked_blocking(Daemon(), b"/none")
    with pytest.raises(NotFound):
        run(walked_async(Daemon(), b"/none"))
    with pytest.raises(InvalidPath):
        walked_blocking(Daemon(), b"/none/")
    with pytest.raises(InvalidPath):
        run(walked_async(Daemon(), b"/none/"))


def test_a_walk_is_no_generator() -> None:
    walk = AsyncMemory(daemon_with_nodes()).walk(b"/")
    assert isinstance(walk, AsyncIterator)
    assert not inspect.isasyncgen(walk)
