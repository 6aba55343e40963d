"""Writes the figures of README.md: its tables, its picture, and the size of the method.

    python docs/readme_figures.py [FOLDER]

FOLDER holds ``smollm2-float32.json`` and ``gemma3-270m-bfloat16.json``, which ``make measure``
writes into ``build/measure``; without it the tables show ``benchmarks/results``.
"""

import ast
import io
import json
import re
import runpy
import shutil
import sys
import tempfile
import tokenize
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"
TABLES = {
    "smollm2-float32": (
        "autoregressive", "full", "frspec@0.25", "evospec@1536", "evospec@512",
    ),
    "gemma3-270m-bfloat16": (
        "autoregressive", "full", "frspec@0.25", "frspec@32768", "evospec@2621",
    ),
}  # fmt: skip
_HEADER = (
    "| method | ids scored | tau | speed over plain decoding | over FR-Spec | identical output |\n"
    "| --- | --- | --- | --- | --- | --- |\n"
)


# What is not the method itself: models, files, text, proofs, tools, exercises and rivals.
ASIDE = (
    "models/", "io/", "text/", "certificate/", "tools/", "exercises/", "shortlists/microspec.py",
    "shortlists/dynaspec.py", "shortlists/lowrank.py", "__main__.py",
)  # fmt: skip
_NO_CODE = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
    tokenize.ENDMARKER,
}  # fmt: skip


def count_lines(source: str) -> int:
    """Lines of code: those that hold more than a comment or a docstring."""
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            docstrings |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NO_CODE:
            code |= set(range(token.start[0], token.end[0] + 1))
    return len(code - docstrings)


def list_method() -> list[Path]:
    """The files of the method itself."""
    package = ROOT / "minispec"
    return [
        path
        for path in sorted(package.rglob("*.py"))
        if not path.relative_to(package).as_posix().startswith(ASIDE)
    ]


def count_method() -> int:
    """Lines of code of the method itself."""
    return sum(count_lines(path.read_text("utf-8")) for path in list_method())


def format_order() -> str:
    """The rooms in reading order, with the minutes of a first reading."""
    reading_order = runpy.run_path(str(ROOT / "docs" / "reading_order.py"))
    rooms = reading_order["count_minutes"]().items()
    return "; ".join(f"{title.lower()} {minutes}" for title, minutes in rooms) + ".\n"


def format_ratio(ratio: dict[str, float]) -> str:
    """A ratio with its 95% interval."""
    return f"{ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"


def format_table(report: dict[str, list[dict]], methods: tuple[str, ...]) -> str:
    """The rows of some methods over all prompts."""
    rows = {r["method"]: r for r in report["results"] if r["stream"] == "all" and not r["best"]}
    text = _HEADER
    for method in methods:
        row, audit = rows[method], rows[method]["lossless"]
        ids = f"{row['shortlist_mean']:,.0f}" if row["shortlist_mean"] else ""
        cells = (
            f"`{method}`", ids, f"{row['tau']:.2f}", format_ratio(row["ratio_to_autoregressive"]),
            format_ratio(row["ratio_to_frspec"]), f"{audit['identical']} of {audit['checked']}",
        )  # fmt: skip
        text += "| " + " | ".join(cells) + " |\n"
    return text


def fill_in(text: str, folder: Path) -> str:
    """README's text with its figures made anew. The size is rounded up to a hundred."""
    for name, methods in TABLES.items():
        report = json.loads((folder / f"{name}.json").read_text("utf-8"))
        marks = rf"(<!-- table: {name} -->\n)(.*?)(<!-- end -->)"
        table = format_table(report, methods)
        text, count = re.subn(marks, lambda m: m[1] + table + m[3], text, flags=re.DOTALL)  # noqa: B023
        if count != 1:
            raise LookupError(f"README.md has {count} tables marked {name}, not 1")
    size = (
        "The method itself, without models, files, text, proofs, tools, exercises and rivals, is "
        f"fewer than {-(-count_method() // 100) * 100:,} lines of code.\n"
    )
    for name, line in {"size": size, "order": format_order()}.items():
        marks = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        text = re.sub(marks, lambda m: m[1] + line + m[2], text, flags=re.DOTALL)  # noqa: B023
    return text


def draw_picture(folder: Path) -> None:
    """``docs/report.png``: the first table's methods over all prompts."""
    from minispec.tools.reporting import report

    name, methods = next(iter(TABLES.items()))
    shown = json.loads((folder / f"{name}.json").read_text("utf-8"))
    rows = [r for r in shown["results"] if r["method"] in methods and r["stream"] == "all"]
    with tempfile.TemporaryDirectory() as made:
        report.write(shown | {"results": rows}, Path(made))
        shutil.copyfile(Path(made) / "report.png", ROOT / "docs" / "report.png")


if __name__ == "__main__":
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS
    README.write_text(fill_in(README.read_text("utf-8"), source), encoding="utf-8")
    draw_picture(source)
