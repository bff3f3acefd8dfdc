"""Which names are public, and where the reference documents them."""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator

import xsproto

__all__ = ["groups", "home", "public_modules", "public_names"]

#: What programs import beside the modules of xsproto. The other modules of adapters are internal.
OF_ADAPTERS = (
    "xsproto_sync",
    "xsproto_sync.compat.libxenstore",
    "xsproto_sync.compat.lowlevel",
    "xsproto_sync.pytest_plugin",
    "xsproto_sync.compat.pyxs",
    "xsproto_sync.compat.pyxs.client",
    "xsproto_sync.compat.pyxs.connection",
    "xsproto_sync.compat.pyxs.exceptions",
    "xsproto_sync.compat.pyxs.helpers",
    "xsproto_sync.compat.xenstore_utils",
    "xsproto_asyncio",
    "xsproto_gevent",
    "xsproto_trio",
)


#: Modules of xsproto that only the package around them imports, which offers their public names.
INTERNAL = (
    "_",
    "testing.",
    "daemon.connections",
    "daemon.daemon",
    "daemon.leniency",
    "daemon.store.",
)


#: Modules whose classes users hold by the name of an adapter package -> such a package, whose
#: section of the reference documents them.
HELD_AS = {
    "xsproto.clients.asynchronous": "xsproto_asyncio",
    "xsproto.clients.blocking": "xsproto_sync",
}


def public_modules() -> Iterator[str]:
    """Name xsproto, its modules and rooms, and the modules of the adapters that programs import."""
    yield "xsproto"
    for module in pkgutil.walk_packages(xsproto.__path__, "xsproto."):
        name = module.name.removeprefix("xsproto.")
        if not name.startswith(INTERNAL):
            yield module.name
    yield from OF_ADAPTERS


def public_names() -> Iterator[tuple[str, str]]:
    """Name each public name, with its module."""
    for module in public_modules():
        for name in importlib.import_module(module).__all__:
            yield module, name


def home(module: str, name: str) -> str:
    """Return the module under which the reference documents a name of `module`.

    Of the packages that offer the same thing by the same name, that is the adapter's in `HELD_AS`;
    else the outermost of those around the module.
    """
    thing = getattr(importlib.import_module(module), name)
    parts = module.split(".")
    around = [".".join(parts[:length]) for length in range(1, len(parts))]
    for candidate in (*((HELD_AS[module],) if module in HELD_AS else ()), *around):
        package = importlib.import_module(candidate)
        if name in package.__all__ and getattr(package, name) is thing:
            return package.__name__
    return module


#: A row of the table in a class's docstring: perhaps a purpose, then names in backticks.
_ROW = re.compile(r"^(\S[^`]*?)? +(`\w+`(?:, `\w+`)*,?)$")


def groups(cls: type) -> dict[str, list[str]]:
    """Return the public methods and attributes of a class by purpose, as its docstring has them.

    The docstring has a table of purposes and names, the everyday ones first. Without a table, all
    are in one group, in the order of the source, whose purpose is empty.
    """
    found: dict[str, list[str]] = {}
    purpose = ""
    for line in (inspect.getdoc(cls) or "").splitlines():
        row = _ROW.match(line)
        if row is not None and (row[1] or purpose):
            purpose = row[1] or purpose
            found.setdefault(purpose, []).extend(re.findall(r"\w+", row[2]))
    if not found:
        names = [name for base in cls.__mro__ for name in vars(base) if not name.startswith("_")]
        found[""] = [*dict.fromkeys(names)]
    return found


if __name__ == "__main__":
    for module, name in public_names():
        print(f"{home(module, name)}.{name}")
