"""How the documentation is built: `sphinx-build -W --keep-going docs docs/_build`."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_ext")]

import drawings  # noqa: E402  # it is in docs/_ext

from xsproto import __version__  # noqa: E402

project = "xsproto"
author = "The xsproto authors"
copyright = f"2026, {author}"
release = __version__

# No intersphinx: the documentation builds, with warnings as errors, where there is no network.
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "reference"]
exclude_patterns = ["_build", "_ext"]
default_role = "py:obj"  # in docstrings
source_suffix = {".md": "markdown"}

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["manual.css"]
html_title = f"xsproto {release}"

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 90
napoleon_use_ivar = True  # fields of attrs classes would be described twice
myst_enable_extensions = ["substitution"]
myst_substitutions = {
    "requests": drawings.request_tables(),
    "transactions": drawings.transaction_diagram(),
    "transaction_table": drawings.state_table(drawings.TRANSACTION),
    "watches": drawings.watch_diagram(),
    "watch_table": drawings.state_table(drawings.WATCH),
}
myst_heading_anchors = 3
