"""A plan as a table, as a picture of predicted against measured speed, and as JSON."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from minispec.io.files import write_aside, write_json

_COLUMNS = "{:28}  {:12}  {:>5}  {:>5}  {:>8}  {:>9}"


def format_plan(plan: Mapping[str, Any]) -> str:
    """The rows, the fastest first, and the command that decodes like the first."""
    lines = [
        _COLUMNS.format("method", "setting", "tau", "nodes", "measured", "predicted"),
        *(_format_row(row) for row in plan["rows"]),
    ]
    best = plan["rows"][0]
    setting = best["setting"]
    option = f" --tree {setting}" if setting else ""
    if setting and setting.startswith("chain of "):
        option = f" --gamma {setting.removeprefix('chain of ')}"
    lines += ["", f"fastest here: --method {best['method']}{option}"]
    return "\n".join(lines)


def _format_row(row: Mapping[str, Any]) -> str:
    promised = row["predicted_over_plain"]
    return _COLUMNS.format(
        row["method"], row["setting"] or "-", f"{row['tau']:.2f}", f"{row['drafted_per_pass']:.1f}",
        f"{row['over_plain']:.2f}", "-" if promised is None else f"{promised:.2f}",
    )  # fmt: skip


def write_plan(plan: Mapping[str, Any], folder: Path) -> None:
    """Write ``plan.json`` and ``plan.png``. Raises FileError."""
    write_json(folder / "plan.json", plan)
    figure = Figure(figsize=(7, 6), layout="constrained")
    axis: Any = figure.subplots()
    rows = [row for row in plan["rows"] if row["setting"] and row["predicted_over_plain"]]
    for number, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
        own = [row for row in rows if row["method"] == method]
        xs, ys = ([row[key] for row in own] for key in ("predicted_over_plain", "over_plain"))
        axis.plot(xs, ys, "o", color=f"C{number}", label=method.replace("$", r"\$"))
        for x, y, row in zip(xs, ys, own, strict=True):
            setting = row["setting"].removeprefix("chain of ")
            axis.annotate(setting, (x, y), (4, 3), textcoords="offset points", fontsize="small")
    low, high = axis.get_xlim()
    axis.plot([low, high], [low, high], color="gray", linestyle="dashed")
    axis.set_xlabel("predicted, times plain decoding")
    axis.set_ylabel("measured, times plain decoding")
    axis.set_title(f"{plan['model']}, {plan['dtype']}, {plan['threads']} threads")
    axis.legend(fontsize="small")
    with write_aside(folder / "plan.png") as aside:
        figure.savefig(aside, format="png", dpi=120)
