"""Distributions in exact fractions: ``minispec.sampling`` without rounding.

Logits are weights here, exp(logit), and equality can be proved. What divides a logit is a root of
its weight, and what is added to it is a factor. Knows nothing of cases or of the enumeration of
branches.
"""

import itertools
import math
from collections import Counter
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minispec.errors import ArgumentError
from minispec.logits_processor import History
from minispec.sampling import Sampling
from minispec.types import Distribution, Head

# One for each id: whole numbers of a toy model, or processed weights, None where excluded.
Weights = Tensor | list[Fraction | int | None]


class ExactSampling:
    """``Sampling`` in fractions.

    Logits are read as weights, so temperature 1/n is the n-th power and temperature 0 the
    largest weight. A repetition penalty of 1/n or n is a power or a root, other penalties and
    biases are logarithms of small fractions. Ties are broken as in ``Sampling``. Raises
    ArgumentError for what is not exact in fractions.
    """

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._power = _invert(sampling.temperature, "temperature") if sampling.temperature else 0
        self._biases = {i: _exact_factor(bias) for i, bias in sampling.logit_bias}
        self._frequency = 1 / _exact_factor(sampling.frequency_penalty)
        self._presence = 1 / _exact_factor(sampling.presence_penalty)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sampling, name)

    def distribution(
        self, logits: Tensor, ids: Tensor, history: History | None = None
    ) -> Distribution:
        """Weights (K,), sorted ids (K,) -> the distribution over these ids after ``history``."""
        return self.shape(self.process(logits, ids, history), ids)

    def process(self, logits: Tensor, ids: Tensor, history: History | None) -> Weights:
        """Weights (K,), sorted ids (K,) -> weights after biases, penalties and bad words."""
        if not self._sampling.changes_logits:
            return logits
        weights: dict[int, Any] = {
            i: w * self._biases.get(i, 1) for i, w in zip(ids.tolist(), _read(logits), strict=True)
        }
        if history and self._sampling.needs_history:
            for token in weights.keys() & {*history.tokens}:
                weights[token] = self._penalize_repetition(weights[token])
            for token, count in Counter(history.output).items():
                if token in weights:
                    weights[token] *= self._frequency**count * self._presence
            excluded = self._sampling.find_excluded(ids, history)
            weights |= dict.fromkeys(ids[excluded].tolist())
        return [*weights.values()]

    def _penalize_repetition(self, weight: Any) -> Any:
        """A logit above 0 divided by the penalty, and one below multiplied: a power."""
        penalty = self._sampling.repetition_penalty
        if penalty == 1 or not weight:  # a weight of 0 stands for a logit far below all others
            return weight
        grows = penalty < 1
        order = _invert(penalty, "repetition-penalty") if grows else round(penalty)
        return weight**order if grows == (weight > 1) else _root(weight, order)

    def soften(self, logits: Weights, ids: Tensor) -> Distribution:
        """Weights (K,), ids (K,) -> their distribution at temperature 1, with nothing else: as
        ``Sampling.soften``."""
        return ExactSampling(Sampling(1.0)).shape(logits, ids)

    def shape(self, logits: Weights, ids: Tensor) -> Distribution:
        """Processed weights (K,), sorted ids (K,) -> their distribution."""
        weights = _read(logits)
        if not any(weights):  # equal logits far below all others
            weights = [None if w is None else 1 for w in weights]
        weights = [w or 0 for w in weights]
        ranked = sorted(range(len(weights)), key=lambda i: (-weights[i], i))
        if not self._power:
            weights = [int(i == ranked[0]) for i in range(len(weights))]
        weights = [w ** max(1, self._power) for w in weights]
        if self._sampling.min_p:
            smallest = Fraction(self._sampling.min_p) * weights[ranked[0]]
            weights = [w if w >= smallest else 0 for w in weights]
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

    def target_distributions(
        self, head: Head, hidden: Tensor, history: History | None = None
    ) -> list[Distribution]:
        """Hidden states (T, D) -> T distributions, without tokens of probability zero."""
        vocabulary = torch.arange(head.vocab_size)
        distributions = []
        for row, logits in enumerate(head.logits(hidden)):  # (V,)
            past = history and history.without_last(len(hidden) - 1 - row)
            full = self.distribution(logits, vocabulary, past)
            support = np.flatnonzero(np.asarray(full.probs) > 0)
            distributions.append(Distribution(full.ids[support], full.probs[support]))
        return distributions


def _invert(value: float, name: str) -> int:
    """n for 1/n. Raises ArgumentError for anything else."""
    order = round(1 / value)
    if order * value != 1:
        raise ArgumentError(
            f"{name} {value} is not exact in fractions: use 0 or 1/n, or certify in floating point "
            "with Backend('float64')"
        )
    return order


def _exact_factor(logit: float) -> Fraction:
    """The small fraction whose logarithm a bias or a penalty is. Raises ArgumentError."""
    factor = Fraction(math.exp(logit)).limit_denominator(1000)
    if not math.isclose(factor, math.exp(logit), rel_tol=1e-12):
        raise ArgumentError(
            f"a bias or penalty of {logit} is not exact in fractions: use math.log of a small "
            "fraction, or certify in floating point with Backend('float64')"
        )
    return factor


def _root(weight: Any, order: int) -> Fraction:
    """The root of a weight. Raises ArgumentError if it is not a small fraction."""
    root = Fraction(float(weight) ** (1 / order)).limit_denominator(1000)
    if root**order != weight:
        raise ArgumentError(
            f"the root of order {order} of weight {weight} is not exact in fractions: use a "
            "repetition-penalty of 1/n, or certify in floating point with Backend('float64')"
        )
    return root


def _read(weights: Weights) -> list[Any]:
    """Weights as whole numbers or fractions, None where excluded."""
    return [int(w) for w in weights] if isinstance(weights, Tensor) else weights


def _mask(weights: list[Any], kept: list[int]) -> list[Any]:
    """Weights with 0 at every index that is not kept."""
    return [w if i in kept else 0 for i, w in enumerate(weights)]
