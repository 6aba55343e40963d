"""Verifiers with the mistakes that are made most often: ``certify`` must refuse and name each.

Each is token-level verification with one rule replaced.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from helpers.exactness.planting import restrict_residual
from minispec.types import Distribution, Proposal, RandomSource
from minispec.verify import Verdict, Verifier, acceptance_probability, positive_part, residual

Accept = Callable[[Distribution, Distribution, int], Any]
Replace = Callable[[Distribution, Distribution, int], Distribution]
Bonus = Callable[[Proposal, Sequence[Distribution]], Distribution]


def build_verifier(
    accept: Accept = acceptance_probability,
    replace: Replace = lambda p, q, x: residual(p, q),
    bonus: Bonus = lambda proposal, distributions: distributions[-1],
) -> Verifier:
    """Token-level verification with another acceptance, residual or bonus distribution."""

    def verify(
        proposal: Proposal, distributions: Sequence[Distribution], rng: RandomSource
    ) -> Verdict:
        acceptance = []
        pairs = zip(proposal.tokens, distributions, proposal.draft_distributions, strict=False)
        for i, (x, p, q) in enumerate(pairs):
            acceptance.append(accept(p, q, x))
            if not rng.bernoulli(acceptance[-1]):
                return draw(i, replace(p, q, x), acceptance, rng)
        return draw(len(proposal), bonus(proposal, distributions), acceptance, rng)

    return verify


def draw(kept: int, distribution: Distribution, acceptance: Any, rng: RandomSource) -> Verdict:
    token = int(distribution.ids[rng.choose(distribution.probs)])
    return Verdict(tuple(range(kept)), token, distribution, tuple(acceptance))


def normalise(p: Distribution, probs: Any) -> Distribution:
    """``probs`` over the ids of p, normalised; p itself if they sum to 0."""
    return Distribution(p.ids, probs / probs.sum()) if probs.sum() > 0 else p


def subtract_at_token(p: Distribution, q: Distribution, x: int) -> Distribution:
    """q is subtracted at the rejected token alone."""
    probs = p.probs * 1
    probs[np.asarray(p.ids) == x] -= q.probability(x)
    return normalise(p, probs * (probs > 0))


def drop_token(p: Distribution, q: Distribution, x: int) -> Distribution:
    """The residual of a point mass on x, though x was drawn from a soft q."""
    return normalise(p, p.probs * (np.asarray(p.ids) != x))


def take_absolute(p: Distribution, q: Distribution, x: int) -> Distribution:
    difference = p.probs * 1
    in_p, in_q = p.common_indices(q)
    difference[in_p] = difference[in_p] - q.probs[in_q]
    return normalise(p, abs(difference))


def divide_by_rejected_mass(p: Distribution, q: Distribution, x: int) -> Distribution:
    """The positive part divided by 1 - q(x), which is not its sum."""
    positive = positive_part(p, q)
    mass = 1 - q.probability(x)
    return Distribution(p.ids, positive / mass) if mass > 0 and positive.sum() > 0 else p


def draw_bonus_from_q(proposal: Proposal, distributions: Sequence[Distribution]) -> Distribution:
    return proposal.draft_distributions[-1] if proposal else distributions[-1]


def draw_bonus_one_early(proposal: Proposal, distributions: Sequence[Distribution]) -> Distribution:
    return distributions[-2] if proposal else distributions[-1]


def toss(library: str) -> Verifier:
    """Accepts by a global random generator instead of ``rng``."""

    def uniform() -> float:
        if library == "torch":
            return float(torch.rand(()))
        return float(np.random.random()) if library == "numpy" else random.random()

    return toss_with(uniform)


def toss_with(uniform: Callable[[], float]) -> Verifier:
    """Accepts by uniforms that do not come from ``rng``."""

    def verify(
        proposal: Proposal, distributions: Sequence[Distribution], rng: RandomSource
    ) -> Verdict:
        pairs = zip(proposal.tokens, distributions, proposal.draft_distributions, strict=False)
        for i, (x, p, q) in enumerate(pairs):
            if uniform() >= acceptance_probability(p, q, x):
                return draw(i, residual(p, q), (), rng)
        return draw(len(proposal), distributions[-1], (), rng)

    return verify


def edit_in_place(p: Distribution, q: Distribution, x: int) -> Distribution:
    """The right residual, computed in the memory of p."""
    right = residual(p, q)
    p.probs[:] = right.probs
    return right


def build_counting_verifier() -> Verifier:
    """Accepts without a test in every seventh call: state between calls."""
    calls = [0]

    def accept(p: Distribution, q: Distribution, x: int) -> Any:
        calls[0] += 1
        return 1 if calls[0] % 7 == 0 else acceptance_probability(p, q, x)

    return build_verifier(accept)


# A mistake, the verifier that makes it, and what the certificate must say.
MISTAKES: dict[str, tuple[Verifier, str]] = {
    "tokens outside the shortlist are never given back": (
        build_verifier(replace=lambda p, q, x: restrict_residual(p, q)),
        "never a token outside the shortlist, such as",
    ),
    "the residual is p": (build_verifier(replace=lambda p, q, x: p), "agree with p itself"),
    "the residual is q": (build_verifier(replace=lambda p, q, x: q), "agree with q itself"),
    "the residual is not normalised": (
        build_verifier(replace=lambda p, q, x: Distribution(p.ids, positive_part(p, q))),
        "rng.choose was given probabilities that sum to",
    ),
    "the residual is normalised by another mass": (
        build_verifier(replace=divide_by_rejected_mass),
        "rng.choose was given probabilities that sum to",
    ),
    "the residual is |p - q|": (build_verifier(replace=take_absolute), "agree with |p - q|"),
    "q is subtracted at the rejected token alone": (
        build_verifier(replace=subtract_at_token), "p less q at the rejected token alone",
    ),
    "the residual of a point mass, after a draw from a soft q": (
        build_verifier(replace=drop_token), "p without the rejected token",
    ),
    "q / p instead of p / q": (
        build_verifier(lambda p, q, x: min(1, q.probability(x) / (p.probability(x) or 1))),
        "agree with min(1, q(x) / p(x))",
    ),
    "p / q is not clipped": (
        build_verifier(lambda p, q, x: p.probability(x) / q.probability(x)),
        "rng.bernoulli was given probability",
    ),
    "p / q is clipped at one half": (
        build_verifier(lambda p, q, x: min(acceptance_probability(p, q, x), q.probs[0] * 0 + 0.5)),
        "is accepted with probability 0.5; min(1, p(x) / q(x)) is",
    ),
    "every token is accepted": (build_verifier(lambda p, q, x: 1), "probability 1"),
    "the bonus token is drawn from q": (
        build_verifier(bonus=draw_bonus_from_q), "agree with q at the last drafted token",
    ),
    "the bonus token is drawn from p one position early": (
        build_verifier(bonus=draw_bonus_one_early), "agree with p one position earlier",
    ),
    "torch's global generator": (toss("torch"), "the global random numbers of torch: draw from"),
    "numpy's global generator": (toss("numpy"), "the global random numbers of numpy: draw from"),
    "Python's global generator": (toss("Python"), "global random numbers of Python: draw from"),
    "a generator of its own": (
        toss_with(random.Random(3).random), "it keeps state, or draws random numbers of its own",
    ),
    "state between calls": (
        build_counting_verifier(), "keeps state between runs, or uses random numbers of its own",
    ),
    "p is edited in place": (
        build_verifier(replace=edit_in_place), "edits the probabilities that it was given",
    ),
    "the next token is a numpy integer": (
        lambda proposal, distributions, rng: Verdict(
            (), distributions[0].ids[rng.choose(distributions[0].probs)], distributions[0], ()
        ),
        "a Verdict has a int64 in next_token, expected an int",
    ),
    "a tuple instead of a Verdict": (
        lambda proposal, distributions, rng: ((), 0),  # type: ignore[dict-item, return-value]
        "a verifier returned a tuple, expected a Verdict",
    ),
    "an operation of torch": (
        build_verifier(replace=lambda p, q, x: normalise(p, torch.clamp(p.probs - 1, min=0))),
        "use operators, indexing and sums, or certify with arithmetic='float64'",
    ),
    "a method of tensors": (
        build_verifier(replace=lambda p, q, x: normalise(p, p.probs.clamp(min=0))),
        "use operators, indexing and sums, or certify with arithmetic='float64'",
    ),
}  # fmt: skip
