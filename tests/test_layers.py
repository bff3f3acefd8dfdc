"""Who may import whom: the layers of the house.

Read from the source, since what a test run happens to import says nothing about other branches.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

ANY = {"*"}

# Both facades stand on the same floor, and neither on the other.
FACADE = {
    *("errors", "paths", "perms", "requests", "client", "watches", "operations", "lanes"),
}

# A module of xsproto, or a subpackage with all that is in it -> what it may import of xsproto.
# Exact, not transitive: what a module needs from two floors below is written here too.
LAYERS: dict[str, set[str]] = {
    "errors": set(),
    "record": set(),
    "wire": {"errors", "record"},
    "paths": {"errors"},
    "perms": {"errors", "paths", "record"},
    "requests": {"errors", "record", "wire", "paths", "perms"},
    "events": {"errors", "record", "wire", "requests"},
    "client": {"errors", "wire", "paths", "requests", "events"},
    "server": {"errors", "wire", "paths", "requests", "events"},
    "watches": {"errors", "paths", "record"},
    "session": {"errors", "wire", "paths", "requests", "events", "client", "watches"},
    "operations": {"client", "errors", "paths", "perms", "requests"},
    "device": {"errors", "lanes", "wire", "requests", "client", "session"},
    "transport": {"errors", "session"},
    "xenbus": {"device", "errors", "wire"},
    "location": {"errors"},
    "lanes": {"client", "requests", "session", "watches"},
    "clock": {"errors", "lanes"},
    "blocking": {*FACADE},
    "awaitable": {*FACADE},
    "loops": {
        *("awaitable", "client", "device", "errors", "lanes", "location", "operations"),
        "requests",
        *("session", "transport", "watches", "xenbus"),
    },
    "waiting": {
        *("blocking", "client", "clock", "device", "errors", "lanes", "location", "requests"),
    },
    "store": {"errors", "paths", "perms"},
    "control": {"store"},
    "daemon": {
        *("errors", "wire", "paths", "perms", "requests", "events", "server", "store", "control"),
    },
    "serving": {"daemon", "errors"},
    "testing": ANY,
    "strategies": ANY,
    # The package only re-exports, and not `testing`: who wants that imports it by name.
    "__init__": {
        *("errors", "wire", "paths", "perms", "requests", "events", "client", "server"),
        *("watches", "session", "operations", "blocking", "awaitable", "store", "daemon"),
    },
}

# What does I/O, waits, tells the time or runs other programs: the part of the adapters. That goes
# for imports in functions and under TYPE_CHECKING, too.
IMPURE = {
    *("os", "io", "socket", "select", "selectors", "ssl", "asyncio", "trio", "gevent"),
    *("threading", "_thread", "queue", "concurrent", "subprocess", "multiprocessing"),
    *("signal", "time"),
}

# What else than the standard library may be imported, by package or by module of xsproto.
THIRD_PARTY: dict[str, set[str]] = {
    "xsproto": {"attrs"},
    "xsproto.testing": {"attrs", "hypothesis"},
    "xsproto.strategies": {"attrs", "hypothesis"},
    "xsproto_sync": {"attrs", "click"},
    "xsproto_sync.lowlevel": {"xen"},  # to leave Xen's own alone, where there is one
    "xsproto_sync.pytest_plugin": {"pytest"},
    "xsproto_gevent": {"attrs", "gevent"},
    "xsproto_trio": {"attrs", "trio"},
    "xsproto_asyncio": {"attrs"},
}


def imported(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """Every import below `tree`, as (line, absolute dotted name), wherever it stands."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                for alias in names:
                    yield node.lineno, alias.name
            case ast.ImportFrom(module=module, names=names, level=level):
                base = package.split(".")[: len(package.split(".")) - level + 1] if level else []
                origin = ".".join([*base, *([module] if module else [])])
                for alias in names:
                    # `from xsproto import wire` imports the module, as `import xsproto.wire` does.
                    yield node.lineno, f"{origin}.{alias.name}" if origin == "xsproto" else origin
            case ast.Name(id="__import__") | ast.Attribute(attr="import_module"):
                yield node.lineno, "(computed)"


def violations(module: str, source: str, *, is_package: bool = False) -> list[str]:
    """What the layers do not allow in the source of `module`, one sentence each."""
    package = module if is_package else module.rpartition(".")[0]
    distribution = module.partition(".")[0]
    inside = distribution == "xsproto"
    layer = [*module.split("."), "__init__"][1]
    if inside and layer not in LAYERS:
        return [f"{module} is missing from the table of layers"]
    if distribution not in THIRD_PARTY:
        return [f"{distribution} is missing from the table of third-party packages"]
    third_party = THIRD_PARTY.get(f"{distribution}.{layer}", THIRD_PARTY[distribution])
    allowed = LAYERS[layer] if inside else ANY

    found = []
    for line, name in imported(ast.parse(source), package):
        top, _, rest = name.partition(".")
        target = rest.partition(".")[0]
        if name == "(computed)":
            reason = "imports by a computed name"
        elif inside and top in IMPURE:
            reason = f"imports {name}, which the engine must not know"
        elif top == "xsproto":
            if allowed is ANY or target == layer or target in allowed:
                continue
            known = target in LAYERS
            reason = (
                f"imports {name}" if known else "imports from xsproto itself, not a module of it"
            )
        elif top == distribution:
            continue
        elif top.startswith("xsproto_"):
            reason = f"imports {name}: an adapter knows xsproto only, and xsproto no adapter"
        elif top in sys.stdlib_module_names or top in third_party:
            continue
        else:
            reason = f"imports {name}, which is no dependency of it"
        found.append(f"{module}:{line} {reason}")
    return found


def modules() -> list[tuple[str, Path]]:
    return [
        (".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), path)
        for package in sorted(ROOT.glob("xsproto*/"))
        for path in sorted(package.rglob("*.py"))
    ]


@pytest.mark.parametrize(
    ("module", "path"), [pytest.param(name, path, id=name) for name, path in modules()]
)
def test_every_module_keeps_the_layers(module: str, path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    found = violations(module, source, is_package=path.name == "__init__.py")
    assert not found, "\n".join(found)


def test_the_engine_is_looked_at() -> None:
    names = {name for name, _ in modules()}
    assert {"xsproto.errors", "xsproto.wire", "xsproto.client", "xsproto.session"} <= names
    assert {"xsproto.server", "xsproto.store.tree", "xsproto.daemon"} <= names


def test_the_table_has_no_cycle_and_no_unknown_name() -> None:
    floors: set[str] = set()
    rest = {name: uses for name, uses in LAYERS.items() if uses is not ANY}
    while rest:
        next_floor = {name for name, uses in rest.items() if uses <= floors}
        assert next_floor, f"these import each other, or something unknown: {rest}"
        floors |= next_floor
        rest = {name: uses for name, uses in rest.items() if name not in next_floor}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("xsproto.wire", "import struct\nimport attrs\nfrom xsproto.errors import XenStoreError"),
        ("xsproto.wire", "from .errors import XenStoreError"),
        ("xsproto.client", "from xsproto import events, requests"),
        ("xsproto.store.nodes", "from ..errors import XenStoreError\nfrom . import quotas"),
        ("xsproto.testing", "import xsproto\nfrom xsproto import daemon\nimport hypothesis"),
        (
            "xsproto_sync.client",
            "import socket, xsproto\nfrom xsproto_sync import transports",
        ),
        ("xsproto_trio.client", "import trio\nfrom xsproto import Client"),
    ],
)
def test_good_sources_pass(module: str, source: str) -> None:
    assert violations(module, source) == []


@pytest.mark.parametrize(
    ("module", "source", "reason"),
    [
        ("xsproto.wire", "from xsproto.requests import Read", "imports xsproto.requests"),
        ("xsproto.wire", "from xsproto import requests", "imports xsproto.requests"),
        ("xsproto.wire", "from .requests import Read", "imports xsproto.requests"),
        ("xsproto.wire", "from . import requests", "imports xsproto.requests"),
        ("xsproto.wire", "import xsproto.requests", "imports xsproto.requests"),
        ("xsproto.wire", "import xsproto", "imports from xsproto itself"),
        ("xsproto.wire", "from xsproto import Client", "imports from xsproto itself"),
        ("xsproto.wire", "import socket", "the engine must not know"),
        ("xsproto.wire", "def f():\n    from time import monotonic", "wire:2 imports time"),
        ("xsproto.wire", "if TYPE_CHECKING:\n    import concurrent.futures", "must not know"),
        ("xsproto.testing", "import asyncio", "the engine must not know"),
        ("xsproto.wire", "import hypothesis", "no dependency of it"),
        ("xsproto.wire", "__import__('socket')", "computed name"),
        ("xsproto.wire", "from importlib import util\nutil.import_module('os')", "computed name"),
        ("xsproto.wire", "import xsproto_sync", "no adapter"),
        ("xsproto.store.nodes", "from ..wire import Op", "imports xsproto.wire"),
        ("xsproto.surprise", "", "missing from the table of layers"),
        ("xsproto_sync.client", "import xsproto_trio", "an adapter knows xsproto only"),
        ("xsproto_sync.client", "from xsproto_trio.client import Client", "knows xsproto only"),
        ("xsproto_sync.client", "import trio", "no dependency of it"),
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
