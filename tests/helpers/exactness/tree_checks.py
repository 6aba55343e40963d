"""Checks of property 16, trees of drafts, beside those of whole outputs."""

from typing import Any

import numpy as np
import torch

from minispec.types import Distribution, Proposal
from minispec.verify import Verifier


class RejectingSource:
    """Rejects every candidate, as rounding may, and chooses the first possible index."""

    def bernoulli(self, probability: Any) -> bool:
        return False

    def choose(self, probs: Any) -> int:
        [possible] = np.nonzero(np.asarray(probs) > 0)
        assert len(possible) and abs(float(probs.sum()) - 1) < 1e-6, "nothing to draw from"
        return int(possible[0])


def check_exhausted_siblings(verifier: Verifier) -> float:
    """The probability that p excludes of what is drawn after siblings that took all of p: id 0 and
    the last id are excluded."""
    worst = 0.0
    for weights in ([0, 1, 2, 0], [0, 0, 1, 0]):
        p = Distribution(torch.arange(4), torch.tensor(weights).double() / sum(weights))
        tokens = [i for i, weight in enumerate(weights) if weight]
        points = [torch.eye(4, dtype=torch.float64)[token] for token in tokens]
        picked = Proposal(
            tuple(tokens), tuple(Distribution(p.ids, q) for q in points), (-1,) * len(tokens)
        )
        drawn = Proposal((tokens[-1],) * 2, (p, p), (-1, -1))
        for siblings in (picked, drawn):
            verdict = verifier(siblings, [p] * (1 + len(siblings)), RejectingSource())
            left = verdict.next_distribution
            excluded = [i for i, weight in enumerate(weights) if not weight]
            worst = max(worst, float(sum(left.probability(i) for i in excluded)))
    return worst
