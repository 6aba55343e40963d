"""Planted defects of properties 1 to 6: zero probabilities, recorded distributions, verifiers."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from helpers.exactness import round_checks
from helpers.exactness.planting import keep_possible, patch_attribute, plant, worst_tv
from helpers.exactness.shortlists import build_frspec
from minispec import growth
from minispec import verify as verification
from minispec.certificate.decodings import ToyModels, decode_with
from minispec.certificate.toys import ChangingShortlist
from minispec.growth import Candidate, TreeShape
from minispec.propose import Drafter
from minispec.sampling import SeededRandom
from minispec.shortlists.full import FullShortlist
from minispec.types import Distribution, Proposal, RandomSource, Round
from minispec.verify import (
    Verdict,
    acceptance_probability,
    positive_part,
    verify,
    verify_block,
)

# --- 1: a residual of zero mass -------------------------------------------------------------


def patch_zero_mass(fallback: Callable[[Distribution, Any], Any]) -> Any:
    """A residual with another result if it has no mass."""

    def residual(p: Distribution, q: Distribution, weight: Any = 1) -> Distribution:
        remaining = positive_part(p, q, weight)
        mass = remaining.sum()
        return Distribution(p.ids, remaining / mass if mass > 0 else fallback(p, remaining))

    return patch_attribute(verification, "residual", residual)


@plant(1, "the residual is divided by a mass of zero", "transformers")
def _() -> Any:
    with patch_zero_mass(lambda p, remaining: remaining / remaining.sum()):
        return round_checks.check_zero_mass_residual(verify, [1, 2, 3], [0, 0, 0])


@plant(1, "a residual of zero mass becomes id 0", "vLLM")
def _() -> Any:
    with patch_zero_mass(lambda p, remaining: (p.ids == 0) * 1.0):
        return round_checks.check_zero_mass_residual(verify, [0, 2, 3], [0, 0, 0])


@plant(1, "a residual of zero mass becomes the last id", "SGLang")
def _() -> Any:
    with patch_zero_mass(lambda p, remaining: (p.ids == len(p.ids) - 1) * 1.0):
        return round_checks.check_zero_mass_residual(verify, [2, 3, 0], [0, 0, 0])


@plant(1, "entries of a residual below 1e-9 are dropped")
def _() -> Any:
    tiny = Fraction(1, 10**12)
    p = Distribution(np.arange(3), np.array([1 - 3 * tiny, 2 * tiny, tiny], dtype=object))
    q = Distribution(np.arange(1), np.array([Fraction(1)], dtype=object))
    expected = verification.residual(p, q).probs
    right = verification.positive_part

    def drop_small(p: Distribution, q: Distribution, weight: Any = 1) -> Any:
        remaining = right(p, q, weight)
        return remaining * (remaining > 1e-9)

    with patch_attribute(verification, "positive_part", drop_small):
        return abs(verification.residual(p, q).probs - expected).sum() / 2


# --- 2: probability 0 on a drafted id -------------------------------------------------------


class LaxSource(SeededRandom):
    def bernoulli(self, probability: float) -> bool:
        return self.uniform() <= float(probability)


@plant(2, "a token is accepted where u <= p/q", "gpt-fast")
def _() -> Any:
    round_checks.check_excluded_tokens(verify, [0, 1], [1, 0], LaxSource)
    return 0


# --- 3: q is the distribution drawn from ----------------------------------------------------


@plant(3, "the columns of q are in another order than its ids", "transformers")
def _() -> Any:
    def misread(
        proposal: Proposal, distributions: Sequence[Distribution], rng: RandomSource
    ) -> Verdict:
        rotated = [
            Distribution(q.ids, q.probs[[*range(1, len(q.ids)), 0]])
            for q in proposal.draft_distributions
        ]
        possible = keep_possible(proposal, rotated)
        return verify(possible, distributions[: len(possible) + 1], rng)

    return worst_tv(decode_with(ChangingShortlist, misread))


@plant(3, "the recorded distributions share one buffer")
def _() -> Any:
    class OneBuffer:
        def __init__(self, models: ToyModels) -> None:
            self._sampling, self._recorded = models.sampling, list[Distribution]()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._sampling, name)

        def shape(self, logits: torch.Tensor, ids: torch.Tensor) -> Distribution:
            distribution: Distribution = self._sampling.shape(logits, ids)
            for recorded in self._recorded:
                recorded.probs[: len(ids)] = distribution.probs[: len(recorded.probs)]
            self._recorded.append(distribution)
            return distribution

    def decode(models: ToyModels, source: RandomSource) -> Iterable[Round]:
        return decode_with(build_frspec)(replace(models, sampling=OneBuffer(models)), source)

    return worst_tv(decode)


@plant(3, "the acceptance probability is scaled by 0.9")
def _() -> Any:
    right = verification.acceptance_probability

    def scale_acceptance(p: Distribution, q: Distribution, token: int, weight: Any = 1) -> Any:
        return right(p, q, token, weight) * Fraction(9, 10)

    with patch_attribute(verification, "acceptance_probability", scale_acceptance):
        return worst_tv(decode_with(build_frspec))


@plant(3, "the residual is the target distribution itself")
def _() -> Any:
    with patch_attribute(verification, "residual", lambda p, q, weight=1: p):
        return worst_tv(decode_with(build_frspec))


# --- 4: deterministic candidates are point masses -------------------------------------------


@plant(4, "candidates picked by argmax are verified with their softmax", "transformers, Gemma-4")
def _() -> Any:
    right = growth.pick_candidates

    def pick_soft(confidence: Distribution, count: int) -> list[Candidate]:
        return [replace(c, distribution=confidence) for c in right(confidence, count)]

    with patch_attribute(growth, "pick_candidates", pick_soft):
        return worst_tv(decode_with(build_frspec, tree=TreeShape(1, 2, 2)))


@plant(4, "a chain drafted by argmax is verified with its softmax", "transformers, Gemma-4")
def _() -> Any:
    right = Drafter.propose

    class Argmax:
        def choose(self, probs: Any) -> int:
            return max(range(len(probs)), key=lambda i: (probs[i], -i))

    def greedy(self: Drafter, tokens: Any, gamma: int, sampling: Any, rng: Any, watch: Any):  # type: ignore[no-untyped-def]
        return right(self, tokens, gamma, sampling, Argmax(), watch)  # type: ignore[arg-type]

    with patch_attribute(Drafter, "propose", greedy):
        return worst_tv(decode_with(FullShortlist))


# --- 5: the shortlist changes at every step -------------------------------------------------


@plant(5, "the ids of the first step are recorded for every step")
def _() -> Any:
    class Sliding(ChangingShortlist):
        """Two ids, and the next two at the next step."""

        def select(self, context: Any) -> torch.Tensor:
            size = self._vocab_size
            return torch.tensor(sorted({(context.depth + i) % size for i in range(2)}))

    def reuse_first_ids(
        proposal: Proposal, distributions: Sequence[Distribution], rng: RandomSource
    ) -> Verdict:
        recorded = [
            Distribution(proposal.draft_distributions[0].ids, q.probs)
            for q in proposal.draft_distributions
        ]
        possible = keep_possible(proposal, recorded)
        return verify(possible, distributions[: len(possible) + 1], rng)

    return worst_tv(decode_with(Sliding, reuse_first_ids))


@plant(5, "a block's residual ignores the weight w of the accepted prefix")
def _() -> Any:
    right = verification.residual
    with patch_attribute(verification, "residual", lambda p, q, weight=1: right(p, q)):
        return worst_tv(decode_with(FullShortlist, verify_block))


@plant(5, "a block's coin uses q of the last accepted position instead of the next")
def _() -> Any:
    class Shifted:
        """The coins of verify_block for a chain, each with q of the position before."""

        def __init__(
            self, proposal: Proposal, p: Sequence[Distribution], rng: RandomSource
        ) -> None:
            self._proposal, self._p, self._rng = proposal, p, rng
            self._kept, self.choose = len(proposal), rng.choose
            self._weights: list[Any] = [1]
            for pair in zip(p[:-1], proposal.draft_distributions, proposal.tokens, strict=True):
                self._weights.append(acceptance_probability(*pair, self._weights[-1]))

        def bernoulli(self, probability: Any) -> bool:
            kept, self._kept = self._kept, self._kept - 1
            if kept < len(self._proposal):
                q = self._proposal.draft_distributions[kept - 1]
                mass = positive_part(self._p[kept], q, self._weights[kept]).sum()
                probability = mass / (mass + 1 - self._weights[kept]) if mass > 0 else 0
            return self._rng.bernoulli(probability)

    def previous(
        proposal: Proposal, distributions: Sequence[Distribution], rng: RandomSource
    ) -> Verdict:
        return verify_block(proposal, distributions, Shifted(proposal, distributions, rng))

    return worst_tv(decode_with(ChangingShortlist, previous))


@plant(6, "q is recomputed by the draft after it has changed")
def _() -> Any:
    return worst_tv(round_checks.change_draft(verify, recompute=True))
