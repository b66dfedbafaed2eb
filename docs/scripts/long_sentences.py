"""Print the sentences of the guide that have more than 30 words; count them, and the digits, by page.

    python docs/scripts/long_sentences.py             # all pages
    python docs/scripts/long_sentences.py docs/estep.md

Tables, code, formulas and headings do not count: numbers belong there, and not in sentences.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

DOCS = Path(__file__).parents[1]
MOST = 30


def guide() -> list[Path]:
    """Return the pages of the guide."""
    return sorted(page for page in DOCS.glob("**/*.md") if "_build" not in page.parts)


def sentences(text: str) -> list[str]:
    """Return the sentences of a page's prose."""
    text = re.sub(r"^(```|~~~).*?^\1", "\n\n", text, flags=re.M | re.S)
    text = re.sub(r"^( *)\$\$$.*?^\1\$\$$", "", text, flags=re.M | re.S)
    text = re.sub(r"\$[^$\n]+\$", "`formula`", text)
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


def digits(page: Path) -> int:
    """Return the number of digits in a page's prose, code left out."""
    prose = re.sub(r"`[^`]*`", "", " ".join(sentences(page.read_text("utf-8"))))
    return sum(map(str.isdigit, prose))


def main() -> None:
    """Print the long sentences, and their number and that of the digits by page."""
    pages = [Path(name) for name in sys.argv[1:]] or guide()
    counts = {page: long_sentences(page) for page in pages}
    for page, found in counts.items():
        for sentence in found:
            print(f"{page.name}: {sentence}\n")
    print(f"{'':38s} long sentences  digits")
    for page, found in counts.items():
        print(f"{'/'.join(page.parts[-2:]):38s} {len(found):14d}  {digits(page):6d}")
    print(f"{'all':38s} {sum(map(len, counts.values())):14d}  {sum(map(digits, counts)):6d}")


if __name__ == "__main__":
    main()
