"""Charts of what a round reads, the roofline, and what was measured: phases, training, budgets."""

import json
from pathlib import Path

from drawing.charts import Axes, draw_bars, full_width, height_of_bars
from drawing.svg import Drawing

ROOT = Path(__file__).parent.parent.parent
BUDGET = ROOT / "docs" / "figures" / "budget.json"
_TARGET, _HEAD, _DRAFT, _DRAFT_HEAD = (
    "phase-target",
    "phase-verify",
    "phase-draft",
    "phase-draft_head",
)
_SERIES = ("phase-target", "phase-draft", "phase-commit", "phase-shortlist", "phase-learn")


def draw_bytes(folder: Path) -> None:
    """Draws what a round of SmolLM2 reads in float32, from the sizes of its parts."""
    layers, draft, row, v = 4 * 106.168, 4 * 5.09, 4 * 576 / 1e6, 49_152
    rows = {"plain decoding": {"target's layers": layers, "target's head": v * row}}
    for name, ids in (("full", v), ("frspec@0.25", v // 4), ("evospec@1536", 1536)):
        rows[name] = {
            "target's layers": layers, "target's head": v * row, "draft": 4 * draft,
            "draft's head": 4 * ids * row,
        }  # fmt: skip
    said = "; ".join(f"{name}: {sum(parts.values()):.0f} MB" for name, parts in rows.items())
    drawing = Drawing(
        "bytes", height_of_bars(4) + 30, "Bytes read in a round, four tokens drafted", said, rows
    )
    drawing.text(8, 16, "Bytes read in a round, four tokens drafted", anchor="start", bold=True)
    colours = dict(zip(rows["full"], (_TARGET, _HEAD, _DRAFT, _DRAFT_HEAD), strict=True))
    draw_bars(drawing, 26, rows, colours, "MB")
    drawing.write(folder)


def draw_roofline(folder: Path) -> None:
    """Draws the time of a pass over its positions, on chapter 1's round numbers."""
    bandwidth, operations, weights = 40e9, 1000e9, 134_479_872
    points = [(n, 1000 * max(4 * weights / bandwidth, 2 * n * weights / operations))
              for n in (1, 2, 5, 10, 20, 50, 100, 200)]  # fmt: skip
    ridge = 2 * operations / bandwidth
    drawing = Drawing(
        "roofline", 236, "The roofline: milliseconds of a pass over n positions",
        f"Up to {ridge:.0f} positions a pass takes {points[0][1]:.1f} ms, the time to read the "
        "weights. Beyond, its time grows with the positions.", points,
    )  # fmt: skip
    axes = Axes(drawing, full_width(28, 150), (1, 200), (0, 60), logarithmic=True)
    axes.mark({n: str(n) for n in (1, 5, 10, 50, 100, 200)}, {n: str(n) for n in (0, 20, 40, 60)},
              "positions in a pass", "milliseconds of a pass")  # fmt: skip
    axes.curve(points, _TARGET, dots=True)
    x, y = axes.place(ridge, points[5][1])
    drawing.line([(x, y - 2), (x, 178)], dashed=True)
    drawing.text(x - 8, 84, "bound by memory: five for", size=11, anchor="end")
    drawing.text(x - 8, 98, "the price of one", size=11, anchor="end")
    drawing.text(x - 8, 56, "bound by the cores →", size=11, anchor="end", fill="soft")
    drawing.write(folder)


def read_table(text: str, heading: str) -> list[dict[str, str]]:
    """The first table after a line of a page, as rows by column."""
    lines = text[text.index(heading) :].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().strip("`") for cell in line.strip("|").split("|")])
    return [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]


def draw_round(folder: Path) -> None:
    """Draws the time of a round by phase, from the measured table."""
    text = (ROOT / "docs" / "measurements.md").read_text("utf-8")
    table = read_table(text, "Milliseconds a round, by phase:")
    rows = {row.pop("method"): {phase: float(value) for phase, value in row.items() if float(value)}
            for row in table}  # fmt: skip
    colours = {part: f"phase-{part.replace(' ', '_')}" for row in rows.values() for part in row}
    colours["the rest"] = "card"
    said = "; ".join(f"{name}: {sum(parts.values()):.1f} ms" for name, parts in rows.items())
    title = "Milliseconds of a round, by phase"
    drawing = Drawing("round", height_of_bars(len(rows), 2) + 30, title, said, rows)
    drawing.text(8, 16, f"{title} (measurements.md)", anchor="start", bold=True)
    draw_bars(drawing, 26, rows, colours, "ms")
    drawing.write(folder)


def draw_learning(folder: Path) -> None:
    """Draws tau on held-out answers over the draft's training, from the logs of the weights."""
    logs = {}
    log_folder = ROOT / "minispec" / "artifacts" / "smollm2"
    for name in ("smollm2", "smollm2-general-code"):
        file = log_folder / f"{name.replace('smollm2', 'draft')}.json"
        log = [line for line in json.loads(file.read_text("utf-8"))["log"] if "tau" in line]
        logs[name] = [(line["tokens"] / 1e6, line["tau"]) for line in log]
    said = "; ".join(f"{n}: from {a[0][1]:.2f} to {a[-1][1]:.2f}" for n, a in logs.items())
    drawing = Drawing("learning", 236, "tau over the training of the draft", said, logs)
    most = max(x for log in logs.values() for x, _ in log)
    axes = Axes(drawing, full_width(28, 140), (0, most), (1.4, 2.3))
    ticks = {float(x): str(x) for x in range(0, int(most) + 1, 2)}
    axes.mark(ticks, {1.4: "1.4", 1.8: "1.8", 2.2: "2.2"}, "million tokens seen, repeats included",
              "tau, held-out answers")  # fmt: skip
    for colour, log in zip(_SERIES, logs.values(), strict=False):
        axes.curve(log, colour)
    drawing.key(8, 214, list(zip(_SERIES, logs, strict=False)))
    drawing.write(folder)


def draw_curriculum(folder: Path) -> None:
    """Draws the weight of a position over its difficulty, for several acceptance rates."""
    import torch

    from minispec.learning import curriculum

    difficulties = torch.linspace(0, 1, 201, dtype=torch.float64)
    drawn = {}
    for acceptance in (0.0, 0.2, 0.4, 0.6, 0.8):
        competence = curriculum.competence(acceptance)
        weights = curriculum.weights(difficulties, competence).tolist()
        drawn[f"{acceptance}: {competence:.2f}"] = [round(weight, 6) for weight in weights]
    drawing = Drawing(
        "curriculum", 272, "The weight of a position over its difficulty",
        "The weight is 1 up to the draft's competence, which grows with the acceptance rate, and "
        "smaller above it.", drawn,
    )  # fmt: skip
    axes = Axes(drawing, full_width(28, 140), (0, 1), (0, 1.05))
    ticks = {0.0: "0", 0.5: "0.5", 1.0: "1"}
    axes.mark(ticks, ticks, "difficulty of a position", "its weight in an update")
    for colour, weights in zip(_SERIES, drawn.values(), strict=True):
        axes.curve(list(zip(difficulties.tolist(), weights, strict=True)), colour)
    drawing.text(8, 222, "acceptance rate: competence", size=11, anchor="start", fill="soft")
    drawing.key(8, 230, list(zip(_SERIES, drawn, strict=True)))
    drawing.write(folder)


def draw_budget(folder: Path) -> None:
    """Draws tau and the acceptance rate over the budget, from the last ``measure_budget``."""
    points = json.loads(BUDGET.read_text("utf-8"))["points"]
    names = [name for name in dict.fromkeys(p["curve"] for p in points) if name != "full"]
    drawing = Drawing(
        "budget", 440, "tau and the acceptance rate over the budget",
        "The static shortlist needs thousands of ids to come close to the whole vocabulary, the "
        "evolving one a few hundred.", points,
    )  # fmt: skip
    for top, key, label in (
        (28, "tau", "tau, greedy"),
        (230, "overlap", "acceptance rate, T = 0.8"),
    ):
        values = [p[key] for p in points]
        low, high = min(values) * 0.95, max(values) * 1.03
        axes = Axes(drawing, full_width(top, 130), (256, 49_152), (low, high), logarithmic=True)
        axes.mark({256: "256", 1024: "1,024", 4096: "4,096", 16384: "16,384"},
                  {round(v, 2): f"{v:.2f}" for v in (min(values), max(values))},
                  "ids on the shortlist", label)  # fmt: skip
        [full] = [p[key] for p in points if p["curve"] == "full"]
        axes.curve([(256, full), (49_152, full)], "edge", dashed=True)
        for colour, name in zip(_SERIES, names, strict=False):
            axes.curve(sorted((p["budget"], p[key]) for p in points if p["curve"] == name), colour,
                       dots=True)  # fmt: skip
    drawing.key(8, 418, [*zip(_SERIES, names, strict=False), ("edge", "dashed: whole vocabulary")])
    drawing.write(folder)
