"""How the documentation is built: `sphinx-build -W --keep-going docs docs/_build`."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

project = "xsproto"
author = "The xsproto authors"
copyright = f"2026, {author}"
release = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]

# No intersphinx: the documentation builds, with warnings as errors, where there is no network.
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
source_suffix = {".md": "markdown"}

html_theme = "furo"
html_title = f"xsproto {release}"

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_typehints = "description"
napoleon_use_ivar = True  # fields of attrs classes would be described twice
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
