"""The code in the README and the docs runs as printed; their links and pictures exist."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def names(page):
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_code_blocks_run_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    scope = {"__name__": "__docs__"}
    # The tutorial's commands are short and lead up to its code; those of other pages train for hours.
    kinds = "python|sh" if page.name == "ablations.md" else "python"
    for block in re.finditer(rf"^```({kinds})\n(.*?)^```", page.read_text(), re.M | re.S):
        line = page.read_text()[: block.start()].count("\n") + 1
        if block[1] == "python":
            exec(compile("\n" * line + block[2], str(page), "exec"), scope)
        else:
            words = shlex.split(block[2].replace("\\\n", ""))
            assert words[0] == "python"
            subprocess.run([sys.executable, *words[1:]], check=True)


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_relative_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing
