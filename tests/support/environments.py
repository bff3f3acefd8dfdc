"""How a process begins that tests run in; see `tests.support.subprocesses`.

By hand: ``python -m tests.support.environments ENVIRONMENT ARGUMENTS`` is pytest with these
    arguments, in that world.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Final

__all__ = ["ENVIRONMENTS"]


def _as_it_is() -> None:
    pass


def _patched_by_gevent() -> None:
    from gevent import monkey

    monkey.patch_all()


def _patched_by_eventlet() -> None:
    import os
    import warnings

    # One of them is trio's, which cannot be imported then.
    os.environ["HYPOTHESIS_NO_PLUGINS"] = "1"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and says so
        import eventlet

    eventlet.monkey_patch()


#: What is done before anything else is imported, by name.
ENVIRONMENTS: Final[Mapping[str, Callable[[], None]]] = {
    "alone": _as_it_is,
    "gevent": _as_it_is,
    "patched_by_gevent": _patched_by_gevent,
    "patched_by_eventlet": _patched_by_eventlet,
}


if __name__ == "__main__":
    ENVIRONMENTS[sys.argv[1]]()
    from .subprocesses import main

    sys.exit(main(*sys.argv[1:]))
