"""Writes ``docs/reading-order.md``: the files of the river in order, with the minutes they take.

    python docs/reading_order.py

The order is that of ``RIVER`` in ``tests/docs/test_layers.py``, which a test proves to be the order of
imports. Minutes are counted from the file's lines, at the pace of a first reading; the one idea of
a file is the first sentence of its docstring.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "reading-order.md"
LINES_A_MINUTE = 40

# The shortest way to the heart of the matter.
FIRST = ("types", "sampling", "verify", "head", "cache", "propose", "commit", "decode")

_HEADER = """\
# In which order to read

The source is a river: a module imports only what lies upstream of it. Read it downstream and every
name is known when you meet it. Minutes are those of a first reading, at {pace} lines a minute. This
page is written by `docs/reading_order.py`.

## The heart

If you read nothing else, read these, in {minutes} minutes: {files}.
After them you know what a round is and why its output is exact. Then whatever you came for.

"""


def river() -> list[list[str]]:
    """The modules in layers, from the spring to the mouth."""
    tree = ast.parse((ROOT / "tests" / "docs" / "test_layers.py").read_text("utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "RIVER":
            return ast.literal_eval(node.value)
    raise LookupError("tests/docs/test_layers.py has no RIVER")


def path_of(module: str) -> Path:
    """The file of a module or package."""
    base = ROOT / module.replace(".", "/")
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")


def minutes(path: Path) -> int:
    """Of a first reading, at least one."""
    return max(1, round(len(path.read_text("utf-8").splitlines()) / LINES_A_MINUTE))


def idea(path: Path) -> str:
    """The first sentence of a module's docstring."""
    words = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    first = " ".join(words.split("\n\n")[0].split()).split(". ")[0].removesuffix(".")
    return first.replace("|", "\\|")


def table(modules: list[str]) -> Iterator[str]:
    yield "| minutes | file | idea |"
    yield "| --- | --- | --- |"
    for module in modules:
        path = path_of(module)
        yield f"| {minutes(path)} | `{path.relative_to(ROOT).as_posix()}` | {idea(path)} |"


def page() -> str:
    """The whole page."""
    modules = [module for layer in river() for module in layer]
    ours = [m for m in modules if m.startswith("minispec.") and m != "minispec.shortlists"]
    fast, work = ([m for m in modules if m.startswith(p)] for p in ("fastpath.", "workshop."))
    first = [path_of(f"minispec.{name}") for name in FIRST]
    text = _HEADER.format(
        pace=LINES_A_MINUTE,
        files=", ".join(f"`{path.relative_to(ROOT).as_posix()}`" for path in first),
        minutes=sum(map(minutes, first)),
    )
    for title, part in (("The reference", ours), ("The fast paths", fast), ("The workshop", work)):
        total = sum(minutes(path_of(module)) for module in part)
        text += f"## {title}\n\n{len(part)} files, {total} minutes.\n\n"
        text += "\n".join(table(part)) + "\n\n"
    return text.rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
