"""The command ``safe-components``, which lists, runs and copies recipes, and exports trained policies.

    safe-components list
    safe-components run cvpo --env.id PointCircle --cost-limit 10
    safe-components copy cvpo my_cvpo.py
    safe-components run my_cvpo.py --env.id PointCircle          # or package.my_cvpo
    safe-components export RUN_DIR policy.onnx

``run`` is equivalent to ``python RECIPE.py OPTIONS``. ``python -m safe_components`` is the same command.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import importlib.util
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType

from safe_components import __version__

__all__ = ["main"]

_HERE = Path(__file__).parent
# The recipes are inside the installed package, or beside the package in a clone.
_RECIPES = _HERE / "recipes" if (_HERE / "recipes").is_dir() else _HERE.parent / "recipes"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        arguments: words of the command line; None takes those of this process.

    Raises:
        SystemExit: with status 1 and one line if a recipe, a settings file or a path does not exist, or if a
            copy would overwrite a file. Any other mistake gives status 2 and the usage.
    """
    parser = argparse.ArgumentParser(
        prog="safe-components", description="List, run and copy recipes; export policies."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    commands.add_parser("list", help="list all recipes and settings files")

    run = commands.add_parser("run", help="run a recipe")
    run.add_argument("recipe", metavar="RECIPE", help="name of a recipe, or path to a .py file")
    run.add_argument("options", metavar="...", nargs=argparse.REMAINDER, help="options of the recipe")

    copy = commands.add_parser("copy", help="copy a recipe or a settings file for editing")
    copy.add_argument("name", metavar="NAME", help="name of a recipe or of a settings file")
    copy.add_argument(
        "file", metavar="FILE", type=Path, help="path of the copy; an existing file is not overwritten"
    )

    export = commands.add_parser("export", help="export the policy of a run")
    export.add_argument("run_dir", metavar="RUN_DIR", help="run, checkpoint, or file of a policy")
    export.add_argument(
        "file",
        metavar="FILE",
        type=Path,
        help=".pt2 (torch.export) or .onnx; an existing file is not overwritten",
    )
    export.add_argument("--sampled", action="store_true", help="sample actions instead of taking the mean")

    given = parser.parse_args(arguments)
    if given.command == "list":
        _list()
    elif given.command == "run":
        _run(given.recipe, given.options)
    elif given.command == "copy":
        _copy(given.name, given.file)
    else:
        _export(given.run_dir, given.file, given.sampled)


def _list() -> None:
    recipes = _recipes()
    width = max(map(len, recipes))
    print("Recipes: safe-components run RECIPE --help")
    for name, path in recipes.items():
        summary = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").partition("\n")[0]
        print(f"  {name:{width}}  {summary}")
    print("Settings: safe-components run RECIPE --settings NAME")
    for name in _settings():
        print(f"  {name}")


def _run(recipe: str, options: Sequence[str]) -> None:
    """Run ``python RECIPE.py OPTIONS`` in this process, with this command in the recipe's usage line."""
    path = Path(recipe).absolute()
    if path.suffix != ".py":
        path = _module_file(recipe) if "." in recipe else _find(recipe, _recipes(), "recipe")
    elif not path.is_file():
        raise SystemExit(f"error: there is no file {recipe!r}")
    sys.argv = [f"safe-components run {recipe}", *options]
    sys.path.insert(0, str(path.parent))
    # runpy.run_path would put the path into sys.argv[0]. Worker processes import __file__ only if the module
    # has no __spec__.
    program = ModuleType("__main__")
    program.__file__ = str(path)
    sys.modules["__main__"] = program
    exec(compile(path.read_bytes(), path, "exec"), vars(program))


def _module_file(name: str) -> Path:
    """Return the file of the module ``package.my_recipe``, which may lie below the current directory."""
    sys.path.append(str(Path.cwd()))
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError as error:
        raise SystemExit(f"error: there is no recipe {name!r}: {error}") from None
    if spec is None or spec.origin is None:
        raise SystemExit(f"error: there is no module {name!r}")
    return Path(spec.origin)


def _copy(name: str, file: Path) -> None:
    source = _find(name, {**_recipes(), **_settings()}, "recipe or settings file")
    try:
        with source.open("rb") as original, file.open("xb") as copy:
            shutil.copyfileobj(original, copy)
    except FileExistsError:
        raise SystemExit(f"error: {file} exists and is not overwritten") from None
    except OSError as error:
        raise SystemExit(f"error: {file}: {error.strerror}") from None
    print(f"copied {source} to {file}")


def _export(run_dir: str, file: Path, sampled: bool) -> None:
    # The other commands need nothing of this and start at once without it.
    from safe_components.training import explained_errors, export_policy, load_policy
    from safe_components.training.deploy import import_own_policy

    with explained_errors(traceback=False):
        if file.exists():
            raise FileExistsError(f"{file} exists and is not overwritten")
        import_own_policy(Path(run_dir))
        export_policy(load_policy(run_dir, deterministic=not sampled), file)
    print(f"exported {run_dir} to {file}")


def _find(name: str, paths: dict[str, Path], what: str) -> Path:
    if name in paths:
        return paths[name]
    near = difflib.get_close_matches(name, paths, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(paths)}"
    raise SystemExit(f"error: there is no {what} {name!r}; {hint}")


def _recipes() -> dict[str, Path]:
    return _by_name(path for path in _RECIPES.glob("*.py") if not path.name.startswith("_"))


def _settings() -> dict[str, Path]:
    return _by_name(_RECIPES.glob("settings/*.yaml"))


def _by_name(paths: Iterable[Path]) -> dict[str, Path]:
    return {path.stem: path for path in sorted(paths)}
