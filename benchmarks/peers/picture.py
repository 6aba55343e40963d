"""A report as a picture: speeds, and ratios to llama.cpp's plain decoding with their intervals."""

from pathlib import Path
from typing import Any

from minispec.io.files import write_aside


def write_picture(report: dict[str, Any], path: Path) -> None:
    """One row of plots for each temperature, as PNG. Raises FileError."""
    from matplotlib.figure import Figure

    runs = report["runs"]
    height = 1.5 + 0.32 * len(report["sides"])
    figure = Figure(figsize=(15, height * len(runs)), layout="constrained")
    axes = figure.subplots(len(runs), 2, squeeze=False)
    engines = list(dict.fromkeys(_engine_of(row) for row in runs[0]["rows"]))
    for (left, right), run in zip(axes, runs, strict=True):
        rows = run["rows"]
        names = [row["side"] for row in rows]
        colours = [f"C{engines.index(_engine_of(row))}" for row in rows]
        left.barh(names, [row["tokens_per_second"] for row in rows], color=colours)
        left.bar_label(left.containers[0], fmt="%.0f", padding=3)
        left.set_title(f"tokens per second, temperature {run['temperature']:g}")
        ratios = [row["ratio_to_llama_cpp_plain"] for row in rows]
        values = [ratio["value"] for ratio in ratios]
        errors = [
            [ratio["value"] - ratio["low"] for ratio in ratios],
            [ratio["high"] - ratio["value"] for ratio in ratios],
        ]
        right.barh(names, values, xerr=errors, color=colours, ecolor="black", capsize=2)
        right.axvline(1, color="gray", linestyle="dashed")
        right.set_yticklabels([])
        right.set_title("speed over llama.cpp, plain; 95% intervals over prompts")
        for axis in (left, right):
            axis.invert_yaxis()
            axis.margins(x=0.12)
    figure.suptitle(
        f"{report['model']}, {len(report['prompts'])} prompts, {report['max_new_tokens']} tokens, "
        f"{report['threads']} threads, {report['machine']['processor']}"
    )
    with write_aside(path) as aside:
        figure.savefig(aside, format="png", dpi=110)


def _engine_of(row: dict[str, Any]) -> str:
    return row["side"].partition(",")[0].rpartition(" ")[0]
