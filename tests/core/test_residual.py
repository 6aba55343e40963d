"""Residuals: small entries count, and an empty residual falls back to p."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from minispec.certificate.walker import distribution_of, fraction_distribution
from minispec.types import Distribution, Proposal, RandomSource
from minispec.verify import Verdict, residual, verify, verify_block

Verifier = Callable[[Proposal, Sequence[Distribution], RandomSource], Verdict]

TINY = Fraction(1, 10**12)


@pytest.mark.parametrize("exact", [True, False], ids=["fractions", "float64"])
def test_residual_keeps_entries_of_any_size(exact: bool) -> None:
    """A residual of 1e-12 in all, most of it at one id: nothing is too small to count."""
    p_shares = [Fraction(1, 2), Fraction(1, 2) - 4 * TINY, 3 * TINY, TINY]
    q_shares = [Fraction(1, 2), Fraction(1, 2), Fraction(0), Fraction(0)]
    p, q = (make_distribution(shares, exact) for shares in (p_shares, q_shares))
    found = [float(share) for share in residual(p, q).probs]
    assert found == pytest.approx([0, 0, 0.75, 0.25], abs=1e-3)


def make_distribution(shares: Sequence[Fraction], exact: bool) -> Distribution:
    if exact:
        return Distribution(np.arange(len(shares)), np.array(shares, dtype=object))
    return Distribution(torch.arange(len(shares)), torch.tensor([*map(float, shares)]).double())


@pytest.mark.parametrize("verifier", [verify, verify_block])
def test_decoding_is_exact_for_probabilities_below_any_threshold(verifier: Verifier) -> None:
    """Whole numbers from 1 to 10^12 as weights, in fractions: a dropped entry would be seen."""
    p = fraction_distribution([10**12, 1, 3, 0, 2])
    q = fraction_distribution([10**12, 2, 1, 1], [0, 1, 3, 4])

    def sample_first(source: RandomSource) -> int:
        drafted = int(q.ids[source.choose(q.probs)])
        verdict = verifier(Proposal((drafted,), (q,)), [p, p], source)
        return drafted if verdict.path else verdict.next_token

    expected = {token: share for token, share in enumerate(p.probs) if share}
    assert distribution_of(sample_first) == expected


@pytest.mark.parametrize("verifier", [verify, verify_block])
@pytest.mark.parametrize("weights", [[0, 2, 3], [2, 3, 0]])
def test_empty_residual_falls_back_to_p(verifier: Verifier, weights: list[int]) -> None:
    """If p = q a rejection comes from rounding alone. The next token is then drawn from p: never
    an id that p excludes, such as the first or the last."""
    p = fraction_distribution(weights)

    class Rejecting:
        def bernoulli(self, probability: Any) -> bool:
            return False

        def choose(self, probs: Any) -> int:
            assert list(probs) == list(p.probs)
            return next(i for i, share in enumerate(probs) if share)

    for tokens in ([1], [1, 1]):
        for parents in ((), (-1,) * len(tokens)):
            proposal = Proposal(tuple(tokens), (p,) * len(tokens), parents)
            verdict = verifier(proposal, [p] * (len(tokens) + 1), Rejecting())
            assert verdict.path == () and p.probability(verdict.next_token) > 0
