"""What the packages offer by name, as reviewed and as documented, and what importing them costs."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from ..support import ROOT
from . import public_names
from .public_names import INTERNAL, MODULES, PACKAGES, REVIEWED, differences, lacking, unlisted

PAGES = {*(ROOT / "docs" / "reference").rglob("*.md")}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_offers_what_was_reviewed(name: str) -> None:
    module = importlib.import_module(name)
    assert list(differences(module, REVIEWED[name], INTERNAL.get(name, ()))) == []


@pytest.mark.parametrize("name", PACKAGES)
def test_another_name_is_an_attribute_error(name: str) -> None:
    package = importlib.import_module(name)
    with pytest.raises(AttributeError, match=f"'{name}' has no attribute 'Bogus'"):
        package.Bogus  # noqa: B018


def test_every_module_was_reviewed() -> None:
    assert unlisted(PACKAGES, MODULES) == set()


def test_the_reference_has_every_public_name() -> None:
    assert lacking(public_names.names_in_the_reference(), PAGES) == set()


def test_nothing_has_to_be_used_before_it_is_shown() -> None:
    """In an interpreter that has used nothing yet, where what is imported lazily is not there."""
    command = [sys.executable, "-m", public_names.__name__]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.stdout, ended.stderr, ended.returncode) == ("", "", 0)


# What these tests would find, in a package that is made up

FILES = {
    "__init__.py": """
from typing import TYPE_CHECKING, Any

from .module import Used as Thing

if TYPE_CHECKING:
    from .lazy import Lazy

__all__ = ["Lazy", "Thing"]


def __getattr__(name: str) -> Any:
    if name == "Lazy":
        from .lazy import Lazy

        return Lazy
    raise AttributeError(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
""",
    "lazy.py": """
__all__ = ["Lazy"]


class Lazy: ...
""",
    "module.py": """
import os
from pathlib import Path

__all__ = ["CONSTANT", "Used"]

CONSTANT = 1
_PRIVATE = os, Path


class Used: ...


def shared() -> None: ...
""",
}

MADE_UP = public_names.read(
    """
    [made_up]
    Lazy
    Thing

    [made_up.lazy]
    Lazy

    [made_up.module]
    CONSTANT
    Used
    """.replace("    ", "")
)

PAGE = """
.. currentmodule:: made_up

.. autoclass:: Lazy

.. automodule:: made_up
   :no-members:

.. autoclass:: Thing

.. automodule:: made_up.module
"""


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The directory of the package, which every test imports anew."""
    package = tmp_path / "made_up"
    package.mkdir()
    for name, text in FILES.items():
        (package / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield package
    for name in [name for name in sys.modules if name.partition(".")[0] == "made_up"]:
        del sys.modules[name]


def look_at(name: str, *internal: str) -> list[str]:
    module: ModuleType = importlib.import_module(name)
    return list(differences(module, MADE_UP[name], internal))


def test_what_is_as_reviewed_is_accepted(made_up: Path) -> None:
    assert look_at("made_up") == []
    assert look_at("made_up.lazy") == []
    assert look_at("made_up.module", "shared") == []
    assert unlisted(["made_up"], MADE_UP) == set()


@pytest.mark.parametrize(
    ("file", "true", "false", "wrong"),
    [
        (
            "module.py",
            '"Used"]\n',
            '"Used", "shared"]\n',
            [
                "made_up.module.shared was added to __all__",
                "made_up.module.shared is no internal name any more",
            ],
        ),
        (
            "module.py",
            '["CONSTANT", ',
            "[",
            [
                "made_up.module.CONSTANT is lost: __all__ does not have it",
                "dir(made_up.module) shows CONSTANT, which is not public: it needs an underscore",
            ],
        ),
        (
            "module.py",
            "CONSTANT = 1\n",
            "",
            [
                "dir(made_up.module) does not show CONSTANT",
                "made_up.module does not have CONSTANT",
            ],
        ),
        (
            "module.py",
            "_PRIVATE",
            "PRIVATE",
            ["dir(made_up.module) shows PRIVATE, which is not public: it needs an underscore"],
        ),
        (
            "module.py",
            "def shared",
            "def _shared",
            ["made_up.module.shared is no internal name any more"],
        ),
        ("__init__.py", '["Lazy", ', "[", ["made_up.Lazy is lost: __all__ does not have it"]),
        (
            "__init__.py",
            '    if name == "Lazy"',
            "    if not name",
            ["made_up does not have Lazy"],
        ),
        (
            "__init__.py",
            ", *__all__}",
            "}",
            ["dir(made_up) does not show Lazy"],
        ),
        (
            "__init__.py",
            "Used as Thing",
            "Used, Used as Thing",
            ["dir(made_up) shows Used, which is not public: it needs an underscore"],
        ),
    ],
)
def test_what_is_not_as_reviewed_is_named(
    made_up: Path, file: str, true: str, false: str, wrong: list[str]
) -> None:
    text = FILES[file]
    assert text.count(true) == 1
    (made_up / file).write_text(text.replace(true, false))
    if file == "module.py":
        assert look_at("made_up.module", "shared") == wrong
    else:
        assert look_at("made_up") == wrong


def test_a_module_that_was_not_reviewed_is_named(made_up: Path) -> None:
    for name in ("another.py", "_private.py"):
        (made_up / name).write_text("__all__ = []")
    assert unlisted(["made_up"], MADE_UP) == {"made_up.another"}
    assert unlisted(["made_up"], ["made_up.another"]) == set(MADE_UP)


def test_what_is_not_documented_is_named(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    names = [f"{module}.{name}" for module, names in MADE_UP.items() for name in names]
    assert lacking(names, [page]) == {"made_up.lazy.Lazy"}
    page.write_text(PAGE.replace(".. autoclass:: Lazy\n", ""))
    assert lacking(names, [page]) == {"made_up.lazy.Lazy", "made_up.Lazy"}
    errors = ROOT / "docs" / "reference" / "api" / "errors.md"
    lost = lacking(public_names.names_in_the_reference(), PAGES - {errors})
    assert {"xsproto.NotFound", "xsproto.errors.ERRORS"} <= lost


# What it costs


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
