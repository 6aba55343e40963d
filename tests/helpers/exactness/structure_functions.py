"""Mutations of whole functions: what is kept too long, returned too early, or done in another
order; and what may replace what.

See ``structures``.
"""

import ast
import copy
from collections.abc import Callable, Iterator
from typing import Any

# Edits a node in place, or returns what replaces it.
Edit = Callable[[ast.AST], ast.AST]
Kinds = dict[str, str]  # the annotation of each name in a file, where it has but one

# --- kinds: what may replace what -------------------------------------------------------------


def collect_kinds(tree: ast.AST) -> Kinds:
    """The kind of each name that is annotated, or assigned a number or a sequence."""
    kinds: dict[str, set[str | None]] = {}
    for node in ast.walk(tree):
        match node:
            case ast.arg(arg=name, annotation=ast.AST() as annotation):
                kinds.setdefault(name, set()).add(kind_of_annotation(annotation))
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation):
                kinds.setdefault(name, set()).add(kind_of_annotation(annotation))
    return {name: kind for name, (kind, *more) in kinds.items() if kind and not more}


def kind_of_annotation(annotation: ast.AST | None) -> str | None:
    """An annotation without what is optional; None if it says nothing."""
    if annotation is None:
        return None
    text = ast.unparse(annotation).removesuffix(" | None")
    return {"Any": None, "float": "int", "bool": "int", "Ids": None}.get(text, text)


def kind_of(node: ast.AST, kinds: Kinds) -> str | None:
    match node:
        case ast.Name(id=name):
            return kinds.get(name)
        case ast.Constant(value=int() | float()):
            return "int"
        case ast.Constant(value=str()):
            return "str"
        case ast.List() | ast.Tuple() | ast.ListComp():
            return "list"
        case ast.Call(func=ast.Name(id=name)) if name[:1].isupper() or name == "range":
            return name
        case ast.Call(func=ast.Name(id="len" | "int" | "float" | "min" | "max")):
            return "int"
    return None


def may_be_equal(kind: str | None, other: str | None) -> bool:
    return kind is None or other is None or kind == other


# --- copies, results -------------------------------------------------------------------------


def edit_function(node: ast.FunctionDef, kinds: Kinds) -> Iterator[tuple[str, str, Edit]]:
    """The first result kept for all later calls, an earlier variable returned, a variable that
    keeps its first value, and two steps in the other order."""
    returns = [inner for inner in ast.walk(node) if isinstance(inner, ast.Return)]
    generator = any(isinstance(inner, ast.Yield | ast.YieldFrom) for inner in ast.walk(node))
    if not generator and any(inner.value is not None for inner in returns):
        yield "stale copy", f"{node.name} keeps its first result: ", _keep_first_result
    assigned = [arg.arg for arg in node.args.args if arg.arg not in ("self", "cls")]
    for number, (block, index) in enumerate(_list_statements(node.body)):
        place = f"in {node.name}: "
        match block[index]:
            case ast.Assign(targets=[ast.Name(id=name)]):
                if name in assigned:
                    yield "stale copy", place, _edit_statement(number, _pass)
                assigned.append(name)
            case ast.Return(value=ast.AST() as value):
                for earlier in dict.fromkeys(assigned):
                    alike = may_be_equal(kinds.get(earlier), kind_of_annotation(node.returns))
                    if alike and earlier != ast.unparse(value):
                        yield "earlier variable", place, _edit_statement(number, _return(earlier))
        if index + 1 < len(block) and _may_swap(block[index], block[index + 1], assigned):
            yield "order", place, _edit_statement(number, _swap_statements)


def _keep_first_result(node: Any) -> ast.AST:
    """The function with a memory for its first result, one for each object if it is a method."""
    arguments = node.args
    names = [arg.arg for arg in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    key = "id(self)" if names[:1] == ["self"] else "0"
    inner = copy.deepcopy(node)
    inner.name, inner.decorator_list = "compute", []
    memory = f"kept = globals().setdefault('_kept_{node.lineno}', {{}})"
    keep = f"kept.setdefault({key}, kept[{key}] if {key} in kept else CALL)"
    positional = [
        ast.Name(arg.arg, ast.Load()) for arg in (*arguments.posonlyargs, *arguments.args)
    ]
    keywords = [ast.keyword(a.arg, ast.Name(a.arg, ast.Load())) for a in arguments.kwonlyargs]
    call = ast.unparse(ast.Call(ast.Name("compute", ast.Load()), positional, keywords))
    node.body = [inner, *ast.parse(f"{memory}\nreturn {keep.replace('CALL', call)}").body]
    return node


def _list_statements(body: list[ast.stmt]) -> Iterator[tuple[list[ast.stmt], int]]:
    """Every statement of a function in order, as its block and its index there; those of inner
    functions excepted."""
    for index, statement in enumerate(body):
        yield body, index
        if not isinstance(statement, ast.FunctionDef | ast.ClassDef):
            for name in ("body", "orelse", "finalbody"):
                yield from _list_statements(getattr(statement, name, []))


def _edit_statement(number: int, change: Callable[[list[ast.stmt], int], None]) -> Edit:
    def edit(node: Any) -> ast.AST:
        change(*list(_list_statements(node.body))[number])
        return node

    return edit


def _pass(block: list[ast.stmt], index: int) -> None:
    block[index] = ast.Pass()


def _return(name: str) -> Callable[[list[ast.stmt], int], None]:
    def change(block: list[ast.stmt], index: int) -> None:
        block[index] = ast.Return(ast.Name(name, ast.Load()))

    return change


def _swap_statements(block: list[ast.stmt], index: int) -> None:
    block[index], block[index + 1] = block[index + 1], block[index]


def _may_swap(first: ast.stmt, second: ast.stmt, known: list[str]) -> bool:
    """Whether two statements can be exchanged such that each name still has a value."""
    simple = ast.Assign | ast.AugAssign | ast.AnnAssign | ast.Expr
    if not (isinstance(first, simple) and isinstance(second, simple)):
        return False
    if any(isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant) for s in (first, second)):
        return False  # a docstring
    names = {
        n.id for n in ast.walk(first) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    }
    used = {n.id for n in ast.walk(second) if isinstance(n, ast.Name)}
    return not (names & used) - set(known[:-1]) and _touches(first, second)


def _touches(first: ast.stmt, second: ast.stmt) -> bool:
    """Whether the order of two statements can matter: both call something, or one changes what
    the other reads."""
    calls = all(any(isinstance(n, ast.Call) for n in ast.walk(s)) for s in (first, second))
    targets = [
        ast.unparse(n) for n in ast.walk(first)
        if isinstance(n, ast.Attribute | ast.Name) and isinstance(n.ctx, ast.Store)
    ]  # fmt: skip
    return calls or any(target in ast.unparse(second) for target in targets)
