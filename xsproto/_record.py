"""The decorator of records: value classes with fields, compared and shown by their fields.

A record is a class of attrs with slots. `attrs.define` would generate `__eq__`, `__hash__` and
`__repr__` for each class and compile them at import. That would be most of the time that importing
the library takes. All records share the three methods of this module instead.
"""

from collections.abc import Callable
from typing import Any, TypeVar, dataclass_transform, overload

from attrs import define

__all__ = ["record"]

_C = TypeVar("_C", bound=type[Any])


# With eq_default=True, type checkers would take a record that is not frozen for unhashable.
@overload
@dataclass_transform(eq_default=False)
def record(cls: _C, /) -> _C: ...
@overload
def record(*, frozen: bool = False) -> Callable[[_C], _C]: ...
def record(cls: Any = None, /, *, frozen: bool = False) -> Any:
    """Make a class a record of its annotated fields, which may have plain defaults.

    Two records are equal if they have the same class and equal fields. A record can be hashed if
    its fields can, and pickled if they can. Its representation is the call that makes it, unless
    the class has one of its own.

    Arguments:
        cls: the class. `record` without it, as in ``@record(frozen=True)``, is a decorator.
        frozen: whether setting a field raises `AttributeError`.
    """

    def decorate(cls: Any) -> Any:
        cls.__eq__, cls.__hash__ = _equals, _hash
        if "__repr__" not in vars(cls):
            cls.__repr__ = _show
        return define(cls, eq=False, repr=False, frozen=frozen)

    return decorate if cls is None else decorate(cls)


def _values(self: Any) -> tuple[Any, ...]:
    return tuple([getattr(self, field.name) for field in self.__attrs_attrs__])


def _equals(self: Any, other: Any) -> Any:
    if other.__class__ is not self.__class__:
        return NotImplemented
    return _values(self) == _values(other)


def _hash(self: Any) -> int:
    return hash((self.__class__, _values(self)))


def _show(self: Any) -> str:
    names = [field.name for field in self.__attrs_attrs__]
    fields = [f"{name}={getattr(self, name)!r}" for name in names]
    return f"{type(self).__qualname__}({', '.join(fields)})"
