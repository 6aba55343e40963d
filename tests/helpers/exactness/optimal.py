"""What any verifier could accept: the value of a transport problem, for small trees.

A verifier maps the drafted tree to an accepted path and a next token. The trees have the draft's
distribution; the outputs, continued by the target, must have the target's. Among all joint
distributions of trees and outputs a linear program finds the one with the largest expected number
of accepted tokens (SpecTr, arXiv 2310.15141, for one position). The program knows p after every
text, a verifier only after the drafted ones, so the bound need not be reached.
"""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import coo_array

from helpers.exactness.strategies import UNSHAPED
from minispec.certificate.cases import Case
from minispec.certificate.decodings import FRACTIONS, ToyModels, decode_with
from minispec.certificate.walker import enumerate_branches
from minispec.growth import TreeShape
from minispec.shortlists.full import FullShortlist
from minispec.tree import find_path
from minispec.verify import VERIFIERS, Verdict, Verifier

Tree = tuple[tuple[int, ...], tuple[int, ...]]  # tokens, parents


@dataclass(frozen=True)
class BoundCase:
    """A pair of toy distributions without EOS ids, and the trees that are drafted. ``tree``: None
    for a chain of ``depth`` tokens."""

    seed: int
    vocab_size: int
    depth: int
    tree: str | None = None

    @property
    def shape(self) -> TreeShape:
        return TreeShape.parse(self.tree) if self.tree else TreeShape.chain(self.depth)


BOUND_CASES = [
    BoundCase(seed, size, depth, tree)
    for size, depth, tree in (
        (3, 2, None), (2, 3, None), (4, 1, "1x2x2:drawn"), (4, 1, "1x3x3:distinct"),
        (3, 2, "2x2x4:distinct"), (3, 2, "2x2x3:static:drawn"), (3, 2, "2x2x4"), (2, 3, "3x2x5"),
    )
    for seed in (12, 18)
]  # fmt: skip


def run_round(case: BoundCase, verifier: Verifier, source: Any) -> Any:
    """The first round of a case."""
    models = ToyModels.build(
        Case(case.seed, case.vocab_size, case.depth, case.depth + 1), UNSHAPED, FRACTIONS
    )
    decode = decode_with(FullShortlist, verifier, tree=case.shape)
    return next(iter(decode(models, source)))


def draw_trees(case: BoundCase) -> dict[Tree, float]:
    """Every tree that may be drafted, with its probability."""
    trees: Counter[Tree] = Counter()

    def run(source: Any) -> Tree:
        found: list[Tree] = []

        def record(proposal: Any, p: Any, rng: Any) -> Verdict:
            found.append((proposal.tokens, proposal.parents))
            return Verdict((), 0, p[0], ())

        run_round(case, record, source)
        return found[-1]  # the first are what a verifier of one's own is tried on

    for tree, probability in enumerate_branches(run):
        trees[tree] += probability
    return {tree: float(probability) for tree, probability in trees.items()}


def compute_bound(case: BoundCase) -> float:
    """The largest expected number of accepted tokens of any verifier, with or without knowledge of
    p elsewhere."""
    toy = Case(case.seed, case.vocab_size, case.depth, case.depth + 1)
    length = case.depth + 1
    texts = list(itertools.product(range(case.vocab_size), repeat=length))

    def share(text: Sequence[int], start: int) -> float:
        """The target's probability of a text after its first ``start`` tokens."""
        rows = [toy.weights((*toy.prompt, *text[:i]))[0] for i in range(start, length)]
        pairs = zip(rows, text[start:], strict=True)
        return math.prod(row[token] / sum(row) for row, token in pairs)

    trees = draw_trees(case)
    gains: list[int] = []
    entries: list[tuple[int, int, float]] = []  # row, column, value
    for row, (tokens, parents) in enumerate(trees):
        for node in range(-1, len(tokens)):
            path = [tokens[each] for each in find_path(parents, node)]
            for token in range(case.vocab_size):
                column, start = len(gains), (*path, token)
                gains.append(len(path))
                entries.append((row, column, 1.0))
                for index, text in enumerate(texts):
                    if text[: len(start)] == start:
                        value = share(text, len(start))
                        entries.append((len(trees) + index, column, value))
    rows, columns, values = zip(*entries, strict=True)
    sizes = len(trees) + len(texts), len(gains)
    solved = linprog(
        -np.array(gains, float),
        A_eq=coo_array((values, (rows, columns)), shape=sizes),
        b_eq=[*trees.values(), *(share(text, 0) for text in texts)],
        method="highs",
    )
    assert solved.success, solved.message
    return -float(solved.fun)


def compute_shares(case: BoundCase) -> dict[str, Any]:
    """The bound of a case, and the share of it that each verifier accepts."""
    bound = compute_bound(case)
    shares = {}
    for name, verifier in VERIFIERS.items():
        accepted = sum(
            float(probability) * length
            for length, probability in enumerate_branches(
                lambda source, verifier=verifier: len(run_round(case, verifier, source).path)
            )
        )
        shares[name] = accepted / bound if bound else 1.0
    return {
        "tree": str(case.shape), "vocabulary": case.vocab_size, "seed": case.seed, "bound": bound,
        "shares": shares,
    }  # fmt: skip


def format_shares(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A table of the bounds and shares."""
    names = "".join(f"{name:>8}" for name in VERIFIERS)
    lines = [f"{'tree':22}{'ids':>4}{'seed':>6}{'bound':>8}{names}"]
    for row in rows:
        shares = "".join(f"{row['shares'][name]:8.3f}" for name in VERIFIERS)
        start = f"{row['tree']:22}{row['vocabulary']:4}{row['seed']:6}{row['bound']:8.3f}"
        lines.append(start + shares)
    return lines
