"""Laws in fractions: what ``minispec.sampling`` does to logits, done to whole numbers without
rounding, so that equality can be proved. Knows nothing of cases and of walks."""

import itertools
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from minispec.errors import ArgumentError
from minispec.sampling import Sampling
from minispec.types import Distribution, Head


class ExactSampling:
    """``Sampling`` in fractions: logits are read as weights, so that a temperature of 1/n is
    the n-th power. The rules for ties are the same. Raises ArgumentError for other ones."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._power = round(1 / sampling.temperature) if sampling.temperature else 0
        if sampling.temperature and self._power * sampling.temperature != 1:
            raise ArgumentError(
                f"temperature {sampling.temperature} has no exact powers: in fractions it must be "
                "0 or 1/n; use Backend('float64') for others"
            )

    def distribution(self, logits: Tensor, ids: Tensor) -> Distribution:
        """Whole-number weights (K,), ids (K,) sorted -> the law over just those ids."""
        weights = [int(w) for w in logits]
        weights = weights if any(weights) else [1] * len(weights)
        ranked = sorted(range(len(weights)), key=lambda i: (-weights[i], i))
        if not self._power:
            weights = [int(i == ranked[0]) for i in range(len(weights))]
        weights = [w ** max(1, self._power) for w in weights]
        if self._sampling.top_k:
            weights = _only(weights, ranked[: self._sampling.top_k])
        before = itertools.accumulate((weights[i] for i in ranked), initial=0)
        mass = Fraction(self._sampling.top_p) * sum(weights)
        if self._sampling.top_p < 1:
            kept = [i for i, w in zip(ranked, before, strict=False) if i == ranked[0] or w < mass]
            weights = _only(weights, kept)
        total = sum(weights)
        return Distribution(
            ids.numpy(), np.array([Fraction(w, total) for w in weights], dtype=object)
        )

    def target_distributions(self, head: Head, hidden: Tensor) -> list[Distribution]:
        """The law of each of several states (T, D) over the ids that it gives anything."""
        vocabulary = torch.arange(head.vocab_size)
        distributions = [self.distribution(row, vocabulary) for row in head.logits(hidden)]
        support = [
            np.flatnonzero(np.asarray(distribution.probs) > 0) for distribution in distributions
        ]
        return [
            Distribution(distribution.ids[kept], distribution.probs[kept])
            for distribution, kept in zip(distributions, support, strict=True)
        ]


def _only(weights: list[int], kept: list[int]) -> list[int]:
    return [w if i in kept else 0 for i, w in enumerate(weights)]
