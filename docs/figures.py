"""Draws the book's figures into ``docs/figures``, as SVG.

    python docs/figures.py            # all of them; "budget" runs the real model for some minutes
    python docs/figures.py bytes round

``bytes`` and ``overlap`` are computed from sizes and toy distributions, ``curriculum`` from the
curriculum itself; ``round`` shows the table in ``docs/measurements.md``, ``learning`` the training
logs of the shipped drafts; ``budget`` measures: the target answers our prompts, and shortlists of
every size are replayed over the answers.
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
_PROMPTS, _TOKENS = 3, 48  # prompts per domain, and tokens per answer, of ``budget``
_COLOURS = ("#3b6fb6", "#d98c3f", "#b5524c", "#5b9b6b", "#8d7bb5", "#999999", "#555555")
# The same bytes at every run. Text stays text, which is small and searchable.
_STYLE = {
    "svg.hashsalt": "minispec",
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "white",
}


def save(figure: Figure, name: str, folder: Path, data: object) -> None:
    """Writes a figure, with a digest of its data in the description."""
    digest = hashlib.sha256(json.dumps(data).encode()).hexdigest()[:16]
    figure.tight_layout()
    metadata = {"Date": None, "Description": f"drawn from data {digest}"}
    figure.savefig(folder / f"{name}.svg", metadata=metadata)


def draw_bars(
    rows: dict[str, dict[str, float]], title: str, unit: str, name: str, folder: Path
) -> None:
    """Draws a horizontal bar per row, made of the row's parts."""
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
    save(figure, name, folder, rows)


@matplotlib.rc_context(_STYLE)
def draw_bytes(folder: Path) -> None:
    """Draws what a round of SmolLM2 reads in float32, from the sizes of its parts."""
    layers, draft, row, v = 4 * 106.168, 4 * 5.09, 4 * 576 / 1e6, 49_152
    rows = {"plain decoding": {"target's layers": layers, "target's head": v * row}}
    for name, ids in (("full", v), ("frspec@0.25", v // 4), ("evospec@1536", 1536)):
        rows[name] = {
            "target's layers": layers,
            "target's head": v * row,
            "draft": 4 * draft,
            "draft's head": 4 * ids * row,
        }
    draw_bars(rows, "Bytes read in a round, four tokens proposed", "MB", "bytes", folder)


@matplotlib.rc_context(_STYLE)
def draw_overlap(folder: Path) -> None:
    """Draws two toy distributions: what is accepted, and the residual."""
    p = [0.30, 0.24, 0.16, 0.12, 0.08, 0.06, 0.04]
    q = [0.12, 0.34, 0.26, 0.14, 0.14, 0.0, 0.0]
    overlap = [min(pair) for pair in zip(p, q, strict=True)]
    tokens = range(len(p))
    figure = Figure(figsize=(8, 3.2))
    axes = figure.subplots()
    axes.bar(tokens, overlap, color=_COLOURS[3], label=f"accepted: min(p, q), {sum(overlap):.2f}")
    rest = [a - b for a, b in zip(p, overlap, strict=True)]
    axes.bar(tokens, rest, bottom=overlap, color=_COLOURS[0], label="residual: (p − q)₊")
    axes.plot(tokens, q, "o", color=_COLOURS[2], label="q, the draft distribution")
    axes.axvspan(4.5, 6.5, color="#eeeeee", zorder=0)
    axes.text(5.5, 0.2, "not on the\nshortlist", ha="center", color="#666666")
    axes.set(xlabel="token", ylabel="probability", xticks=list(tokens))
    axes.legend(frameon=False, loc="upper right")
    save(figure, "overlap", folder, [p, q])


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


@matplotlib.rc_context(_STYLE)
def draw_round(folder: Path) -> None:
    """Draws the time of a round by phase, from the measured table."""
    text = (ROOT / "docs" / "measurements.md").read_text("utf-8")
    table = read_table(text, "Milliseconds a round, by phase:")
    rows = {
        row.pop("method"): {phase: float(value) for phase, value in row.items()} for row in table
    }
    title = "Milliseconds of a round, by phase (measurements.md)"
    draw_bars(rows, title, "milliseconds", "round", folder)


@matplotlib.rc_context(_STYLE)
def draw_learning(folder: Path) -> None:
    """Draws tau on held-out answers over the draft's training, from the logs of the weights."""
    figure = Figure(figsize=(8, 3.2))
    axes = figure.subplots()
    logs = {}
    log_folder = ROOT / "minispec" / "artifacts" / "smollm2"
    for colour, name in zip(_COLOURS, ("smollm2", "smollm2-general-code"), strict=False):
        file = log_folder / f"{name.replace('smollm2', 'draft')}.json"
        log = [line for line in json.loads(file.read_text("utf-8"))["log"] if "tau" in line]
        logs[name] = [(line["tokens"] / 1e6, line["tau"]) for line in log]
        axes.plot(*zip(*logs[name], strict=True), ".-", color=colour, label=name)
    axes.set(xlabel="million tokens seen, repeats included", ylabel="tau, held-out answers")
    axes.legend(frameon=False)
    save(figure, "learning", folder, logs)


@matplotlib.rc_context(_STYLE)
def draw_curriculum(folder: Path) -> None:
    """Draws the weight of a position over its difficulty, for several acceptance rates."""
    import torch

    from minispec.learning import curriculum

    difficulties = torch.linspace(0, 1, 21, dtype=torch.float64)
    figure = Figure(figsize=(8, 3.2))
    axes = figure.subplots()
    lines = {}
    for colour, acceptance in zip(_COLOURS, (0.0, 0.2, 0.4, 0.6, 0.8), strict=False):
        competence = curriculum.competence(acceptance)
        weights = curriculum.weights(difficulties, competence).tolist()
        lines[acceptance] = [round(weight, 6) for weight in weights]
        label = f"acceptance {acceptance}: competence {competence:.2f}"
        axes.plot(difficulties.tolist(), lines[acceptance], color=colour, label=label)
    axes.set(xlabel="difficulty of a position", ylabel="its weight in an update", ylim=(0, 1.05))
    axes.legend(frameon=False, fontsize=8, loc="lower left")
    save(figure, "curriculum", folder, lines)


def measure_budget() -> None:
    """Measures shortlists of every size over the target's own answers, by replay; writes JSON."""
    from dataclasses import replace
    from statistics import fmean

    from minispec.commit import StopRule
    from minispec.decode import autoregressive
    from minispec.io import files
    from minispec.sampling import Sampling, SeededRandom
    from minispec.tools.data import corpus
    from minispec.tools.evaluation import assembly, methods
    from minispec.tools.evaluation.measure import measure, pool
    from minispec.tools.evaluation.replay import RecordedTarget, replay_text
    from minispec.tools.models import backend, known_models, pretrained

    known_models.fetch("smollm2")
    model = pretrained.load("smollm2")
    path = draft_file.find_draft("smollm2")
    assert path is not None
    eagle = draft_file.load_draft(path, model.reference, model.fingerprint)
    model, draft = backend.place_on_backend(model, eagle, "cpu")
    assert draft is not None
    size, stop = model.target.head.vocab_size, StopRule(_TOKENS, model.tokenizer.eos_ids)
    greedy = {"sampling": Sampling(), "rng": SeededRandom(0), "stop": stop}
    texts = []
    for domain in corpus.DOMAINS:
        for prompt in corpus.load_prompts(domain)[:_PROMPTS]:
            ids = model.tokenizer.chat(prompt)
            answer = measure(autoregressive(model.target, ids, **greedy)).tokens
            texts.append(RecordedTarget(model.target, ids, answer))
    points = []
    for name in ("full", "frspec", "evospec"):
        for budget in (256, 512, 1024, 2048, 4096, 8192, 16384, size):
            method = methods.Method.parse(name)
            if name != "full":
                method = replace(method, budget=budget, spelled="")
            elif budget != size:
                continue
            shortlist = assembly.build_shortlist(method, model, None)
            replays = [replay_text(text, draft, shortlist, gamma=4, stop=stop) for text in texts]
            overlap = fmean(value for replay in replays for value in replay.overlaps)
            tau = pool([replay.figures for replay in replays])["tau"]
            points.append({"curve": name, "budget": budget, "tau": tau, "overlap": overlap})
            print(points[-1], flush=True)
    setting = {"prompts": len(texts), "tokens": _TOKENS, "draft": "smollm2"}
    files.write_json(BUDGET, {**setting, "points": points})


@matplotlib.rc_context(_STYLE)
def draw_budget(folder: Path) -> None:
    """Draws tau and the acceptance rate over the budget, from the last ``measure_budget``."""
    points = json.loads(BUDGET.read_text("utf-8"))["points"]
    figure = Figure(figsize=(8, 3.2))
    left, right = figure.subplots(1, 2)
    names = [name for name in dict.fromkeys(p["curve"] for p in points) if name != "full"]
    for axes, key, label in (
        (left, "tau", "tau, greedy"),
        (right, "overlap", "acceptance rate, T = 0.8"),
    ):
        for colour, name in zip(_COLOURS, names, strict=False):
            line = sorted((p["budget"], p[key]) for p in points if p["curve"] == name)
            axes.plot(*zip(*line, strict=True), ".-", color=colour, label=name)
        [full] = [p[key] for p in points if p["curve"] == "full"]
        axes.axhline(full, color="#999999", linestyle=":", label="whole vocabulary")
        axes.set(xscale="log", xlabel="ids on the shortlist", ylabel=label)
    left.legend(frameon=False, fontsize=8)
    save(figure, "budget", folder, points)


DRAWN = {
    "bytes": draw_bytes,
    "overlap": draw_overlap,
    "curriculum": draw_curriculum,
    "round": draw_round,
    "learning": draw_learning,
    "budget": draw_budget,
}


def main(names: list[str]) -> None:
    """Draws the named figures, or all."""
    FOLDER.mkdir(exist_ok=True)
    for name in names or DRAWN:
        if name == "budget":
            measure_budget()
        DRAWN[name](FOLDER)
        print(f"wrote {(FOLDER / name).relative_to(ROOT)}.svg")


if __name__ == "__main__":
    if unknown := set(sys.argv[1:]) - DRAWN.keys():
        sys.exit(f"unknown figure {', '.join(sorted(unknown))}: choose from {', '.join(DRAWN)}")
    main(sys.argv[1:])
