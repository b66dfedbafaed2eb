"""Draw the package's plan from its source: each package with the imports between them.

    python docs/scripts/draw_structure.py

writes ``docs/figures/structure.svg``. An arrow leads from the package that imports to the one that is
imported. The texts are the first lines of the packages' docstrings. A test fails if the figure and the
source differ.
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = "safe_components"
FIGURE = ROOT / "docs" / "figures" / "structure.svg"

PARTS = ("envs", "collectors", "policies", "critics", "estep", "mstep", "lagrangian")
# Top and bottom of each row, from the top storey down. Parts stand side by side in one row.
ROWS = {
    "recipes": (10, 58),
    "studies": (90, 138),
    "training": (170, 218),
    "parts": (258, 418),
    "ops": (458, 506),
    "keys": (538, 586),
}
COLORS = {"recipes": "#7a4fb5", "studies": "#1f7a8c", "training": "#c2571a", "parts": "#3f6b3f"}
GRAY = "#555"
WIDTH, HEIGHT, LEFT, COLUMN, LANE = 940, 596, 10, 112, 15


def modules() -> dict[str, Path]:
    """Every module of the package, and every recipe, by the name it is imported with."""
    found = {}
    for path in (ROOT / PACKAGE).rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    recipes = (ROOT / "recipes").glob("*.py")
    return found | {f"{PACKAGE}.recipes.{path.stem}": path for path in recipes}


def module_imports() -> dict[str, set[str]]:
    """For each module those of the package that it imports, also within a function."""
    known = modules()
    return {name: set(_imported(path, known)) for name, path in known.items()}


def _imported(path: Path, known: dict[str, Path]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"{path} has a relative import, which is not resolved here")
            for alias in node.names:  # either a submodule, or a name that the module itself defines
                name = f"{node.module}.{alias.name}"
                if (found := name if name in known else node.module) in known:
                    yield str(found)


def package_imports() -> list[tuple[str, str]]:
    """The arrows: pairs of packages of which the first imports the second."""
    boxes = (*ROWS, *PARTS)
    pairs = {
        (importing.split(".")[1], imported.split(".")[1])
        for importing, names in module_imports().items()
        for imported in names
        if "." in importing and "." in imported
    }
    return sorted(
        (pair for pair in pairs if pair[0] != pair[1] and set(pair) <= set(boxes)),
        key=lambda pair: (boxes.index(pair[0]), boxes.index(pair[1])),
    )


def summary(name: str) -> str:
    """The first line of a package's docstring."""
    path = ROOT / "recipes" if name == "recipes" else ROOT / PACKAGE / name
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0].replace("`", "")


def draw() -> str:
    """The figure as SVG."""
    pairs = package_imports()
    described = "; ".join(
        f"{name} imports {', '.join(to for source, to in pairs if source == name)}"
        for name in dict.fromkeys(source for source, _ in pairs)
    )
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">',
        f"<desc>{escape(described)}</desc>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
    ]
    lanes = iter(range(LEFT + len(PARTS) * COLUMN + LANE, WIDTH, LANE))
    for source, target in pairs:
        out += _arrow(source, target, _place(source, target) or next(lanes))
    for name, (top, bottom) in ROWS.items():
        if name != "parts":
            out += _box(LEFT, top, WIDTH - 2 * LEFT, bottom, name, [summary(name)])
    top, bottom = ROWS["parts"]
    for index, name in enumerate(PARTS):
        out += _box(LEFT + index * COLUMN, top, COLUMN - 8, bottom, name, textwrap.wrap(summary(name), 15))
    return "\n".join([*out, "</svg>", ""])


def _row(name: str) -> str:
    return "parts" if name in PARTS else name


def _place(source: str, target: str) -> int | None:
    """Where an arrow runs: in a part's column; None for one between two rows that hold no part."""
    offsets = {"recipes": 20, "studies": 44, "training": 68, "ops": 32, "keys": 56}
    for part, other in ((target, source), (source, target)):
        if part in PARTS:
            return LEFT + PARTS.index(part) * COLUMN + offsets.get(other, 84)
    return None


def _arrow(source: str, target: str, x: int) -> list[str]:
    start, end = ROWS[_row(source)][1], ROWS[_row(target)][0]
    color = COLORS.get(_row(source), GRAY)
    return [
        f'<path d="M{x} {start}V{end - 7}" stroke="{color}" stroke-width="1.5"/>',
        f'<path d="M{x - 4} {end - 8}h8l-4 8z" fill="{color}"/>',
    ]


def _box(x: int, top: int, width: int, bottom: int, name: str, lines: list[str]) -> list[str]:
    color, height = COLORS.get(_row(name), GRAY), bottom - top
    return [
        f'<rect x="{x}" y="{top}" width="{width}" height="{height}" rx="4" fill="#f7f7f5" stroke="{color}"/>',
        f'<text x="{x + 8}" y="{top + 19}" font-size="14" font-weight="bold" fill="{color}">{name}</text>',
        *(
            f'<text x="{x + 8}" y="{top + 37 + 14 * row}" font-size="11.5" fill="#222">{escape(line)}</text>'
            for row, line in enumerate(lines)
        ),
    ]


if __name__ == "__main__":
    FIGURE.write_text(draw(), encoding="utf-8")
