"""What the packages offer by name, and what it costs to import them."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import pytest

import xsproto
import xsproto_asyncio
import xsproto_sync
import xsproto_trio


@pytest.mark.parametrize(
    "package",
    [xsproto, xsproto_sync, xsproto_asyncio, xsproto_trio],
    ids=lambda package: package.__name__,
)
def test_every_public_name_is_there_and_no_other(package: ModuleType) -> None:
    for name in package.__all__:
        assert getattr(package, name) is not None
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match=f"'{package.__name__}' has no attribute 'Bogus'"):
        package.Bogus  # noqa: B018


@pytest.mark.parametrize(
    "code",
    [
        "import xsproto, xsproto_sync",
        "import xsproto; xsproto.ClientConnection",
        "import xsproto_sync; xsproto_sync.Client",
    ],
)
def test_a_client_does_not_pay_for_a_daemon(code: str) -> None:
    show = "import sys; print([name for name in sys.modules if name.startswith('xsproto')])"
    loaded = subprocess.run(
        [sys.executable, "-c", f"{code}; {show}"], capture_output=True, text=True, check=True
    ).stdout
    assert "'xsproto" in loaded
    for module in (
        "xsproto.daemon",
        "xsproto.server",
        "xsproto.daemon.store",
        "xsproto_sync.server",
    ):
        assert f"'{module}'" not in loaded
