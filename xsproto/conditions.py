"""Conditions that many programs wait for: `value_is`, `value_in`, `exists`, `gone`.

    client.wait(conditions.gone(b"/local/domain/5"), timeout=10)

A condition is a function that takes a view of the store, reads through it, and returns something
true once it holds. Those that are made here serve on blocking and on asynchronous clients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Generic, TypeVar, overload

from .clients import operations
from .clients.operations import Operation
from .errors import InvalidType, NotFound
from .requests import Read

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from .clients import asynchronous, blocking

__all__ = ["Condition", "exists", "gone", "value_in", "value_is"]

T = TypeVar("T")


class Condition(Generic[T]):
    """A condition made by a function of this module: call it with a view.

    On the view of an asynchronous client, the call is to be awaited.
    """

    def __init__(self, text: str, operation: Callable[[], Operation[T]]) -> None:
        self._text = text
        self._operation = operation

    def __repr__(self) -> str:
        return f"<condition: {self._text}>"

    @overload
    def __call__(self, view: blocking.View) -> T: ...
    @overload
    def __call__(self, view: asynchronous.View) -> Awaitable[T]: ...
    def __call__(self, view: blocking.View | asynchronous.View) -> T | Awaitable[T]:
        """Evaluate the condition."""
        return view._evaluate(self._operation())


def value_is(path: bytes | str, value: bytes) -> Condition[bool]:
    """Make the condition that a node has a value.

    Arguments:
        path: the node, which need not exist.
        value: the value.

    Returns:
        a condition. A wait for it returns True.

    Raises:
        InvalidPath, InvalidType: `path` is no path of a node, or `value` is not bytes.
    """
    values = _values([value])

    def operation() -> Operation[bool]:
        return (yield from _read(path)) in values

    return _of_node(f"the value of {path!r} is as wanted", path, operation)


def value_in(path: bytes | str, values: Iterable[bytes]) -> Condition[bytes | bool]:
    """Make the condition that a node has one of several values.

    Arguments:
        path: the node, which need not exist.
        values: the values.

    Returns:
        a condition. A wait for it returns the value that was found (bytes), or True if that is
        empty.

    Raises:
        InvalidPath, InvalidType: `path` is no path of a node, or `values` is not several bytes.
    """
    if isinstance(values, (bytes, str)):
        raise InvalidType("values must be several values, not one")
    wanted = _values(values)

    def operation() -> Operation[bytes | bool]:
        value = yield from _read(path)
        return value in wanted and (value or True)

    return _of_node(f"the value of {path!r} is one of {len(wanted)}", path, operation)


def exists(path: bytes | str) -> Condition[bool]:
    """Make the condition that there is a node.

    Arguments:
        path: the node.

    Returns:
        a condition. A wait for it returns True.

    Raises:
        InvalidPath, InvalidType: `path` is no path of a node.
    """
    return _of_node(f"{path!r} exists", path, lambda: operations.exists(path))


def gone(path: bytes | str) -> Condition[bool]:
    """Make the condition that there is no such node, which is true of one that never was.

    Arguments:
        path: the node.

    Returns:
        a condition. A wait for it returns True.

    Raises:
        InvalidPath, InvalidType: `path` is no path of a node.
    """

    def operation() -> Operation[bool]:
        return not (yield from operations.exists(path))

    return _of_node(f"{path!r} is gone", path, operation)


def _of_node(text: str, path: bytes | str, operation: Callable[[], Operation[T]]) -> Condition[T]:
    Read(path).payload()  # raises where the path is wrong, before anything is waited for
    return Condition(text, operation)


def _read(path: bytes | str) -> Operation[bytes | None]:
    """Read a value; None if there is no such node."""
    try:
        return (yield from Read(path))
    except NotFound:
        return None


def _values(values: Iterable[bytes]) -> frozenset[bytes]:
    found = []
    for value in values:
        if not isinstance(value, bytes):
            # A str would never be equal to a value, and the wait would never end.
            raise InvalidType(f"values must be bytes, not {type(value).__name__}")
        found.append(value)
    return frozenset(found)
