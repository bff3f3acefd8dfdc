"""A Sphinx extension: the reference has every public name, once, and finds those that it mentions.

Docstrings mention names in single backticks, without their modules.
"""

import linecache
import sys
from typing import Any

from docutils import nodes
from names import home, public_names
from sphinx.addnodes import desc, desc_annotation, desc_parameterlist, pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.nodes import make_refnode

import xsproto


def skip_elsewhere(
    app: Sphinx, what: str, name: str, thing: Any, skip: bool, options: Any
) -> bool | None:
    """Leave out of a module what the package around it has, and what says nothing."""
    if getattr(thing, "__name__", "") == "_overload_dummy":
        return True  # what is left at run time of the overloads of a protocol
    if str(getattr(thing, "__doc__", "")).startswith("Alias for field number"):
        return True
    module = app.env.temp_data.get("autodoc:module")
    if what == "module" and module and (module, name) in PUBLIC and home(module, name) != module:
        return True
    return None


def shorten(app: Sphinx, doctree: nodes.document) -> None:
    """Leave out how exceptions are made, which are caught here, and values that fill lines."""
    for described in doctree.findall(desc):
        if described["objtype"] == "exception":
            for parameters in [*described.children[0].findall(desc_parameterlist)]:
                parameters.parent.remove(parameters)
    for annotation in [*doctree.findall(desc_annotation)]:
        text = annotation.astext()
        if text.startswith(" = ") and len(text) > LONGEST_VALUE:
            annotation.parent.remove(annotation)


def name_in_full(app: Sphinx, doctree: nodes.document) -> None:
    """Have what a docstring calls by its bare name point to where the reference has it."""
    for node in doctree.findall(pending_xref):
        if node.get("refdomain") != "py" or not node.get("py:module"):
            continue
        first, dot, rest = node["reftarget"].partition(".")
        module = sys.modules.get(node["py:module"])
        owner = getattr(module, node.get("py:class") or "", None)
        # What a class inherits mentions what is known where that was written.
        bases = [sys.modules[base.__module__] for base in getattr(owner, "__mro__", ())]
        for scope in (module, *bases, xsproto):
            thing = getattr(scope, first, None)
            origin = getattr(thing, "__module__", "")
            if (origin, first) in PUBLIC:
                node["reftarget"] = f"{home(origin, first)}.{first}{dot}{rest}"
                break


def find_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, contents: nodes.TextElement
) -> nodes.Node | None:
    """Link a name that is mentioned without its module, where it is clear which one is meant."""
    if node.get("refdomain") != "py":
        return None
    found = [
        (name, entry)
        for name, entry in env.get_domain("py").objects.items()
        if name.endswith("." + node["reftarget"]) and not entry.aliased
    ]
    if len(found) != 1:
        return None
    ((name, entry),) = found
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, contents, name)


def check_all_are_there(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of a public name that the reference lacks, such as one without a docstring."""
    there = env.get_domain("py").objects
    for module, name in sorted(PUBLIC):
        if f"{home(module, name)}.{name}" not in there:
            logging.getLogger(__name__).warning("the reference lacks %s.%s", module, name)


PUBLIC = set(public_names())

# So that the defaults of attrs' classes are taken from their signatures: what attrs writes for an
# `__init__` names them by expressions of its own.
for name in [name for name in linecache.cache if name.startswith("<attrs generated")]:
    del linecache.cache[name]

#: Characters.
LONGEST_VALUE = 80


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-skip-member", skip_elsewhere)
    app.connect("doctree-read", shorten)
    app.connect("doctree-read", name_in_full)
    app.connect("missing-reference", find_name)
    app.connect("env-check-consistency", check_all_are_there)
    return {"parallel_read_safe": True}
