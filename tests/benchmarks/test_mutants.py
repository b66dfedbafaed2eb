"""Mutants differ from the module in one place, and only where the program runs."""

import ast

import pytest
from mutants import mutants, mutated
from mutation import MODULES, _sample


@pytest.mark.parametrize(
    ("source", "changed"),
    [
        ("x < y", ["x <= y", "x >= y"]),
        ("x == y", ["x != y"]),
        ("x is None", ["x is not None"]),
        ("a + b * c", ["a - b * c", "a + b / c"]),
        ("x ** y", ["x * y"]),
        ("a @ b", ["a * b"]),
        ("x -= y", ["x += y"]),
        ("a and b", ["a or b"]),
        ("not a", ["a"]),
        ("-a", ["a"]),
        ("~a", ["a"]),
        ("True", []),  # alone in a statement, it is taken for a docstring
        ("x = True", ["x = False"]),
        ("x = 1", ["x = 2"]),
        ("x = 0.5", ["x = 1.5"]),
        ("x = 'a'", ["x = 'XXaXX'"]),
        ("x = None", []),
        ("x = f(a, b, key=c)", ["x = f(a, key=c)", "x = f(a, b)"]),
        ("f(a)", ["pass"]),
        ("x = q.amin(a)", ["x = q.amax(a)"]),
        ("x = max(a)", ["x = min(a)"]),
        ("x = max", []),
        ("zip(a, b, strict=True)", ["pass", "zip(a, strict=True)"]),
        ("y = a if b else c", ["y = a if not b else c"]),
        ("[a for a in b if c]", ["[a for a in b if not c]"]),
        ("def f(x: 'a' = None) -> 'b':\n    'words'\n    return x", ["return None"]),
        ("def f():\n    raise ValueError(f'{x + 1} must be {2}')", []),
        ("while f(a):\n    break", ["while not f(a):", "continue"]),
    ],
)
def test_changes_by_operator(source, changed):
    assert [mutant.after for mutant in mutants(source)] == changed


def test_each_mutant_is_another_program_with_the_same_lines():
    source = MODULES[0].read_text()
    seen = {ast.unparse(ast.parse(source))}
    for mutant in mutants(source):
        tree = mutated(source, mutant.number)
        compile(tree, "mutant", "exec")
        text = ast.unparse(tree)
        assert text not in seen
        seen.add(text)
        first, last = mutant.lines
        assert 1 <= first <= last <= len(source.splitlines())


def test_a_change_in_a_default_is_not_inside_the_function():
    default, inside = mutants("def f(x=1):\n\n    return x + 2")[:2]
    assert (default.function, inside.function) == (None, (3, 3))
    assert default.lines == (1, 2)


def test_a_larger_sample_holds_a_smaller_one():
    small, large = ({key for *_, key in _sample(share, 0, "ops/aggregate")} for share in (0.3, 0.6))
    everything = {key for *_, key in _sample(1.0, 0, "ops/aggregate")}
    assert small < large < everything
    assert 0.1 < len(small) / len(everything) < 0.5
    assert {key for *_, key in _sample(0.3, 1, "ops/aggregate")} != small
