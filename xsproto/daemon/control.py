"""CONTROL: what a daemon can be told about itself, and asked.

The commands of the C xenstored that say something of a store; those about its process (its log,
its memory, its successor) are not here.
"""

from __future__ import annotations

from typing import Final

from ..wire import OK
from .store import Domain, Store, StoreError
from .store.nodes import atoi

__all__ = ["control"]

_HELP: Final = b"""\
check\t
help\t
log\ton|off
print\t<text>
quota\t[set <name> <number> | <domid>]
quota-soft\t[set memory <number>]
\0"""


def control(store: Store, texts: list[bytes]) -> bytes:
    """The reply to a command and its arguments.

    Raises:
        Refused: EINVAL where that is no command; ENOENT for a domain that the store does not know.
    """
    names = store.profile.control_quotas
    match texts:
        case [b"check"] | [b"print", _] | [b"log", b"on" | b"off"]:
            return OK  # it is never inconsistent, and there is no log
        case [b"log"] if store.profile.log_tells:
            return b"There is no log.\n\0"
        case [b"help"]:
            return _HELP
        case [b"quota"]:
            return _limits({name: store.quota(key, None) for name, key in names.items()})
        case [b"quota-soft"]:
            return _limits({b"memory": store.quota(b"soft-memory", None)})
        case [b"quota", b"set", name, number] if name in names:
            return _set(store, names[name], number)
        case [b"quota-soft", b"set", b"memory", number]:
            return _set(store, b"soft-memory", number)
        case [b"quota", domid] if domid not in (b"set", b"max"):
            return _usage(store.require_domain(atoi(domid) & 0xFFFFFFFF))
    raise StoreError("EINVAL")


def _limits(rows: dict[bytes, int]) -> bytes:
    return _table(b"Quota settings", rows)


def _usage(domain: Domain) -> bytes:
    rows = {
        b"nodes": domain.nodes,
        b"watches": domain.watches,
        b"transactions": domain.transactions,
        b"outstanding": 0,
        b"memory": 0,
    }
    return _table(b"Domain %d" % domain.domid, rows)


def _table(title: bytes, rows: dict[bytes, int]) -> bytes:
    lines = [b"%b:\n" % title, *[b"%-17b: %8d\n" % row for row in rows.items()], b"\0"]
    return b"".join(lines)


def _set(store: Store, name: bytes, number: bytes) -> bytes:
    value = atoi(number)
    if value < 1:
        raise StoreError("EINVAL")
    store.set_quota(name, value, None)
    return OK
