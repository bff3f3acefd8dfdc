"""Change a backend (`xsproto.adapters.backend`) for a test."""

from __future__ import annotations

from copy import copy
from typing import Any, TypeVar

from xsproto.adapters.backend import Backend

__all__ = ["changed"]

BackendT = TypeVar("BackendT", bound=Backend)


def changed(backend: BackendT, **attributes: Any) -> BackendT:
    """Return a copy of `backend` with other modules or functions."""
    new = copy(backend)
    vars(new).update(attributes)
    return new
