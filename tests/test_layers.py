"""The import rules, by room (docs/explain/design.md has the reasons).

The tests read the source: what one test run happens to import says nothing about other branches.
"""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from .support import ROOT

# The rooms of xsproto -> the rooms that their modules may import, beside their own. A module right
# below the package is in the room "protocol", unless it is in this table itself.
ROOMS: Mapping[str, set[str]] = {
    "errors": set(),
    "_version": set(),
    "protocol": {"errors"},
    "clients": {"errors", "protocol"},
    "conditions": {"errors", "protocol", "clients"},  # what users import from the package
    "daemon": {"errors", "protocol"},
    "adapters": {"errors", "protocol", "clients", "daemon"},
    "testing": {"errors", "protocol", "clients", "conditions", "daemon", "adapters"},
    # The package re-exports. A program that wants the kit, or an adapter's parts, names the room.
    "__init__": {"errors", "_version", "protocol", "clients", "daemon"},
    # `python -m xsproto` is a program.
    "__main__": {"errors", "_version", "adapters"},
}

# Programs and drop-ins stand at the top of the house: nothing else imports these rooms.
TOP_ROOMS = {"xsproto_sync.cli", "xsproto_sync.compat"}

# What does I/O, waits, tells the time or runs other programs. Adapter packages import it, and hand
# it to `xsproto.adapters`. The rule holds for imports in functions and under TYPE_CHECKING, too.
IMPURE = {
    *("os", "io", "fcntl", "socket", "select", "selectors", "ssl", "asyncio", "trio", "gevent"),
    *("threading", "_thread", "queue", "concurrent", "subprocess", "multiprocessing"),
    *("signal", "time"),
}

# What else than the standard library may be imported; the longest name that fits counts.
THIRD_PARTY: Mapping[str, set[str]] = {
    "xsproto": {"attrs"},
    "xsproto.testing": {"attrs", "hypothesis"},
    "xsproto_sync": {"attrs"},
    "xsproto_sync.cli": {"attrs", "click"},
    "xsproto_sync.compat.lowlevel": {"xen"},  # it leaves Xen's own module alone, where there is one
    "xsproto_sync.fuzz": {"attrs", "atheris"},
    "xsproto_sync.pytest_plugin": {"pytest"},
    "xsproto_gevent": {"attrs", "gevent"},
    "xsproto_trio": {"attrs", "trio"},
    "xsproto_asyncio": {"attrs"},
}


def room_of(module: str) -> str:
    """The room of a module of xsproto."""
    _, _, rest = module.partition(".")
    first = rest.partition(".")[0] or "__init__"
    if first in ROOMS:
        return first
    return "protocol" if first == rest else f"unknown room {first}"


def top_room_of(module: str) -> str | None:
    """The top room that a module of an adapter package is in; None for the other modules."""
    for room in TOP_ROOMS:
        if module == room or module.startswith(room + "."):
            return room
    return None


def dependencies_of(module: str) -> set[str]:
    parts = module.split(".")
    names = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((THIRD_PARTY[name] for name in names if name in THIRD_PARTY), set())


def imported(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """Every import below `tree`, as (line, absolute dotted name), wherever it stands.

    Of ``from a import b`` the name is ``a.b``: `b` may be a module.
    """
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                for alias in names:
                    yield node.lineno, alias.name
            case ast.ImportFrom(module=module, names=names, level=level):
                base = package.split(".")[: len(package.split(".")) - level + 1] if level else []
                origin = ".".join([*base, *([module] if module else [])])
                for alias in names:
                    yield node.lineno, f"{origin}.{alias.name}"
            case ast.Name(id="__import__") | ast.Attribute(attr="import_module"):
                yield node.lineno, "(computed)"


def modules() -> dict[str, Path]:
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for package in sorted(ROOT.glob("xsproto*/"))
        for path in sorted(package.rglob("*.py"))
    }


MODULES = modules()


def module_of(name: str, known: Mapping[str, object]) -> str:
    """The module that an imported name belongs to."""
    while name not in known and "." in name:
        name = name.rpartition(".")[0]
    return name


def violations(
    module: str,
    source: str,
    *,
    is_package: bool = False,
    known: Mapping[str, object] = MODULES,
) -> list[str]:
    """What the rules do not allow in the source of `module`, one sentence each."""
    package = module if is_package else module.rpartition(".")[0]
    distribution = module.partition(".")[0]
    inside = distribution == "xsproto"
    if inside and room_of(module) not in ROOMS:
        return [f"{module} is in no room of the table"]
    if distribution not in THIRD_PARTY:
        return [f"{distribution} is missing from the table of third-party packages"]
    found = []
    for line, name in imported(ast.parse(source), package):
        top = name.partition(".")[0]
        target = module_of(name, known)
        reason = None
        if name == "(computed)":
            reason = "imports by a computed name"
        elif inside and top in IMPURE and room_of(module) != "__main__":
            reason = f"imports {name}, which does I/O, waits or tells the time"
        elif top == "xsproto":
            if inside and not {room_of(target)} <= {room_of(module), *ROOMS[room_of(module)]}:
                reason = f"imports {target}: {room_of(module)} may not use {room_of(target)}"
        elif top == distribution:
            room = top_room_of(target)
            if room is not None and room != top_room_of(module):
                reason = f"imports {target}, which stands above it"
        elif top.startswith("xsproto_"):
            reason = f"imports {name}: an adapter knows xsproto only, and xsproto no adapter"
        elif top not in sys.stdlib_module_names and top not in dependencies_of(module):
            reason = f"imports {name}, which is no dependency of it"
        if reason is not None:
            found.append(f"{module}:{line} {reason}")
    return found


@pytest.mark.parametrize("module", MODULES)
def test_every_module_keeps_the_rules(module: str) -> None:
    path = MODULES[module]
    source = path.read_text(encoding="utf-8")
    found = violations(module, source, is_package=path.name == "__init__.py")
    assert not found, "\n".join(found)


@functools.cache
def graph() -> Mapping[str, set[str]]:
    """Each module -> the modules that it imports. A package counts as its `__init__`."""
    arrows = {}
    for module, path in MODULES.items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        names = imported(ast.parse(path.read_text(encoding="utf-8")), package)
        targets = {module_of(name, MODULES) for _, name in names}
        arrows[module] = {target for target in targets if target in MODULES} - {module}
    return arrows


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert "xsproto.wire" in graph()["xsproto.requests"]
    try:
        TopologicalSorter(graph()).prepare()
    except CycleError as error:
        pytest.fail(f"these import each other: {error.args[1]}")


def test_the_two_roles_of_the_protocol_do_not_know_each_other() -> None:
    arrows = graph()
    assert "xsproto.server" not in arrows["xsproto.client"]
    assert "xsproto.client" not in arrows["xsproto.server"]


def test_all_rooms_are_looked_at() -> None:
    looked_at = {room_of(name) for name in MODULES if name.partition(".")[0] == "xsproto"}
    assert looked_at == ROOMS.keys()
    assert {"xsproto.client", "xsproto.clients.session", "xsproto.daemon.store.tree"} <= {*MODULES}
    assert {top_room_of(name) for name in MODULES} == {*TOP_ROOMS, None}


def test_the_table_of_rooms_has_no_circle() -> None:
    TopologicalSorter({room: uses - {room} for room, uses in ROOMS.items()}).prepare()


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("xsproto.wire", "import struct\nimport attrs\nfrom xsproto.errors import XenStoreError"),
        ("xsproto.wire", "from .errors import XenStoreError"),
        ("xsproto.client", "from xsproto import events, requests"),
        ("xsproto.clients.session", "from ..client import ClientConnection"),
        ("xsproto.daemon.store.nodes", "from ...errors import XenStoreError\nfrom . import tree"),
        ("xsproto.adapters.blocking", "from ..clients import blocking"),
        ("xsproto.testing", "import xsproto.wire\nfrom xsproto import daemon\nimport hypothesis"),
        ("xsproto_sync.client", "import socket, xsproto\nfrom xsproto_sync import server"),
        ("xsproto_sync.cli.main", "import click\nfrom . import nodes\nfrom ..client import Client"),
        ("xsproto_trio.client", "import trio\nfrom xsproto import Client"),
    ],
)
def test_good_sources_pass(module: str, source: str) -> None:
    assert violations(module, source) == []


@pytest.mark.parametrize(
    ("module", "source", "reason"),
    [
        ("xsproto.errors", "from xsproto.wire import Op", "errors may not use protocol"),
        ("xsproto.wire", "from xsproto.clients.session import Session", "may not use clients"),
        ("xsproto.wire", "from xsproto.clients import session", "may not use clients"),
        ("xsproto.wire", "from .clients.session import Session", "may not use clients"),
        ("xsproto.wire", "from . import clients", "may not use clients"),
        ("xsproto.wire", "import xsproto.clients.session", "may not use clients"),
        ("xsproto.wire", "import xsproto", "may not use __init__"),
        ("xsproto.wire", "from xsproto import Client", "may not use __init__"),
        ("xsproto.wire", "import socket", "which does I/O"),
        ("xsproto.wire", "def f():\n    from time import monotonic", "wire:2 imports time"),
        ("xsproto.wire", "if TYPE_CHECKING:\n    import concurrent.futures", "which does I/O"),
        ("xsproto.adapters.device", "import os", "which does I/O"),
        ("xsproto.testing", "import asyncio", "which does I/O"),
        ("xsproto.wire", "import hypothesis", "no dependency of it"),
        ("xsproto.wire", "__import__('socket')", "computed name"),
        ("xsproto.wire", "from importlib import util\nutil.import_module('a')", "computed name"),
        ("xsproto.wire", "import xsproto_sync", "no adapter"),
        ("xsproto.clients.session", "from ..daemon import Daemon", "may not use daemon"),
        ("xsproto.clients.session", "from ..adapters import device", "may not use adapters"),
        ("xsproto.daemon.store.nodes", "from ...clients import session", "may not use clients"),
        ("xsproto.adapters.device", "from .. import testing", "may not use testing"),
        ("xsproto.surprise.module", "", "in no room of the table"),
        ("xsproto_sync.client", "import xsproto_trio", "an adapter knows xsproto only"),
        ("xsproto_sync.client", "from xsproto_trio.client import Client", "knows xsproto only"),
        ("xsproto_sync.client", "import trio", "no dependency of it"),
        ("xsproto_sync.client", "import click", "no dependency of it"),
        ("xsproto_sync.client", "from .compat import lowlevel", "stands above it"),
        ("xsproto_sync.compat.lowlevel", "from ..cli import main", "stands above it"),
        ("xsproto_surprise.client", "", "missing from the table of third-party"),
    ],
)
def test_bad_sources_are_found(module: str, source: str, reason: str) -> None:
    (found,) = violations(module, source)
    assert reason in found


def test_the_package_itself_may_not_load_the_kit() -> None:
    (found,) = violations("xsproto", "from . import testing", is_package=True)
    assert "imports xsproto.testing" in found
    assert violations("xsproto", "from .wire import Op", is_package=True) == []
