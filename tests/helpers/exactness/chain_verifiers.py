"""Verification of chains alone, as its papers write it: what ``minispec.verify`` must do for trees
without branches.
"""

from collections.abc import Sequence
from typing import Any

from minispec.types import Distribution, Proposal, RandomSource
from minispec.verify import Verdict, acceptance_probability, positive_part, residual


def verify_chain(
    chain: Proposal, target_distributions: Sequence[Distribution], rng: RandomSource
) -> Verdict:
    """Leviathan et al., arXiv 2211.17192, Algorithm 1."""
    acceptance: list[Any] = []
    for i, (token, q) in enumerate(zip(chain.tokens, chain.draft_distributions, strict=True)):
        p = target_distributions[i]
        acceptance.append(acceptance_probability(p, q, token))
        if not rng.bernoulli(acceptance[-1]):
            return _draw_next(i, residual(p, q), acceptance, rng)
    return _draw_next(len(chain), target_distributions[-1], acceptance, rng)


def verify_chain_as_block(
    chain: Proposal, target_distributions: Sequence[Distribution], rng: RandomSource
) -> Verdict:
    """Sun et al., arXiv 2403.10444, Algorithm 2."""
    weights: list[Any] = [1]
    for token, p, q in zip(
        chain.tokens, target_distributions[:-1], chain.draft_distributions, strict=True
    ):
        weights.append(acceptance_probability(p, q, token, weights[-1]))
    kept = len(chain)
    while kept > 0:
        probability = weights[kept]
        if kept < len(chain):
            q = chain.draft_distributions[kept]
            mass = positive_part(target_distributions[kept], q, weights[kept]).sum()
            probability = mass / (mass + (1 - weights[kept])) if mass > 0 else 0
        if rng.bernoulli(probability):
            break
        kept -= 1
    distribution = target_distributions[-1]
    if kept < len(chain):
        q = chain.draft_distributions[kept]
        distribution = residual(target_distributions[kept], q, weights[kept])
    return _draw_next(kept, distribution, weights[1:], rng)


def _draw_next(
    kept: int, distribution: Distribution, acceptance: Sequence[Any], rng: RandomSource
) -> Verdict:
    token = int(distribution.ids[rng.choose(distribution.probs)])
    return Verdict(tuple(range(kept)), token, distribution, tuple(acceptance))
