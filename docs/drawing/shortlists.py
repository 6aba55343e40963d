"""The inverted index, recency and successors, the evolving shortlist over time, and ARC."""

import json
from pathlib import Path

from drawing.svg import SMALLEST, Drawing, measure_text

MEASURED = Path(__file__).parent.parent / "figures" / "parts.json"
_PROMPT, _BUDGET, _TOKENS = "You may not", 64, 48


def draw_inverted_index(folder: Path) -> None:
    """Draws a hidden state, the centroids it is compared with, and the members of the best two."""
    scores = [2.1, 7.4, 0.3, 5.9, -1.2]
    members = ["cat dog cow", "liver renal lung", "the of and", "blood vein artery", "if else for"]
    drawing = Drawing(
        "inverted-index", 250, "The inverted index",
        "The draft's hidden state is multiplied with five centroids. The members of the two "
        "clusters of the highest score are candidates; their head rows give exact logits.",
        [scores, members],
    )  # fmt: skip
    best = sorted(range(5), key=lambda i: -scores[i])[:2]
    drawing.label(8, 96, 64, 44, "hidden\nstate", "phase-draft_head")
    drawing.text(128, 18, "1. C centroids", bold=True)
    drawing.text(238, 18, "2. members", bold=True)
    drawing.text(348, 18, "3. head rows", bold=True)
    for i, (score, words) in enumerate(zip(scores, members, strict=True)):
        y, fill = 30 + 40 * i, "semantic" if i in best else "card"
        drawing.line(
            [(72, 118), (98, y + 14)], arrow=True, colour="phase-shortlist" if i in best else "edge"
        )
        drawing.label(100, y, 56, 28, f"{score:g}", fill)
        drawing.label(176, y, 124, 28, words, fill, size=SMALLEST)
        drawing.line([(156, y + 14), (175, y + 14)], arrow=i in best)
        if i in best:
            drawing.label(316, y, 76, 28, "logits", "phase-draft_head", size=SMALLEST)
            drawing.line([(300, y + 14), (315, y + 14)], arrow=True)
    drawing.text(8, 240, "read: C · D numbers once, then K · D, instead of V · D", size=SMALLEST,
                 anchor="start", fill="soft")  # fmt: skip
    drawing.write(folder)


def draw_successors(folder: Path) -> None:
    """Draws a text, its window of recency, and the table of successors that it has filled."""
    words = ["acute", "renal", "failure", ":", "renal", "function"]
    drawing = Drawing(
        "successors", 232, "Recency and successors",
        "The ids of the last tokens are the part named recency. For each id the table keeps what "
        "followed it: after renal came function, and before that failure.",
        words,
    )  # fmt: skip
    drawing.text(8, 16, "the text", anchor="start", bold=True)
    x = 8.0
    for i, word in enumerate(words):
        width = measure_text(word, SMALLEST) + 14
        drawing.label(x, 26, width, 24, word, "recency" if i > 0 else "card", size=SMALLEST)
        x += width + 4
    drawing.text(8, 68, "violet: the window, of which each id counts once", size=SMALLEST,
                 anchor="start", fill="soft")  # fmt: skip
    drawing.text(8, 98, "the table: for each id the last ones that followed it", anchor="start",
                 bold=True)  # fmt: skip
    rows = {"renal": ["function", "failure"], "acute": ["renal"], "failure": [":"]}
    for number, (word, successors) in enumerate(rows.items()):
        y = 108 + 30 * number
        drawing.label(8, y, 80, 24, word, "card", size=SMALLEST)
        drawing.line([(90, y + 12), (108, y + 12)], arrow=True)
        for slot in range(3):
            name = successors[slot] if slot < len(successors) else ""
            drawing.label(110 + 84 * slot, y, 80, 24, name, "successor" if name else "paper",
                          size=SMALLEST, dashed=not name)  # fmt: skip
    drawing.text(8, 218, "latest first; a new one pushes out the oldest", size=SMALLEST,
                 anchor="start", fill="soft")  # fmt: skip
    drawing.write(folder)


def measure_parts() -> None:
    """Records the parts of ``evospec`` in each round of a text of the pocket pair; writes JSON."""
    import minispec
    from minispec import SeededRandom, StopRule
    from minispec.io import files
    from minispec.sampling import Sampling
    from minispec.text.tokenizer import encode_prompt
    from minispec.tools.evaluation import assembly, methods
    from minispec.tools.evaluation.replay import RecordingShortlist

    model = minispec.load("pocket", dtype="float64", backend="reference")
    method = methods.Method.parse(f"evospec@{_BUDGET}")
    shortlist = RecordingShortlist(assembly.build_shortlist(method, model.pretrained, None))
    rounds = minispec.speculative(
        model.target, model.draft, shortlist, encode_prompt(model.tokenizer, _PROMPT, raw=True),
        gamma=4, sampling=Sampling(0.0), rng=SeededRandom(0), stop=StopRule(_TOKENS),
    )  # fmt: skip
    recorded = []
    for finished in rounds:
        if shortlist.steps:
            sizes = {name: len(ids) for name, ids in shortlist.steps[0].parts.items()}
            recorded.append({"parts": sizes, "tokens": len(finished.tokens)})
        shortlist.steps.clear()
    files.write_json(MEASURED, {"prompt": _PROMPT, "budget": _BUDGET, "rounds": recorded})


def draw_parts(folder: Path) -> None:
    """Draws the parts of an evolving shortlist over the rounds of a text, as measured."""
    measured = json.loads(MEASURED.read_text("utf-8"))
    rounds, budget = measured["rounds"], measured["budget"]
    first, last = rounds[0]["parts"], rounds[-1]["parts"]
    drawing = Drawing(
        "parts", 236, "The evolving shortlist over time",
        f"A column for each of {len(rounds)} rounds, the {budget} ids of its shortlist by part. "
        f"From the first to the last round recency grows from {first['recency']} to "
        f"{last['recency']} ids, and the semantic part, which fills the rest, goes from "
        f"{first['semantic']} to {last['semantic']}.",
        measured,
    )  # fmt: skip
    drawing.text(8, 16, f"{budget} ids, by round (pocket pair, evospec@{budget})", anchor="start",
                 bold=True)  # fmt: skip
    top, height, width = 28, 140, 376 / len(rounds)
    for number, each in enumerate(rounds):
        y = float(top + height)
        for part, size in each["parts"].items():
            share = height * size / budget
            y -= share
            drawing.box(8 + width * number, y, width - 1.5, share, part, corner=0)
    drawing.text(8, top + height + 15, "round 1", size=SMALLEST, anchor="start", fill="soft")
    drawing.text(
        384, top + height + 15, f"round {len(rounds)}", size=SMALLEST, anchor="end", fill="soft"
    )
    names = {"core": "core: frequent", "recency": "recency", "successor": "successor",
             "semantic": "semantic: all the rest"}  # fmt: skip
    drawing.key(8, 196, list(names.items()))
    drawing.write(folder)


def draw_arc(folder: Path) -> None:
    """Draws the buffer of ARC: ids seen once, ids seen again, and what was dropped from each."""
    drawing = Drawing(
        "arc", 246, "ARC: which ids leave the buffer",
        "New ids enter T1, the ids used once. A second use moves an id to T2, the ids used often. "
        "What T1 and T2 drop is remembered in B1 and B2 without a place in the buffer. An id that "
        "returns from B1 makes T1 larger, one from B2 makes T2 larger.",
        "arc",
    )  # fmt: skip
    drawing.box(96, 28, 208, 92, "paper", edge="edge")
    drawing.text(200, 20, "the buffer: at most 256 ids", bold=True)
    drawing.label(104, 44, 92, 60, "T1\nused once,\nlatest first", "hnsw", size=SMALLEST)
    drawing.label(204, 44, 92, 60, "T2\nused again,\nlatest first", "bigrams", size=SMALLEST)
    drawing.label(8, 50, 62, 40, "a new\nid", "target", size=SMALLEST)
    drawing.line([(70, 70), (102, 70)], arrow=True)
    drawing.line([(196, 66), (203, 66)], arrow=True)
    drawing.lines(
        312, 66, "a second use\nmoves an id\nto T2", size=SMALLEST, anchor="start", fill="soft"
    )
    drawing.label(104, 154, 92, 40, "B1: dropped\nfrom T1", "card", dashed=True, size=SMALLEST)
    drawing.label(204, 154, 92, 40, "B2: dropped\nfrom T2", "card", dashed=True, size=SMALLEST)
    drawing.line([(150, 104), (150, 152)], arrow=True)
    drawing.line([(250, 104), (250, 152)], arrow=True)
    drawing.lines(
        8, 166, "names alone,\nnot in the\nbuffer", size=SMALLEST, anchor="start", fill="soft"
    )
    drawing.lines(8, 218, "An id that returns from B1 makes T1 larger, one from B2 makes\n"
                  "T2 larger: the border follows what the text does.", size=SMALLEST,
                  anchor="start", fill="soft")  # fmt: skip
    drawing.write(folder)
