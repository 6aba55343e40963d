"""From logits to laws, and from laws to tokens.

``Sampling`` shapes logits into the law that decoding follows (temperature, top-k, top-p).
Greedy decoding is the law at temperature zero: everything on the likeliest id, ties to the
lowest, so that one verifier serves every temperature. ``SeededRandom`` turns laws into
decisions, one float64 uniform each, in a fixed order: a seed fixes a run.

Knows nothing of models, lists or speculation.
"""

import math
import random
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from minispec.errors import ArgumentError
from minispec.types import Distribution, Head

_FIRST = 1024  # ids that are put in order at first: a top-p of 0.95 takes a few hundred at most


@dataclass(frozen=True)
class Sampling:
    """How a law is made of logits.

    ``temperature`` 0 is greedy. ``top_k`` keeps that many likeliest ids, 0 keeps all.
    ``top_p`` keeps the smallest set of likeliest ids whose mass reaches it (after top-k).
    Ties are decided in favour of lower ids everywhere. Raises ArgumentError on construction.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ArgumentError(f"temperature {self.temperature} must be 0 (greedy) or above")
        if self.top_k < 0:
            raise ArgumentError(f"top-k {self.top_k} must be 0 (all ids) or above")
        if not 0 < self.top_p <= 1:
            raise ArgumentError(f"top-p {self.top_p} must lie in (0, 1], 1 keeps all ids")

    def distribution(self, logits: Tensor, ids: Tensor) -> Distribution:
        """logits (K,), ids (K,) sorted -> the law over just those ids.

        What top-k or top-p leaves out has probability exactly 0. Computed in float32, or in
        float64 for float64 logits, whatever the model ran in. Raises ArgumentError where no
        logit is finite, since no law exists.
        """
        logits = _precise(logits)
        # The first of equal maxima, which is the lowest id; numpy's is six times faster here.
        best = int(logits.numpy().argmax())
        _check(logits[best])
        if self.temperature == 0:
            probs = torch.zeros_like(logits)
            probs[best] = 1
            return Distribution(ids, probs)
        # Subtracting the largest first keeps a tiny temperature from overflowing; one that the
        # dtype rounds to nothing leaves 0 / tiny = 0 for the largest and nothing for the rest.
        coldest = torch.finfo(logits.dtype).tiny
        logits = (logits - logits[best]) / max(self.temperature, coldest)
        if 0 < self.top_k < len(ids):
            logits = torch.where(_top_k(logits, self.top_k), logits, -math.inf)
        probs = torch.softmax(logits, dim=-1)
        if self.top_p < 1:
            probs = torch.where(_top_p(probs, self.top_p), probs, 0)
            probs = probs / probs.sum()
        return Distribution(ids, probs)

    def target_distribution(self, logits: Tensor) -> Distribution:
        """logits (V,) of all ids -> the law over those that it gives any probability."""
        if self.temperature == 0:
            best = logits.argmax()[None]
            return _certain(best, logits[best])
        distribution = self.distribution(logits, torch.arange(len(logits)))
        kept = np.flatnonzero(distribution.probs.numpy() != 0)
        return (
            Distribution(distribution.ids[kept], distribution.probs[kept])
            if len(kept) < len(distribution.ids)
            else distribution
        )

    def target_distributions(self, head: Head, hidden: Tensor) -> list[Distribution]:
        """The ``target_distribution`` of each of several states (T, D). A greedy one needs no logits but
        the largest. Raises as ``distribution``."""
        if self.temperature == 0:
            ids, logits = head.argmax(hidden)
            return [_certain(ids[t : t + 1], logits[t : t + 1]) for t in range(len(ids))]
        return [self.target_distribution(row) for row in head.logits(hidden)]


def _certain(token: Tensor, logit: Tensor) -> Distribution:
    """The law that is all on one token (1,), whose logit (1,) is the largest."""
    _check(logit[0])
    return Distribution(token, torch.ones_like(_precise(logit)))


def _precise(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _check(largest: Tensor) -> None:
    if not torch.isfinite(largest):
        raise ArgumentError(f"the largest logit is {float(largest)}, not finite")


def _top_k(logits: Tensor, k: int) -> Tensor:
    """Which k logits are the largest (Fan et al., arXiv 1805.04833); of those equal to the k-th,
    the first ones."""
    return _down_to(logits, logits.topk(k).values[-1], k)


def _top_p(probs: Tensor, mass: float) -> Tensor:
    """The smallest set of largest probabilities that reaches ``mass`` (Holtzman et al., arXiv
    1904.09751); never empty.

    Most laws reach it within few ids, so only as many are put in order as it takes.
    """
    for size in (_FIRST, 8 * _FIRST, len(probs)):
        largest = probs.topk(min(size, len(probs))).values
        sums = largest.double().cumsum(0)
        if sums[-1] >= mass:
            break
    before = sums - largest  # mass of all that rank higher
    count = int((before < mass).sum())  # the first one always: nothing is before it
    return _down_to(probs, largest[count - 1], count)


def _down_to(values: Tensor, border: Tensor, count: int) -> Tensor:
    """Which values are above the border, and of those equal to it the first, ``count`` in all."""
    above, equal = values > border, values == border
    return above | (equal & (equal.cumsum(0) <= count - above.sum()))


class SeededRandom:
    """The production source of randomness: one float64 uniform in [0, 1) per decision."""

    def __init__(self, seed: int) -> None:
        self._generator = random.Random(seed)

    def uniform(self) -> float:
        """The next uniform, a multiple of 2^-53 in [0, 1)."""
        return self._generator.random()

    def bernoulli(self, probability: float) -> bool:
        """True with the given probability. The comparison is strict: probability 0 is never
        accepted, not even by a uniform of exactly 0."""
        return self.uniform() < float(probability)

    def choose(self, probs: Tensor) -> int:
        """An index of ``probs`` (K,), which need not sum to one.

        The inverse of the cumulative sum, in float64, over the indices of probability above
        0, so that no other is ever returned, and greedy and filtered laws cost what they have.
        The first index whose cumulative sum *exceeds* the target value has itself added
        something; rounding up to the whole sum falls back to the last that did.
        """
        weights = np.asarray(probs)
        support = np.flatnonzero(weights != 0)
        cumulative = np.cumsum(weights[support], dtype=np.float64)
        index = int(np.searchsorted(cumulative, self.uniform() * cumulative[-1], side="right"))
        last = int(np.searchsorted(cumulative, cumulative[-1], side="left"))
        return int(support[min(index, last)])
