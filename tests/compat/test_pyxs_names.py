"""`xsproto_sync.compat.pyxs` has what pyxs has: its names, signatures, bases and reprs, by
inspection.

What differs is listed here, and is nothing that pyxs documents, or more than it has.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ..support import ROOT

MODULES = ["", ".client", ".connection", ".exceptions", "._internal", ".helpers", "._compat"]

#: pyxs' own helpers, by module. (`pyxs._server`, of 0.4.1 alone, is for its tests.)
PRIVATE = {
    ".client": {"_condition_wait", "_re_7bit_ascii"},
    "._internal": {"_rq_id"},
    ".helpers": {"_codeerror", "_re_path", "_re_perms", "_re_watch_path"},
}
#: What pyxs imports for itself.
IMPORTED = {"absolute_import", "defaultdict", "partial", "namedtuple", "ConnectionError"}
#: A condition that nobody may wait for here: it would not tell of the connection's end.
LEFT_OUT = {"RVar.condition"}
#: Parameters that ours have in the end, all of them optional.
MORE = {
    "Monitor.wait": ["timeout"],
    "RVar.get": ["timeout"],
    "check_perms": ["allow_domid_any"],
    "xs": ["readonly"],
    "xs.__init__": ["readonly"],
    "xs.transaction_end": ["transaction"],
}
#: Optional here, since it has another name, too.
OPTIONAL = {"xs.transaction_end.tx_id"}


def pair(name: str) -> tuple[ModuleType, ModuleType]:
    pytest.importorskip("pyxs", reason="pyxs is not installed")
    return importlib.import_module(f"pyxs{name}"), importlib.import_module(
        f"xsproto_sync.compat.pyxs{name}"
    )


def own(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """What a module of pyxs defines, or gets from another one."""
    for name, value in vars(module).items():
        if not name.startswith("__") and not inspect.ismodule(value) and name not in IMPORTED:
            yield name, value


def parameters(function: Any) -> list[tuple[str, Any, Any]] | None:
    try:
        found = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None  # no function
    return [(each.name, each.kind, each.default) for each in found]


def compare_calls(what: str, theirs: Any, ours: Any) -> None:
    expected, found = parameters(theirs), parameters(ours)
    if expected is None or found is None:
        return
    for (name, kind, default), other in zip(expected, found, strict=False):
        if f"{what}.{name}" in OPTIONAL:
            assert other[:2] == (name, kind)
        else:
            assert other == (name, kind, default), what
    rest = found[len(expected) :]
    assert [name for name, _, _ in rest] == MORE.get(what, []), what
    assert all(default is not inspect.Parameter.empty for _, _, default in rest)


@pytest.mark.parametrize("name", MODULES)
def test_every_name_is_there(name: str) -> None:
    theirs, ours = pair(name)
    assert set(theirs.__all__) <= set(ours.__all__)
    lacking = {each for each, _ in own(theirs) if not hasattr(ours, each)}
    assert lacking == PRIVATE.get(name, set())


@pytest.mark.parametrize("name", MODULES)
def test_everything_is_called_in_the_same_way(name: str) -> None:
    theirs, ours = pair(name)
    for each, value in own(theirs):
        if each in PRIVATE.get(name, set()) or not callable(value):
            continue
        other = getattr(ours, each)
        compare_calls(each, value, other)
        if not inspect.isclass(value):
            continue
        assert [base.__name__ for base in other.__mro__] == [
            base.__name__ for base in value.__mro__
        ]
        for member, function in inspect.getmembers(value):
            if member.startswith("__") and member not in vars(value):
                continue
            what = f"{each}.{member}"
            if what in LEFT_OUT:
                continue
            assert hasattr(other, member), what
            compare_calls(what, function, getattr(other, member))


@pytest.mark.parametrize(
    "expression",
    [
        "Client()",
        "Client('/s')",
        "Client('/s', '/x')",
        "Client(xen_bus_path='/x')",
        "Client().router",
        "client.RVar()",
        "connection.UnixSocketConnection('/s')",
        "connection.XenBusConnection('/x')",
        "_internal.Packet(2, b'/', 7)",
        "_internal.Packet(2, b'/', 7, 5)._replace(rq_id=8)",
        "_internal.Event(b'/a', b'token')",
        "_internal.Packet._struct.size, _internal.NUL",
        "helpers.error(2)",
        "helpers.error(b'EINVAL')",
        "PyXSError(2, 'text'), str(PyXSError(2, 'text'))",
        "ConnectionError('text'), UnexpectedPacket(b'packet')",
        "InvalidPath(b'//'), InvalidOperation(99), InvalidPayload(b'')",
        "_internal.Op[:20], _internal.Op.RESTRICT, [*_internal.Op._fields[:21]]",
        "_internal.Operations is _internal.Op",
        "repr(_internal.Op)[:60]",
    ],
)
def test_the_reprs(expression: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # pyxs' router leaves them open.
    monkeypatch.setattr("socket.socketpair", lambda: (None, None))
    shown = []
    for module in pair(""):
        names = vars(module) | {
            each: importlib.import_module(f"{module.__name__}.{each}")
            for each in ("client", "connection", "_internal", "helpers")
        }
        shown.append(repr(eval(expression, dict(names))))
    assert shown[0] == shown[1]


def test_objects_have_the_same_attributes() -> None:
    found = []
    for module in pair(""):
        client = module.Client("/socket")
        found.append((client, client.router, client.monitor(), client.router.connection))
    for theirs, ours in zip(*found, strict=True):
        names = [name for name in dir(theirs) if not name.startswith("_")]
        assert [name for name in names if not hasattr(ours, name)] == []
    for _, router, _, _ in found:
        router.r_terminator.close()
        router.w_terminator.close()


def test_there_is_a_test_for_each_fault_that_the_documentation_lists() -> None:
    here = Path(__file__).parent
    listed = re.findall(
        r"^\| (\d+) \|", (ROOT / "docs/howto/migrating.md").read_text(), flags=re.MULTILINE
    )
    assert listed == [str(number) for number in range(1, 42)]
    cited = set()
    for file in [*here.glob("test_pyxs*.py"), ROOT / "tests/device/on_device/test_pyxs.py"]:
        for comment in re.findall(r"# (\d+(?:(?:, | to )\d+)*)(?::|, |$)", file.read_text(), re.M):
            for part in comment.split(", "):
                first, _, last = part.partition(" to ")
                cited |= {str(number) for number in range(int(first), int(last or first) + 1)}
    assert cited >= set(listed)


@pytest.mark.parametrize(
    ("function", "right", "wrong"),
    [
        (
            "check_path",
            [b"/", b"/a", b"a", b"a/b-c_d@e", b"@releaseDomain", b"/" + b"a" * 3071],
            [b"", b"//", b"/a/", b"a//b", b"/a b", b"/\xff", b"/" + b"a" * 3072],
        ),
        (
            "check_watch_path",
            [b"/", b"/a", b"a", b"@introduceDomain", b"@releaseDomain"],
            [b"", b"//", b"/a/", b"@other", b"@", b"/a b"],
        ),
        ("check_perms", [[b"n0"], [b"b5", b"r32000", b"w1"], []], [[b"x0"], [b"r"], [b"r-1"]]),
    ],
)
def test_the_same_is_right_and_wrong(function: str, right: list[Any], wrong: list[Any]) -> None:
    for module in pair(".helpers"):
        check = getattr(module, function)
        for each in right:
            assert check(each) == each
        for each in wrong:
            with pytest.raises(module.PyXSError) as caught:
                check(each)
            assert type(caught.value).__name__ in ("InvalidPath", "InvalidPermission")
            assert caught.value.args == (each[0] if isinstance(each, list) else each,)
