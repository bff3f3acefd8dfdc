"""Paths: the rules of the specification, and functions that compare and join (xenstore.txt).

Paths are bytes here and on the wire. Clients take a path as str as well, and give the paths that
belong to it back as str: see `encode` and `as_given`.

An absolute path starts with a slash, and has at most 3072 bytes. A relative path
is one below ``/local/domain/<domid>`` of the caller's domain, and has at most 2048 bytes. Paths
consist of ASCII letters, digits and ``-/_@``. They are not empty, have no doubled slash, and no
slash at the end, but for the path ``/``.

A special path starts with ``@``. It is no node: it can be watched, and it has permissions. There
are ``@introduceDomain`` and ``@releaseDomain``, and both with ``/<domid>`` for a single domain.
"""

from collections.abc import Iterable, Iterator
from typing import AnyStr, Final

from .errors import InvalidPath, InvalidType
from .wire import DOMID_FIRST_RESERVED, NUL

__all__ = [
    "ABS_PATH_MAX",
    "REL_PATH_MAX",
    "SPECIAL_PATHS",
    "as_given",
    "check_node_path",
    "check_path",
    "encode",
    "is_special",
    "is_within",
    "join",
]

#: The most bytes of an absolute path (xs_wire.h, XENSTORE_ABS_PATH_MAX).
ABS_PATH_MAX: Final = 3072
#: The most bytes of a relative path (xs_wire.h, XENSTORE_REL_PATH_MAX).
REL_PATH_MAX: Final = 2048
#: The special paths, without a domain id.
SPECIAL_PATHS: Final = (b"@introduceDomain", b"@releaseDomain")

_CHARACTERS: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-/_@"

#: Paths of nodes that were found valid lately, each with itself and a NUL. To look a path up takes
#: a third of the time that it takes to check it. The most frequent requests look here before they
#: call `check_node_path`.
valid_paths: Final[dict[bytes, bytes]] = {}
_VALID_MAX: Final = 2048


def encode(path: bytes | str) -> bytes:
    """Return a path as bytes.

    Nothing is checked. A character that no path may have becomes bytes that no path may have.
    """
    # A lone surrogate must not raise here: the check of the path names it.
    return path.encode("utf-8", "surrogatepass") if isinstance(path, str) else path


def as_given(names: Iterable[bytes], path: AnyStr) -> list[AnyStr]:
    """Return paths, or names of nodes, in the type in which `path` was given.

    Arguments:
        names: what the daemon sent.
        path: the path that a caller gave.
    """
    if isinstance(path, str):
        return [name.decode("utf-8", "surrogateescape") for name in names]
    return list(names)


def check_node_path(path: bytes) -> bytes:
    """Return `path` if it is valid for a node.

    Raises:
        InvalidPath: the path breaks a rule. The error names both.
        InvalidType: the path is not bytes.
    """
    if path.__class__ is not bytes or path not in valid_paths:
        _check_rules(path)
        if len(valid_paths) >= _VALID_MAX:
            valid_paths.clear()
        valid_paths[path] = path + NUL
    return path


def check_path(path: bytes) -> bytes:
    """Return `path` if it can be watched and have permissions: a node's path or a special path.

    Raises:
        InvalidPath: the path breaks a rule. The error names both.
        InvalidType: the path is not bytes.
    """
    if isinstance(path, bytes) and path[:1] == b"@":
        name, slash, domid = path.partition(b"/")
        if name not in SPECIAL_PATHS:
            known = " and ".join(special.decode() for special in SPECIAL_PATHS)
            raise _invalid(path, f"the special paths are {known}")
        if slash and not _is_domid(domid):
            raise _invalid(path, "the part behind the slash must be a domain id")
        return path
    return check_node_path(path)


def _check_rules(path: bytes) -> None:
    if not isinstance(path, bytes):
        hint = f"; write it as {path.encode()!r}" if isinstance(path, str) else ""
        raise InvalidType(f"path must be bytes, not {type(path).__name__}: {path!r}{hint}")
    if not path:
        raise _invalid(path, "it is empty")
    if wrong := path.translate(None, _CHARACTERS):
        raise _invalid(path, f"{wrong[:1]!r} is not allowed in a path")
    if path.startswith(b"@"):
        raise _invalid(path, "a special path is no node; it has only watches and permissions")
    if b"//" in path:
        raise _invalid(path, "it has a doubled slash")
    if path.endswith(b"/") and path != b"/":
        raise _invalid(path, "it ends in a slash")
    absolute = path.startswith(b"/")
    limit = ABS_PATH_MAX if absolute else REL_PATH_MAX
    if len(path) > limit:
        kind = "an absolute" if absolute else "a relative"
        raise _invalid(path, f"its {len(path)} bytes exceed the {limit} of {kind} path")


def _invalid(path: bytes, why: str) -> InvalidPath:
    shown = repr(path) if len(path) <= 100 else f"{path[:100]!r}..."
    return InvalidPath(f"invalid path {shown}: {why}", path=path)


def _is_domid(text: bytes) -> bool:
    return text.isdigit() and text == b"%d" % int(text[:6]) and int(text) < DOMID_FIRST_RESERVED


def is_special(path: bytes | str) -> bool:
    """Whether `path` is a special path, not a node's."""
    return path.startswith("@") if isinstance(path, str) else path.startswith(b"@")


def is_within(path: AnyStr, top: AnyStr) -> bool:
    """Whether `path` is `top` or lies below it.

    A watch on `top` matches such paths (xenstore.txt, "Watches"). Both are bytes, or both are str.
    """
    slash = "/" if isinstance(path, str) else b"/"
    if top == slash:
        return path.startswith(slash)
    return path == top or path.startswith(top + slash)


def upwards(path: bytes) -> Iterator[bytes]:
    """Yield every path that `path` is within: itself, its parent, and so on."""
    while path:
        yield path
        if path == b"/":
            return
        parent, slash, _ = path.rpartition(b"/")
        path = parent or slash


def join(parent: AnyStr, name: AnyStr) -> AnyStr:
    """Return the path of a child.

    Arguments:
        parent: the path of a node, as bytes or str.
        name: the path of the child below `parent`, in the same type; it may have several parts.

    Raises:
        InvalidPath: `parent`, `name` or the result is not valid for a node; or `name` is absolute,
            so that the result would not lie below `parent`.
        InvalidType: `parent` and `name` are not both bytes or both str.
    """
    if isinstance(parent, str) and isinstance(name, str):
        return join(encode(parent), encode(name)).decode()
    check_node_path(parent)
    if check_node_path(name).startswith(b"/"):
        raise _invalid(name, "the name to join is absolute")
    return check_node_path(parent + name if parent == b"/" else parent + b"/" + name)
