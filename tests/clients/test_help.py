"""What `help()` and the reference show of the classes that users hold: the everyday first."""

from __future__ import annotations

import pydoc
import re

import pytest

import xsproto_asyncio
import xsproto_gevent
import xsproto_sync
import xsproto_trio

from ..support import ROOT

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(ROOT / "docs" / "_ext"))
    from names import groups

PACKAGES = [xsproto_sync, xsproto_gevent, xsproto_asyncio, xsproto_trio]
CLIENTS = [package.Client for package in PACKAGES]
CLASSES = [
    *CLIENTS,
    *(package.Transaction for package in (xsproto_sync, xsproto_asyncio)),
    *(package.Watch for package in (xsproto_sync, xsproto_asyncio)),
    *(package.Monitor for package in (xsproto_sync, xsproto_asyncio)),
]
EVERYDAY = ["read", "write", "list", "exists", "delete", "mkdir", "walk", "read_many", "get_perms"]


def name_of(cls: type) -> str:
    return f"{cls.__module__}.{cls.__name__}"


def shown(cls: type) -> str:
    """What ``help(cls)`` prints."""
    return pydoc.plain(pydoc.render_doc(cls))


@pytest.mark.parametrize("cls", CLASSES, ids=name_of)
def test_the_groups_have_every_public_name_once(cls: type) -> None:
    names = [name for members in groups(cls).values() for name in members]
    public = {name for name in dir(cls) if not name.startswith("_")}
    # Attributes of the instances are not in `dir()`.
    assert sorted(names) == sorted(public | ({"ended"} if cls.__name__ == "Transaction" else set()))


@pytest.mark.parametrize("cls", CLIENTS, ids=name_of)
def test_the_everyday_methods_come_first(cls: type) -> None:
    table = groups(cls)
    assert [*table][:3] == ["nodes", "watches", "transactions"]
    assert table["nodes"][: len(EVERYDAY)] == EVERYDAY
    assert table["watches"][:2] == ["watch", "monitor"]
    assert table["transactions"] == ["transaction", "transact"]


@pytest.mark.parametrize("cls", CLIENTS, ids=name_of)
def test_help_begins_with_them(cls: type) -> None:
    text = shown(cls)
    begin, rest = text.split(" |  Method resolution order:")
    assert len(begin.splitlines()) < 75  # from Python 3.13 on, the signature takes a line for each
    for name in [*EVERYDAY, "watch", "monitor", "transaction", "transact", "close"]:
        assert f"`{name}`" in begin
        assert f" |  {'async ' * (f'async {name}(' in rest)}{name}(" in rest
    assert begin.index("`read`") < begin.index("`watch`") < begin.index("`control`")
    assert "__" not in begin
    assert "A client of XenStore" in begin.partition("`read`")[0]


def test_signatures_have_the_names_that_users_import() -> None:
    for package in PACKAGES:
        text = shown(package.Client)
        for name in ("Watch", "Transaction", "Monitor"):
            assert re.search(rf"-> '{name}(\[\w+\])?'", text)
            assert getattr(package, name).__name__ == name
    text = shown(xsproto_sync.Client)
    assert "exists(self, path: 'bytes | str', *, timeout: 'Timeout' = DEFAULT)" in text
    assert "default: 'Any' = MISSING" in text


def test_a_class_without_a_table_is_one_group() -> None:
    assert groups(xsproto_sync.Watch) == {"": ["get", "watched", "close"]}
    assert groups(xsproto_sync.Monitor) == {"": ["watch", "unwatch", "get", "watched", "close"]}
