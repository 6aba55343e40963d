"""Every public name of ``minispec`` says what it is, with shapes and errors.

Read from the source. Public are functions, classes, and methods of public classes, as long as
no name on the way begins with an underscore. A method that a protocol of ``types.py`` asks for, or
that overrides one of a base class there, may leave its words to these. Three rules:

1. a docstring is there;
2. it has as many shapes, such as ``(T, D)``, as the signature takes and returns tensors. What a
   class says of itself counts for its methods, and so do comments beside a dataclass's fields;
3. it names each of our errors that the function raises, itself or in a private helper of its
   module. "As ``f``" stands for what f says.

That a published method names its source is tested with ``docs/equations.md``.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

from minispec import errors

ROOT = Path(__file__).parent.parent.parent
ERRORS = {name for name in vars(errors) if name.endswith("Error")}
Function = ast.FunctionDef
# Tensors by themselves or in a row; tensors by name (weights) have no one shape.
_TENSOR = re.compile(r"\b(Tensor|Ids|Rows|ndarray|NDArray)\b")
_NAMED = re.compile(r"\b(Mapping|dict|Callable|Iterator|Iterable|Type|type)\[")
_TWO = re.compile(r"\w`* and `*\w+`* \((?=[\w+*/., -]*\))")  # keys and values (B, T, kv, hw)
_SHAPE = re.compile(r"\bscalar\b|\((?:\.\.\.|[\w+*/ .-]+,[\w+*/ .,-]*)\)")


@dataclass
class Name:
    """A public name: where it is, its own node, and its class's if it is a method."""

    module: str
    node: Function | ast.ClassDef
    owner: ast.ClassDef | None = None
    source: str = field(default="", repr=False)

    def __str__(self) -> str:
        owner = f"{self.owner.name}." if self.owner else ""
        return f"{self.module}:{owner}{self.node.name}"


def find_public(module: str, source: str) -> Iterator[Name]:
    for node in ast.parse(source).body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield Name(module, node, source=source)
            if isinstance(node, ast.ClassDef):
                for inner in node.body:
                    if isinstance(inner, Function) and (
                        not inner.name.startswith("_") or inner.name == "__init__"
                    ):
                        yield Name(module, inner, node, source)


def read_doc(node: Function | ast.ClassDef | None) -> str:
    return (ast.get_docstring(node) or "") if node else ""


def list_methods(node: ast.ClassDef) -> dict[str, Function]:
    return {n.name: n for n in node.body if isinstance(n, Function)}


@cache
def list_protocols() -> tuple[ast.ClassDef, ...]:
    tree = ast.parse((ROOT / "minispec" / "types.py").read_text("utf-8"))
    return tuple(
        node
        for node in tree.body
        if isinstance(node, ast.ClassDef)
        and (node.name.startswith("Base") or any("Protocol" in ast.unparse(b) for b in node.bases))
    )


def read_protocol(name: Name) -> str:
    """What a protocol or base class of ``types.py`` says of a method, for a class that has all of
    its methods or inherits from it."""
    if name.owner is None:
        return ""
    own = list_methods(name.owner).keys()
    bases = {ast.unparse(base) for base in name.owner.bases}
    fitting = (
        list_methods(p)
        for p in list_protocols()
        # A property may be an attribute that is set on construction.
        if p.name in bases or {n for n, m in list_methods(p).items() if not m.decorator_list} <= own
    )
    return " ".join(read_doc(p[name.node.name]) for p in fitting if name.node.name in p)


def collect_words(name: Name) -> str:
    """All that is said of a name, by itself, its class, or a protocol."""
    said = [read_doc(name.node), read_protocol(name)]
    if isinstance(name.node, ast.ClassDef):
        said.append(read_doc(list_methods(name.node).get("__init__")))
    else:
        said.append(read_doc(name.owner))
    for node in (name.node, name.owner):
        if isinstance(node, ast.ClassDef):  # comments beside its fields
            lines = name.source.splitlines()
            fields = (n for n in node.body if isinstance(n, ast.AnnAssign))
            said += [lines[n.lineno - 1].partition("#")[2] for n in fields]
    return "\n".join(said)


def check_presence(name: Name) -> list[str]:
    is_init = name.node.name == "__init__"
    return (
        []
        if read_doc(name.node) or read_protocol(name) or (is_init and read_doc(name.owner))
        else ["no doc"]
    )


def is_tensor(annotation: ast.expr | None) -> bool:
    text = ast.unparse(annotation) if annotation else ""
    return bool(_TENSOR.search(text)) and not _NAMED.search(text)


def count_tensors(node: Function | ast.ClassDef) -> int:
    """How many tensors a function takes and returns, or a dataclass holds."""
    if isinstance(node, ast.ClassDef):
        return sum(is_tensor(n.annotation) for n in node.body if isinstance(n, ast.AnnAssign))
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return sum(is_tensor(a.annotation) for a in arguments) + is_tensor(node.returns)


def check_shapes(name: Name) -> list[str]:
    said = collect_words(name)
    wanted, found = count_tensors(name.node), len(_SHAPE.findall(said)) + len(_TWO.findall(said))
    return [f"{found} shapes for {wanted} tensors"] if found < wanted else []


def find_raised(
    node: ast.AST, module: dict[str, Function], seen: frozenset[str] = frozenset()
) -> set:
    """Our errors that leave a function, raised in itself or in private functions of its module."""
    found = set()
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
        found.add(ast.unparse(node.exc.func))
    if isinstance(node, ast.Call):
        called = ast.unparse(node.func).removeprefix("self.")
        if called.startswith("_") and called in module and called not in seen:
            found |= find_raised(module[called], module, seen | {called})
    for inner in ast.iter_child_nodes(node):
        found |= find_raised(inner, module, seen)
    if isinstance(node, ast.Try):
        caught = " ".join(ast.unparse(handler.type) for handler in node.handlers if handler.type)
        inside = set().union(*(find_raised(line, module, seen) for line in node.body))
        others = [*node.handlers, *node.orelse, *node.finalbody]
        outside = set().union(*(find_raised(each, module, seen) for each in others))
        found = outside | {e for e in inside if e not in caught and "MinispecError" not in caught}
    return found & ERRORS


def check_errors(name: Name) -> list[str]:
    """Errors that are raised and not named."""
    tree = ast.parse(name.source)
    functions = {n.name: n for n in ast.walk(tree) if isinstance(n, Function)}
    if isinstance(name.node, ast.ClassDef):
        checks = [list_methods(name.node).get(n) for n in ("__init__", "__post_init__")]
        found = set().union(*(find_raised(c, functions) for c in checks if c))
    else:
        found = find_raised(name.node, functions)
    said = collect_words(name)
    # "Raises as ``load``", "arguments and errors as ``verify``": what those say counts as well.
    for other in re.findall(r"[Aa]s ``(?:\w+\.)?(\w+)``", said):
        said += read_doc(functions.get(other))
    return [f"raises {error} in silence" for error in sorted(found) if error not in said]


def find_complaints(module: str, source: str) -> list[str]:
    return [
        f"{name}: {complaint}"
        for name in find_public(module, source)
        for complaint in (*check_presence(name), *check_shapes(name), *check_errors(name))
    ]


MODULES = sorted((ROOT / "minispec").rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_public_names_are_documented(path: Path) -> None:
    source = path.read_text("utf-8")
    assert ast.get_docstring(ast.parse(source))
    assert find_complaints(path.relative_to(ROOT).as_posix(), source) == []


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("def f(): ...", "m:f: no doc"),
        ("class C:\n 'Is.'\n def g(self): ...", "m:C.g: no doc"),
        ("def f(x: Tensor):\n 'Takes x.'", "m:f: 0 shapes for 1 tensors"),
        ("def f(x: Tensor) -> Tensor:\n 'x (T, D).'", "m:f: 1 shapes for 2 tensors"),
        ("def f():\n 'Is.'\n raise FileError('x')", "m:f: raises FileError in silence"),
        (
            "def f():\n 'Is.'\n _g()\ndef _g():\n raise TextError('x')",
            "m:f: raises TextError in silence",
        ),
    ],
)
def test_find_complaints_sees_what_is_missing(source: str, complaint: str) -> None:
    assert find_complaints("m", source) == [complaint]


def test_find_complaints_accepts_what_is_there() -> None:
    for source in (
        "def f(x: Tensor) -> Tensor:\n '(..., D) -> (T,). Raises FileError.'\n raise FileError('')",
        "def f():\n 'Raises as ``g``.'\n raise FileError('')\ndef g():\n 'Raises FileError.'",
        "class S:\n 'A shortlist.'\n def select(self, c): ...\n def observe(self, r): ...\n"
        " def reset(self): ...",
        "class C:\n 'Is.'\n x: Tensor  # (B, T)",
    ):
        assert find_complaints("m", source) == []
