"""Residuals that are empty, nearly empty or tiny: what is drawn from them has a probability."""

import itertools
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from minispec.certificate.walker import distribution_of
from minispec.growth import pick_candidates
from minispec.types import Distribution, Proposal
from minispec.verify import Verdict, Verifier, residual, verify, verify_block

Arithmetic = Callable[[Sequence[Fraction]], Any]
ARITHMETICS: dict[str, Arithmetic] = {
    "fraction": lambda shares: np.array([*shares, None], object)[:-1],
    "float64": lambda shares: torch.tensor([float(s) for s in shares], dtype=torch.float64),
    "float32": lambda shares: torch.tensor([float(s) for s in shares], dtype=torch.float32),
}
WEIGHTS = st.lists(st.integers(0, 3), min_size=4, max_size=4).filter(any)


def build(arithmetic: str, weights: Sequence[int]) -> Distribution:
    """A distribution over the ids 0..n-1 in some arithmetic."""
    shares = [Fraction(weight, sum(weights)) for weight in weights]
    return Distribution(np.arange(len(weights)), ARITHMETICS[arithmetic](shares))


class RejectingSource:
    """Rejects every candidate that is not certain, as rounding may, and chooses the first index
    that has a probability."""

    def bernoulli(self, probability: Any) -> bool:
        return bool(probability >= 1)

    def choose(self, probs: Any) -> int:
        [possible] = np.nonzero(np.asarray(probs) != 0)
        assert len(possible), "nothing to draw from"
        return int(possible[0])


VERIFIERS = pytest.mark.parametrize("verifier", [verify, verify_block])


def build_siblings(tokens: Sequence[int], distributions: Sequence[Distribution]) -> Proposal:
    return Proposal(tuple(tokens), tuple(distributions), (-1,) * len(tokens))


@VERIFIERS
@pytest.mark.parametrize("arithmetic", ARITHMETICS)
@given(p=WEIGHTS, q=WEIGHTS, count=st.integers(1, 5), seed=st.integers(0, 99))
def test_siblings_draw_a_possible_token_after_any_rejections(
    verifier: Verifier, arithmetic: str, p: list[int], q: list[int], count: int, seed: int
) -> None:
    """Also where the candidates took all of p: what is left then is the residual before, and no
    token that p excludes, id 0 included."""
    target, draft = build(arithmetic, p), build(arithmetic, q)
    possible = [i for i, weight in enumerate(q) if weight]
    drawn = [possible[(seed + i * i) % len(possible)] for i in range(count)]
    picked = pick_candidates(draft, count)
    for siblings in (
        build_siblings(drawn, (draft,) * count),
        build_siblings([c.token for c in picked], [c.distribution for c in picked]),
    ):
        after = [target] * (1 + len(siblings.tokens))
        verdict = verifier(siblings, after, RejectingSource())
        left = verdict.next_distribution
        assert p[verdict.next_token] > 0
        assert abs(float(left.probs.sum()) - 1) < 1e-5
        assert all(p[i] for i in np.flatnonzero(np.asarray(left.probs)))


@VERIFIERS
@pytest.mark.parametrize("arithmetic", ARITHMETICS)
@pytest.mark.parametrize("weights", [[0, 1, 2], [0, 0, 1], [0, 3, 0, 1]])
def test_siblings_of_equal_distributions_draw_from_what_was_left(
    verifier: Verifier, arithmetic: str, weights: list[int]
) -> None:
    """p is exhausted by the first candidate already: nothing of it may fall to id 0."""
    p = build(arithmetic, weights)
    token = max(range(len(weights)), key=weights.__getitem__)
    for count in (1, 2, 3):
        siblings = build_siblings((token,) * count, (p,) * count)

        class AlwaysRejecting(RejectingSource):
            def bernoulli(self, probability: Any) -> bool:
                return False

        verdict = verifier(siblings, [p] * (count + 1), AlwaysRejecting())
        assert verdict.path == () and weights[verdict.next_token] > 0
        assert list(verdict.next_distribution.probs) == list(p.probs)


@VERIFIERS
@given(p=WEIGHTS, q=WEIGHTS, count=st.integers(1, 3))
def test_siblings_keep_the_distribution_in_every_branch(
    verifier: Verifier, p: list[int], q: list[int], count: int
) -> None:
    """In fractions, over all draws of the candidates and all coins; many of these exhaust p."""
    target, draft = build("fraction", p), build("fraction", q)

    def program(source: Any) -> int:
        drawn = tuple(int(source.choose(draft.probs)) for _ in range(count))
        siblings = build_siblings(drawn, (draft,) * count)
        verdict: Verdict = verifier(siblings, [target] * (count + 1), source)
        return drawn[verdict.path[0]] if verdict.path else verdict.next_token

    ours = distribution_of(program)
    assert all(ours.get(i, 0) == share for i, share in enumerate(target.probs))


@pytest.mark.parametrize("verifier", [verify, verify_block])
@pytest.mark.parametrize("share", [1e-6, 1e-9, 1e-12, 1e-15, 2.0**-53], ids=str)
def test_verify_gives_tiny_shares_of_the_residual_their_turn(verifier: Any, share: float) -> None:
    """An id whose probability is tiny, and of which the shortlist knows nothing, is all that is
    left after a rejection: it must be what is drawn, in fractions and in float64."""
    for arithmetic in ("fraction", "float64"):
        exact = Fraction(share)
        p = Distribution(np.arange(3), ARITHMETICS[arithmetic]([Fraction(0), 1 - exact, exact]))
        q = Distribution(np.array([1]), ARITHMETICS[arithmetic]([Fraction(1)]))
        left = residual(p, q)
        assert list(left.probs) == [0, 0, 1]
        verdict = verifier(Proposal((1,), (q,)), [p, p], RejectingSource())
        assert verdict.path == () and verdict.next_token == 2


def test_residual_keeps_the_ratios_of_tiny_shares() -> None:
    """Beside a large share, and among themselves."""
    tiny = [Fraction(1, 10**k) for k in (3, 9, 12, 15)]
    shares = [1 - sum(tiny), *tiny]
    for arithmetic, size in itertools.product(("fraction", "float64"), (1, 2)):
        p = Distribution(np.arange(5), ARITHMETICS[arithmetic](shares))
        q = Distribution(np.arange(size), ARITHMETICS[arithmetic]([Fraction(1, size)] * size))
        left = residual(p, q)
        positive = [max(Fraction(0), s - (Fraction(1, size) if i < size else 0))
                    for i, s in enumerate(shares)]  # fmt: skip
        for ours, exact in zip(left.probs, positive, strict=True):
            assert float(ours) == pytest.approx(float(exact / sum(positive)), rel=1e-6, abs=0)
