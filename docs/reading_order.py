"""Writes ``docs/reading-order.md``: the files in reading order, with the minutes they take.

    python docs/reading_order.py

The order is ``ROOMS`` in ``tests/docs/test_layers.py``, which a test proves to be an order of
imports. Minutes are counted from the lines of code and of prose, at the pace of a first reading;
the idea of a file is the first sentence of its docstring.
"""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "reading-order.md"
LINES_A_MINUTE = 9  # of dense source, blank lines left out
SKIM = 40  # of the tools, which one skims

_HEADER = """\
# The reading order

One order, from the idea to the plumbing: each file uses only files above it, and a test proves
that. Minutes are those of a first reading, at {pace} lines a minute; the tools are counted as
skimmed, at {skim}. `docs/reading_order.py` writes this page.

If you read nothing else, read **the story**, in {minutes} minutes: after it you know what a round
is and why its output is exact. Before it, [one file of 150 lines](one_file.py) shows the whole
method on toys.

"""


def read_rooms() -> dict[str, list[str]]:
    """The modules by room, in reading order."""
    tree = ast.parse((ROOT / "tests" / "docs" / "test_layers.py").read_text("utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ROOMS":
            rooms: dict[str, list[str]] = ast.literal_eval(node.value)
            return rooms
    raise LookupError("tests/docs/test_layers.py has no ROOMS")


def path_of(module: str) -> Path:
    """The file of a module or package."""
    base = ROOT / module.replace(".", "/")
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")


def minutes(path: Path, pace: int = LINES_A_MINUTE) -> int:
    """Of a first reading, at least one."""
    lines = [line for line in path.read_text("utf-8").splitlines() if line.strip()]
    return max(1, round(len(lines) / pace))


def list_rooms() -> dict[str, list[Path]]:
    """The files of each room, in reading order."""
    return {
        title: [path_of(name) for name in names if path_of(name).name != "__init__.py"]
        for title, names in read_rooms().items()
    }


def pace_of(title: str) -> int:
    """Lines a minute in a room."""
    return SKIM if title == "Tools" else LINES_A_MINUTE


def count_minutes() -> dict[str, int]:
    """The minutes of each room, in reading order."""
    return {
        title: sum(minutes(path, pace_of(title)) for path in paths)
        for title, paths in list_rooms().items()
    }


def idea(path: Path) -> str:
    """The first sentence of a module's docstring."""
    words = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    first = " ".join(words.split("\n\n")[0].split()).split(". ")[0].removesuffix(".")
    return first.replace("|", "\\|")


def page() -> str:
    """The whole page."""
    totals = count_minutes()
    text = _HEADER.format(pace=LINES_A_MINUTE, skim=SKIM, minutes=next(iter(totals.values())))
    for title, paths in list_rooms().items():
        pace = pace_of(title)
        text += f"## {title}\n\n{len(paths)} files, {totals[title]} minutes.\n\n"
        text += "| minutes | file | idea |\n| --- | --- | --- |\n"
        for path in paths:
            name = path.relative_to(ROOT).as_posix()
            text += f"| {minutes(path, pace)} | `{name}` | {idea(path)} |\n"
        text += "\n"
    return text.rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
