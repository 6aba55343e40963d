"""Verification: what makes speculative decoding exact.

**Token by token** (Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318): a
drafted token x ~ q is accepted with probability min(1, p(x) / q(x)); after a rejection the next
token is drawn from the *residual*, the normalised positive part of p - q. Together:

    P(x) = q(x) min(1, p(x)/q(x)) + P(reject) * (p(x) - q(x))+ / sum_y (p(y) - q(y))+
         = min(p(x), q(x))        + (p(x) - q(x))+
         = p(x),

since P(reject) = 1 - sum_y min(p(y), q(y)) = sum_y (p(y) - q(y))+. Nothing is asked of q: it
may be zero on most of the vocabulary (a shortlist), and may have come about in any way that
does not look at x itself, at later draws or at the randomness spent here.

**As a block** (Sun et al., arXiv 2403.10444, Algorithm 2): a chain is judged from its end. With

    w_0 = 1,    w_i = min(1, w_(i-1) p(x_i) / q(x_i)),    R_i = sum_y (w_i p(y) - q(y))+,

p and q those after x_1..x_i, the longest prefix whose own coin falls is accepted; the coin of
the whole chain has probability w_n, that of i < n tokens R_i / (R_i + 1 - w_i), and the next
token comes from the normalised (w_i p - q)+. This keeps at least i tokens with probability w_i,
which the token-level product of min(1, p/q) never exceeds; docs/exactness.md has the proof.

The arithmetic uses only operators, indexing and sums, so that the same lines run on tensors
and, for a proof, on arrays of fractions. Knows no model.
"""

from collections.abc import Callable, Sequence
from typing import Any

from minispec.errors import ArgumentError
from minispec.types import Distribution, Proposal, RandomSource, Verdict

Verifier = Callable[[Proposal, Sequence[Distribution], RandomSource], Verdict]


def verify(
    proposal: Proposal, target_distributions: Sequence[Distribution], rng: RandomSource
) -> Verdict:
    """Decides about a chain, token by token.

    ``target_distributions``: the target's laws at the place of each drafted token and at the one after
    the last, len(proposal) + 1 in all. Spends one coin for each token examined and one
    choice. Raises ArgumentError if the numbers do not match, or if a recorded law excludes the
    token that is said to be drawn from it.
    """
    _check(proposal, target_distributions)
    acceptance = []
    for node, (token, q) in enumerate(
        zip(proposal.tokens, proposal.draft_distributions, strict=True)
    ):
        p = target_distributions[node]
        acceptance.append(acceptance_probability(p, q, token))
        if not rng.bernoulli(acceptance[-1]):
            return _verdict(range(node), residual(p, q), acceptance, rng)
    return _verdict(range(len(proposal)), target_distributions[-1], acceptance, rng)


def verify_block(
    proposal: Proposal, target_distributions: Sequence[Distribution], rng: RandomSource
) -> Verdict:
    """Decides about a chain as a whole, from its end: never fewer tokens, in the mean, than
    ``verify`` accepts. Takes the same arguments, raises as ``verify``. Spends one coin for each
    prefix examined, the longest first, and one choice."""
    _check(proposal, target_distributions)
    reach: list[Any] = [1]  # w_i, the probability that at least i tokens are kept
    for token, p, q in zip(
        proposal.tokens, target_distributions[:-1], proposal.draft_distributions, strict=True
    ):
        reach.append(acceptance_probability(p, q, token, reach[-1]))
    kept = len(proposal)
    while kept > 0 and not rng.bernoulli(
        _settling(kept, proposal, target_distributions, reach[kept])
    ):
        kept -= 1
    distribution = target_distributions[-1]
    if kept < len(proposal):
        distribution = residual(
            target_distributions[kept], proposal.draft_distributions[kept], reach[kept]
        )
    return _verdict(range(kept), distribution, reach[1:], rng)


def verify_siblings(
    siblings: Proposal, target_distributions: Sequence[Distribution], rng: RandomSource
) -> Verdict:
    """Decides about several candidates for one and the same place; at most one is accepted.

    Each is judged against what its rejected elders left of p, so that p is kept for any q_i
    that may know the elders: a point mass for a candidate that was picked and not drawn
    (``propose.likeliest``), the same q again, or q without the elders. ``target_distributions[0]`` is
    the law at that place, ``target_distributions[1 + i]`` the one after sibling i. Otherwise as ``verify``.
    """
    _check(siblings, target_distributions)
    p, acceptance = target_distributions[0], []
    for node, (token, q) in enumerate(
        zip(siblings.tokens, siblings.draft_distributions, strict=True)
    ):
        acceptance.append(acceptance_probability(p, q, token))
        if rng.bernoulli(acceptance[-1]):
            return _verdict([node], target_distributions[1 + node], acceptance, rng)
        p = residual(p, q)
    return _verdict([], p, acceptance, rng)


def acceptance_probability(p: Distribution, q: Distribution, token: int, weight: Any = 1) -> Any:
    """min(1, w p(x) / q(x)) for x drawn from q; at w = 1 its mean is sum_x min(p(x), q(x)). Raises
    ArgumentError for an x that q excludes."""
    proposed = q.probability(token)
    if not proposed > 0:
        raise ArgumentError(f"token {token} has probability 0 in the law it is said to come from")
    return min(1, weight * p.probability(token) / proposed)


def residual(p: Distribution, q: Distribution, weight: Any = 1) -> Distribution:
    """The law of the next token after a rejection: (w p - q)+ / sum (w p - q)+.

    Where p = q nothing is left; the rejection had probability 0 then, and can only be due to
    rounding, which p itself answers exactly.
    """
    left = excess(p, q, weight)
    mass = left.sum()
    return Distribution(p.ids, left / mass) if mass > 0 else p


def excess(p: Distribution, q: Distribution, weight: Any = 1) -> Any:
    """(w p - q)+ over the ids of p: elsewhere p is 0, and so is the excess. Either law may know
    only some ids, which are unique."""
    left = p.probs * weight  # a copy, for tensors and arrays alike
    ours, theirs = p.shared(q)
    left[ours] = left[ours] - q.probs[theirs]
    return left * (left > 0)


def _settling(
    kept: int, proposal: Proposal, target_distributions: Sequence[Distribution], reach: Any
) -> Any:
    """The probability of keeping just these, where no more were: R / (R + 1 - w)."""
    if kept == len(proposal):
        return reach
    left = excess(target_distributions[kept], proposal.draft_distributions[kept], reach).sum()
    # Where nothing is left to draw from, such a prefix only comes with more behind it.
    return left / (left + 1 - reach) if left > 0 else 0


def _check(proposal: Proposal, target_distributions: Sequence[Distribution]) -> None:
    if len(target_distributions) != len(proposal) + 1:
        raise ArgumentError(
            f"{len(proposal)} drafted tokens need {len(proposal) + 1} target laws, "
            f"got {len(target_distributions)}"
        )


def _verdict(
    path: Sequence[int], distribution: Distribution, acceptance: Sequence[Any], rng: RandomSource
) -> Verdict:
    token = int(distribution.ids[rng.choose(distribution.probs)])
    return Verdict(tuple(path), token, distribution, tuple(acceptance))


VERIFIERS: dict[str, Verifier] = {"token": verify, "block": verify_block}
