"""From logits to distributions, and from distributions to tokens.

``Sampling`` turns logits into the distribution that decoding follows (biases, penalties and bad
words; then temperature, min-p, top-k, top-p). Greedy decoding is the distribution at temperature 0:
one-hot on the argmax, ties to the lowest id, so that one verifier serves every temperature.
``SeededRandom`` makes the random decisions with one float64 uniform each, in a fixed order: one
seed fixes a run.

Knows nothing of models, shortlists or speculation.
"""

import math
import random
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minispec.checks import convert_fields, to_int, to_real
from minispec.errors import ArgumentError
from minispec.logits_processor import History, LogitsProcessor
from minispec.types import Distribution, Head

_FIRST_SORTED = 1024  # ids sorted at first: a top-p of 0.95 takes a few hundred at most


@dataclass(frozen=True, repr=False)
class Sampling(LogitsProcessor):
    """How logits become a distribution, at every position alike.

    After the changes of a ``LogitsProcessor`` they are divided by ``temperature``; 0 is greedy.
    ``min_p`` keeps the ids at least that times as likely as the likeliest, 0 keeps all; ``top_k``
    keeps the k most likely ids of these, 0 keeps all; ``top_p`` keeps the smallest set of most
    likely ids whose mass reaches it, after both. This is vLLM's order; transformers applies min-p
    last. Ties go to the lower ids everywhere. Raises ArgumentError on construction.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        convert_fields(self, temperature=to_real, top_k=to_int, top_p=to_real, min_p=to_real)
        super().__post_init__()
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ArgumentError(f"temperature {self.temperature} must be 0 (greedy) or above")
        if self.top_k < 0:
            raise ArgumentError(f"top-k {self.top_k} must be 0 (all ids) or above")
        if not 0 < self.top_p <= 1:
            raise ArgumentError(f"top-p {self.top_p} must lie in (0, 1]; 1 keeps all ids")
        if not 0 <= self.min_p <= 1:
            raise ArgumentError(f"min-p {self.min_p} must lie in [0, 1]; 0 keeps all ids")

    def __repr__(self) -> str:
        """The temperature, and the settings that differ from their defaults."""
        shown = {"temperature": self.temperature} | self._list_changed()
        return f"Sampling({', '.join(f'{name}={value}' for name, value in shown.items())})"

    def __str__(self) -> str:
        """For people: "temperature 0.8, top-k 40"."""
        parts = [f"temperature {self.temperature:g}"]
        for name, value in self._list_changed().items():
            if name == "logit_bias":
                parts.append(f"logit-bias of {len(value)} ids")
            elif name == "bad_words":
                parts.append(f"{len(value)} bad words")
            elif name != "temperature":
                parts.append(f"{name.replace('_', '-')} {value:g}")
        return ", ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """Temperature, top-k and top-p, and what else differs from its default:
        ``Sampling(**sampling.to_json())`` is equal to ``sampling``."""
        shown = {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
        return shown | self._list_changed()

    def _list_changed(self) -> dict[str, Any]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {f.name: values[f.name] for f in fields(self) if values[f.name] != f.default}

    def distribution(
        self, logits: Tensor, ids: Tensor, history: History | None = None
    ) -> Distribution:
        """logits (K,), ids (K,) sorted -> the distribution over exactly these ids at the position
        after ``history``, which penalties and bad words need.

        Excluded ids have probability exactly 0. Computed in float32, or in float64 for float64
        logits, whatever dtype the model ran in. Raises ArgumentError if the largest logit is not
        finite, as ``LogitsProcessor.process``.
        """
        return self.shape(self.process(logits, ids, history), ids)

    def process(self, logits: Tensor, ids: Tensor, history: History | None) -> Tensor:
        """logits (K,), ids (K,) -> logits (K,) changed as ``LogitsProcessor`` does, in float32 or
        better; the same tensor if nothing is to be changed."""
        if not self.changes_logits:
            return logits
        return super().process(_upcast(logits), ids, history)

    def shape(self, logits: Tensor, ids: Tensor) -> Distribution:
        """Processed logits (K,), ids (K,) sorted -> their distribution, by temperature, min-p,
        top-k and top-p. Otherwise as ``distribution``."""
        logits = _upcast(logits)
        # The first of equal maxima is the lowest id; numpy's argmax is six times faster here.
        best = int(logits.numpy().argmax())
        _check_finite(logits[best])
        if self.temperature == 0:
            probs = torch.zeros_like(logits)
            probs[best] = 1
            return Distribution(ids, probs)
        # Subtracting the maximum first keeps a tiny temperature from overflowing. If the dtype
        # would round the temperature to 0, tiny takes over: the maximum stays 0, the rest vanish.
        tiny = torch.finfo(logits.dtype).tiny
        logits = (logits - logits[best]) / max(self.temperature, tiny)  # (K,)
        if self.min_p:
            logits = torch.where(logits >= math.log(self.min_p), logits, -math.inf)
        if 0 < self.top_k < len(ids):
            logits = torch.where(_mask_top_k(logits, self.top_k), logits, -math.inf)
        probs = torch.softmax(logits, dim=-1)  # (K,)
        if self.top_p < 1:
            probs = torch.where(_mask_top_p(probs, self.top_p), probs, 0)
            probs = probs / probs.sum()
        return Distribution(ids, probs)

    def soften(self, logits: Tensor, ids: Tensor) -> Distribution:
        """Processed logits (K,), ids (K,) sorted -> their softmax at temperature 1: how sure greedy
        decoding is of each id. Otherwise as ``distribution``."""
        return _SOFTMAX.shape(logits, ids)

    def target_distribution(self, logits: Tensor, history: History | None = None) -> Distribution:
        """logits (V,) of all ids -> the distribution over the ids of probability above 0. Raises
        as ``distribution``, and ArgumentError for a bias or a bad word outside the vocabulary."""
        self.check_vocabulary(len(logits))
        distribution = self.distribution(logits, torch.arange(len(logits)), history)
        support = np.flatnonzero(distribution.probs != 0)
        if len(support) == len(distribution.ids):
            return distribution
        return Distribution(distribution.ids[support], distribution.probs[support])

    def target_distributions(
        self, head: Head, hidden: Tensor, history: History | None = None
    ) -> list[Distribution]:
        """The ``target_distribution`` of each of T hidden states (T, D), of successive positions;
        ``history`` is that of the last. Greedy decoding without changes of logits needs the
        largest logits only. Raises as ``target_distribution``."""
        if self.temperature == 0 and not self.changes_logits:
            ids, logits = head.argmax(hidden)  # (T,), (T,)
            return [_one_hot(ids[t : t + 1], logits[t : t + 1]) for t in range(len(ids))]
        histories = [history] * len(hidden)
        if history and self.needs_history:
            histories = [history.without_last(n) for n in reversed(range(len(hidden)))]
        rows = head.logits(hidden)  # (T, V)
        return [self.target_distribution(*row) for row in zip(rows, histories, strict=True)]


_SOFTMAX = Sampling(1.0)


def _one_hot(token: Tensor, logit: Tensor) -> Distribution:
    """The greedy distribution: one entry, token (1,), whose logit (1,) is the largest."""
    _check_finite(logit)
    return Distribution(token.cpu(), torch.ones_like(_upcast(logit)))


def _upcast(logits: Tensor) -> Tensor:
    """In float32 or better and on the CPU, where all distributions are."""
    return logits.cpu() if logits.dtype == torch.float64 else logits.cpu().float()


def _check_finite(largest: Tensor) -> None:
    if not torch.isfinite(largest):
        raise ArgumentError(f"the largest logit is {float(largest)}, not finite")


def _mask_top_k(logits: Tensor, k: int) -> Tensor:
    """True for the k largest logits (Fan et al., arXiv 1805.04833); of those equal to the k-th
    largest, the first ones. (K,) bool."""
    return _mask_largest(logits, logits.topk(k).values[-1], k)


def _mask_top_p(probs: Tensor, mass: float) -> Tensor:
    """True for the smallest set of largest probabilities that reaches ``mass`` (Holtzman et al.,
    arXiv 1904.09751); never empty. (K,) bool.

    Most distributions reach it within few ids, so only as many are sorted as it takes.
    """
    for size in (_FIRST_SORTED, 8 * _FIRST_SORTED, len(probs)):
        largest = probs.topk(min(size, len(probs))).values  # (size,)
        sums = largest.double().cumsum(0)
        if sums[-1] >= mass:
            break
    before = sums - largest  # mass of all ids that rank higher
    count = int((before < mass).sum())  # always includes the first: no mass is before it
    return _mask_largest(probs, largest[count - 1], count)


def _mask_largest(values: Tensor, smallest: Tensor, count: int) -> Tensor:
    """True for the ``count`` largest values (K,), given the smallest of them; of those equal to
    it, the first ones. (K,) bool."""
    above, equal = values > smallest, values == smallest
    return above | (equal & (equal.cumsum(0) <= count - above.sum()))


class SeededRandom:
    """The production random source: one float64 uniform in [0, 1) per decision."""

    def __init__(self, seed: int) -> None:
        self._generator = random.Random(to_int(seed, "seed"))

    def uniform(self) -> float:
        """The next uniform, a multiple of 2^-53 in [0, 1)."""
        return self._generator.random()

    def bernoulli(self, probability: float) -> bool:
        """True with the given probability. The comparison is strict, so probability 0 is never
        accepted, not even at a uniform of exactly 0."""
        return self.uniform() < float(probability)

    def choose(self, probs: Tensor) -> int:
        """An index drawn from ``probs`` (K,), which need not sum to one.

        Inverse transform sampling in float64 over the indices of probability above 0: no other
        index is ever returned, and one-hot or filtered distributions cost only their support.
        The first index whose cumulative sum *exceeds* the uniform times the total has itself
        added mass. If rounding reaches the total, the last index that added mass is returned.
        """
        weights = np.asarray(probs)
        support = np.flatnonzero(weights != 0)
        cumulative = np.cumsum(weights[support], dtype=np.float64)
        index = np.searchsorted(cumulative, self.uniform() * cumulative[-1], side="right")
        last = np.searchsorted(cumulative, cumulative[-1], side="left")
        return int(support[min(index, last)])
