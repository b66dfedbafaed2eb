"""The package as a whole: what it exports, its command, and the wheel that is built from it."""

import re
import shutil
import subprocess
import sys
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pytest

import safe_components
from safe_components import cli

ROOT = Path(__file__).parents[1]
RECIPES = {path.stem: path for path in (ROOT / "recipes").glob("[!_]*.py")}
SETTINGS = {path.stem: path for path in (ROOT / "recipes" / "settings").glob("*.yaml")}


@pytest.fixture
def command(monkeypatch, capsys):
    """Call the command in this process; the answer is what it printed."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", sys.argv)
        monkeypatch.setattr(sys, "path", sys.path[:])
        monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
        cli.main(arguments)
        return capsys.readouterr().out

    return call


def python(*arguments, cwd, path=ROOT):
    words = [sys.executable, *map(str, arguments)]
    env = {"PYTHONPATH": str(path), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(words, cwd=cwd, env=env, check=True, text=True, stdout=subprocess.PIPE).stdout


# What the package exports


def test_importing_the_package_imports_no_part_of_it(tmp_path):
    code = "import sys, safe_components; print([m for m in sys.modules if m.startswith(('torch', 'safe'))])"
    assert python("-c", code, cwd=tmp_path) == "['safe_components']\n"


def test_every_package_and_no_other_name_is_an_attribute():
    packages = {path.parent.name for path in (ROOT / "safe_components").glob("*/__init__.py")}
    assert set(safe_components.__all__) == packages | {"keys"}
    assert set(safe_components.__all__) <= set(dir(safe_components))
    for name in safe_components.__all__:
        assert getattr(safe_components, name).__name__ == f"safe_components.{name}"
    with pytest.raises(AttributeError, match="'safe_components' has no attribute 'esteps'"):
        safe_components.esteps  # noqa: B018


def test_the_version_is_the_same_everywhere():
    citation = (ROOT / "CITATION.cff").read_text()
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(r"^version: (.*)$", citation, re.M)[1] == safe_components.__version__
    assert re.search(r"^## (\S+)", changes, re.M)[1] == safe_components.__version__


# The command


def test_list_shows_each_recipe_with_its_first_line_and_each_settings_file(command):
    lines = command("list").splitlines()
    for name, path in RECIPES.items():
        first = path.read_text().split("\n")[0].removeprefix('"""')
        assert [line for line in lines if line.split() == [name, *first.split()]]
    assert lines[-len(SETTINGS) :] == [f"  {name}" for name in sorted(SETTINGS)]
    assert len(lines) == len(RECIPES) + len(SETTINGS) + 2


def test_run_shows_the_help_of_a_recipe_under_the_name_of_the_command(command, capsys):
    with pytest.raises(SystemExit) as end:
        command("run", "cvpo", "--help")
    assert not end.value.code
    assert capsys.readouterr().out.startswith("usage: safe-components run cvpo ")


def test_run_does_what_python_does_worker_processes_included(tmp_path):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "beside.py").write_text("HERE = True\n")
    (tmp_path / "scripts" / "own.py").write_text(
        "import multiprocessing, sys\n"
        "import beside\n"
        "def work(x):\n"
        "    return __name__, x\n"
        "if __name__ == '__main__':\n"
        "    print(__file__, sys.path[0], sys.argv[1:], work.__module__)\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        print(pool.map(work, [1]))\n"
    )
    arguments = ["scripts/own.py", "-x", "--help", "--", "a b"]
    run = python("-m", "safe_components", "run", *arguments, cwd=tmp_path)
    assert run == python(*arguments, cwd=tmp_path)
    assert "__mp_main__" in run


@pytest.mark.parametrize("name", ["cvpo", "PointCircle"])
def test_copy_writes_the_file_and_never_overwrites(command, tmp_path, name):
    copy = tmp_path / "copy"
    assert command("copy", name, str(copy)).endswith(f"to {copy}\n")
    assert copy.read_bytes() == {**RECIPES, **SETTINGS}[name].read_bytes()
    copy.write_text("edited")
    with pytest.raises(SystemExit, match="exists and is not overwritten"):
        command("copy", name, str(copy))
    assert copy.read_text() == "edited"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("run cvop", "error: there is no recipe 'cvop'; did you mean 'cvpo'?"),
        (
            "run PointCircle",
            f"error: there is no recipe 'PointCircle'; choose from {', '.join(sorted(RECIPES))}",
        ),
        ("run cvpo.py", "error: there is no file 'cvpo.py'"),
        (
            "copy pointcircle x",
            "error: there is no recipe or settings file 'pointcircle'; did you mean 'PointCircle'?",
        ),
        ("copy cvpo absent/x.py", "error: absent/x.py: No such file or directory"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_remedy(command, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        command(*arguments.split())
    assert end.value.code == message


# The wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy, because setuptools writes into the tree and reuses what it finds."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for name in ("safe_components", "recipes"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    code = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    python("-c", code, out, cwd=tree)
    (path,) = out.iterdir()
    return path


def test_the_wheel_holds_the_package_the_recipes_and_nothing_else(wheel):
    package = {path.relative_to(ROOT) for path in (ROOT / "safe_components").rglob("*.py")}
    recipes = {Path("safe_components/recipes", path.name) for path in (ROOT / "recipes").glob("*.py")}
    folder = ROOT / "recipes" / "settings"
    settings = {
        Path("safe_components/recipes/settings", path.relative_to(folder)) for path in folder.rglob("*.yaml")
    }
    with ZipFile(wheel) as archive:
        held = {Path(name) for name in archive.namelist() if ".dist-info/" not in name}
    expected = package | recipes | settings | {Path("safe_components/py.typed")}
    assert held == expected, "packages are listed under [tool.setuptools] in pyproject.toml"


def test_the_wheel_names_version_license_and_command(wheel):
    info = f"safe_components-{safe_components.__version__}.dist-info"
    with ZipFile(wheel) as archive:
        metadata = Parser().parsestr(archive.read(f"{info}/METADATA").decode())
        assert b"MIT License" in archive.read(f"{info}/licenses/LICENSE")
        assert (
            "safe-components = safe_components.cli:main" in archive.read(f"{info}/entry_points.txt").decode()
        )
    assert metadata["Version"] == safe_components.__version__
    assert metadata["License-Expression"] == "MIT"


def test_the_command_finds_the_recipes_of_an_unpacked_wheel(wheel, tmp_path, command):
    site = tmp_path / "site"
    ZipFile(wheel).extractall(site)
    assert python("-m", "safe_components", "list", cwd=tmp_path, path=site) == command("list")
    python("-m", "safe_components", "copy", "cvpo", "my.py", cwd=tmp_path, path=site)
    assert (tmp_path / "my.py").read_bytes() == RECIPES["cvpo"].read_bytes()
