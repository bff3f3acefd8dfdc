"""A drop-in for `xen.lowlevel.xs`: the same calls, results and errors.

A program changes its import to ``from xsproto_sync.compat import lowlevel as xs``. If `install`
runs first, the program needs no change. As in `xen.lowlevel.xs`, paths are text, tokens are
any objects, and transactions are numbers in hexadecimal. ``docs/howto/migrating.md`` says what
differs, and what new code should use.
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

# Guards the counts of tokens. It is reentrant, because a signal handler may call `watch` in the
# thread that holds it.
_tokens_lock: Final = threading.RLock()

_INT: Final = 2**31
_LONG: Final = 2**63
_NUMBER: Final = re.compile(r"[ \t-\r]*([+-]?)(?:0[xX](?=[0-9A-Fa-f]))?([0-9A-Fa-f]*)")


class Error(RuntimeError):
    """An error of the daemon or of the system. ``args`` are an errno and its text."""


class xs:  # noqa: N801  # the name that it has in `xen.lowlevel.xs`
    """A connection to XenStore. Any number of threads may use it at once.

    The argument `transaction` is a string from `transaction_start`, or "0" for no transaction.
    Every method may raise `Error`; after `close` every method does so, with EINVAL.

    Arguments:
        readonly: not used.

    Raises:
        Error: there is no XenStore, or it may not be used.
    """

    __slots__ = ("__weakref__", "_handle", "_tokens")

    def __init__(self, readonly: int = 0) -> None:
        _int(readonly)
        # By the bytes that are sent for a token: the token, and the number of watches that have it.
        # The bytes are made of its `id`. An entry keeps the token alive, so no other object can
        # get the same ones.
        self._tokens: dict[bytes, tuple[Any, int]] = {}
        self._handle: Handle | None = None
        self._handle = _call(Handle)

    def _open(self) -> Handle:
        if self._handle is None:
            raise _error(EINVAL)
        return self._handle

    # Nodes

    def read(self, transaction: str, path: str, /) -> bytes | None:
        """Return the value of a node, or None if the node does not exist."""
        read = self._open().read
        tx_id = _transaction(transaction)
        try:
            return read(tx_id, _text(path, 2))
        except OSError as error:
            _none_if_missing(error)
            return None

    def write(self, transaction: str, path: str, data: str | bytes, /) -> None:
        """Set the value of a node. Text is encoded as UTF-8."""
        handle = self._open()
        _call(handle.write, _transaction(transaction), _text(path, 2), _data(data, 3))

    def ls(self, transaction: str, path: str, /) -> list[str] | None:
        """Return the names of a node's children, or None if the node does not exist."""
        directory = self._open().directory
        tx_id = _transaction(transaction)
        try:
            return [name.decode() for name in directory(tx_id, _text(path, 2))]
        except OSError as error:
            _none_if_missing(error)
            return None

    def mkdir(self, transaction: str, path: str, /) -> None:
        """Create a node, unless it exists."""
        _call(self._open().mkdir, _transaction(transaction), _text(path, 2))

    def rm(self, transaction: str, path: str, /) -> None:
        """Remove a node and everything below it, if it exists."""
        rm = self._open().rm
        tx_id = _transaction(transaction)
        try:
            rm(tx_id, _text(path, 2))
        except OSError as error:
            _none_if_missing(error)

    def get_permissions(self, transaction: str, path: str, /) -> list[dict[str, int]]:
        """Return the permissions of a node, the owner's first.

        Each permission is a dict of ``dom``, ``read`` (0 or 1) and ``write`` (0 or 2).
        """
        get = self._open().get_permissions
        found = _call(get, _transaction(transaction), _text(path, 2))
        return [{"dom": dom, "read": bits & 1, "write": bits & 2} for dom, bits in found]

    def set_permissions(
        self, transaction: str, path: str, permissions: list[dict[str, int]], /
    ) -> None:
        """Set the permissions of a node.

        Arguments:
            permissions: dicts as `get_permissions` returns them; ``read`` and ``write`` may be
                missing. If the first gives a right to a domain other than dom0, a permission that
                makes dom0 the owner is put before it.
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
        """Watch a node and everything below it.

        Arguments:
            token: any object. Each event has the same object, not an equal one.
        """
        handle = self._open()
        wire_path = _text(path, 1)
        # The token is stored before the request is sent, because an event may come at once.
        sent = self._keep_token(token)
        try:
            _call(handle.watch, wire_path, sent)
        except BaseException:
            self._drop_token(token)
            raise

    def read_watch(self) -> tuple[str, Any]:
        """Wait for an event and return its path and token."""
        handle = self._open()
        while True:
            path, token = _call(handle.read_watch)
            if (kept := self._tokens.get(token)) is not None:
                return path.decode(), kept[0]

    def check_watch(self) -> tuple[str, Any] | None:
        """Return path and token of an event without waiting, or None if there is no event.

        Raises:
            Error: with EAGAIN: the event was from a watch that has ended.
        """
        handle = self._open()
        try:
            path, token = handle.check_watch()
        except OSError as error:
            if error.errno == EAGAIN:
                return None
            raise _error(error.errno) from error
        if (kept := self._tokens.get(token)) is None:
            raise _error(EAGAIN)
        return path.decode(), kept[0]

    def unwatch(self, path: str, token: Any, /) -> None:
        """End a watch."""
        handle = self._open()
        try:
            _call(handle.unwatch, _text(path, 1), b"%d" % id(token))
        except Error:
            self._drop_token(token)
            raise
        self._drop_token(token)

    def fileno(self) -> int:
        """Return a descriptor to poll, which is readable while there are events.

        When it is readable, call `check_watch`, which may find no event.
        """
        return _call(self._open().fileno)

    def _keep_token(self, token: Any) -> bytes:
        sent = b"%d" % id(token)
        with _tokens_lock:
            self._tokens[sent] = token, self._tokens.get(sent, (token, 0))[1] + 1
        return sent

    def _drop_token(self, token: Any) -> None:
        sent = b"%d" % id(token)
        with _tokens_lock:
            count = self._tokens.get(sent, (token, 0))[1]
            if count > 1:
                self._tokens[sent] = token, count - 1
            else:
                self._tokens.pop(sent, None)

    # Transactions

    def transaction_start(self) -> str:
        """Start a transaction and return its handle."""
        return f"{_call(self._open().transaction_start):X}"

    def transaction_end(self, transaction: str, abort: int = 0) -> bool:
        """Commit a transaction or, with `abort`, roll it back.

        Returns:
            False if the commit lost against another change. Then do everything again, from
            `transaction_start` on.
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
        """Tell the daemon to serve a domain, by its ring page and its event channel port."""
        _call(self._open().introduce_domain, _int(dom), _int(page, _LONG), _int(port))

    def set_target(self, dom: int, target: int, /) -> None:
        """Give a domain the rights of another."""
        _call(self._open().set_target, _int(dom), _int(target))

    def resume_domain(self, dom: int, /) -> None:
        """Make ``@releaseDomain`` fire again at the next shutdown of a domain."""
        _call(self._open().resume_domain, _int(dom))

    def release_domain(self, dom: int, /) -> None:
        """Tell the daemon to stop serving a domain."""
        _call(self._open().release_domain, _int(dom))

    def get_domain_path(self, domid: int, /) -> str | None:
        """Return the path of a domain. The domain need not exist."""
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
        self._tokens = {}
        handle.close()


def install() -> ModuleType:
    """Make ``from xen.lowlevel import xs`` find this module, unless Xen's own can be imported.

    Call it before the program's own imports.

    Returns:
        the module ``xen.lowlevel.xs``: Xen's own, or one with the `xs` and `Error` of this module.
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
    """Return ``strtoul(transaction, NULL, 16)``, reduced to the 32 bits of an id in a request."""
    if transaction == "0":  # the usual case, without the regular expression
        return 0
    _text(transaction, 1)
    found = _NUMBER.match(transaction)
    assert found is not None, "the expression matches the empty string, too"
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
    """Return if `error` says that there is no such node; else raise it as `Error`."""
    if error.errno != ENOENT:
        raise _error(error.errno) from error
