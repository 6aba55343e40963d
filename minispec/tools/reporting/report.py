"""A comparison's report as a picture, and as JSON for programs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from minispec.io.files import write_aside, write_json
from minispec.sampling import Sampling
from minispec.tools.reporting.colours import PHASE_COLOURS, PHASES
from minispec.tools.reporting.table import Row, format_label, ratio_windows


def write(report: Mapping[str, Any], folder: Path) -> None:
    """Write ``report.json`` and ``report.png``. Raises FileError."""
    write_json(folder / "report.json", report)
    ordinary = [row for row in report["results"] if not row["best"]]
    rows = [row for row in ordinary if row["stream"] == "all"]
    names = [_label(row, "\n") for row in rows]
    curves = [row for row in ordinary if ratio_windows(row)]
    points = [p for p in (report["study"] or {"points": ()})["points"] if p["stream"] == "all"]
    plot_rows = 1 + bool(curves or points)
    figure = Figure(figsize=(15, 0.6 * len(rows) + 2 + 4 * (plot_rows - 1)), layout="constrained")
    ratios = [0.6 * len(rows) + 2, 4][:plot_rows]
    axes = figure.subplots(plot_rows, 3, squeeze=False, height_ratios=ratios)
    _plot_bars(axes[0, 0], names, [row["tau"] for row in rows], "tau (tokens per target pass)")
    _plot_bars(axes[0, 1], names, [row["tokens_per_second"] for row in rows], "tokens per second")
    _plot_phases(axes[0, 2], names, rows)
    if plot_rows == 2:
        _plot_switches(axes[1, 0], curves)
        _plot_budgets(axes[1, 1], points, "tau_to_full", "tau relative to full, by budget")
        _plot_budgets(axes[1, 2], points, "coverage", "coverage, by budget")
    title = (
        f"{report['model']}, {report['dtype']}, {Sampling(**report['sampling'])}, "
        f"{report['threads']} threads"
    )
    figure.suptitle(_escape(title))
    with write_aside(folder / "report.png") as aside:
        figure.savefig(aside, format="png", dpi=120)


def _label(row: Row, separator: str) -> str:
    """A method and its gamma or tree, escaped for matplotlib."""
    return _escape(format_label(row, separator))


def _escape(text: str) -> str:
    """Escape dollars, which may occur in file names: matplotlib reads mathematics between them."""
    return text.replace("$", r"\$")


def _plot_switches(axis: Any, rows: Sequence[Row]) -> None:
    if not rows:
        axis.set_axis_off()
        return
    for number, row in enumerate(rows):
        for after in (False, True):  # two lines: no window lies across the switch
            part = [w for w in ratio_windows(row) if (w["start"] >= 0) == after]
            starts = [w["start"] for w in part]
            low, value, high = (
                [w["ratio_to_full"][key] for w in part] for key in ("low", "value", "high")
            )
            label = _label(row, ", ") if after else None
            axis.plot(starts, value, "o-", color=f"C{number}", markersize=3, label=label)
            axis.fill_between(starts, low, high, color=f"C{number}", alpha=0.12)
    axis.axvline(0, color="gray", linestyle="dashed")
    count = rows[0]["switch_curve"]["switches"]
    axis.set_title(f"tau relative to full, around {count} switches")
    axis.set_xlabel("first token of the window")
    axis.legend(fontsize="small")


def _plot_budgets(axis: Any, points: Sequence[Row], key: str, title: str) -> None:
    """A line for each shortlist of the study, without its ablations."""
    if not points:
        axis.set_axis_off()
        return
    for curve in dict.fromkeys(p["curve"] for p in points):
        part = [p for p in points if p["curve"] == curve and p["altered"] is None]
        axis.plot(
            [p["budget"] for p in part], [p[key] for p in part], "o-", markersize=3,
            label=_escape(curve),
        )  # fmt: skip
    axis.set_xscale("log")
    axis.set_xlabel("budget (ids on the shortlist)")
    axis.set_title(title)
    axis.legend(fontsize="small")


def _plot_bars(axis: Any, names: Sequence[str], values: Sequence[float], title: str) -> None:
    axis.barh(names, values, color="tab:blue")
    axis.bar_label(axis.containers[0], fmt="%.2f", padding=3)
    axis.margins(x=0.25)
    axis.invert_yaxis()
    axis.set_title(title)


def _plot_phases(axis: Any, names: Sequence[str], rows: Sequence[Row]) -> None:
    """Stacked bars; a phase that took no time anywhere is left out."""
    left = [0.0] * len(rows)
    for phase, label in PHASES.items():
        widths = [1000 * row["seconds"].get(phase, 0.0) / row["tokens"] for row in rows]
        if any(widths):
            axis.barh(names, widths, left=left, label=label, color=PHASE_COLOURS[phase])
            left = [a + b for a, b in zip(left, widths, strict=True)]
    axis.invert_yaxis()
    axis.set_title("milliseconds per token, by phase")
    axis.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
