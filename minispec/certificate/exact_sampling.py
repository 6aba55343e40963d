"""Distributions in exact fractions: ``minispec.sampling`` without rounding.

Logits are whole-number weights here, and equality can be proved. Knows nothing of cases or of
the enumeration of branches.
"""

import itertools
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from minispec.errors import ArgumentError
from minispec.sampling import Sampling
from minispec.types import Distribution, Head


class ExactSampling:
    """``Sampling`` in fractions.

    Logits are read as weights, so temperature 1/n is the n-th power and temperature 0 the
    largest weight. Ties are broken as in ``Sampling``. Raises ArgumentError for any other
    temperature.
    """

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._power = round(1 / sampling.temperature) if sampling.temperature else 0
        if sampling.temperature and self._power * sampling.temperature != 1:
            raise ArgumentError(
                f"temperature {sampling.temperature} is not exact in fractions: use 0 or 1/n, or "
                "certify in floating point with Backend('float64')"
            )

    def distribution(self, logits: Tensor, ids: Tensor) -> Distribution:
        """Whole-number weights (K,), sorted ids (K,) -> the distribution over these ids."""
        weights = [int(w) for w in logits]
        weights = weights if any(weights) else [1] * len(weights)
        ranked = sorted(range(len(weights)), key=lambda i: (-weights[i], i))
        if not self._power:
            weights = [int(i == ranked[0]) for i in range(len(weights))]
        weights = [w ** max(1, self._power) for w in weights]
        if self._sampling.top_k:
            weights = _mask(weights, ranked[: self._sampling.top_k])
        before = itertools.accumulate((weights[i] for i in ranked), initial=0)
        mass = Fraction(self._sampling.top_p) * sum(weights)
        if self._sampling.top_p < 1:
            kept = [i for i, w in zip(ranked, before, strict=False) if i == ranked[0] or w < mass]
            weights = _mask(weights, kept)
        total = sum(weights)
        probs = np.array([Fraction(w, total) for w in weights], dtype=object)  # (K,)
        return Distribution(ids.numpy(), probs)

    def target_distributions(self, head: Head, hidden: Tensor) -> list[Distribution]:
        """Hidden states (T, D) -> T distributions, without tokens of probability zero."""
        vocabulary = torch.arange(head.vocab_size)
        distributions = []
        for logits in head.logits(hidden):  # (V,)
            full = self.distribution(logits, vocabulary)
            support = np.flatnonzero(np.asarray(full.probs) > 0)
            distributions.append(Distribution(full.ids[support], full.probs[support]))
        return distributions


def _mask(weights: list[int], kept: list[int]) -> list[int]:
    """Weights with 0 at every index that is not kept."""
    return [w if i in kept else 0 for i, w in enumerate(weights)]
