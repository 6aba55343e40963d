"""A comparison's report as text for the terminal.

Knows nothing of pictures and pages.
"""

from collections.abc import Mapping, Sequence
from textwrap import indent
from typing import Any

Row = Mapping[str, Any]


def format_table(report: Mapping[str, Any]) -> str:
    """The report as aligned text, one line for each method and stream."""
    trees = any(row.get("tree") for row in report["results"])
    names = ["method", "stream", "tree" if trees else "gamma", "tau", *["nodes"] * trees]
    lines = [[*names, "tokens/s", "vs plain", "vs FR-Spec", "lossless"]]
    for row in report["results"]:
        lines.append(
            [
                row["method"] + (" (best)" if row["best"] else ""),
                row["stream"],
                format_setting(row, "chain of " if trees else ""),
                f"{row['tau']:.2f}",
                *[f"{row['drafted_per_pass']:.1f}" for _ in range(trees)],
                f"{row['tokens_per_second']:.1f}",
                format_ratio(row["ratio_to_autoregressive"]),
                format_ratio(row["ratio_to_frspec"]),
                format_lossless(row.get("lossless")),
            ]
        )
    return align(lines)


def align(lines: Sequence[Sequence[str]]) -> str:
    """Lines of as many cells each as text, in columns."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def format_setting(row: Row, gamma: str) -> str:
    """The tree of a row, or its gamma after ``gamma``; a dash for plain decoding."""
    return row.get("tree") or (f"{gamma}{row['gamma']}" if row["gamma"] else "-")


def format_label(row: Row, separator: str = ", ") -> str:
    """A method and its gamma or tree."""
    tree = f"tree {row['tree']}" if row.get("tree") else format_setting(row, "gamma ")
    return row["method"] + (f"{separator}{tree}" if tree != "-" else "")


def format_study(report: Mapping[str, Any]) -> str:
    """The study as aligned text, one line for each shortlist and budget over all streams: what
    bounds acceptance, what it was, and the speed over full's that follows and that was measured;
    empty without a study."""
    names = ("shortlist", "ids", "ceiling", "overlap", "tau/full", "rows/full", "gate", "measured")
    lines = [list(names)]
    for point in (report["study"] or {"points": ()})["points"]:
        if point["stream"] == "all":
            keys = ("ceiling", "overlap", "tau_to_full", "rows_to_full", "gate", "measured")
            lines.append([
                point["curve"] + (f", {point['altered']}" if point["altered"] else ""),
                str(point["budget"]),
                *("-" if point[key] is None else f"{point[key]:.3f}" for key in keys),
            ])  # fmt: skip
    return align(lines) if len(lines) > 1 else ""


def format_samples(report: Mapping[str, Any]) -> str:
    """One prompt of each stream with its answers; equal answers are printed once."""
    parts = []
    for sample in report["samples"]:
        methods_by_answer: dict[str, list[str]] = {}
        for method, answer in sample["answers"].items():
            methods_by_answer.setdefault(answer, []).append(method)
        parts.append(f"[{sample['stream']}] {sample['prompt']}")
        for answer, methods in methods_by_answer.items():
            parts.append(f"  {', '.join(methods)}:\n{indent(answer, '    ')}")
    return "\n".join(parts)


def format_switches(report: Mapping[str, Any]) -> list[str]:
    """A line for each method whose tau around the switches of topic can be compared with full's."""
    lines = []
    for row in report["results"]:
        if ratio_windows(row) and not row["best"]:
            curve = row["switch_curve"]
            first = next((w["ratio_to_full"] for w in ratio_windows(row) if w["start"] == 0), None)
            after = curve["regained_after"]
            reached = "not reached" if after is None else f"reached after {after} tokens"
            lines.append(
                f"{format_label(row)}: {format_ratio(first)} of full's tau in "
                f"the {curve['window']} tokens after {curve['switches']} switches, 95% {reached}"
            )
    return lines


def format_lossless(lossless: Mapping[str, int] | None) -> str:
    """The audit in a few words: outputs identical to plain decoding's, and the exceptions."""
    if lossless is None:
        return "-"
    return (
        f"{lossless['identical']}/{lossless['checked']}"
        + (f" +{lossless['near_ties']} near ties" if lossless["near_ties"] else "")
        + (f" {lossless['violations']} VIOLATIONS" if lossless["violations"] else "")
    )


def format_ratio(ratio: Mapping[str, float] | None) -> str:
    """A ratio and its 95% interval."""
    return f"{ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]" if ratio else "-"


def ratio_windows(row: Row) -> list[Mapping[str, Any]]:
    """The windows around a switch that have a ratio to full."""
    return [w for w in row.get("switch_curve", {"windows": ()})["windows"] if w["ratio_to_full"]]
