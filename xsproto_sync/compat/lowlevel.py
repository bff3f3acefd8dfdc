"""`xen.lowlevel.xs`, for programs that were written for it: the same calls, results and errors.

``from xsproto_sync.compat import lowlevel as xs`` is all that changes in a program, or nothing,
where `install` runs before it. Nodes' paths, tokens and transactions are as there: text, any
objects, and numbers in hexadecimal. ``docs/howto/migrating.md`` says what differs, and what to use
in new code.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Callable
from errno import EAGAIN, EINVAL, ENOENT
from importlib.machinery import ModuleSpec
from operator import index
from types import ModuleType
from typing import Any, Final, TypeVar

from .libxenstore import Handle, Perms

__all__ = ["Error", "install", "xs"]

T = TypeVar("T")

# Of two threads in `watch`, neither takes the other's place for its token. (A signal handler may
# be there as well.)
_keeping: Final = threading.RLock()

_INT: Final = 2**31
_LONG: Final = 2**63
_NUMBER: Final = re.compile(r"[ \t-\r]*([+-]?)(?:0[xX](?=[0-9A-Fa-f]))?([0-9A-Fa-f]*)")


class Error(RuntimeError):
    """What the daemon, or the system, answered: ``args`` are an errno and its text."""


class xs:  # noqa: N801  # the name that it has there
    """A connection to XenStore. Any number of threads may use it at once.

    A transaction is a string from `transaction_start`; "0" is none.

    Arguments:
        readonly: not used.

    Raises:
        Error: there is no XenStore, or it may not be used. So from every method, and after
            `close` with EINVAL.
    """

    __slots__ = ("__weakref__", "_handle", "_tokens")

    def __init__(self, readonly: int = 0) -> None:
        _int(readonly)
        # One entry a call of `watch`, None where there was one.
        self._tokens: list[Any] = []
        self._handle: Handle | None = None
        self._handle = _call(Handle)

    def _open(self) -> Handle:
        if self._handle is None:
            raise _error(EINVAL)
        return self._handle

    # Nodes

    def read(self, transaction: str, path: str, /) -> bytes | None:
        """The value of a node; None if there is none."""
        read = self._open().read
        tx_id = _transaction(transaction)
        try:
            return read(tx_id, _text(path, 2))
        except OSError as error:
            _none_if_missing(error)
            return None

    def write(self, transaction: str, path: str, data: str | bytes, /) -> None:
        """Set the value of a node; text is encoded as UTF-8."""
        handle = self._open()
        _call(handle.write, _transaction(transaction), _text(path, 2), _data(data, 3))

    def ls(self, transaction: str, path: str, /) -> list[str] | None:
        """The names of a node's children; None if there is no node."""
        directory = self._open().directory
        tx_id = _transaction(transaction)
        try:
            return [name.decode() for name in directory(tx_id, _text(path, 2))]
        except OSError as error:
            _none_if_missing(error)
            return None

    def mkdir(self, transaction: str, path: str, /) -> None:
        """Make a node, unless it exists."""
        _call(self._open().mkdir, _transaction(transaction), _text(path, 2))

    def rm(self, transaction: str, path: str, /) -> None:
        """Remove a node and all below it, if it exists."""
        rm = self._open().rm
        tx_id = _transaction(transaction)
        try:
            rm(tx_id, _text(path, 2))
        except OSError as error:
            _none_if_missing(error)

    def get_permissions(self, transaction: str, path: str, /) -> list[dict[str, int]]:
        """The permissions of a node, the owner's first.

        Each is a dict of ``dom``, ``read`` (0 or 1) and ``write`` (0 or 2).
        """
        get = self._open().get_permissions
        found = _call(get, _transaction(transaction), _text(path, 2))
        return [{"dom": dom, "read": bits & 1, "write": bits & 2} for dom, bits in found]

    def set_permissions(
        self, transaction: str, path: str, permissions: list[dict[str, int]], /
    ) -> None:
        """Set the permissions of a node.

        Arguments:
            permissions: dicts as `get_permissions` returns; ``read`` and ``write`` may be missing.
                Where the first gives a domain but dom0 a right, dom0 is put before it, as owner.
        """
        handle = self._open()
        tx_id, wire_path = _transaction(transaction), _text(path, 2)
        if not isinstance(permissions, list):
            raise _error(EINVAL)
        perms = [_perms(permission) for permission in permissions]
        if perms and perms[0].domid and perms[0].bits:
            perms.insert(0, Perms(0, 0))
        _call(handle.set_permissions, tx_id, wire_path, perms)

    # Watches

    def watch(self, path: str, token: Any, /) -> None:
        """Watch a node and all below it.

        Arguments:
            token: any object. The same, not an equal one, comes with each event.
        """
        handle = self._open()
        wire_path = _text(path, 1)
        # Before the first event can come.
        with _keeping:
            for at, other in enumerate(self._tokens):
                if other is None:
                    self._tokens[at] = token
                    break
            else:
                self._tokens.append(token)
        try:
            _call(handle.watch, wire_path, b"%d" % id(token))
        except BaseException:
            self._forget(token)
            raise

    def read_watch(self) -> tuple[str, Any]:
        """Wait for an event; return its path and token."""
        handle = self._open()
        while True:
            path, token = _call(handle.read_watch)
            if (at := self._find(token)) is not None:
                return path.decode(), self._tokens[at]

    def check_watch(self) -> tuple[str, Any] | None:
        """An event that is there, as `read_watch`; None if there is none.

        Raises:
            Error: EAGAIN: there was one, of a watch that is no more.
        """
        handle = self._open()
        try:
            path, token = handle.check_watch()
        except OSError as error:
            if error.errno == EAGAIN:
                return None
            raise _error(error.errno) from error
        if (at := self._find(token)) is None:
            raise _error(EAGAIN)
        return path.decode(), self._tokens[at]

    def unwatch(self, path: str, token: Any, /) -> None:
        """Watch a node no more."""
        handle = self._open()
        try:
            _call(handle.unwatch, _text(path, 1), b"%d" % id(token))
        except Error:
            self._forget(token)
            raise
        self._forget(token)

    def fileno(self) -> int:
        """A descriptor to poll, readable while there are events; `check_watch` must follow.

        It may be readable when there is none.
        """
        return _call(self._open().fileno)

    def _find(self, token: bytes) -> int | None:
        for at, other in enumerate(self._tokens):
            if b"%d" % id(other) == token:
                return at
        return None

    def _forget(self, token: Any) -> None:
        for at, other in enumerate(self._tokens):
            if other is token:
                self._tokens[at] = None
                return

    # Transactions

    def transaction_start(self) -> str:
        """Start a transaction; return its handle."""
        return f"{_call(self._open().transaction_start):X}"

    def transaction_end(self, transaction: str, abort: int = 0) -> bool:
        """Commit a transaction, or drop it.

        Returns:
            False if it lost against another change: do it again, from the start.
        """
        handle = self._open()
        tx_id = _transaction(transaction)
        try:
            handle.transaction_end(tx_id, bool(_int(abort)))
        except OSError as error:
            if error.errno == EAGAIN:
                return False
            raise _error(error.errno) from error
        return True

    # Domains

    def introduce_domain(self, dom: int, page: int, port: int, /) -> None:
        """Have the daemon serve a domain, by its ring page and its event channel port."""
        _call(self._open().introduce_domain, _int(dom), _int(page, _LONG), _int(port))

    def set_target(self, dom: int, target: int, /) -> None:
        """Give a domain the rights of another."""
        _call(self._open().set_target, _int(dom), _int(target))

    def resume_domain(self, dom: int, /) -> None:
        """Have the domain's next shutdown told again."""
        _call(self._open().resume_domain, _int(dom))

    def release_domain(self, dom: int, /) -> None:
        """Have the daemon serve a domain no more."""
        _call(self._open().release_domain, _int(dom))

    def get_domain_path(self, domid: int, /) -> str | None:
        """The path of a domain, whether or not it exists."""
        get = self._open().get_domain_path
        try:
            return get(_int(domid)).decode()
        except OSError as error:
            _none_if_missing(error)
            return None

    def close(self) -> None:
        """Close the connection, with its watches and transactions."""
        handle = self._open()
        self._handle = None
        self._tokens = [None] * len(self._tokens)
        handle.close()


def install() -> ModuleType:
    """Have ``from xen.lowlevel import xs`` find this, where Xen's own module is not to be had.

    To be called before the program's own imports.

    Returns:
        what ``xen.lowlevel.xs`` is now: Xen's, or a module of this `xs` and `Error`.
    """
    name = "xen.lowlevel.xs"
    try:
        from xen.lowlevel import xs as found
    except ImportError:
        pass
    else:
        theirs: ModuleType = found
        return theirs
    ours = _module(name)
    ours.xs, ours.Error = xs, Error  # type: ignore[attr-defined]
    sys.modules[name] = ours
    child = ours
    for parent_name in ("xen.lowlevel", "xen"):
        parent = sys.modules.get(parent_name)
        if parent is None:
            parent = sys.modules[parent_name] = _module(parent_name)
            parent.__path__ = []
        setattr(parent, child.__name__.rpartition(".")[2], child)
        child = parent
    return ours


def _module(name: str) -> ModuleType:
    made = ModuleType(name, __doc__)
    made.__spec__ = ModuleSpec(name, None)  # `importlib.util.find_spec` fails without one
    return made


# Arguments, as PyArg_ParseTuple takes them


def _transaction(transaction: str) -> int:
    """What ``strtoul(transaction, NULL, 16)`` makes of it, as the 32 bits that a request has."""
    if transaction == "0":  # as it nearly always is
        return 0
    _text(transaction, 1)
    found = _NUMBER.match(transaction)
    assert found is not None, "it matches nothing, too"
    number = min(int(found[2] or "0", 16), 2**64 - 1)
    return (-number if found[1] == "-" else number) % 2**32


def _text(text: str, number: int) -> bytes:
    if not isinstance(text, str):
        kind = "None" if text is None else type(text).__name__
        raise TypeError(f"argument {number} must be str, not {kind}")
    if "\0" in text:
        raise ValueError("embedded null character")
    return text.encode()


def _data(data: str | bytes, number: int) -> bytes:
    if isinstance(data, str):
        return data.encode()
    if isinstance(data, bytes):
        return data
    cls = type(data)
    try:
        memoryview(data)
    except TypeError:
        raise TypeError(f"a bytes-like object is required, not {cls.__name__!r}") from None
    kind = cls.__name__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__name__}"
    raise TypeError(f"argument {number} must be read-only bytes-like object, not {kind}")


def _int(value: int, bound: int = _INT) -> int:
    number = index(value)
    if not -_LONG <= number < _LONG:
        raise OverflowError("Python int too large to convert to C long")
    if number >= bound:
        raise OverflowError("signed integer is greater than maximum")
    if number < -bound:
        raise OverflowError("signed integer is less than minimum")
    return number


def _perms(permission: dict[str, int]) -> Perms:
    if not isinstance(permission, dict):
        raise TypeError(f"a permission must be a dict, not {type(permission).__name__}")
    if "dom" not in permission:
        raise TypeError("function missing required argument 'dom' (pos 1)")
    dom = _int(permission["dom"])
    read, write = (_int(permission.get(name, 0)) for name in ("read", "write"))
    for key in permission:
        if not isinstance(key, str):
            raise TypeError("keywords must be strings")
        if key not in ("dom", "read", "write"):
            raise TypeError(f"{key!r} is an invalid keyword argument for this function")
    return Perms(dom, bool(read) | bool(write) << 1)


# Errors


def _error(errno: int | None) -> Error:
    number = EINVAL if errno is None else errno
    return Error(number, os.strerror(number))


def _call(function: Callable[..., T], *arguments: Any) -> T:
    try:
        return function(*arguments)
    except OSError as error:
        raise _error(error.errno) from error


def _none_if_missing(error: OSError) -> None:
    """Let pass that there is no such node."""
    if error.errno != ENOENT:
        raise _error(error.errno) from error
