"""Writes the tables of docs/paper.md and docs/trees.md from the reports in ``benchmarks/results``.

    python docs/paper_figures.py

Each report is what ``minispec compare`` wrote, by the command that stands above its table.
"""

import json
import re
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from typing import Any

from minispec.tools.evaluation.gate import predict_speed

ROOT = Path(__file__).parent.parent
PAGES = tuple(ROOT / "docs" / name for name in ("paper.md", "trees.md"))
RESULTS = ROOT / "benchmarks" / "results"
Row = dict[str, Any]
_LONGEST_WINDOW = 1024  # of microspec, more than the elements of any stream in the study


def format_ratio(ratio: dict[str, float] | None) -> str:
    """A ratio with its 95% interval."""
    return f"{ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]" if ratio else ""


def format_lines(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def select_rows(
    report: Row, name: Callable[[Row], Any] = itemgetter("method")
) -> dict[Any, dict[str, Row]]:
    """The rows of a report by what ``name`` gives, the method by default, then by stream."""
    rows: dict[Any, dict[str, Row]] = {}
    for row in report["results"]:
        if not row["best"]:
            rows.setdefault(name(row), {})[row["stream"]] = row
    return rows


def format_methods(report: Row) -> str:
    """Each method over all prompts: ids, tau by stream, coverage, speeds, what the gate says of the
    speed over full's, and the milliseconds of a round that go into the shortlist."""
    methods = select_rows(report)
    streams = [s for s in next(iter(methods.values())) if s != "all"]
    full = methods["full"]["all"] if "full" in methods else None
    lines = []
    for method, rows in methods.items():
        row = rows["all"]
        spent = row["seconds"].get("shortlist", 0.0) + row["seconds"].get("observe", 0.0)
        lines.append([
            f"`{method}`",
            f"{row['shortlist_mean']:,.0f}" if row["shortlist_mean"] else "",
            *(f"{rows[s]['tau']:.2f}" for s in streams),
            f"{row['coverage']:.3f}" if row["coverage"] is not None else "",
            f"{row['tokens_per_second']:.0f}",
            format_ratio(row["ratio_to_autoregressive"]),
            format_ratio(row["ratio_to_frspec"]),
            *([f"{row['tokens_per_second'] / full['tokens_per_second']:.2f}",
               compute_gate(row, full)] if full else []),
            f"{1000 * spent / row['target_passes']:.1f}",
        ])  # fmt: skip
    header = ["method", "ids", *(f"tau, `{s}`" for s in streams), "coverage", "tokens/s"]
    over = ["over plain", "over FR-Spec", *(["over full", "gate"] if full else [])]
    return format_lines([*header, *over, "ms for the shortlist"], lines)


def compute_gate(row: Row, full: Row) -> str:
    """The speed over full's that follows from tau and the rows read, as in ``compare --study``."""
    if row["shortlist_mean"] is None:
        return ""
    head = full["seconds"]["draft_head"]
    others = sum(s for phase, s in full["seconds"].items() if phase != "prefill") - head
    nu = (row["shortlist_mean"] + row["rows_probed"]) / full["shortlist_mean"]
    return f"{predict_speed(row['tau'] / full['tau'], nu, head / others):.2f}"


def format_speeds(report: Row) -> str:
    """The speed of each method over FR-Spec's, by stream."""
    methods = select_rows(report)
    streams = [s for s in next(iter(methods.values())) if s != "all"]
    lines = [
        [f"`{method}`", *(format_ratio(rows[s]["ratio_to_frspec"]) for s in streams)]
        for method, rows in methods.items()
    ]
    return format_lines(["method", *streams], lines)


def format_coverage(report: Row) -> str:
    """The target's mass on each method's shortlist, by stream."""
    methods = select_rows(report)
    streams = [s for s in next(iter(methods.values())) if s != "all"]
    lines = [
        [f"`{method}`", *(f"{rows[s]['coverage']:.3f}" for s in streams)]
        for method, rows in methods.items()
        if rows["all"]["coverage"] is not None
    ]
    return format_lines(["method", *streams], lines)


def format_origins(report: Row) -> str:
    """The share of the accepted tokens that each part of a shortlist contained, by stream."""
    lines = []
    for method, rows in select_rows(report).items():
        for stream, row in rows.items():
            if row["origin"] and method.startswith("evospec"):
                parts = ", ".join(f"{name} {share:.3f}" for name, share in row["origin"].items())
                lines.append([f"`{method}`", stream, parts])
    return format_lines(["method", "stream", "accepted tokens by part"], lines)


def format_study(report: Row) -> str:
    """Ceiling, overlap and rows of each shortlist and budget, and the likeliest ids that are on
    it."""
    lines = []
    for point in report["study"]["points"]:
        if point["stream"] != "all" or (point["altered"] and not _keeps_parts(point["altered"])):
            continue
        if point["curve"] == "microspec" and point["budget"] > _LONGEST_WINDOW:
            continue  # the same ids
        name = f"`{point['curve']}`" + (f", {point['altered']}" if point["altered"] else "")
        keys = ("ceiling", "overlap", "tau_to_full", "rows_to_full")
        recall = "/".join(f"{100 * each['value']:.0f}" for each in point["recall"])
        lines.append([
            name, f"{point['budget']:,}",
            *(f"{point[key]:.3f}" for key in keys), recall,
            ", ".join(f"{part} {mass:.3f}" for part, mass in point["ceiling_by_part"].items()),
        ])  # fmt: skip
    return format_lines(
        ["shortlist", "ids", "ceiling", "overlap", "tau/full", "rows/full", "top 10/50/100",
         "ceiling by part"], lines,
    )  # fmt: skip


def _keeps_parts(altered: str) -> bool:
    return altered == "core" or altered.startswith("core + ")


def format_trees(report: Row) -> str:
    """Each method with each setting over all prompts: tau, by stream too, the tokens verified in a
    pass, the speed over plain decoding's, and over that of the fastest chain of ``evospec`` without
    continuations."""

    def name_setting(row: Row) -> tuple[str, str]:
        gamma = f"chain of {row['gamma']}" if row["gamma"] else ""
        return row["method"], row["tree"] or gamma

    settings = select_rows(report, name_setting)
    streams = [s for s in next(iter(settings.values())) if s != "all"]
    chains = [
        rows["all"]["tokens_per_second"]
        for (method, proposal), rows in settings.items()
        if proposal.startswith("chain of") and method.startswith("evospec") and "+" not in method
    ]
    lines = [
        [
            f"`{method}`", proposal,
            *(f"{rows[s]['tau']:.2f}" for s in streams), f"{rows['all']['tau']:.2f}",
            f"{rows['all']['drafted_per_pass']:.1f}", f"{rows['all']['tokens_per_second']:.0f}",
            format_ratio(rows["all"]["ratio_to_autoregressive"]),
            f"{rows['all']['tokens_per_second'] / max(chains):.2f}" if chains else "",
        ]
        for (method, proposal), rows in settings.items()
    ]  # fmt: skip
    header = ["method", "proposal", *(f"tau, `{s}`" for s in streams), "tau", "nodes", "tokens/s"]
    return format_lines([*header, "over plain", "over the chain"], lines)


# From the mark in a page to a report and the table that it becomes.
TABLES: dict[str, tuple[str, Callable[[Row], str]]] = {
    "methods": ("papers-smollm2", format_methods),
    "speeds": ("papers-smollm2", format_speeds),
    "mass": ("papers-smollm2", format_coverage),
    "origins": ("papers-smollm2", format_origins),
    "sampled": ("papers-smollm2-sampled", format_methods),
    "gemma": ("papers-gemma3-270m", format_methods),
    "languages": ("papers-languages", format_methods),
    "core and buffer": ("papers-core-buffer", format_methods),
    "core and buffer, gemma": ("papers-core-buffer-gemma3-270m", format_methods),
    "study": ("papers-study", format_study),
    "trees": ("trees-smollm2", format_trees),
    "trees, bfloat16": ("trees-smollm2-bfloat16", format_trees),
    "trees, sampled": ("trees-smollm2-sampled", format_trees),
    "trees, gemma": ("trees-gemma3-270m", format_trees),
    "random words": ("trees-random-words", format_trees),
}


def fill_in(text: str) -> str:
    """A page with its tables made anew. Raises LookupError for a table that is not known."""
    for mark in re.findall(r"<!-- table: (.*?) -->", text):
        if mark not in TABLES:
            raise LookupError(f"table {mark!r} is not one of {', '.join(TABLES)}")
        name, format_report = TABLES[mark]
        table = format_report(json.loads((RESULTS / f"{name}.json").read_text("utf-8")))
        marks = rf"(<!-- table: {re.escape(mark)} -->\n).*?(<!-- end -->)"
        text = re.sub(marks, lambda m: m[1] + table + m[2], text, flags=re.DOTALL)  # noqa: B023
    return text


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(fill_in(page.read_text("utf-8")), encoding="utf-8")
