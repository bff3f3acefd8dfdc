"""Paths: what the specification allows, and how to join them (xenstore.txt, introduction).

All paths are bytes. Absolute ones are at most 3072 bytes, relative ones (to the caller's
``/local/domain/<domid>``) at most 2048; the characters are ASCII letters and digits and ``-/_@``;
no slash is doubled, none trails, and none is empty. A path that starts with ``@`` is no node but
a special event or its permissions: ``@introduceDomain``, ``@releaseDomain``, and either with
``/<domid>``.
"""

from typing import Final

from .errors import InvalidPath, InvalidType
from .wire import DOMID_FIRST_RESERVED

__all__ = [
    "ABS_PATH_MAX",
    "REL_PATH_MAX",
    "SPECIAL_PATHS",
    "check_node_path",
    "check_path",
    "is_special",
    "is_within",
    "join",
]

#: The most bytes of an absolute path.
ABS_PATH_MAX: Final = 3072
#: The most bytes of a relative one.
REL_PATH_MAX: Final = 2048
#: Paths that are no nodes, and can be watched.
SPECIAL_PATHS: Final = (b"@introduceDomain", b"@releaseDomain")

_CHARACTERS: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-/_@"

# Node paths found right lately: to look one up costs a third of checking it.
_known: Final[set[bytes]] = set()
_KNOWN_MAX: Final = 2048


def check_node_path(path: bytes) -> bytes:
    """Return `path` if it can name a node.

    Raises:
        InvalidPath, InvalidType: naming the path and the rule that it breaks.
    """
    if path.__class__ is not bytes or path not in _known:
        _check_unknown(path)
        if len(_known) >= _KNOWN_MAX:
            _known.clear()
        _known.add(path)
    return path


def check_path(path: bytes) -> bytes:
    """Return `path` if it can name a node or is a special path (for watches and permissions).

    Raises:
        InvalidPath, InvalidType: naming the path and the rule that it breaks.
    """
    if isinstance(path, bytes) and path[:1] == b"@":
        name, slash, domid = path.partition(b"/")
        if name not in SPECIAL_PATHS:
            known = " and ".join(special.decode() for special in SPECIAL_PATHS)
            raise _invalid(path, f"the special paths are {known}")
        if slash and not _is_domid(domid):
            raise _invalid(path, "what follows the slash must be a domain id")
        return path
    return check_node_path(path)


def _check_unknown(path: bytes) -> None:
    if not isinstance(path, bytes):
        hint = f"; write it as {path.encode()!r}" if isinstance(path, str) else ""
        raise InvalidType(f"path must be bytes, not {type(path).__name__}: {path!r}{hint}")
    if not path:
        raise _invalid(path, "it is empty")
    if wrong := path.translate(None, _CHARACTERS):
        raise _invalid(path, f"{wrong[:1]!r} is not allowed in a path")
    if path.startswith(b"@"):
        raise _invalid(path, "special paths can only be watched, and their permissions set")
    if b"//" in path:
        raise _invalid(path, "it has a doubled slash")
    if path.endswith(b"/") and path != b"/":
        raise _invalid(path, "it ends in a slash")
    absolute = path.startswith(b"/")
    limit = ABS_PATH_MAX if absolute else REL_PATH_MAX
    if len(path) > limit:
        kind = "an absolute" if absolute else "a relative"
        raise _invalid(path, f"its {len(path)} bytes exceed {kind} path's {limit}")


def _invalid(path: bytes, why: str) -> InvalidPath:
    shown = repr(path) if len(path) <= 100 else f"{path[:100]!r}..."
    return InvalidPath(f"invalid path {shown}: {why}", path=path)


def _is_domid(text: bytes) -> bool:
    return text.isdigit() and text == b"%d" % int(text[:6]) and int(text) < DOMID_FIRST_RESERVED


def is_special(path: bytes) -> bool:
    """Whether `path` names a special event, not a node."""
    return path.startswith(b"@")


def is_within(path: bytes, top: bytes) -> bool:
    """Whether `path` is `top` or below it, as watches match (xenstore.txt, WATCH)."""
    if top == b"/":
        return path.startswith(b"/")
    return path == top or path.startswith(top + b"/")


def join(parent: bytes, name: bytes) -> bytes:
    """The path of the child `name` of `parent`.

    `name` may itself have several parts. An absolute `name` is refused with `InvalidPath`, since
    it would silently leave `parent`; so is any other `name` or result that is no valid path.
    """
    check_node_path(parent)
    if check_node_path(name).startswith(b"/"):
        raise _invalid(name, "the name to join is absolute")
    return check_node_path(parent + name if parent == b"/" else parent + b"/" + name)
