"""A tree of candidates with its verification, and the branches that the walker enumerates."""

from fractions import Fraction
from pathlib import Path

from drawing.svg import SMALLEST, Drawing
from minispec.certificate.walker import BranchingSource, enumerate_branches, fraction_distribution
from minispec.types import Proposal
from minispec.verify import verify


def draw_tree(folder: Path) -> None:
    """Draws a tree of five candidates: tested in order, each against what is left of p."""
    drawing = Drawing(
        "tree", 262, "A tree and its verification",
        "Two candidates follow the text. The first, sat, is rejected and its continuations are "
        "dropped. The second, ran, is tested against the residual and accepted; its child home "
        "is tested next, rejected, and replaced by a token of the residual.",
        "tree",
    )  # fmt: skip
    drawing.label(8, 96, 70, 26, "the cat", "card")
    nodes = {
        "sat": (130, 40, "rejected"), "ran": (130, 152, "accepted"), "on": (244, 14, "paper"),
        "down": (244, 66, "paper"), "home": (244, 152, "rejected"),
    }  # fmt: skip
    edges = {
        "sat": (78, 109),
        "ran": (78, 109),
        "on": (200, 53),
        "down": (200, 53),
        "home": (200, 165),
    }
    for name, (x, y, fill) in nodes.items():
        colour = "ink" if fill == "accepted" else "edge"
        drawing.line([edges[name], (x - 2, y + 13)], colour=colour, arrow=True)
        drawing.label(x, y, 70, 26, name, fill, dashed=fill == "paper", struck=fill == "rejected")
    drawing.text(165, 34, "1st: against p", size=SMALLEST, fill="soft")
    drawing.lines(165, 194, "2nd: against\n(p − q)₊", size=SMALLEST, fill="soft")
    drawing.lines(322, 48, "never\nreached", size=SMALLEST, anchor="start", fill="soft")
    drawing.text(279, 146, "next level", size=SMALLEST, fill="soft")
    drawing.label(322, 196, 70, 26, "away", "recovered")
    drawing.line([(279, 178), (279, 209), (320, 209)], arrow=True)
    drawing.key(8, 240, [("accepted", "accepted"), ("rejected", "rejected"),
                         ("recovered", "of the residual")])  # fmt: skip
    drawing.write(folder)


def draw_branches(folder: Path) -> None:
    """Draws the branches that the walker takes through one verification, with their exact
    probabilities."""
    p, q = fraction_distribution([2, 1]), fraction_distribution([1, 2])

    def program(source: BranchingSource) -> tuple[int, bool, int]:
        x = int(q.ids[source.choose(q.probs)])
        verdict = verify(Proposal((x,), (q,)), [p, p], source)
        accepted = bool(verdict.path)
        return x, accepted, x if accepted else verdict.next_token

    leaves: dict[tuple[int, bool, int], Fraction] = {}
    for leaf, mass in enumerate_branches(program):  # the bonus token is left out
        leaves[leaf] = leaves.get(leaf, Fraction(0)) + mass
    rows = [(leaf, str(mass)) for leaf, mass in leaves.items()]
    drawing = Drawing(
        "branches", 236, "The branches of a verification",
        "With p = (2/3, 1/3) and q = (1/3, 2/3) there are "
        + "; ".join(f"{x} drafted, {'accepted' if kept else 'rejected'}, {y} emitted: {mass}"
                    for (x, kept, y), mass in rows)
        + ". The sums by token are p.",
        [str(row) for row in rows],
    )  # fmt: skip
    titles = {44: "start", 140: "drafted", 240: "verified", 342: "emitted"}
    for x, title in titles.items():
        drawing.text(x, 16, title, bold=True)
    ys = [36.0 + 56 * i for i in range(len(rows))]
    middle = ys[1] + 12
    drawing.label(8, middle - 14, 72, 28, "q = ⅓, ⅔", "phase-draft_head")
    drafted = {
        x: [y for y, ((each, _, _), _) in zip(ys, rows, strict=True) if each == x] for x in (0, 1)
    }
    for x, places in drafted.items():
        y = sum(places) / len(places)
        drawing.label(112, y - 1, 56, 26, f"{x}", "card")
        drawing.line([(80, middle), (110, y + 12)], arrow=True)
        drawing.text(96, (middle + y + 12) / 2 - 5, str(q.probs[x]), size=SMALLEST, fill="soft")
    for y, ((x, kept, emitted), mass) in zip(ys, rows, strict=True):
        parent = sum(drafted[x]) / len(drafted[x]) + 12
        drawing.line([(168, parent), (198, y + 12)], arrow=True)
        drawing.label(200, y - 1, 80, 26, "accepted" if kept else "rejected",
                      "accepted" if kept else "rejected", size=SMALLEST)  # fmt: skip
        drawing.line([(280, y + 12), (306, y + 12)], arrow=True)
        drawing.label(308, y - 1, 40, 26, f"{emitted}", "accepted" if kept else "recovered")
        drawing.text(356, y + 16, mass, anchor="start", bold=True)
    sums = {t: sum(mass for (_, _, e), mass in leaves.items() if e == t) for t in (0, 1)}
    drawing.text(
        8, 214, f"token 0: {sums[0]} in all, token 1: {sums[1]}: exactly p", anchor="start"
    )
    drawing.write(folder)
