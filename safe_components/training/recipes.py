"""The folder of the recipes, and modules made from their files."""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from safe_components.ops import import_module
from safe_components.training.options import RecipeConfig

__all__ = ["load_recipe", "recipe_file", "recipes_folder"]

_PACKAGE = Path(__file__).parents[1]


def recipes_folder() -> Path:
    """Return the folder of the recipes: inside the installed package, or beside the package in a clone."""
    inside = _PACKAGE / "recipes"
    return inside if inside.is_dir() else _PACKAGE.parent / "recipes"


def recipe_file(name: str) -> Path:
    """Return the file of a recipe.

    Args:
        name: name of a recipe that comes with the package, the path of a file ``my_recipe.py``, or a module
            ``package.my_recipe`` that Python finds or that lies in the current directory.

    Raises:
        FileNotFoundError: if there is no such recipe.
        ValueError: if the package of the module does not exist.
        ImportError: if importing this package raises an error.
    """
    if name.endswith(".py"):
        file = Path(name).absolute()
        if not file.is_file():
            raise FileNotFoundError(f"there is no file {name!r}")
        return file
    package, dot, _ = name.rpartition(".")
    if dot and all(word.isidentifier() for word in name.split(".")):
        import_module(package, f"the recipe is {name!r}")
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise FileNotFoundError(f"there is no module {name!r}")
        return Path(spec.origin)
    file = recipes_folder() / f"{name}.py"
    if not (name.isidentifier() and file.is_file()):
        raise FileNotFoundError(f"there is no recipe {name!r} in {recipes_folder()}")
    return file


@functools.cache
def load_recipe(file: Path) -> ModuleType:
    """Import the file of a recipe as a module, without training.

    Your own recipes are loaded in the same way as those of the package. A recipe may import modules from its
    own folder.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file holds no ``Config`` derived from `RecipeConfig`.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file")
    name = f"recipe {file.resolve()}"  # a name that no other module has
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ValueError(f"{file} is not a Python file")
    recipe = importlib.util.module_from_spec(spec)
    sys.modules[name] = recipe  # type hints of its Config are looked up here
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    try:
        spec.loader.exec_module(recipe)
    except BaseException:
        del sys.modules[name]
        raise
    config = getattr(recipe, "Config", None)
    if not (isinstance(config, type) and issubclass(config, RecipeConfig)):
        raise ValueError(f"{file} is not a recipe: it holds no Config derived from RecipeConfig")
    return recipe
