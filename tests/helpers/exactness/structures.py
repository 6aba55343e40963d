"""Mutations of a source file's structure: one step, row, argument, bound or copy unlike the rest.

The kinds are those of mistakes that were made in practice: a step left out at one place, one row
treated unlike the others, an argument swapped with its neighbour, a loop one short, a stale copy,
an argument dropped, an earlier variable returned. Error messages, docstrings, annotations,
decorators and compiled kernels are left alone. Knows nothing of tests.
"""

import ast
from collections.abc import Iterator
from typing import Any

from helpers.exactness.mutations import Mutant, find_exempt
from helpers.exactness.structure_functions import (
    Edit,
    Kinds,
    collect_kinds,
    edit_function,
    kind_of,
    may_be_equal,
)

_LATE = 4  # the row from which on "late rows" differ


def generate_structural_mutants(file: str, source: str) -> Iterator[Mutant]:
    """Every structural mutant of a file; no two have the same source."""
    tree = ast.parse(source)
    nodes = list(ast.walk(tree))
    places = {id(node): index for index, node in enumerate(nodes)}
    exempt = {
        id(inner) for node in nodes for part in _find_exempt(node) for inner in ast.walk(part)
    }
    kinds = collect_kinds(tree)
    seen = {ast.unparse(tree)}
    for node in nodes:
        if id(node) in exempt:
            continue
        for kind, place, edit in _find_edits(node, kinds):
            mutated = ast.parse(source)
            twin = list(ast.walk(mutated))[places[id(node)]]
            before = ast.unparse(twin)
            after = edit(twin)
            _replace(mutated, twin, after)
            ast.fix_missing_locations(mutated)
            text = ast.unparse(mutated)
            if text not in seen:
                seen.add(text)
                before, changed = _differing_lines(before, ast.unparse(after))
                change = f"{place}{before} -> {changed or 'nothing'}"
                line = getattr(node, "lineno", 0)
                yield Mutant(file, line, " ".join(change.split())[:200], text, kind)


def _differing_lines(before: str, after: str) -> tuple[str, str]:
    """The lines of two texts without those that both begin and end with."""
    old, new = before.splitlines(), after.splitlines()
    while old and new and old[0] == new[0]:
        del old[0], new[0]
    while old and new and old[-1] == new[-1]:
        del old[-1], new[-1]
    return "\n".join(old), "\n".join(new)


def _find_exempt(node: ast.AST) -> Iterator[ast.AST]:
    yield from find_exempt(node)
    match node:
        case ast.FunctionDef(decorator_list=decorators):
            if any("jit" in ast.unparse(decorator) for decorator in decorators):
                yield node
        case ast.Expr(value=ast.Constant()) | ast.Assert():
            yield node
        case ast.Module(body=statements):  # names of types
            for statement in statements:
                if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Subscript):
                    yield statement


def _replace(tree: ast.AST, old: ast.AST, new: ast.AST) -> None:
    if old is new:
        return
    for parent in ast.walk(tree):
        for name, value in ast.iter_fields(parent):
            if value is old:
                setattr(parent, name, new)
            elif isinstance(value, list) and any(item is old for item in value):
                setattr(parent, name, [new if item is old else item for item in value])


def _find_edits(node: ast.AST, kinds: Kinds) -> Iterator[tuple[str, str, Edit]]:
    """(kind, place, edit) of each mutation of a node; an edit returns the node's replacement."""
    match node:
        case ast.FunctionDef():
            yield from edit_function(node, kinds)
        case ast.Call():
            yield from _edit_call(node, kinds)
        case ast.If() | ast.IfExp() | ast.While():
            yield from _edit_branch(node)
        case ast.ListComp() | ast.GeneratorExp() | ast.SetComp():
            yield from _edit_rows(node)
        case ast.For():
            yield "loop", "for ", _wrap_iterable("list({})[:-1]")
            yield "loop", "for ", _wrap_iterable("list({})[1:]")
        case ast.Subscript():
            yield from _edit_subscript(node)
        case ast.BoolOp(values=values):
            for index in range(len(values)):
                yield "step left out", "", _drop_value(index)
        case ast.BinOp(
            op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div() | ast.BitAnd() | ast.BitOr()
        ):
            yield "step left out", "", lambda n: n.left
        case ast.Expr(value=ast.Call()) | ast.AugAssign():
            yield "step left out", "", lambda n: ast.Pass()
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield "stale copy", "", lambda n: ast.Pass()
        case ast.Starred(value=ast.Name() | ast.Attribute()):
            yield "loop", "", lambda n: ast.Starred(_slice(n.value, None, -1), ast.Load())


def _edit_call(node: ast.Call, kinds: Kinds) -> Iterator[tuple[str, str, Edit]]:
    """A call left out, two neighbours swapped, or an argument dropped."""
    if isinstance(node.func, ast.Attribute) and not _is_module(node.func.value):
        yield "step left out", "", lambda n: n.func.value  # x.f(...) -> x
    plain = node.args and not isinstance(node.args[0], ast.Starred | ast.GeneratorExp)
    if plain and _keeps_kind(node):
        yield "step left out", "", lambda n: n.args[0]  # f(x, ...) -> x
    symmetric = ast.unparse(node.func) in ("min", "max")
    for i in range(0 if symmetric else len(node.args) - 1):
        if may_be_equal(*(kind_of(arg, kinds) for arg in node.args[i : i + 2])):
            yield "swapped arguments", "", _swap(i)
    for i in range(len(node.keywords)):
        yield "dropped argument", "", _drop_keyword(i)
    if len(node.args) > 1 and not isinstance(node.func, ast.Name):
        yield "dropped argument", "", _drop_last_argument


def _keeps_kind(node: ast.Call) -> bool:
    """Whether the first argument may stand where the result of the call does: not of a class, nor
    of a function that measures or tests."""
    name = ast.unparse(node.func).rsplit(".", 1)[-1]
    tests = {
        "len",
        "isinstance",
        "range",
        "bool",
        "any",
        "all",
        "enumerate",
        "zip",
        "repr",
        "getattr",
    }
    return not (name[:1].isupper() or name in tests)


def _is_module(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id in {
        "torch", "np", "math", "F", "copy", "lora", "curriculum", "random", "time"
    }  # fmt: skip


def _swap(index: int) -> Edit:
    def edit(node: Any) -> ast.AST:
        node.args[index], node.args[index + 1] = node.args[index + 1], node.args[index]
        return node

    return edit


def _drop_keyword(index: int) -> Edit:
    def edit(node: Any) -> ast.AST:
        del node.keywords[index]
        return node

    return edit


def _drop_last_argument(node: Any) -> ast.AST:
    del node.args[-1]
    return node


def _drop_value(index: int) -> Edit:
    def edit(node: Any) -> ast.AST:
        del node.values[index]
        return node if len(node.values) > 1 else node.values[0]

    return edit


def _edit_branch(node: ast.If | ast.IfExp | ast.While) -> Iterator[tuple[str, str, Edit]]:
    """A branch that is always or never taken. One that only refuses input stays."""
    if isinstance(node, ast.If) and all(isinstance(part, ast.Raise) for part in node.body):
        return
    word = type(node).__name__.lower()
    for value in (True, False):
        if not (isinstance(node, ast.While) and value):

            def edit(n: Any, value: bool = value) -> ast.AST:
                n.test = ast.Constant(value)
                return n

            yield "branch", f"{word} {ast.unparse(node.test)}: ", edit


def _edit_rows(node: Any) -> Iterator[tuple[str, str, Edit]]:
    """One row short at either end, and one row that gets its neighbour's value."""
    yield "loop", "", _wrap_generator("list({})[:-1]")
    yield "loop", "", _wrap_generator("list({})[1:]")
    if isinstance(node, ast.ListComp):
        for name, template in _UNLIKE.items():
            yield "row unlike others", f"{name} ", _wrap(template)


# What a list of rows becomes if one row is treated unlike the others.
_UNLIKE = {
    "the first row gets the second's": "(lambda r: r[1:2] + r[1:] if len(r) > 1 else r)({})",
    "the last row gets the one before": "(lambda r: r[:-1] + r[-2:-1] if len(r) > 1 else r)({})",
    f"rows from {_LATE} on get the first's": (
        f"(lambda r: r[:{_LATE}] + r[:1] * len(r[{_LATE}:]))({{}})"
    ),
}


def _wrap(template: str) -> Edit:
    return lambda node: ast.parse(template.format(ast.unparse(node)), mode="eval").body


def _wrap_generator(template: str) -> Edit:
    def edit(node: Any) -> ast.AST:
        node.generators[0].iter = _wrap(template)(node.generators[0].iter)
        return node

    return edit


def _wrap_iterable(template: str) -> Edit:
    def edit(node: Any) -> ast.AST:
        node.iter = _wrap(template)(node.iter)
        return node

    return edit


def _edit_subscript(node: ast.Subscript) -> Iterator[tuple[str, str, Edit]]:
    """A bound or an index moved by one, in either direction."""
    if not isinstance(node.ctx, ast.Load):
        return
    match node.slice:
        case ast.Slice(lower=lower, upper=upper):
            for name, bound in (("lower", lower), ("upper", upper)):
                if bound is not None:
                    for step in (1, -1):
                        yield "loop", "", _move_bound(name, step)
            if lower is None and upper is not None:
                yield "loop", "", lambda n: _slice_from(n, 1)
        case ast.Constant(value=int()) | ast.UnaryOp():
            yield "row unlike others", "", _move_index(1)
            yield "row unlike others", "", _move_index(-1)
        case ast.Name() | ast.BinOp():
            yield "row unlike others", "", _move_index(-1)
            yield "row unlike others", "", lambda n: _index(n, "0")


def _move_bound(name: str, step: int) -> Edit:
    def edit(node: Any) -> ast.AST:
        bound = ast.unparse(getattr(node.slice, name))
        setattr(node.slice, name, ast.parse(f"{bound} {step:+d}", mode="eval").body)
        return node

    return edit


def _slice_from(node: Any, start: int) -> ast.AST:
    node.slice.lower = ast.Constant(start)
    return node


def _move_index(step: int) -> Edit:
    return lambda node: _index(node, f"{ast.unparse(node.slice)} {step:+d}")  # type: ignore[attr-defined]


def _index(node: Any, index: str) -> ast.AST:
    node.slice = ast.parse(index, mode="eval").body
    return node


def _slice(value: Any, start: int | None, end: int | None) -> ast.Subscript:
    bounds = ast.Slice(
        None if start is None else ast.Constant(start), None if end is None else ast.Constant(end)
    )
    return ast.Subscript(value, bounds, ast.Load())
