"""What is public, as reviewed in `public_names.txt`, compared with what the packages offer.

A name is public if its module's `__all__` has it. `dir()` shows the public names of a module even
before any of them is used, since a package may import what it offers only then, and nothing else
of ours without an underscore. The reference documents each of them.

    python -m tests.packaging.public_names

prints what differs, in an interpreter in which nothing else was imported.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import runpy
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Final, ParamSpec, TypeVar

from ..support import ROOT

__all__ = ["INTERNAL", "MODULES", "REVIEWED", "differences", "lacking", "read", "unlisted"]

#: The packages whose modules are looked at.
PACKAGES: Final = ("xsproto", "xsproto_asyncio", "xsproto_gevent", "xsproto_sync", "xsproto_trio")

#: Modules, with those below them, that have no underscore and yet are only for the package around
#: them, which offers what is public of them.
INTERNAL_MODULES: Final = (
    "xsproto.adapters.streams",
    "xsproto.daemon.connections",
    "xsproto.daemon.daemon",
    "xsproto.daemon.leniency",
    "xsproto.daemon.store.domains",
    "xsproto.daemon.store.nodes",
    "xsproto.daemon.store.profiles",
    "xsproto.daemon.store.tree",
    "xsproto.daemon.store.watches",
    "xsproto.testing.harness",
    "xsproto.testing.runner",
    "xsproto.testing.scenarios",
    "xsproto.testing.strategies",
    "xsproto_asyncio.client",
    "xsproto_asyncio.server",
    "xsproto_gevent.client",
    "xsproto_gevent.server",
    "xsproto_sync.cli",
    "xsproto_sync.client",
    "xsproto_sync.compat",
    "xsproto_sync.compat.pyxs.router",
    "xsproto_sync.embedded",
    "xsproto_sync.server",
    "xsproto_trio.client",
    "xsproto_trio.server",
)

#: Names without an underscore that other modules of the packages use, and users do not.
INTERNAL: Final[Mapping[str, Collection[str]]] = {
    "xsproto.adapters.asynchronous": ["Connections"],
    "xsproto.adapters.device_transport": ["DeviceTransport"],
    "xsproto.client": ["already_watched"],
    "xsproto.clients.asynchronous": ["AsyncOperations"],
    "xsproto.clients.blocking": ["BlockingOperations"],
    "xsproto.clients.connection": ["Default"],
    "xsproto.clients.operations": ["LIST_ATTEMPTS"],
    "xsproto.paths": ["upwards", "valid_paths"],
    "xsproto.requests": ["TOKEN_MAX", "UINT32_MAX"],
    "xsproto_sync.compat.pyxs.connection": ["PacketConnection"],
    "xsproto_sync.testing": ["LIMIT"],
}


def read(text: str) -> dict[str, list[str]]:
    """The names by module, of a text that has a line ``[module]`` before those of each."""
    found: dict[str, list[str]] = {}
    names: list[str] = []
    for line in text.splitlines():
        if line.startswith("["):
            names = found[line.strip("[]")] = []
        elif line and not line.startswith("#"):
            names.append(line)
    return found


#: What was reviewed.
REVIEWED: Final = read(Path(__file__).with_suffix(".txt").read_text(encoding="utf-8"))

#: The public modules.
MODULES: Final = tuple(REVIEWED)


def unlisted(packages: Iterable[str], listed: Collection[str]) -> set[str]:
    """The modules without underscore that neither `listed` nor `INTERNAL_MODULES` has."""
    found = set()
    for package in packages:
        found.add(package)
        path = importlib.import_module(package).__path__
        for module in pkgutil.walk_packages(path, f"{package}."):
            if not any(part.startswith("_") for part in module.name.split(".")):
                found.add(module.name)
    return {
        name
        for name in found.difference(listed)
        if not any(f"{name}.".startswith(f"{internal}.") for internal in INTERNAL_MODULES)
    }


def differences(
    module: ModuleType, reviewed: Collection[str], internal: Collection[str] = ()
) -> Iterator[str]:
    """Say what of a module is not as `reviewed`."""
    name = module.__name__
    offered = set(module.__all__)
    shown = {each for each in dir(module) if not each.startswith("_")}
    for each in sorted(offered.difference(reviewed)):
        yield f"{name}.{each} was added to __all__"
    for each in sorted({*reviewed} - offered):
        yield f"{name}.{each} is lost: __all__ does not have it"
    for each in sorted(offered - shown):
        if not each.startswith("_"):
            yield f"dir({name}) does not show {each}"
    for each in sorted(offered):
        if getattr(module, each, None) is None:
            yield f"{name} does not have {each}"
    unexported = {each for each in shown - offered - _imported(module) if _is_ours(module, each)}
    for each in sorted(unexported.difference(internal)):
        yield f"dir({name}) shows {each}, which is not public: it needs an underscore"
    for each in sorted(set(internal) - unexported):
        yield f"{name}.{each} is no internal name any more"


def _is_ours(module: ModuleType, name: str) -> bool:
    return not isinstance(getattr(module, name), (ModuleType, TypeVar, ParamSpec))


def _imported(module: ModuleType) -> set[str]:
    """The names that a module imports.

    What a package imports from its own modules is not among them: it looks like the package's own.
    """
    is_package, top = hasattr(module, "__path__"), module.__name__.partition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.ImportFrom):
            is_own = node.level or (node.module or "").partition(".")[0] == top
            if not (is_package and is_own):
                found |= {alias.asname or alias.name for alias in node.names}
    return found


#: A directive, its argument, and its options.
DIRECTIVE: Final = re.compile(r"^ *\.\. (currentmodule|auto\w+):: (\S+)\n((?: +:.*\n)*)", re.M)


def lacking(names: Iterable[str], pages: Iterable[Path]) -> set[str]:
    """Those of `names`, each with its module, that no directive of `pages` documents."""
    alone, modules, current = set(), set(), ""
    for page in pages:
        for directive, name, rest in DIRECTIVE.findall(page.read_text(encoding="utf-8")):
            if directive == "currentmodule":
                current = name
            elif directive != "automodule":
                alone.add(f"{current}.{name}")
            elif ":no-members:" not in rest:
                modules.add(name)
                current = name
    return {name for name in names if name not in alone and name.rpartition(".")[0] not in modules}


def names_in_the_reference() -> Iterator[str]:
    """Each reviewed name, with the module under which the reference is to have it."""
    home: Any = runpy.run_path(str(ROOT / "docs" / "_ext" / "names.py"))["home"]
    for module, names in REVIEWED.items():
        for name in names:
            if hasattr(importlib.import_module(module), name):  # else it is lost
                yield f"{home(module, name)}.{name}"


def main() -> int:
    found = [f"{name} is a new module" for name in sorted(unlisted(PACKAGES, MODULES))]
    for name in MODULES:
        module = importlib.import_module(name)
        found += differences(module, REVIEWED[name], INTERNAL.get(name, ()))
    pages = (ROOT / "docs" / "reference").rglob("*.md")
    found += [f"the reference lacks {n}" for n in sorted(lacking(names_in_the_reference(), pages))]
    print(*found, sep="\n", end="\n" if found else "")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
