"""CONTROL: commands for the daemon itself.

These are the commands of the C xenstored that are about its store. The others are about its
process: its log file, its memory, its live update.
"""

from __future__ import annotations

from typing import Final

from ..requests import Control
from .store import Domain, Store, StoreError
from .store.nodes import atoi

__all__ = ["control"]

_OK: Final = b"OK"
_HELP: Final = b"""\
check\t
help\t
log\ton|off
print\t<text>
quota\t[set <name> <number> | <domid>]
quota-soft\t[set memory <number>]
"""


def control(store: Store, request: Control) -> bytes:
    """Carry out a command.

    Returns:
        The text of the reply.

    Raises:
        StoreError: EINVAL if there is no such command; ENOENT if the store does not know the
            domain.
    """
    names = store.profile.control_quotas
    match [request.command, *request.parameters]:
        case [b"check"] | [b"print", _] | [b"log", b"on" | b"off"]:
            return _OK  # there is nothing to repair, and no log to print to
        case [b"log"] if store.profile.reports_log:
            return b"There is no log.\n"
        case [b"help"]:
            return _HELP
        case [b"quota"]:
            return _quotas({name: store.domains.quota(key, None) for name, key in names.items()})
        case [b"quota-soft"]:
            return _quotas({b"memory": store.domains.quota(b"soft-memory", None)})
        case [b"quota", b"set", name, number] if name in names:
            return _set_quota(store, names[name], number)
        case [b"quota-soft", b"set", b"memory", number]:
            return _set_quota(store, b"soft-memory", number)
        # The newest has "quota max", for the highest numbers that were seen. To 4.17, it is dom0.
        case [b"quota", domid] if domid != b"set" and (
            domid != b"max" or not store.profile.has_maxima
        ):
            return _usage(store.domains.require_known(atoi(domid) & 0xFFFFFFFF))
    raise StoreError("EINVAL")


def _quotas(rows: dict[bytes, int]) -> bytes:
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
    lines = [b"%b:\n" % title, *[b"%-17b: %8d\n" % row for row in rows.items()]]
    return b"".join(lines)


def _set_quota(store: Store, name: bytes, number: bytes) -> bytes:
    value = atoi(number)
    if value < 1:
        raise StoreError("EINVAL")
    store.domains.set_quota(name, value, None)
    return _OK
