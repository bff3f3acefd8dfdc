"""Which outcomes each operation can have: what a long run must have reached, each often."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from xsproto.daemon.store import PROFILE_CURRENT, Profile

# Any request may be one of a transaction that is unknown (ENOENT), and a guest's may be privileged.
REACHED: Final = {
    "CONTROL": "OK EACCES EINVAL ENOENT",
    "DIRECTORY": "OK E2BIG EACCES EINVAL ENOENT ENOSPC",
    "DIRECTORY_PART": "OK EACCES EINVAL ENOENT ENOSPC",
    "GET_DOMAIN_PATH": "OK EINVAL ENOENT",
    "GET_PERMS": "OK EACCES EINVAL ENOENT ENOSPC",
    "INTRODUCE": "OK EACCES EINVAL ENOENT",
    "IS_DOMAIN_INTRODUCED": "OK EACCES EINVAL ENOENT",
    "MKDIR": "OK EACCES EINVAL ENOENT ENOSPC",
    "READ": "OK EACCES EINVAL ENOENT ENOSPC",
    "RELEASE": "OK EACCES EINVAL ENOENT",
    "RESET_WATCHES": "OK ENOENT",
    "RESUME": "OK EACCES EINVAL ENOENT",
    "RM": "OK EACCES EINVAL EIO ENOENT ENOSPC",
    "SET_PERMS": "OK EACCES EINVAL ENOENT ENOSPC EPERM",
    "SET_TARGET": "OK EACCES EINVAL ENOENT",
    "TRANSACTION_END": "OK EAGAIN EINVAL ENOENT ENOMEM ENOSPC",
    "TRANSACTION_START": "OK EBUSY ENOENT ENOSPC",
    "UNWATCH": "OK EINVAL ENOENT",
    "WATCH": "OK EEXIST EINVAL",
    "WRITE": "OK EACCES EINVAL ENOENT ENOSPC",
    "unknown": "ENOSYS",
}
OF_4_17: Final = {
    "WATCH": "E2BIG",
    **dict.fromkeys(("GET_FEATURE", "SET_FEATURE", "GET_QUOTA", "SET_QUOTA"), "ENOSYS"),
}
OF_NEWEST: Final = {
    "GET_FEATURE": "OK EACCES EINVAL ENOENT",
    "SET_FEATURE": "OK EACCES EBUSY EINVAL ENOENT",
    "GET_QUOTA": "OK EACCES EINVAL ENOENT",
    "SET_QUOTA": "OK EACCES EINVAL ENOENT",
    "SET_PERMS": "ENOMEM",
    "WATCH": "ENOSPC",
}


def outcomes_of(profile: Profile) -> Iterator[tuple[str, str]]:
    """Each (operation, outcome) that a long run must reach."""
    for table in (REACHED, OF_NEWEST if profile is PROFILE_CURRENT else OF_4_17):
        for op, outcomes in table.items():
            for outcome in outcomes.split():
                yield op, outcome
