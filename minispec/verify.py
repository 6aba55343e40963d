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

**Trees.** With several candidates for a position, each is tested against what those rejected
before it left of p: the residual takes the place of p (SpecInfer, Multi-Candidate, Sequoia:
arXiv 2305.09781, 2401.06706, 2402.12374), and of w p. Verified token by token, a tree is walked
from the root: the accepted candidate's children are next. As a block it is walked from the leaves
(Traversal Verification, arXiv 2505.12398): a node whose children were all rejected is tested with
the weight that they left, R / (R + 1 - w) after each. A chain has one child everywhere.

The arithmetic uses only operators, indexing and sums, so that the same lines run on tensors
and, for a proof, on arrays of fractions. Knows nothing of models.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from minispec.errors import ArgumentError
from minispec.tree import find_path, list_children
from minispec.types import Distribution, Proposal, RandomSource


@dataclass(frozen=True, eq=False)
class Verdict:
    """The result of verifying a proposal.

    ``path``: indices of the accepted tokens, root to leaf (for a chain 0..n-1). ``next_token``: the
    target's own token, drawn from ``next_distribution``: the residual after a rejection, otherwise
    the target's distribution after the last accepted token (the *bonus token*). ``acceptance``:
    the acceptance probability of each token up to the last one examined, in the proposal's order,
    None if it was not examined: by ``verify`` given that it was reached, by ``verify_block`` given
    only which tokens lead to it. Tokens and indices are Python ints: anything else, a tensor or a
    numpy integer too, raises ArgumentError on construction.
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


# Proposal, p after the last emitted token and after each drafted one, random source.
Verifier = Callable[[Proposal, Sequence[Distribution], RandomSource], Verdict]


def check_verdict(verdict: Any, proposal: Proposal, vocab_size: int) -> Verdict:
    """The result of a verifier. Raises ArgumentError if it is not a Verdict, if its path does not
    lead from a root to its last node, or if its token is outside the vocabulary."""
    if not isinstance(verdict, Verdict):
        raise ArgumentError(f"a verifier returned a {type(verdict).__name__}, expected a Verdict")
    path, token = tuple(verdict.path), verdict.next_token
    inside = all(0 <= node < len(proposal) for node in path)
    if not inside or (path and path != find_path(proposal.parents, path[-1])):
        raise ArgumentError(
            f"a verifier accepted the indices {list(path)}, expected 0, 1, ... without a gap, "
            f"below {len(proposal)}; in a tree, each the parent of the next"
        )
    if not 0 <= token < vocab_size:
        raise ArgumentError(f"a verifier emitted token {token}, outside 0..{vocab_size - 1}")
    return verdict


def verify(
    proposal: Proposal, target_distributions: Sequence[Distribution], rng: RandomSource
) -> Verdict:
    """Verify a proposal token by token, from the root.

    ``target_distributions``: p after the last emitted token and after each drafted one,
    len(proposal) + 1 in all. The output follows p for any q_i that may depend on all tokens drafted
    before token i: siblings may be drawn from the same q, or from q without the earlier ones.
    Spends one Bernoulli draw for each token examined and one choice. Raises ArgumentError if the
    lengths do not match, or if a token has probability 0 under the distribution it is recorded
    with.
    """
    _check_lengths(proposal, target_distributions)
    children = list_children(proposal.parents)
    acceptance: dict[int, Any] = {}
    path: list[int] = []
    p, candidates = target_distributions[0], children[-1]
    while candidates:
        node, *candidates = candidates
        q = proposal.draft_distributions[node]
        acceptance[node] = acceptance_probability(p, q, proposal.tokens[node])
        if rng.bernoulli(acceptance[node]):
            path.append(node)
            p, candidates = target_distributions[1 + node], children[node]
        else:
            p = residual(p, q)
    return _draw_next(path, p, acceptance, rng)


def verify_block(
    proposal: Proposal, target_distributions: Sequence[Distribution], rng: RandomSource
) -> Verdict:
    """Verify a proposal as a block, from its leaves: of a tree, Traversal Verification. On average
    it keeps at least as many tokens of a chain as ``verify``. Arguments and errors as ``verify``.
    Spends one Bernoulli draw for each node that is tested, the first leaf first, and one choice."""
    _check_lengths(proposal, target_distributions)
    children = list_children(proposal.parents)
    acceptance: dict[int, Any] = {}

    def descend(node: int, weight: Any) -> tuple[int, Distribution] | None:
        """The last accepted node of the subtree of ``node``, which is kept with probability
        ``weight`` given the tokens that lead to it, and the distribution of the token after it;
        None if no node of it is kept."""
        p = target_distributions[1 + node]
        for child in children[node]:
            q = proposal.draft_distributions[child]
            acceptance[child] = acceptance_probability(p, q, proposal.tokens[child], weight)
            if found := descend(child, acceptance[child]):
                return found
            weight, p = _weight_after_rejection(p, q, weight), residual(p, q, weight)
        kept = node < 0 or rng.bernoulli(weight)
        return (node, p) if kept else None

    last, distribution = descend(-1, 1) or (-1, target_distributions[0])
    return _draw_next(find_path(proposal.parents, last), distribution, acceptance, rng)


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


def _weight_after_rejection(p: Distribution, q: Distribution, weight: Any) -> Any:
    """R / (R + 1 - w): the probability that a node of weight w is kept after all, given that a
    child drawn from q is not."""
    mass = positive_part(p, q, weight).sum()
    # An empty residual has no next token to draw: a shorter path must be kept.
    return mass / (mass + (1 - weight)) if mass > 0 else 0


def _check_lengths(proposal: Proposal, target_distributions: Sequence[Distribution]) -> None:
    if len(target_distributions) != len(proposal) + 1:
        raise ArgumentError(
            f"{len(proposal)} drafted tokens need {len(proposal) + 1} target distributions, "
            f"got {len(target_distributions)}"
        )
    if len(proposal.draft_distributions) != len(proposal):
        raise ArgumentError(
            f"{len(proposal)} drafted tokens have {len(proposal.draft_distributions)} draft "
            "distributions, expected one for each"
        )


def _draw_next(
    path: Sequence[int], distribution: Distribution, acceptance: dict[int, Any], rng: RandomSource
) -> Verdict:
    """The verdict with the next token drawn from ``distribution``."""
    token = int(distribution.ids[rng.choose(distribution.probs)])
    examined = tuple(acceptance.get(node) for node in range(max(acceptance, default=-1) + 1))
    return Verdict(tuple(path), token, distribution, examined)


VERIFIERS: dict[str, Verifier] = {"token": verify, "block": verify_block}
