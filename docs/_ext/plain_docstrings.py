"""Turns the library's docstrings, written to be read in an editor, into reStructuredText.

The docstrings hold plain indented formulas, Markdown tables and code in backticks. This module
makes literal blocks, list tables and cross-references of them; Google-style sections are left to
napoleon, which runs after it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

SECTION = re.compile(r"(Args|Attributes|Example|Examples|Keyword Args|Note|Raises|Returns|Yields):$")
CODE = re.compile(r"(?<!`)(`{1,2})([^`]+)\1(?!`)")
EMPHASIS = re.compile(r"(?<!\w)(\*{1,2})(?=[^\s*])[^*]*[^\s*]\1(?!\w)")
ROLE = re.compile(r":[a-z]+(?::[a-z]+)?:$")


def to_rst(lines: Sequence[str], target: Callable[[str], str | None] = lambda name: None) -> list[str]:
    """Convert the lines of one docstring, its common indentation already removed.

    * a block indented by two or more after a blank line, outside sections and lists: a literal block of
      the class ``formula``;
    * a Markdown table: a list table whose first row is the header, unless that is empty;
    * `` `code` `` and ``` ``code`` ```: a link where ``target`` knows the name, else a literal;
    * ``*``, ``|`` and a trailing ``_`` elsewhere: escaped, they are mathematics and not markup, but for
      ``*stressed*`` and ``**strongly stressed**`` words.

    Args:
        lines: the docstring.
        target: full name of a documented object by the name it is written with, or None.
    """
    out: list[str] = []
    in_section = in_list = in_doctest = False
    index = 0
    while index < len(lines):
        line = lines[index]
        text, indent = line.strip(), len(line) - len(line.lstrip())
        after_blank = index == 0 or not lines[index - 1].strip()
        if not text:
            in_doctest = False
            out.append(line)
        elif in_doctest or text.startswith(">>>"):
            in_doctest = True
            out.append(line)
        elif indent == 0 and SECTION.match(text):
            in_section = True
            # Signatures hold the types: no word before a colon is one.
            out.append(":returns:" if text == "Returns:" else line)
        elif text.startswith("|") and text.endswith("|"):
            end = index
            while end < len(lines) and lines[end].strip().startswith("|"):
                end += 1
            out += _table([row.strip() for row in lines[index:end]], " " * indent, target)
            index = end
            continue
        elif indent >= 2 and after_blank and not in_section and not in_list:
            end = index
            while end < len(lines) and (not lines[end].strip() or lines[end].startswith("  ")):
                end += 1
            out += [".. code-block:: none", "   :class: formula", ""]
            out += [f"    {row[indent:]}" if row.strip() else "" for row in lines[index:end]]
            out.append("")
            index = end
            continue
        else:
            if indent == 0:
                in_section = False
                in_list = bool(re.match(r"([*-]|\d+\.) ", text)) or (in_list and not after_blank)
            out.append(_inline(line, target))
        index += 1
    return out


def _table(rows: Sequence[str], margin: str, target: Callable[[str], str | None]) -> list[str]:
    """``.. list-table::`` of Markdown rows, the second of which is the rule below the header."""
    cells = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in [rows[0], *rows[2:]]]
    width = max(len(row) for row in cells)
    out = ["", f"{margin}.. list-table::", f"{margin}   :header-rows: 1", ""]
    for row in cells:
        for column, cell in enumerate([*row, *[""] * (width - len(row))]):
            content = r"\-" if cell == "-" else _inline(cell, target)
            out.append(f"{margin}   {'* -' if column == 0 else '  -'} {content}".rstrip())
    return [*out, ""]


def _inline(line: str, target: Callable[[str], str | None]) -> str:
    """Code spans to links or literals, the rest of the line escaped."""
    out, position = "", 0
    for span in CODE.finditer(line):
        before = line[position : span.start()]
        if ROLE.search(before):  # already a cross-reference
            out += _escape(before) + span[0]
        else:
            name = target(span[2])
            out += _escape(before) + (f":py:obj:`{span[2]} <{name}>`" if name else f"``{span[2]}``")
        position = span.end()
    return out + _escape(line[position:])


def _escape(text: str) -> str:
    """``*``, ``|`` and a trailing ``_`` escaped, but for ``*`` that stress words or open a list item."""
    lead = re.match(r"\s*(?:\* )?", text)
    out, position = lead[0] if lead else "", lead.end() if lead else 0
    for stressed in [*EMPHASIS.finditer(text, position), None]:
        plain = text[position : stressed.start() if stressed else len(text)]
        out += re.sub(r"(?<=\w)_(?!\w)", r"\\_", re.sub(r"(?<!\\)([|*])", r"\\\1", plain))
        if stressed:
            out, position = out + stressed[0], stressed.end()
    return out
