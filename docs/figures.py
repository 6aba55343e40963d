"""Draws the book's figures into ``docs/figures``, as SVG.

    python docs/figures.py            # all of them; "budget" runs the real model for some minutes
    python docs/figures.py bytes round

``bytes`` and ``overlap`` follow from sizes and toy laws, ``curriculum`` from the schedule itself;
``round`` is drawn from the table in ``docs/measurements.md``, ``learning`` from the log beside the
shipped draft; ``budget`` is a live run: our prompts answered by the target, and lists of every size
replayed over the answers.
"""

import hashlib
import json
import sys
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from minispec.io import draft_file

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "figures"
BUDGET = ROOT / "docs" / "figures" / "budget.json"
_PROMPTS, _TOKENS = 3, 48  # of each domain, and of each answer, in the live run
_COLOURS = ("#3b6fb6", "#d98c3f", "#b5524c", "#5b9b6b", "#8d7bb5", "#999999", "#555555")
# The same bytes at every run, and text as text, small and searchable.
_STYLE = {
    "svg.hashsalt": "minispec",
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "white",
}


def saved(figure: Figure, name: str, folder: Path, data: object) -> None:
    """Writes a figure; its description says what data it was drawn from, by a digest."""
    digest = hashlib.sha256(json.dumps(data).encode()).hexdigest()[:16]
    figure.tight_layout()
    metadata = {"Date": None, "Description": f"drawn from data {digest}"}
    figure.savefig(folder / f"{name}.svg", metadata=metadata)


def stacked(rows: dict[str, dict[str, float]], title: str, unit: str, name: str, to: Path) -> None:
    """Horizontal bars, one a row, of its parts side by side."""
    figure = Figure(figsize=(8, 0.55 * len(rows) + 1.4))
    axes = figure.subplots()
    parts = list(dict.fromkeys(part for row in rows.values() for part in row))
    for colour, part in zip(_COLOURS, parts, strict=False):
        widths = [row.get(part, 0.0) for row in rows.values()]
        earlier = parts[: parts.index(part)]
        lefts = [sum(row.get(other, 0.0) for other in earlier) for row in rows.values()]
        axes.barh(list(rows), widths, left=lefts, color=colour, label=part)
    axes.invert_yaxis()
    axes.set(xlabel=unit, title=title)
    axes.legend(ncols=len(parts), fontsize=8, frameon=False, loc="upper center",
                bbox_to_anchor=(0.45, -0.28))  # fmt: skip
    saved(figure, name, to, rows)


@matplotlib.rc_context(_STYLE)
def draw_bytes(folder: Path) -> None:
    """What a round of SmolLM2 reads in float32, from the sizes of its parts."""
    layers, draft, row, v = 4 * 106.168, 4 * 5.09, 4 * 576 / 1e6, 49_152
    rows = {"plain decoding": {"target's layers": layers, "target's head": v * row}}
    for name, ids in (("full", v), ("frspec@0.25", v // 4), ("evospec@1536", 1536)):
        rows[name] = {
            "target's layers": layers,
            "target's head": v * row,
            "draft": 4 * draft,
            "draft's head": 4 * ids * row,
        }
    stacked(rows, "Bytes read in a round, four tokens proposed", "MB", "bytes", folder)


@matplotlib.rc_context(_STYLE)
def draw_overlap(folder: Path) -> None:
    """Two toy laws: what is accepted, and the residual."""
    p = [0.30, 0.24, 0.16, 0.12, 0.08, 0.06, 0.04]
    q = [0.12, 0.34, 0.26, 0.14, 0.14, 0.0, 0.0]
    both = [min(pair) for pair in zip(p, q, strict=True)]
    places = range(len(p))
    figure = Figure(figsize=(8, 3.2))
    axes = figure.subplots()
    axes.bar(places, both, color=_COLOURS[3], label=f"accepted: min(p, q), {sum(both):.2f}")
    left = [a - b for a, b in zip(p, both, strict=True)]
    axes.bar(places, left, bottom=both, color=_COLOURS[0], label="residual: (p − q)₊")
    axes.plot(places, q, "o", color=_COLOURS[2], label="q, the draft's law")
    axes.axvspan(4.5, 6.5, color="#eeeeee", zorder=0)
    axes.text(5.5, 0.2, "not on\nthe list", ha="center", color="#666666")
    axes.set(xlabel="token", ylabel="probability", xticks=list(places))
    axes.legend(frameon=False, loc="upper right")
    saved(figure, "overlap", folder, [p, q])


def table_after(text: str, words: str) -> list[dict[str, str]]:
    """The first table behind some words of a page, as rows by column."""
    lines = text[text.index(words) :].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().strip("`") for cell in line.strip("|").split("|")])
    return [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]


@matplotlib.rc_context(_STYLE)
def draw_round(folder: Path) -> None:
    """Where a round's time goes, from the measured table."""
    text = (ROOT / "docs" / "measurements.md").read_text("utf-8")
    found = table_after(text, "Milliseconds a round, by phase:")
    rows = {
        row.pop("method"): {phase: float(value) for phase, value in row.items()} for row in found
    }
    title = "Milliseconds of a round, by phase (measurements.md)"
    stacked(rows, title, "milliseconds", "round", folder)


@matplotlib.rc_context(_STYLE)
def draw_learning(folder: Path) -> None:
    """tau on held-out answers over the draft's training, from the logs beside the weights."""
    figure = Figure(figsize=(8, 3.2))
    axes = figure.subplots()
    logs = {}
    for colour, name in zip(_COLOURS, ("draft", "draft-general-code"), strict=False):
        file = ROOT / "minispec" / "artifacts" / "smollm2" / f"{name}.json"
        log = [line for line in json.loads(file.read_text("utf-8"))["log"] if "tau" in line]
        logs[name] = [(line["tokens"] / 1e6, line["tau"]) for line in log]
        axes.plot(*zip(*logs[name], strict=True), ".-", color=colour, label=name)
    axes.set(xlabel="million tokens seen, repeats included", ylabel="tau, held-out answers")
    axes.legend(frameon=False)
    saved(figure, "learning", folder, logs)


@matplotlib.rc_context(_STYLE)
def draw_curriculum(folder: Path) -> None:
    """What a position counts, by its difficulty, as acceptance rises."""
    import torch

    from minispec.learning import curriculum

    difficulties = torch.linspace(0, 1, 21, dtype=torch.float64)
    figure = Figure(figsize=(8, 3.2))
    axes = figure.subplots()
    lines = {}
    for colour, acceptance in zip(_COLOURS, (0.0, 0.2, 0.4, 0.6, 0.8), strict=False):
        reached = curriculum.competence(acceptance)
        weights = curriculum.weights(difficulties, reached).tolist()
        lines[acceptance] = [round(weight, 6) for weight in weights]
        label = f"acceptance {acceptance}: competence {reached:.2f}"
        axes.plot(difficulties.tolist(), lines[acceptance], color=colour, label=label)
    axes.set(xlabel="difficulty of a position", ylabel="its weight in an update", ylim=(0, 1.05))
    axes.legend(frameon=False, fontsize=8, loc="lower left")
    saved(figure, "curriculum", folder, lines)


def measure_budget() -> None:
    """Lists of every size over the target's own answers, by replay; kept as JSON."""
    from dataclasses import replace
    from statistics import fmean

    from minispec.commit import StopRule
    from minispec.decode import autoregressive
    from minispec.io import files
    from minispec.sampling import Sampling, SeededRandom
    from minispec.tools.data import corpus
    from minispec.tools.evaluation import methods
    from minispec.tools.evaluation.measure import measured, pooled
    from minispec.tools.evaluation.replay import Recorded, replayed
    from minispec.tools.models import backend, known_models, pretrained

    known_models.fetch("smollm2")
    model = pretrained.load("smollm2")
    path = draft_file.find_draft("smollm2")
    assert path is not None
    guesser = draft_file.load_draft(path, model.reference, model.fingerprint)
    model, own = backend.place_on_backend(model, guesser, "cpu")
    assert own is not None
    size, stop = model.target.head.vocab_size, StopRule(_TOKENS, model.tokenizer.eos_ids)
    greedy = {"sampling": Sampling(), "random": SeededRandom(0), "stop": stop}
    texts = []
    for domain in corpus.DOMAINS:
        for prompt in corpus.load_prompts(domain)[:_PROMPTS]:
            ids = model.tokenizer.chat(prompt)
            answer = measured(autoregressive(model.target, ids, **greedy)).tokens
            texts.append(Recorded(model.target, ids, answer))
    points = []
    for name in ("full", "frspec", "evospec"):
        for budget in (256, 512, 1024, 2048, 4096, 8192, 16384, size):
            method = methods.Method.parse(name)
            if name != "full":
                method = replace(method, budget=budget, spelled="")
            elif budget != size:
                continue
            shortlist = methods.build_shortlist(method, model, None)
            found = [replayed(text, own, shortlist, gamma=4, stop=stop) for text in texts]
            overlap = fmean(value for replay in found for value in replay.overlaps)
            tau = pooled([replay.figures for replay in found])["tau"]
            points.append({"curve": name, "budget": budget, "tau": tau, "overlap": overlap})
            print(points[-1], flush=True)
    setting = {"prompts": len(texts), "tokens": _TOKENS, "draft": "smollm2"}
    files.write_json(BUDGET, {**setting, "points": points})


@matplotlib.rc_context(_STYLE)
def draw_budget(folder: Path) -> None:
    """Acceptance over the budget, from the last live run."""
    points = json.loads(BUDGET.read_text("utf-8"))["points"]
    figure = Figure(figsize=(8, 3.2))
    both = figure.subplots(1, 2)
    names = [name for name in dict.fromkeys(p["curve"] for p in points) if name != "full"]
    for axes, key, label in (
        (both[0], "tau", "tau, greedy"),
        (both[1], "overlap", "chance of acceptance, T = 0.8"),
    ):
        for colour, name in zip(_COLOURS, names, strict=False):
            line = sorted((p["budget"], p[key]) for p in points if p["curve"] == name)
            axes.plot(*zip(*line, strict=True), ".-", color=colour, label=name)
        [full] = [p[key] for p in points if p["curve"] == "full"]
        axes.axhline(full, color="#999999", linestyle=":", label="whole vocabulary")
        axes.set(xscale="log", xlabel="ids on the list", ylabel=label)
    both[0].legend(frameon=False, fontsize=8)
    saved(figure, "budget", folder, points)


DRAWN = {
    "bytes": draw_bytes,
    "overlap": draw_overlap,
    "curriculum": draw_curriculum,
    "round": draw_round,
    "learning": draw_learning,
    "budget": draw_budget,
}


def main(names: list[str]) -> None:
    """Draws the figures that are named, or all."""
    FOLDER.mkdir(exist_ok=True)
    for name in names or DRAWN:
        if name == "budget":
            measure_budget()
        DRAWN[name](FOLDER)
        print(f"wrote {(FOLDER / name).relative_to(ROOT)}.svg")


if __name__ == "__main__":
    if unknown := set(sys.argv[1:]) - DRAWN.keys():
        sys.exit(f"no figure {', '.join(sorted(unknown))}: known are {', '.join(DRAWN)}")
    main(sys.argv[1:])
