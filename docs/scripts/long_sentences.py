"""Print the sentences of the guide that have more than 30 words, and count them by page.

    python docs/scripts/long_sentences.py             # all pages
    python docs/scripts/long_sentences.py docs/estep.md

Tables, code, formulas and headings do not count.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

DOCS = Path(__file__).parents[1]
MOST = 30


def sentences(text: str) -> list[str]:
    """Return the sentences of a page's prose."""
    text = re.sub(r"^(```|~~~).*?^\1", "\n\n", text, flags=re.M | re.S)
    lines = [line for line in text.splitlines() if not re.match(r"\s*(\||#|!\[|:)|    ", line)]
    prose = re.sub(r"\n\s*[-*] |\n\s*\d+\. ", "\n\n", "\n".join(lines))
    prose = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", prose)  # the text of links
    prose = prose.replace("*", "")
    found: list[str] = []
    for paragraph in re.split(r"\n\s*\n", prose):
        words = " ".join(paragraph.split())
        found += re.split(r"(?<=[.!?:])\s+(?=[A-Z`*\d(])", words)
    return [sentence for sentence in found if sentence]


def long_sentences(page: Path) -> list[str]:
    """Return the sentences of a page that have more than 30 words."""
    return [sentence for sentence in sentences(page.read_text("utf-8")) if len(sentence.split()) > MOST]


def main() -> None:
    """Print the long sentences and their number."""
    pages = [Path(name) for name in sys.argv[1:]] or sorted(DOCS.glob("*.md"))
    counts = {page: long_sentences(page) for page in pages}
    for page, found in counts.items():
        for sentence in found:
            print(f"{page.name}: {sentence}\n")
    for page, found in counts.items():
        print(f"{page.name:28s} {len(found)}")
    print(f"{'all':28s} {sum(map(len, counts.values()))}")


if __name__ == "__main__":
    main()
