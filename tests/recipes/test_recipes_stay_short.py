"""A recipe is read from top to bottom: short, and different from the others only where the algorithm is."""

import ast
import itertools
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(FOLDER.glob("*.py"))
FILES = sorted(FOLDER.rglob("*.py"))


def longest_common_block(first, second):
    """Length of the longest run of equal lines."""
    best, above = 0, [0] * (len(second) + 1)
    for line in first:
        here = [0] + [above[j] + 1 if line == other else 0 for j, other in enumerate(second)]
        best, above = max(best, *here), here
    return best


def lines(path):
    """Neither blank lines nor imports, which say only that the same parts are used."""
    text = path.read_text()
    imports = [node for node in ast.parse(text).body if isinstance(node, ast.Import | ast.ImportFrom)]
    skipped = {number for node in imports for number in range(node.lineno, node.end_lineno + 1)}
    numbered = enumerate(text.splitlines(), start=1)
    return [line.strip() for number, line in numbered if line.strip() and number not in skipped]


def test_the_measure_itself():
    assert longest_common_block(list("abcdef"), list("xbcdyf")) == 3


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_recipe_has_fewer_than_250_lines(path):
    assert len(path.read_text().splitlines()) < 250


@pytest.mark.parametrize(
    "pair", [*itertools.combinations(FILES, 2)], ids=lambda pair: "-".join(p.stem for p in pair)
)
def test_no_block_of_more_than_12_lines_is_copied(pair):
    assert longest_common_block(*map(lines, pair)) <= 12
