"""Mutants: the program changed in one place, as a mistake would change it.

A test suite is worth what it notices. `mutants` lists the changes of one module, and `mutated` makes one of
them. Nothing is changed in docstrings, annotations, decorators and error messages, nor in
``zip(..., strict=True)``, which only guards against a mistake in the same line.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

_COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.MatMult: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
_PAIRS = [
    ("min", "max"),
    ("amin", "amax"),
    ("minimum", "maximum"),
    ("clamp_min", "clamp_max"),
    ("clamp_min_", "clamp_max_"),
    ("any", "all"),
    ("zeros_like", "ones_like"),
    ("zeros", "ones"),
    ("new_zeros", "new_ones"),
    ("isneginf", "isposinf"),
    ("mean", "sum"),
]
_OPPOSITES = dict(_PAIRS) | {second: first for first, second in _PAIRS}
# Where a change has no effect on the running program, or only on the words of an error.
_SKIPPED_FIELDS = {"annotation", "returns", "decorator_list", "type_params"}
_SKIPPED_NODES = (ast.Raise, ast.JoinedStr, ast.Import, ast.ImportFrom)


class Mutant(NamedTuple):
    """One change of a module."""

    number: int
    """place in the list of the module's mutants"""
    operator: str
    """kind of change"""
    lines: tuple[int, int]
    """first and last line of the changed statement, or of the head of a compound one"""
    function: tuple[int, int] | None
    """lines of the innermost function whose body holds the change; None for code that runs on import"""
    before: str
    after: str


class _Edit(NamedTuple):
    """Replace the child of ``parent`` at ``field`` (and ``index``, of a list) by ``new``; None removes it."""

    operator: str
    parent: ast.AST
    field: str
    index: int | None
    new: ast.AST | None
    statement: ast.stmt
    function: tuple[int, int] | None

    def make(self) -> Callable[[], None]:
        """Change the tree, and return what undoes it."""
        children = getattr(self.parent, self.field)
        if self.index is None:
            changed: Any = self.new
        else:
            rest = children[self.index + 1 :]
            changed = [*children[: self.index], *([] if self.new is None else [self.new]), *rest]
        setattr(self.parent, self.field, changed)
        return lambda: setattr(self.parent, self.field, children)


def mutants(source: str) -> list[Mutant]:
    r"""List the mutants of a module.

    Example:
        >>> for mutant in mutants("def f(x, y=1):\n    return x < y"):
        ...     print(mutant.operator, "|", mutant.before, "->", mutant.after)
        constant | def f(x, y=1): -> def f(x, y=2):
        return | return x < y -> return None
        comparison | return x < y -> return x <= y
        comparison | return x < y -> return x >= y
    """
    found, text = [], dict[ast.stmt, str]()
    for number, edit in enumerate(list(_edits(ast.parse(source)))):
        before = text.setdefault(edit.statement, "") or ast.unparse(edit.statement)
        text[edit.statement] = before
        replaces_whole = edit.new is not None and isinstance(edit.new, ast.stmt)
        undo = edit.make()
        after = ast.unparse(edit.new if replaces_whole and edit.new else edit.statement)
        undo()
        found.append(
            Mutant(number, edit.operator, _head(edit.statement), edit.function, *_difference(before, after))
        )
    return found


def mutated(source: str, number: int) -> ast.Module:
    """Return the module's tree with the change of this number; lines are those of ``source``.

    Example:
        >>> print(ast.unparse(mutated("less = 1 < 2", 1)))
        less = 1 >= 2
    """
    tree = ast.parse(source)
    list(_edits(tree))[number].make()
    return ast.fix_missing_locations(tree)


def _difference(before: str, after: str, context: int = 40) -> tuple[str, str]:
    """The changed line of both, cut to what differs and its surroundings."""
    pairs = zip(before.splitlines(), after.splitlines(), strict=False)
    one, two = next(((one, two) for one, two in pairs if one != two), (before, after))
    one, two = one.strip(), two.strip()
    same = _shared(one, two)
    tail = _shared(one[same:][::-1], two[same:][::-1])

    def cut(line: str) -> str:
        start, end = max(same - context, 0), len(line) - max(tail - context, 0)
        return "…" * (start > 0) + line[start:end] + "…" * (end < len(line))

    return cut(one), cut(two)


def _shared(one: str, two: str) -> int:
    """Number of characters with which both start."""
    pairs = enumerate(zip(one, two, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(two)))


def _head(statement: ast.stmt) -> tuple[int, int]:
    body = getattr(statement, "body", None)
    last = body[0].lineno - 1 if body else statement.end_lineno
    return statement.lineno, max(statement.lineno, last or 0)


def _edits(tree: ast.Module) -> Iterator[_Edit]:
    for i, statement in enumerate(tree.body):
        yield from _visit(statement, tree, "body", i, statement, None)


def _visit(
    node: ast.AST,
    parent: ast.AST,
    field: str,
    index: int | None,
    statement: ast.stmt,
    function: tuple[int, int] | None,
) -> Iterator[_Edit]:
    if isinstance(node, _SKIPPED_NODES) or _is_inert(node):
        return
    if isinstance(node, ast.stmt):
        statement = node

    def replaced(operator: str, new: ast.AST) -> _Edit:
        return _Edit(operator, parent, field, index, ast.copy_location(new, node), statement, function)

    def within(operator: str, name: str, place: int | None, new: ast.AST | None) -> _Edit:
        return _Edit(operator, node, name, place, new, statement, function)

    match node:
        case ast.Return(value=ast.expr() as value) if not _is_none(value):
            yield replaced("return", ast.Return(ast.Constant(None)))
        case ast.Expr(value=ast.Call()):
            yield replaced("statement", ast.Pass())
        case ast.Break():
            yield replaced("statement", ast.Continue())
        case ast.Continue():
            yield replaced("statement", ast.Break())
        case ast.AugAssign(op=op) | ast.BinOp(op=op) if type(op) in _ARITHMETIC:
            yield within("arithmetic", "op", None, _ARITHMETIC[type(op)]())
        case ast.Compare(ops=ops):
            for i, comparison in enumerate(ops):
                for other in _COMPARISONS[type(comparison)]:
                    yield within("comparison", "ops", i, other())
        case ast.BoolOp(op=ast.And()):
            yield within("boolean", "op", None, ast.Or())
        case ast.BoolOp(op=ast.Or()):
            yield within("boolean", "op", None, ast.And())
        case ast.UnaryOp(op=ast.Not() | ast.Invert() | ast.USub(), operand=operand):
            yield replaced("unary", operand)
        case ast.Constant(value=value) if (new := _other_constant(value)) is not None:
            yield replaced("constant", ast.Constant(new))
        case ast.Name(id=name) if name in _OPPOSITES and isinstance(parent, ast.Call) and field == "func":
            yield replaced("opposite", ast.Name(_OPPOSITES[name], ast.Load()))
        case ast.Attribute(attr=name, value=value) if name in _OPPOSITES:
            yield replaced("opposite", ast.Attribute(value, _OPPOSITES[name], ast.Load()))
        case ast.Call(args=args, keywords=keywords):
            if len(args) > 1 and not isinstance(args[-1], ast.Starred):
                yield within("argument", "args", len(args) - 1, None)
            for i, keyword in enumerate(keywords):
                if keyword.arg not in (None, "strict"):
                    yield within("argument", "keywords", i, None)
        case ast.If(test=test) | ast.While(test=test) | ast.IfExp(test=test) if not _has_opposite(test):
            yield within("condition", "test", None, ast.UnaryOp(ast.Not(), test))
        case ast.comprehension(ifs=ifs):
            for i, test in enumerate(ifs):
                if not _has_opposite(test):
                    yield within("condition", "ifs", i, ast.UnaryOp(ast.Not(), test))

    is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    for name, value in ast.iter_fields(node):
        if name in _SKIPPED_FIELDS:
            continue
        inner = function
        if is_function and name == "body":
            inner = (node.body[0].lineno, node.end_lineno or node.lineno)  # type: ignore[attr-defined]  # a function
        for i, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(child, ast.AST):
                yield from _visit(child, node, name, i, statement, inner)


def _is_inert(node: ast.AST) -> bool:
    """Whether the node is a docstring, a type alias, or something that only type checkers read."""
    match node:
        case ast.Expr(value=ast.Constant()):
            return True
        case ast.AnnAssign(annotation=ast.Name(id="TypeAlias")) | ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return True
        case ast.Call(func=ast.Name(id="cast")):
            return True
        case ast.Assign(targets=[ast.Name(id="__all__")]) | ast.keyword(arg="strict"):
            return True
    return False


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _has_opposite(test: ast.expr) -> bool:
    """Whether another change of the condition negates it already."""
    return (isinstance(test, ast.Compare) and len(test.ops) == 1) or (
        isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)
    )


def _other_constant(value: object) -> object:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return f"XX{value}XX"
    return None
