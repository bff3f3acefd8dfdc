"""What records have in common: equality, hash and representation by their fields.

`attrs.define` would write all three for each class anew, and compile them, at import: of that,
importing the library would mostly consist.
"""

from typing import Any

__all__ = ["Record"]


class Record:
    """The base of classes made by ``@define(eq=False, repr=False)``."""

    __slots__ = ()

    def _fields(self) -> tuple[Any, ...]:
        names = (field.name for field in self.__attrs_attrs__)  # type: ignore[attr-defined]
        return tuple([getattr(self, name) for name in names])

    def __eq__(self, other: object) -> bool:
        if other.__class__ is not self.__class__:
            return NotImplemented
        return self._fields() == other._fields()

    def __hash__(self) -> int:
        return hash((self.__class__, self._fields()))

    def __repr__(self) -> str:
        names = [field.name for field in self.__attrs_attrs__]  # type: ignore[attr-defined]
        fields = [f"{name}={getattr(self, name)!r}" for name in names]
        return f"{type(self).__qualname__}({', '.join(fields)})"
