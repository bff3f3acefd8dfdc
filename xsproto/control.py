"""CONTROL: what an administrator may ask of the daemon itself.

The commands are the C daemon's as far as they say something here; the words of their answers are
not. ``quota`` and ``quota-soft`` tell and set what domains may have, ``check``, ``log`` and
``print`` are accepted and do nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from .store import Refused, Store
from .wire import NUL

__all__ = ["control"]

_OK: Final = b"OK\0"
_SOFT: Final[Mapping[bytes, bytes]] = {b"memory": b"soft-memory"}


def control(store: Store, words: list[bytes], atoi: Callable[[bytes], int]) -> bytes:
    """Answer a CONTROL request.

    Arguments:
        words: the strings of its payload, the command first.
        atoi: how the daemon reads numbers.

    Raises:
        Refused: there is no such command, or it is used in another way.
    """
    match words:
        case [b"help"]:
            return b"commands: check, help, log, print, quota, quota-soft\n\0"
        case [b"check"] | [b"print", _] | [b"log", b"on" | b"off"]:
            return _OK
        case [b"log"] if store.profile.log_tells:
            return b"nothing is logged\n\0"
        case [b"quota" | b"quota-soft" as which, *rest]:
            names = _SOFT if which == b"quota-soft" else store.profile.quota_names
            match rest:
                case []:
                    return _table(b"Quotas", {n: store.quota(of, None) for n, of in names.items()})
                case [b"set", name, text] if name in names and (value := atoi(text)) >= 1:
                    store.set_quota(names[name], value, None)
                    return _OK
                case [text] if text != b"set" and which == b"quota":
                    return _usage(store, atoi(text) & 0xFFFFFFFF)
    raise Refused("EINVAL")


def _usage(store: Store, domid: int) -> bytes:
    domain = store.usage(domid)
    counts = {
        b"nodes": domain.nodes,
        b"watches": domain.watches,
        b"transactions": domain.transactions,
    }
    return _table(b"Domain %d" % domid, counts)


def _table(title: bytes, numbers: Mapping[bytes, int]) -> bytes:
    lines = [b"%-17b: %8d\n" % line for line in numbers.items()]
    return title + b":\n" + b"".join(lines) + NUL
