"""How a comparison is shown: a table for the terminal, a picture, and JSON for programs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import indent
from typing import Any

from matplotlib.figure import Figure

from minispec.io.files import write_aside, write_json

PHASES = (
    ("target", "target pass"),
    ("verify", "laws and verification"),
    ("draft", "draft layer"),
    ("draft_head", "draft head"),
    ("shortlist", "shortlist"),
    ("observe", "list update"),
    ("learn", "recall and learning"),
    ("commit", "commit"),
)


def table(report: Mapping[str, Any]) -> str:
    """The report as aligned text, one line for each method and stream."""
    lines = [["method", "stream", "gamma", "tau", "tokens/s", "vs plain", "vs FR-Spec", "lossless"]]
    for row in report["results"]:
        lines.append(
            [
                row["method"] + (" (best)" if row["best"] else ""),
                row["stream"],
                str(row["gamma"] or "-"),
                f"{row['tau']:.2f}",
                f"{row['tokens_per_second']:.1f}",
                interval(row["ratio_to_autoregressive"]),
                interval(row["ratio_to_frspec"]),
                lossless_counts(row.get("lossless")),
            ]
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def samples(report: Mapping[str, Any]) -> str:
    """One prompt of each stream with its answers; those that are the same stand once."""
    parts = []
    for sample in report["samples"]:
        said: dict[str, list[str]] = {}
        for method, answer in sample["answers"].items():
            said.setdefault(answer, []).append(method)
        parts.append(f"[{sample['stream']}] {sample['prompt']}")
        parts += [f"  {', '.join(methods)}:\n{indent(t, '    ')}" for t, methods in said.items()]
    return "\n".join(parts)


def switches(report: Mapping[str, Any]) -> list[str]:
    """What each method lost around the switches of topic, a line for each that can be said of."""
    lines = []
    for row in report["results"]:
        if windows(row) and not row["best"]:
            curve = row["switch_curve"]
            first = next((w["ratio_to_full"] for w in windows(row) if w["start"] == 0), None)
            after = curve["regained_after"]
            back = "not regained" if after is None else f"regained after {after}"
            lines.append(
                f"{row['method']}, gamma {row['gamma']}: {interval(first)} of full's tau in the "
                f"{curve['window']} tokens after {curve['switches']} switches, 95% {back}"
            )
    return lines


def lossless_counts(lossless: Mapping[str, int] | None) -> str:
    """The audit in a word or two: prompts with the very ids of plain decoding, and exceptions."""
    if lossless is None:
        return "-"
    return (
        f"{lossless['identical']}/{lossless['checked']}"
        + (f" +{lossless['near_ties']} near ties" if lossless["near_ties"] else "")
        + (f" {lossless['violations']} VIOLATIONS" if lossless["violations"] else "")
    )


def interval(ratio: Mapping[str, float] | None) -> str:
    """A ratio and its 95% interval."""
    return f"{ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]" if ratio else "-"


def write(report: Mapping[str, Any], folder: Path) -> None:
    """Writes ``report.json`` and ``report.png``. Raises FileError."""
    write_json(folder / "report.json", report)
    ordinary = [row for row in report["results"] if not row["best"]]
    rows = [row for row in ordinary if row["stream"] == "all"]
    names = [_named(row, "\n") for row in rows]
    curves = [row for row in ordinary if windows(row)]
    points = [p for p in (report["study"] or {"points": ()})["points"] if p["stream"] == "all"]
    high = 1 + bool(curves or points)
    figure = Figure(figsize=(15, 0.6 * len(rows) + 2 + 4 * (high - 1)), layout="constrained")
    ratios = [0.6 * len(rows) + 2, 4][:high]
    axes = figure.subplots(high, 3, squeeze=False, height_ratios=ratios)
    _bars(axes[0, 0], names, [row["tau"] for row in rows], "tokens per target pass (tau)")
    _bars(axes[0, 1], names, [row["tokens_per_second"] for row in rows], "tokens per second")
    _stack(axes[0, 2], names, rows)
    if high == 2:
        _switches(axes[1, 0], curves)
        _over_budget(axes[1, 1], points, "tau_to_full", "tau over full, by budget")
        _over_budget(axes[1, 2], points, "coverage", "coverage, by budget")
    title = (
        f"{report['model']}, {report['dtype']}, temperature {report['sampling']['temperature']}, "
        f"{report['threads']} threads"
    )
    figure.suptitle(_literal(title))
    with write_aside(folder / "report.png") as aside:
        figure.savefig(aside, format="png", dpi=120)


def _named(row: Mapping[str, Any], between: str) -> str:
    """A method and its gamma, as matplotlib reads it."""
    return _literal(row["method"] + (f"{between}gamma {row['gamma']}" if row["gamma"] else ""))


def windows(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The windows around a switch in which a row can be set against full."""
    return [w for w in row.get("switch_curve", {"windows": ()})["windows"] if w["ratio_to_full"]]


def _switches(axis: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    if not rows:
        axis.set_axis_off()
        return
    for colour, row in enumerate(rows):
        for side in (False, True):  # no line across the switch: what lies between is neither
            part = [w for w in windows(row) if (w["start"] >= 0) == side]
            starts = [w["start"] for w in part]
            low, value, high = (
                [w["ratio_to_full"][key] for w in part] for key in ("low", "value", "high")
            )
            label = _named(row, ", ") if side else None
            axis.plot(starts, value, "o-", color=f"C{colour}", markersize=3, label=label)
            axis.fill_between(starts, low, high, color=f"C{colour}", alpha=0.12)
    axis.axvline(0, color="gray", linestyle="dashed")
    count = rows[0]["switch_curve"]["switches"]
    axis.set_title(f"tau over full around {count} switches")
    axis.set_xlabel("first token of the window")
    axis.legend(fontsize="small")


def _over_budget(axis: Any, points: Sequence[Mapping[str, Any]], key: str, title: str) -> None:
    """A line for each list of the study, whole lists only."""
    if not points:
        axis.set_axis_off()
        return
    for curve in dict.fromkeys(p["curve"] for p in points):
        part = [p for p in points if p["curve"] == curve and p["altered"] is None]
        axis.plot(
            [p["budget"] for p in part], [p[key] for p in part], "o-", markersize=3,
            label=_literal(curve),
        )  # fmt: skip
    axis.set_xscale("log")
    axis.set_title(title)
    axis.legend(fontsize="small")


def _literal(text: str) -> str:
    """A file's name may have dollars in it, between which matplotlib would read mathematics."""
    return text.replace("$", r"\$")


def _bars(axis: Any, names: Sequence[str], values: Sequence[float], title: str) -> None:
    axis.barh(names, values, color="tab:blue")
    axis.bar_label(axis.containers[0], fmt="%.2f", padding=3)
    axis.margins(x=0.25)
    axis.invert_yaxis()
    axis.set_title(title)


def _stack(axis: Any, names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    left = [0.0] * len(rows)
    for phase, label in PHASES:
        widths = [1000 * row["seconds"].get(phase, 0.0) / row["tokens"] for row in rows]
        if any(widths):
            axis.barh(names, widths, left=left, label=label)
            left = [a + b for a, b in zip(left, widths, strict=True)]
    axis.invert_yaxis()
    axis.set_title("milliseconds per token, by phase")
    axis.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
