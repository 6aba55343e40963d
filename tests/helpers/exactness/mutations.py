"""Mutations of a source file: every small change of one operator, number, condition, bound or
statement.

Error messages, docstrings, annotations and decorators are left alone. Knows nothing of tests.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_REPLACEMENTS: dict[type, list[type]] = {
    ast.Lt: [ast.LtE, ast.GtE], ast.LtE: [ast.Lt, ast.Gt], ast.Gt: [ast.GtE, ast.LtE],
    ast.GtE: [ast.Gt, ast.Lt], ast.Eq: [ast.NotEq], ast.NotEq: [ast.Eq], ast.Is: [ast.IsNot],
    ast.IsNot: [ast.Is], ast.In: [ast.NotIn], ast.NotIn: [ast.In], ast.Add: [ast.Sub],
    ast.Sub: [ast.Add], ast.Mult: [ast.Div], ast.Div: [ast.Mult], ast.BitOr: [ast.BitAnd],
    ast.BitAnd: [ast.BitOr], ast.And: [ast.Or], ast.Or: [ast.And], ast.USub: [ast.UAdd],
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """The source of a file with one change."""

    file: str
    line: int
    change: str
    source: str
    kind: str = "operator"


def generate_mutants(file: str, source: str) -> Iterator[Mutant]:
    """Every mutant of a file, in the order of its syntax tree."""
    tree = ast.parse(source)
    parts = (part for node in ast.walk(tree) for part in find_exempt(node))
    exempt = {id(inner) for part in parts for inner in ast.walk(part)}
    for index, node in enumerate(ast.walk(tree)):
        if id(node) in exempt:
            continue
        for change in _find_changes(node):
            mutated = ast.parse(source)
            changed = list(ast.walk(mutated))[index]
            before = ast.unparse(changed)
            dropped = change(changed)
            ast.fix_missing_locations(mutated)
            description = f"{ast.unparse(dropped)} -> nothing" if dropped else (
                f"{before} -> {ast.unparse(changed)}"
            )  # fmt: skip
            line = getattr(dropped or node, "lineno", 0)
            yield Mutant(file, line, description[:160], ast.unparse(mutated))


def find_exempt(node: ast.AST) -> Iterator[ast.AST]:
    """Parts of a node that no test has to cover: messages, imports and types."""
    match node:
        case ast.Raise() | ast.JoinedStr() | ast.Import() | ast.ImportFrom():
            yield node
        case ast.AnnAssign(annotation=annotation) | ast.arg(annotation=ast.AST() as annotation):
            yield annotation
        case ast.FunctionDef(returns=returns, decorator_list=decorators):
            yield from decorators
            if returns:
                yield returns
        case ast.ClassDef(decorator_list=decorators):
            yield from decorators


def _find_changes(node: ast.AST) -> Iterator[Any]:
    """Functions that change a node in place, one per mutation; a function that drops a statement
    returns it."""
    match node:
        case ast.Compare(ops=[op]):
            for other in _REPLACEMENTS.get(type(op), []):
                yield lambda n, other=other: setattr(n, "ops", [other()])
        case ast.BinOp(op=op) | ast.BoolOp(op=op) | ast.UnaryOp(op=op) | ast.AugAssign(op=op):
            for other in _REPLACEMENTS.get(type(op), []):
                yield lambda n, other=other: setattr(n, "op", other())
            if isinstance(op, ast.Not):
                yield lambda n: setattr(n, "operand", ast.UnaryOp(ast.Not(), n.operand))
        case ast.Constant(value=bool() as value):
            yield lambda n, value=value: setattr(n, "value", not value)
        case ast.Constant(value=int() | float() as value):
            yield lambda n, value=value: setattr(n, "value", value + 1)
        case ast.Slice(lower=lower, upper=upper):
            if lower is not None:
                yield lambda n: setattr(n, "lower", None)
            if upper is not None:
                yield lambda n: setattr(n, "upper", None)
        case ast.Call(func=ast.Name(id="min" | "max" as name)):
            other = "max" if name == "min" else "min"
            yield lambda n, other=other: setattr(n.func, "id", other)
        case ast.Return(value=ast.AST() as value) if not isinstance(value, ast.Constant):
            yield lambda n: setattr(n, "value", ast.Constant(None))
    match node:
        case ast.If(test=test) | ast.While(test=test) | ast.IfExp(test=test):
            if isinstance(test, ast.Name | ast.Call | ast.Attribute):
                yield lambda n: setattr(n, "test", ast.UnaryOp(ast.Not(), n.test))
    for name in ("body", "orelse"):
        statements = getattr(node, name, None)
        for index, statement in enumerate(statements if isinstance(statements, list) else ()):
            if _has_effect(statement):
                yield lambda n, name=name, index=index: _drop(getattr(n, name), index)


def _has_effect(statement: ast.stmt) -> bool:
    """Whether a statement only changes state, so that it can be left out."""
    match statement:
        case ast.AugAssign() | ast.Expr(value=ast.Call()):
            return True
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            return True
    return False


def _drop(statements: list[ast.stmt], index: int) -> ast.stmt:
    statement, statements[index] = statements[index], ast.Pass()
    return statement
