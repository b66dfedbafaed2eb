"""Parts that are named by their import path: what is found, and what an error says."""

import sys

import pytest

from safe_components.ops import import_part


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module with this source into the current directory; its name is new in each test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    written = []

    def write(source):
        written.append(f"own_part_{tmp_path.name.replace('-', '_')}")
        (tmp_path / f"{written[-1]}.py").write_text(source)
        return written[-1]

    yield write
    for name in written:
        sys.modules.pop(name, None)


def test_a_module_of_the_current_directory_is_found(module):
    name = module("class Solver:\n    def make():\n        return 7\n")
    assert import_part(f"{name}:Solver.make")() == 7


@pytest.mark.parametrize("path", ["newton", "a:", ":b", "a b:c", "a:b:c", "a.py/b:c", "a..b:c", ""])
def test_other_forms_are_refused(path):
    with pytest.raises(ValueError, match=r"--estep\.solver is .*, must be package\.module:name"):
        import_part(path, "--estep.solver")


def test_a_module_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match=r"is 'no_such\.parts:f', but there is no module 'no_such' "):
        import_part("no_such.parts:f")
    with pytest.raises(ValueError, match=r"there is no module 'json\.parts' "):
        import_part("json.parts:f")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import no_such_dependency", "ModuleNotFoundError: No module named 'no_such_dependency'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def f(:", "SyntaxError: invalid syntax"),
        ("raise SystemExit('no GPU')", "SystemExit: no GPU"),
    ],
)
def test_the_error_of_the_module_itself_is_shown(module, source, said):
    name = module(source)
    with pytest.raises(ImportError, match=f"importing '{name}' raises {said}") as error:
        import_part(f"{name}:f")
    assert error.value.__cause__ is not None


def test_a_name_that_the_module_lacks_is_named(module):
    name = module("class Solver: pass\n")
    with pytest.raises(ValueError, match=f"module '{name}' has no attribute 'solver'"):
        import_part(f"{name}:solver")
    with pytest.raises(ValueError, match=f"<class '{name}.Solver'> has no attribute 'make'"):
        import_part(f"{name}:Solver.make")
