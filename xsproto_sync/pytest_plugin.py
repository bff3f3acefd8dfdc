"""Fixtures for pytest: a fresh XenStore for each test that asks for one.

pytest loads this module in every test run where xsproto is installed. So this module and the
package's `__init__` import nothing of xsproto until a test asks for a fixture.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import xsproto_sync

    from .embedded import EmbeddedXenStore

__all__ = ["xenstore", "xenstore_client"]


@pytest.fixture
def xenstore() -> Iterator[EmbeddedXenStore]:
    """A fresh `xsproto_sync.EmbeddedXenStore`, which ends with the test.

    During the test XENSTORED_PATH names dom0's socket. So `Client()` without arguments, and
    programs that the test starts, talk to this store and never to the machine's.
    """
    from .embedded import EmbeddedXenStore

    with EmbeddedXenStore() as store, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XENSTORED_PATH", store.socket_path())
        patch.delenv("XSPROTO_HOST", raising=False)  # which would count before the path
        yield store


@pytest.fixture
def xenstore_client(xenstore: EmbeddedXenStore) -> xsproto_sync.Client:
    """A client of the test's `xenstore` that acts as dom0. It is closed with the store."""
    return xenstore.client()
