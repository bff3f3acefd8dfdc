"""Which names are public, and under which of their names the reference has them."""

import importlib
import pkgutil
from collections.abc import Iterator

import xsproto

__all__ = ["home", "public_modules", "public_names"]

#: What programs import beside the modules of xsproto. (Other modules of an adapter are its own
#: business.)
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


#: What nobody imports but the room around it, which offers what is public of it.
INTERNAL = ("_", "testing.", "daemon.daemon", "daemon.store.")


def public_modules() -> Iterator[str]:
    """xsproto, its modules and rooms, and those of the adapters that programs import."""
    yield "xsproto"
    for module in pkgutil.walk_packages(xsproto.__path__, "xsproto."):
        name = module.name.removeprefix("xsproto.")
        if not name.startswith(INTERNAL):
            yield module.name
    yield from OF_ADAPTERS


def public_names() -> Iterator[tuple[str, str]]:
    """Each public name, with its module."""
    for module in public_modules():
        for name in importlib.import_module(module).__all__:
            yield module, name


def home(module: str, name: str) -> str:
    """The module under which the reference has a name of `module`.

    That is the outermost of the packages around it that offer the same thing by the same name.
    """
    thing = getattr(importlib.import_module(module), name)
    parts = module.split(".")
    for length in range(1, len(parts)):
        package = importlib.import_module(".".join(parts[:length]))
        if name in package.__all__ and getattr(package, name) is thing:
            return package.__name__
    return module


if __name__ == "__main__":
    for module, name in public_names():
        print(f"{home(module, name)}.{name}")
