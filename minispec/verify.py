"""Verification: what makes speculative decoding exact.

**Token by token** (Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318): a
drafted token x ~ q is accepted with probability min(1, p(x) / q(x)); after a rejection the next
token is drawn from the *residual*, the normalised positive part of p - q. Together:

    P(x) = q(x) min(1, p(x)/q(x)) + P(reject) * (p(x) - q(x))+ / sum_y (p(y) - q(y))+
         = min(p(x), q(x))        + (p(x) - q(x))+
         = p(x),

since P(reject) = 1 - sum_y min(p(y), q(y)) = sum_y (p(y) - q(y))+. This holds for any q. It may
be zero on most of the vocabulary (a shortlist), and it may depend on anything except x itself,
later draws and the random numbers used here.

**As a block** (Sun et al., arXiv 2403.10444, Algorithm 2): a chain is verified from its end. With

    w_0 = 1,    w_i = min(1, w_(i-1) p(x_i) / q(x_i)),    R_i = sum_y (w_i p(y) - q(y))+,

where p and q in R_i are those after x_1..x_i, prefixes are tested from the longest to the
shortest and the first that passes is kept. The whole chain passes with probability w_n, a prefix
of i < n tokens with probability R_i / (R_i + 1 - w_i). The next token is drawn from the
normalised (w_i p - q)+. At least i tokens are kept with probability w_i, which is never below
the product of min(1, p/q) of the token-level test; docs/exactness.md has the proof.

The arithmetic uses only operators, indexing and sums, so that the same lines run on tensors
and, for a proof, on arrays of fractions. Knows nothing of models.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from minispec.errors import ArgumentError
from minispec.types import Distribution, Proposal, RandomSource


@dataclass(frozen=True, eq=False)
class Verdict:
    """The result of verifying a proposal.

    ``path``: indices of the accepted tokens (for a chain 0..n-1). ``next_token``: the target's
    own token, drawn from ``next_distribution``: the residual after a rejection, otherwise the
    target's distribution after the last accepted token (the *bonus token*). ``acceptance``: for
    each examined token, in the proposal's order, its acceptance probability: by ``verify`` given
    that all earlier ones were accepted, by ``verify_block`` given only which tokens they are.
    Tokens and indices are Python ints: anything else, a tensor or a numpy integer too, raises
    ArgumentError on construction.
    """

    path: tuple[int, ...]
    next_token: int
    next_distribution: Distribution
    acceptance: tuple[Any, ...]

    def __post_init__(self) -> None:
        for name, number in (("next_token", self.next_token), *(("path", i) for i in self.path)):
            if type(number) is not int:
                raise ArgumentError(
                    f"a Verdict has a {type(number).__name__} in {name}, expected an int: "
                    "convert it with int(...)"
                )


Verifier = Callable[[Proposal, Sequence[Distribution], RandomSource], Verdict]


def check_verdict(verdict: Any, proposal: Proposal, vocab_size: int) -> Verdict:
    """The result of a verifier of a chain. Raises ArgumentError if it is not a Verdict, if its
    path is not a beginning of the chain, or if its token is outside the vocabulary."""
    if not isinstance(verdict, Verdict):
        raise ArgumentError(f"a verifier returned a {type(verdict).__name__}, expected a Verdict")
    path, token = tuple(verdict.path), verdict.next_token
    if path != tuple(range(len(path))) or len(path) > len(proposal):
        raise ArgumentError(
            f"a verifier accepted the indices {list(path)}, expected 0, 1, ... without a gap, "
            f"below {len(proposal)}"
        )
    if not 0 <= token < vocab_size:
        raise ArgumentError(f"a verifier emitted token {token}, outside 0..{vocab_size - 1}")
    return verdict


def verify(
    proposal: Proposal, target_distributions: Sequence[Distribution], rng: RandomSource
) -> Verdict:
    """Verify a chain token by token.

    ``target_distributions``: p at the position of each drafted token and after the last one,
    len(proposal) + 1 in all. Spends one Bernoulli draw for each token examined and one choice.
    Raises ArgumentError if the lengths do not match, or if a token has probability 0 under the
    distribution it is recorded with.
    """
    _check_lengths(proposal, target_distributions)
    acceptance = []
    for i, (token, q) in enumerate(zip(proposal.tokens, proposal.draft_distributions, strict=True)):
        p = target_distributions[i]
        acceptance.append(acceptance_probability(p, q, token))
        if not rng.bernoulli(acceptance[-1]):
            return _draw_next(range(i), residual(p, q), acceptance, rng)
    return _draw_next(range(len(proposal)), target_distributions[-1], acceptance, rng)


def verify_block(
    proposal: Proposal, target_distributions: Sequence[Distribution], rng: RandomSource
) -> Verdict:
    """Verify a chain as a block, from its end. On average it keeps at least as many tokens as
    ``verify``. Arguments and errors as ``verify``. Spends one Bernoulli draw for each prefix
    examined, the longest first, and one choice."""
    _check_lengths(proposal, target_distributions)
    weights: list[Any] = [1]  # w_i, the probability that at least i tokens are kept
    for token, p, q in zip(
        proposal.tokens, target_distributions[:-1], proposal.draft_distributions, strict=True
    ):
        weights.append(acceptance_probability(p, q, token, weights[-1]))
    kept = len(proposal)
    while kept > 0 and not rng.bernoulli(
        _block_acceptance(kept, proposal, target_distributions, weights[kept])
    ):
        kept -= 1
    distribution = target_distributions[-1]
    if kept < len(proposal):
        distribution = residual(
            target_distributions[kept], proposal.draft_distributions[kept], weights[kept]
        )
    return _draw_next(range(kept), distribution, weights[1:], rng)


def verify_siblings(
    siblings: Proposal, target_distributions: Sequence[Distribution], rng: RandomSource
) -> Verdict:
    """Verify several candidates for the same position; at most one is accepted.

    Multi-candidate verification (SpecInfer, Multi-Candidate, Sequoia:
    arXiv 2305.09781, 2401.06706, 2402.12374): each candidate is tested against the residual left
    by the candidates rejected before it. The output follows p for any q_i that may depend on the
    candidates before i: a point mass for a candidate that was picked rather than drawn
    (``propose.top_k_candidates``), the same q for all (as in SpecInfer), or q without the earlier
    ones (drawn without replacement, as in the other two).

    ``target_distributions[0]`` is p at the position, ``target_distributions[1 + i]`` p after
    candidate i. Otherwise as ``verify``.
    """
    _check_lengths(siblings, target_distributions)
    p, acceptance = target_distributions[0], []
    for i, (token, q) in enumerate(zip(siblings.tokens, siblings.draft_distributions, strict=True)):
        acceptance.append(acceptance_probability(p, q, token))
        if rng.bernoulli(acceptance[-1]):
            return _draw_next([i], target_distributions[1 + i], acceptance, rng)
        p = residual(p, q)
    return _draw_next([], p, acceptance, rng)


def acceptance_probability(p: Distribution, q: Distribution, token: int, weight: Any = 1) -> Any:
    """min(1, w p(x) / q(x)) for a token x ~ q. At w = 1 its mean over q is sum_x min(p(x), q(x)).
    Raises ArgumentError if q(x) = 0."""
    drafted = q.probability(token)
    if not drafted > 0:
        raise ArgumentError(
            f"token {token} has probability 0 under its recorded draft distribution q"
        )
    return min(1, weight * p.probability(token) / drafted)


def residual(p: Distribution, q: Distribution, weight: Any = 1) -> Distribution:
    """The distribution of the next token after a rejection: (w p - q)+ / sum (w p - q)+.

    If p = q the positive part is empty. A rejection then has probability 0 and can only come
    from rounding; p itself is the exact answer.
    """
    positive = positive_part(p, q, weight)
    mass = positive.sum()
    return Distribution(p.ids, positive / mass) if mass > 0 else p


def positive_part(p: Distribution, q: Distribution, weight: Any = 1) -> Any:
    """(w p - q)+ over the ids of p; it is 0 at all other ids, where p is 0. Each distribution may
    list only some ids, all of them unique."""
    difference = p.probs * weight  # a copy, for tensors and arrays alike
    in_p, in_q = p.common_indices(q)
    difference[in_p] = difference[in_p] - q.probs[in_q]
    return difference * (difference > 0)


def _block_acceptance(
    kept: int, proposal: Proposal, target_distributions: Sequence[Distribution], weight: Any
) -> Any:
    """The probability that a prefix of ``kept`` tokens passes, given that no longer one did: w_n
    for the whole chain, otherwise R / (R + 1 - w)."""
    if kept == len(proposal):
        return weight
    mass = positive_part(
        target_distributions[kept], proposal.draft_distributions[kept], weight
    ).sum()
    # An empty residual has no next token to draw: a shorter prefix must be kept.
    return mass / (mass + 1 - weight) if mass > 0 else 0


def _check_lengths(proposal: Proposal, target_distributions: Sequence[Distribution]) -> None:
    if len(target_distributions) != len(proposal) + 1:
        raise ArgumentError(
            f"{len(proposal)} drafted tokens need {len(proposal) + 1} target distributions, "
            f"got {len(target_distributions)}"
        )


def _draw_next(
    path: Sequence[int], distribution: Distribution, acceptance: Sequence[Any], rng: RandomSource
) -> Verdict:
    """The verdict with the next token drawn from ``distribution``."""
    token = int(distribution.ids[rng.choose(distribution.probs)])
    return Verdict(tuple(path), token, distribution, tuple(acceptance))


VERIFIERS: dict[str, Verifier] = {"token": verify, "block": verify_block}
