"""A round, the three areas of the proof, a choice by a uniform number, and the rollback."""

from pathlib import Path

from drawing.svg import SMALLEST, Drawing


def draw_speculative_round(folder: Path) -> None:
    """Draws a round: draft, one pass, accept, replace, and the bonus token."""
    words, kept = ["scattered", "by", "the", "sky"], 2
    drawing = Drawing(
        "speculative-round", 306, "A round of speculative decoding",
        "Four tokens are drafted one after the other. One pass of the target scores all five "
        "positions. The first two tokens are accepted, the third is rejected and replaced by a "
        "token of the residual, the fourth is dropped. If all four were accepted, a bonus token "
        "would follow.",
        [words, kept],
    )  # fmt: skip
    lefts = [8 + 78 * i for i in range(5)]
    drawing.text(8, 16, "1. Draft: one token after the other, each drawn from q", anchor="start",
                 bold=True)  # fmt: skip
    for left, word in zip(lefts, words, strict=False):
        drawing.label(left, 26, 70, 24, word, "card", edge="phase-draft")
    for left in lefts[:3]:
        drawing.line([(left + 70, 38), (left + 78, 38)], colour="phase-draft", arrow=True)
    drawing.text(8, 76, "2. Target: one pass gives p at five positions",
                 anchor="start", bold=True)  # fmt: skip
    drawing.box(8, 86, 382, 26, "phase-target", corner=3)
    for i, left in enumerate(lefts):
        drawing.line([(left + 35, 112), (left + 35, 126)], colour="phase-target", arrow=True)
        drawing.text(left + 35, 140, f"p{i + 1}", fill="soft")
    drawing.text(
        8, 166, "3. Verify: accept with probability min(1, p/q)", anchor="start", bold=True
    )
    fates = ["accepted"] * kept + ["rejected"]
    for left, word, fate in zip(lefts, words, fates, strict=False):
        drawing.label(left, 176, 70, 24, word, fate, struck=fate == "rejected")
    drawing.label(lefts[3], 176, 70, 24, words[3], "paper", dashed=True)
    for left, text in zip(lefts, ("accepted", "accepted", "rejected", "dropped"), strict=False):
        drawing.text(left + 35, 214, text, size=SMALLEST, fill="soft")
    drawing.line([(lefts[2] + 35, 218), (lefts[2] + 35, 232)], arrow=True)
    drawing.label(lefts[2], 234, 70, 24, "air", "recovered")
    drawing.lines(lefts[3], 243, "of the residual:\n(p − q)₊, normalised", size=SMALLEST,
                  anchor="start")  # fmt: skip
    drawing.label(8, 274, 70, 24, "and", "bonus")
    drawing.lines(88, 283, "if all four are accepted: one more, from p5,\nthe bonus token",
                  size=SMALLEST, anchor="start")  # fmt: skip
    drawing.write(folder)


def draw_overlap(folder: Path) -> None:
    """Draws two toy distributions, and the three areas into which they fall."""
    p = [0.30, 0.24, 0.16, 0.12, 0.08, 0.06, 0.04]
    q = [0.12, 0.34, 0.26, 0.14, 0.14, 0.0, 0.0]
    overlap = [min(pair) for pair in zip(p, q, strict=True)]
    alpha = sum(overlap)
    drawing = Drawing(
        "overlap", 312, "Accepted, refused, given back",
        "For each of seven tokens a bar of p beside one of q. Their common part, the smaller of "
        f"the two, is accepted: {alpha:.2f} in all. Where q is above p, the excess is refused; "
        f"where p is above q, it is given back by the residual. Both are {1 - alpha:.2f} in all.",
        [p, q],
    )  # fmt: skip
    base, scale, step = 176, 440, 54
    for i, (a, b, common) in enumerate(zip(p, q, overlap, strict=True)):
        left = 16 + step * i
        drawing.box(
            left, base - scale * common, 20, scale * common, "accepted", edge="edge", corner=0
        )
        drawing.box(left + 22, base - scale * common, 20, scale * common, "accepted", edge="edge",
                    corner=0)  # fmt: skip
        if a > common:
            drawing.box(left, base - scale * a, 20, scale * (a - common), "recovered", edge="edge",
                        corner=0)  # fmt: skip
        if b > common:
            drawing.box(left + 22, base - scale * b, 20, scale * (b - common), "rejected",
                        edge="edge", corner=0)  # fmt: skip
        drawing.text(left + 10, base + 14, "p", size=SMALLEST, fill="soft")
        drawing.text(left + 32, base + 14, "q", size=SMALLEST, fill="soft")
        drawing.text(left + 21, base + 29, str(i), size=SMALLEST)
    drawing.line([(8, base), (392, base)])
    drawing.text(335, 120, "not on the shortlist:", size=SMALLEST, fill="soft")
    drawing.text(335, 135, "q = 0", size=SMALLEST, fill="soft")
    total = 384.0
    for row, (first, second, text) in enumerate((
        ("accepted", "rejected", f"q = accepted + refused, {alpha:.2f} + {1 - alpha:.2f}"),
        ("accepted", "recovered", f"p = accepted + given back, {alpha:.2f} + {1 - alpha:.2f}"),
    )):  # fmt: skip
        y = 222 + 30 * row
        drawing.box(8, y, total * alpha, 12, first, edge="edge", corner=0)
        drawing.box(8 + total * alpha, y, total * (1 - alpha), 12, second, edge="edge", corner=0)
        drawing.text(8, y + 24, text, size=SMALLEST, anchor="start")
    drawing.key(8, 288, [("accepted", "accepted: min(p, q)"), ("rejected", "refused: (q − p)₊"),
                         ("recovered", "given back: (p − q)₊")], gap=4)  # fmt: skip
    drawing.write(folder)


def draw_choose(folder: Path) -> None:
    """Draws how one uniform number chooses a token, and how the next one accepts it."""
    q, u, p_over_q, v = {1: 0.75, 2: 0.25}, 0.6, 0.4, 0.7
    drawing = Drawing(
        "choose", 190, "Two uniform numbers",
        "The draft's probabilities of tokens 1 and 2 lie end to end from 0 to 1; u = 0.6 falls "
        "on token 1, which is chosen. A second number, u = 0.7, is not below the acceptance "
        "probability 0.4, so the token is rejected.",
        [q, u, p_over_q, v],
    )  # fmt: skip
    left, width = 20.0, 360.0

    def draw_bar(y: float, title: str, parts: list[tuple[float, str, str]], mark: float) -> None:
        drawing.text(8, y - 30, title, anchor="start", bold=True)
        start = 0.0
        for share, name, fill in parts:
            drawing.label(left + width * start, y, width * share, 26, name, fill)
            drawing.text(left + width * start, y + 40, f"{start:g}", size=SMALLEST, fill="soft")
            start += share
        drawing.text(left + width, y + 40, "1", size=SMALLEST, fill="soft")
        x = left + width * mark
        drawing.line([(x, y - 14), (x, y)], colour="ink", arrow=True)
        drawing.text(x + 6, y - 6, f"u = {mark:g}", size=SMALLEST, anchor="start")

    draw_bar(46, "choose: the sum that first exceeds u", [
        (q[1], "token 1, chosen", "accepted"), (q[2], "token 2", "card")], u)  # fmt: skip
    draw_bar(140, "bernoulli: accepted if u < min(1, p/q)", [
        (p_over_q, "accepted", "accepted"), (1 - p_over_q, "rejected", "rejected")], v)  # fmt: skip
    drawing.write(folder)


def draw_rollback(folder: Path) -> None:
    """Draws the caches of target and draft through a round, of which one drafted token is kept."""
    text, drafted, kept, own = ["The", "sky", "is"], ["blue", "and", "the"], 1, "because"
    drawing = Drawing(
        "rollback", 322, "Cache and rollback",
        "The target's cache holds the text but its last token. The pass appends the last token "
        "and three drafted ones; after verification it is cut to the accepted ones, by its "
        "length alone. The draft's cache is cut to the start of the round and rebuilt from the "
        "target's states.",
        [text, drafted, kept, own],
    )  # fmt: skip
    width, y = 62, 28

    def row(words: list[tuple[str, str]], title: str, note: str, y: float) -> None:
        drawing.text(8, y - 6, title, anchor="start", bold=True)
        for i, (word, colour) in enumerate(words):
            drawing.label(8 + (width + 2) * i, y, width, 22, word, colour,
                          dashed=colour == "paper")  # fmt: skip
        drawing.text(8, y + 36, note, size=SMALLEST, anchor="start", fill="soft")

    before = [(word, "card") for word in text[:-1]]
    row(
        before,
        "Target's cache, before the round",
        "all tokens but the last, which the pass begins with",
        y,
    )
    whole = [*before, (text[-1], "phase-verify"), *((word, "phase-verify") for word in drafted)]
    row(whole, "after the pass", "the last token and the drafted ones are appended", y + 62)
    cut = [
        *before,
        (text[-1], "accepted"),
        (drafted[0], "accepted"),
        *((w, "paper") for w in drafted[kept:]),
    ]
    row(
        cut,
        "after verification: rolled back",
        "a shorter length: what is past it is overwritten later",
        y + 124,
    )
    ran = [("sky", "card"), ("is", "card"), *((w, "phase-draft_head") for w in drafted)]
    row(ran, "Draft's cache: it has run ahead", "orange: from the draft's own states", y + 186)
    row([*ran[:2], (drafted[0], "accepted"), (own, "recovered")], "after the round: resynced",
        "cut to the round's start, then one pass with the target's states", y + 248)  # fmt: skip
    drawing.write(folder)
