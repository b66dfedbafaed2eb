"""Settings of the documentation site; ``make docs`` builds it into docs/_build/html."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import pydoc
import re
import sys
import typing
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, get_args, get_origin

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS / "_ext"), str(DOCS.parent)]

from docutils import nodes  # noqa: E402
from plain_docstrings import to_rst  # noqa: E402
from sphinx.addnodes import pending_xref  # noqa: E402
from sphinx.ext import napoleon  # noqa: E402
from sphinx.util import inspect as sphinx_inspect  # noqa: E402
from sphinx.util import logging  # noqa: E402
from sphinx.util.nodes import make_refnode  # noqa: E402

import safe_components  # noqa: E402
from safe_components.training.options import Range  # noqa: E402

project = "safe_components"
release = safe_components.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx-mathjax-offline",  # the site is read without a network, too
]
exclude_patterns = ["_build", "_ext"]
html_theme = "furo"
html_title = f"{project} {release}"
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"navigation_with_keys": True}
# Indented blocks are formulas and commands; Python blocks say that they are Python.
highlight_language = "none"
myst_heading_anchors = 3
myst_enable_extensions = ["amsmath", "dollarmath"]
# Copy what one types: no prompts, no output, and no formulas.
copybutton_selector = "div:not(.formula) > div.highlight pre"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
autodoc_type_aliases = {"ArrayLike": "ArrayLike"}
GOOGLE_STYLE = napoleon.Config(napoleon_use_ivar=True)

# Every reference must lead somewhere, but for other libraries' types, which have no page here, and links to
# directories of the repository (that these exist is tested with the pages).
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(?!safe_components).*"), (r"myst", r".*/")]


def public_objects() -> dict[str, dict[str, Any]]:
    """Public names and their objects by module: its ``__all__``, or else its constants."""
    modules: dict[str, dict[str, Any]] = {}

    def add(module: ModuleType) -> None:
        names = getattr(module, "__all__", [name for name in vars(module) if name.isupper()])
        objects = {name: getattr(module, name) for name in names}
        modules[module.__name__] = {name: o for name, o in objects.items() if not inspect.ismodule(o)}
        for module_within in filter(inspect.ismodule, objects.values()):
            add(module_within)

    for found in pkgutil.iter_modules(safe_components.__path__, "safe_components."):
        if not found.name.endswith("__main__"):
            add(importlib.import_module(found.name))
    return modules


PUBLIC = public_objects()
FULL_NAME: dict[str, str] = {}
for _module, _names in PUBLIC.items():
    for _name, _object in _names.items():  # a package may hand on what another one defines
        _defined = getattr(_object, "__module__", None) or _module
        if _name not in FULL_NAME or _defined.startswith(f"{_module}."):
            FULL_NAME[_name] = f"{_module}.{_name}"
# Fields of named tuples that their class describes under "Attributes": once is enough.
DESCRIBED_FIELDS = {
    id(vars(cls)[field])
    for names in PUBLIC.values()
    for cls in names.values()
    if "Attributes:" in (getattr(cls, "__doc__", None) or "")
    for field in getattr(cls, "_fields", ())
}


def convert_docstring(app: Any, what: str, name: str, obj: object, options: Any, lines: list[str]) -> None:
    """From the docstrings' plain text to reStructuredText, in place; constants after their module's."""
    lines[:] = to_rst(lines, {written: full for written, full in FULL_NAME.items() if full != name}.get)
    if what not in ("attribute", "data", "property"):  # a colon in these does not end a type
        lines[:] = napoleon.GoogleDocstring(lines, GOOGLE_STYLE, app, what, name, obj, options).lines()
    if what == "module" and not options.no_index:
        for constant, value in PUBLIC.get(name, {}).items():
            if not (inspect.isclass(value) or callable(value)) or get_args(value):
                lines += ["", f".. py:data:: {constant}", f"   :value: {shown(value)}", ""]


def shown(value: Any) -> str:
    """A constant in one line: a range's type and words, the choices of a literal, or what Python prints."""
    if get_origin(value) is Annotated:
        kind, *notes = get_args(value)  # some are for the command line
        words = [note.words for note in notes if isinstance(note, Range)]
        return ", ".join([inspect.formatannotation(kind), *words])
    text = " | ".join(map(repr, get_args(value))) or repr(value)
    return text if len(text) < 100 else "..."


def real_signature(
    app: Any, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None] | None:
    """That of ``__init__`` where a metaclass hides it, and nothing where it is only inherited."""
    if what != "class" or signature is None:
        return None
    if "<factory>" in signature:  # not Python, so Sphinx leaves module names and their marks in it
        return re.sub(r"~(\w+\.)*", "", signature.replace("<factory>", "...")), returns
    if not signature.startswith("(*args"):
        return None
    if not obj.__init__.__module__.startswith("safe_components"):
        return "()", returns
    own = sphinx_inspect.signature(obj.__init__, bound_method=True, type_aliases=autodoc_type_aliases)
    own = own.replace(return_annotation=inspect.Signature.empty)
    return sphinx_inspect.stringify_signature(own, unqualified_typehints=True), returns


def skip_described(app: Any, what: str, name: str, obj: object, skip: bool, options: Any) -> bool | None:
    """Leave out what the class's docstring has already said."""
    return True if id(obj) in DESCRIBED_FIELDS else None


def resolve(app: Any, env: Any, node: Any, contnode: nodes.Node) -> nodes.Node | None:
    """Link objects named by where they are defined to where they are public; text for private ones."""
    module, _, name = node["reftarget"].rpartition(".")
    if node.get("refdomain") != "py" or not module.startswith("safe_components"):
        return None
    entry = env.get_domain("py").objects.get(FULL_NAME.get(name))
    if entry:
        return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, contnode, name)
    known = hasattr(pydoc.locate(module), name) or hasattr(typing, name)
    return contnode if known else None


def keep_short_cells_in_one_line(app: Any, doctree: nodes.document) -> None:
    """Mark the cells of tables that are short, for the style sheet."""
    for cell in doctree.findall(nodes.entry):
        if len(cell.astext()) <= 26:
            cell["classes"].append("short")


def name_files_without_link(app: Any, doctree: nodes.document) -> None:
    """Files that the README links to and that have no page here, such as the license, are text."""
    for node in list(doctree.findall(pending_xref)):
        if node["reftype"] == "myst" and (DOCS.parent / node["reftarget"]).is_file():
            node.replace_self(node.children)


def require_every_public_name(app: Any, env: Any) -> None:
    """Warn, which stops the build, of any public name without an entry in the reference."""
    documented = env.get_domain("py").objects
    for name in FULL_NAME.values():
        if name not in documented:
            logging.getLogger(__name__).warning("%s is public but not in docs/api", name)


def setup(app: Any) -> None:
    """Connect the functions above."""
    app.connect("doctree-read", name_files_without_link)
    app.connect("doctree-read", keep_short_cells_in_one_line)
    app.connect("autodoc-process-docstring", convert_docstring)
    app.connect("autodoc-process-signature", real_signature)
    app.connect("autodoc-skip-member", skip_described)
    app.connect("missing-reference", resolve)
    app.connect("env-check-consistency", require_every_public_name)
