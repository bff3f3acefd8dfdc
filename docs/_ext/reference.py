"""A Sphinx extension: the reference has every public name, and links those that it mentions.

Docstrings mention names in single backticks, without their modules.

``.. autogroups:: Client`` documents a class that users hold, with everything that it inherits: its
methods by purpose, in the order of the table in its docstring.
"""

import importlib
import linecache
import sys
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from names import groups, home, public_names
from sphinx.addnodes import desc, desc_annotation, desc_parameterlist, pending_xref
from sphinx.application import Sphinx
from sphinx.domains.python import PythonDomain
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import make_refnode

import xsproto


class AutoGroups(SphinxDirective):
    """Document a class of the current module, its methods and attributes by purpose."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        cls = getattr(importlib.import_module(self.env.ref_context["py:module"]), name)
        lines = [f".. autoclass:: {name}", "   :no-members:", "   :no-show-inheritance:", ""]
        for purpose, members in groups(cls).items():
            if purpose:
                lines += [f"   .. rubric:: {purpose[0].upper()}{purpose[1:]}", ""]
            for member in members:
                lines += [f"   .. auto{kind_of(cls, member)}:: {member}", ""]
        parent = nodes.Element()
        self.state.nested_parse(StringList(lines, self.get_source_info()[0]), 0, parent)
        if "Arguments:" not in (cls.__doc__ or ""):
            # Users do not make it by themselves.
            signature = next(parent.findall(desc)).children[0]
            for parameters in [*signature.findall(desc_parameterlist)]:
                signature.remove(parameters)
        return parent.children


def kind_of(cls: type, name: str) -> str:
    """Say which of autodoc's directives is for a member of a class."""
    member = getattr(cls, name, None)
    if isinstance(member, property):
        return "property"
    return "method" if callable(member) else "attribute"


class Domain(PythonDomain):
    """Python's domain, for classes that several packages offer.

    Each description of such a class notes the name under which it was defined, too. Sphinx warns of
    the second one.
    """

    def note_object(
        self, name: str, objtype: str, node_id: str, aliased: bool = False, location: Any = None
    ) -> None:
        if not (aliased and name in self.objects):
            super().note_object(name, objtype, node_id, aliased, location)


def skip_elsewhere(
    app: Sphinx, what: str, name: str, thing: Any, skip: bool, options: Any
) -> bool | None:
    """Leave out of a module what the package around it has, and what says nothing."""
    if getattr(thing, "__name__", "") == "_overload_dummy":
        return True  # the rest, at run time, of the overloads of a protocol
    if str(getattr(thing, "__doc__", "")).startswith("Alias for field number"):
        return True
    module = app.env.temp_data.get("autodoc:module")
    if what == "module" and module and (module, name) in PUBLIC and home(module, name) != module:
        return True
    return None


def shorten(app: Sphinx, doctree: nodes.document) -> None:
    """Leave out the arguments of exceptions, which users catch and do not make, and long values."""
    for described in doctree.findall(desc):
        if described["objtype"] == "exception":
            for parameters in [*described.children[0].findall(desc_parameterlist)]:
                parameters.parent.remove(parameters)
    for annotation in [*doctree.findall(desc_annotation)]:
        text = annotation.astext()
        if text.startswith(" = ") and len(text) > LONGEST_VALUE:
            annotation.parent.remove(annotation)


def name_in_full(app: Sphinx, doctree: nodes.document) -> None:
    """Link a name in a docstring, or in a signature, to the place where the reference has it."""
    for node in doctree.findall(pending_xref):
        if node.get("refdomain") != "py" or not node.get("py:module"):
            continue
        module = sys.modules.get(node["py:module"])
        origin, _, name = node["reftarget"].rpartition(".")
        if (origin, name) in PUBLIC and (node["py:module"], name) in PUBLIC:
            # A class by the name under which it was defined: the package offers it, too.
            if getattr(module, name) is getattr(sys.modules[origin], name):
                node["reftarget"] = f"{home(node['py:module'], name)}.{name}"
            continue
        first, dot, rest = node["reftarget"].partition(".")
        if (node["py:module"], first) in PUBLIC:
            node["reftarget"] = f"{home(node['py:module'], first)}.{first}{dot}{rest}"
            continue
        owner = getattr(module, node.get("py:class") or "", None)
        # An inherited docstring mentions names of the module in which it was written.
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

# attrs writes an `__init__` in which defaults are expressions of its own. Without its source,
# autodoc takes the defaults from the signature.
for name in [name for name in linecache.cache if name.startswith("<attrs generated")]:
    del linecache.cache[name]

#: Characters.
LONGEST_VALUE = 80


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("autogroups", AutoGroups)
    app.add_domain(Domain, override=True)
    app.connect("autodoc-skip-member", skip_elsewhere)
    app.connect("doctree-read", shorten)
    app.connect("doctree-read", name_in_full)
    app.connect("missing-reference", find_name)
    app.connect("env-check-consistency", check_all_are_there)
    return {"parallel_read_safe": True}
