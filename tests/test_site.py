"""What the documentation site is made of; ``make docs`` itself fails on any warning."""

import importlib.util
import pkgutil
import re
from pathlib import Path

import draw_structure
import pytest

import safe_components

DOCS = Path(__file__).parents[1] / "docs"
MODULES = [found.name for found in pkgutil.iter_modules(safe_components.__path__) if found.name != "__main__"]
MODULES += ["training.options"]

spec = importlib.util.spec_from_file_location("plain_docstrings", DOCS / "_ext" / "plain_docstrings.py")
plain_docstrings = importlib.util.module_from_spec(spec)
spec.loader.exec_module(plain_docstrings)


def to_rst(text, **names):
    return "\n".join(plain_docstrings.to_rst(text.splitlines(), names.get))


@pytest.mark.parametrize("module", MODULES)
def test_every_package_has_a_page_of_the_reference(module):
    assert f".. automodule:: safe_components.{module}\n" in (DOCS / "api" / f"{module}.md").read_text()
    assert re.search(rf"^{re.escape(module)}$", (DOCS / "api" / "index.md").read_text(), re.M)


def test_the_figure_of_the_structure_is_that_of_the_source():
    assert draw_structure.FIGURE.read_text() == draw_structure.draw(), "run docs/scripts/draw_structure.py"


def test_the_figure_has_an_arrow_for_each_import_between_packages():
    figure = draw_structure.FIGURE.read_text()
    described = re.search("<desc>(.*)</desc>", figure)[1]
    arrows = [
        (source, target)
        for sentence in described.split("; ")
        for source, _, targets in [sentence.partition(" imports ")]
        for target in targets.split(", ")
    ]
    assert arrows == draw_structure.package_imports()
    assert figure.count('stroke-width="1.5"') == len(arrows) > 20
    assert len(set(re.findall(r'd="M(\d+) \d+V', figure))) == len(arrows)  # none hides another


def test_indented_formula_becomes_a_literal_block():
    text = "The dual\n\n    g(x) = |x| *\n      + x_\n\nis convex."
    block = ".. code-block:: none\n   :class: formula"
    assert to_rst(text) == f"The dual\n\n{block}\n\n    g(x) = |x| *\n      + x_\n\n\nis convex."


def test_sections_lists_and_doctests_keep_their_indentation():
    text = (
        "* one,\n  two\n\n  still the first\n\nArgs:\n    x: a number\n\n        and more.\n\n"
        "Example:\n    >>> `1`\n    ['a|b', *c]"
    )
    assert to_rst(text) == text


def test_table():
    assert to_rst("Says:\n\n| key | |\n|---|---|\n| `a` | x | \n| - | |y| |").split("\n") == [
        "Says:",
        "",
        "",
        ".. list-table::",
        "   :header-rows: 1",
        "",
        "   * - key",
        "     -",
        "   * - ``a``",
        "     - x",
        r"   * - \-",
        r"     - \|y\|",
        "",
    ]


@pytest.mark.parametrize(
    ("written", "rendered"),
    [
        ("`x` and ``y``", "``x`` and ``y``"),
        ("see `solve`", "see :py:obj:`solve <lib.solve>`"),
        (":func:`solve` stays", ":func:`solve` stays"),
        ("|x| * y_ a_b `|x|*`", r"\|x\| \* y\_ a_b ``|x|*``"),
        ("*one* and **two words** but 2*3*4", r"*one* and **two words** but 2\*3\*4"),
    ],
)
def test_running_text(written, rendered):
    assert to_rst(written, solve="lib.solve") == rendered


def test_return_values_have_no_type_before_a_colon():
    assert to_rst("Returns:\n    a dictionary: its keys.") == ":returns:\n    a dictionary: its keys."
