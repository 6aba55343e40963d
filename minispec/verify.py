"""Verification: what makes speculative decoding exact.

A drafted token x ~ q is accepted with probability min(1, p(x) / q(x)); after a rejection the
next token is drawn from the *residual*, the normalised positive part of p - q (Leviathan et
al., arXiv 2211.17192; Chen et al., arXiv 2302.01318). Together:

    P(x) = q(x) min(1, p(x)/q(x)) + P(reject) * (p(x) - q(x))+ / sum_y (p(y) - q(y))+
         = min(p(x), q(x))        + (p(x) - q(x))+
         = p(x),

since P(reject) = 1 - sum_y min(p(y), q(y)) = sum_y (p(y) - q(y))+. Nothing is asked of q: it
may be zero on most of the vocabulary (a shortlist), and may have come about in any way that
does not look at x itself, at later draws or at the randomness spent here.

The arithmetic uses only operators, indexing and sums, so that the same lines run on tensors
and, for a proof, on arrays of fractions. Knows no model.
"""

from collections.abc import Sequence
from typing import Any

from minispec.errors import ArgumentError
from minispec.types import Law, Proposal, RandomSource, Verdict


def verify(proposal: Proposal, target_laws: Sequence[Law], random: RandomSource) -> Verdict:
    """Decides about a chain, token by token.

    ``target_laws``: the target's full laws at the place of each drafted token and at the one
    after the last, len(proposal) + 1 in all. Spends one coin for each token examined and one
    choice. Raises ArgumentError if the numbers do not match, or if a recorded law excludes the
    token that is said to be drawn from it.
    """
    if len(target_laws) != len(proposal) + 1:
        raise ArgumentError(
            f"{len(proposal)} drafted tokens need {len(proposal) + 1} target laws, "
            f"got {len(target_laws)}"
        )
    acceptance = []
    for node, (token, q) in enumerate(zip(proposal.tokens, proposal.laws, strict=True)):
        p = target_laws[node]
        acceptance.append(acceptance_probability(p, q, token))
        if not random.bernoulli(acceptance[-1]):
            return _verdict(node, residual(p, q), acceptance, random)
    return _verdict(len(proposal), target_laws[-1], acceptance, random)


def acceptance_probability(p: Law, q: Law, token: int) -> Any:
    """min(1, p(x) / q(x)) for x drawn from q; its mean over q is sum_x min(p(x), q(x))."""
    proposed = q.probability(token)
    if not proposed > 0:
        raise ArgumentError(f"token {token} has probability 0 in the law it is said to come from")
    return min(1, p.probability(token) / proposed)


def residual(p: Law, q: Law) -> Law:
    """The law of the next token after a rejection: (p - q)+ / sum (p - q)+.

    ``p`` is a full law, so that an id is its own index; ``q`` may know only some ids, which
    are unique. Where p = q nothing is left; the rejection had probability 0 then, and can
    only be due to rounding, which p itself answers exactly.
    """
    excess = p.probs + 0  # (V,), a copy for tensors and arrays alike
    excess[q.ids] = excess[q.ids] - q.probs
    excess = excess * (excess > 0)
    mass = excess.sum()
    return Law(p.ids, excess / mass) if mass > 0 else p


def _verdict(accepted: int, law: Law, acceptance: list[Any], random: RandomSource) -> Verdict:
    token = int(law.ids[random.choose(law.probs)])
    return Verdict(tuple(range(accepted)), token, law, tuple(acceptance))
