"""Docstrings name what they speak of by its short name; it is found where one thing alone ends with that name.

``:class:`GaussianModule``` is then enough from any module, and what moved to the top level is found by the module that
defines it. A name that two things share leads nowhere, which is an error.
"""

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.domains.python import PythonDomain
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode


def find(domain: PythonDomain, target: str) -> str | None:
    """The one documented object whose dotted name ends with the target, or with its last two parts."""
    for name in dict.fromkeys((target, ".".join(target.split(".")[-2:]))):
        found = {known for known, entry in domain.objects.items() if known.endswith(f".{name}") and not entry.aliased}
        if len(found) == 1:
            return found.pop()
    return None


def resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.Element) -> nodes.Element | None:
    """A reference to an object of the package that Sphinx did not find by itself."""
    if node.get("refdomain") != "py":
        return None
    domain = env.domains.python_domain
    name = find(domain, node["reftarget"])
    if name is None:
        return None
    entry = domain.objects[name]
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, content, name)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register, behind intersphinx."""
    app.connect("missing-reference", resolve, priority=900)
    return {"parallel_read_safe": True}
