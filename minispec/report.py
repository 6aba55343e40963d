"""How a comparison is shown: a table for the terminal, a picture, and JSON for programs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import indent
from typing import Any

from matplotlib.figure import Figure

from minispec.checkpoint import write_json, written_aside

_PHASES = (
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
        lossless = row.get("lossless")
        lines.append(
            [
                row["method"] + (" (best)" if row["best"] else ""),
                row["stream"],
                str(row["gamma"] or "-"),
                f"{row['tau']:.2f}",
                f"{row['tokens_per_second']:.1f}",
                _interval(row["ratio_to_autoregressive"]),
                _interval(row["ratio_to_frspec"]),
                "-"
                if lossless is None
                else f"{lossless['identical']}/{lossless['checked']}"
                + (f" +{lossless['near_ties']} near ties" if lossless["near_ties"] else "")
                + (f" {lossless['violations']} VIOLATIONS" if lossless["violations"] else ""),
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


def _interval(ratio: Mapping[str, float] | None) -> str:
    return f"{ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]" if ratio else "-"


def write(report: Mapping[str, Any], folder: Path) -> None:
    """Writes ``report.json`` and ``report.png``. Raises FileError."""
    write_json(folder / "report.json", report)
    rows = [row for row in report["results"] if row["stream"] == "all" and not row["best"]]
    names = [row["method"] + (f"\ngamma {row['gamma']}" if row["gamma"] else "") for row in rows]
    names = [_literal(name) for name in names]
    figure = Figure(figsize=(15, 0.6 * len(rows) + 2), layout="constrained")
    axes = figure.subplots(1, 3)
    _bars(axes[0], names, [row["tau"] for row in rows], "tokens per target pass (tau)")
    _bars(axes[1], names, [row["tokens_per_second"] for row in rows], "tokens per second")
    _stack(axes[2], names, rows)
    title = (
        f"{report['model']}, {report['dtype']}, temperature {report['sampling']['temperature']}, "
        f"{report['threads']} threads"
    )
    figure.suptitle(_literal(title))
    with written_aside(folder / "report.png") as aside:
        figure.savefig(aside, format="png", dpi=120)


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
    for phase, label in _PHASES:
        widths = [1000 * row["seconds"].get(phase, 0.0) / row["tokens"] for row in rows]
        if any(widths):
            axis.barh(names, widths, left=left, label=label)
            left = [a + b for a, b in zip(left, widths, strict=True)]
    axis.invert_yaxis()
    axis.set_title("milliseconds per token, by phase")
    axis.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
