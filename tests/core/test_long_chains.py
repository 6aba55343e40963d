"""Verification of longer chains and of more candidates than the certificate's cases have, walked
in fractions: the fifth position is treated as the first."""

import itertools
import random
from collections import Counter
from fractions import Fraction
from functools import cache
from typing import Any

import pytest

from minispec.certificate.walker import distribution_of, fraction_distribution
from minispec.types import Distribution, Proposal
from minispec.verify import Verifier, verify, verify_block

VERIFIERS = [verify, verify_block]


@cache
def draw_distribution(kind: str, tokens: tuple[int, ...], vocab_size: int) -> Distribution:
    """The distribution of ``kind`` "p" or "q" after some tokens; at every fourth place q lacks an
    id."""
    rng = random.Random(f"{kind} {tokens}")
    weights = [rng.randint(1, 4) for _ in range(vocab_size)]
    if kind == "q" and rng.random() < 0.25:
        return fraction_distribution(weights[:1], [rng.randrange(vocab_size)])
    return fraction_distribution(weights)


@pytest.mark.parametrize("gamma", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("verifier", VERIFIERS)
def test_verify_keeps_the_distribution_of_long_chains(verifier: Any, gamma: int) -> None:
    def program(source: Any) -> tuple[int, ...]:
        drafted: tuple[int, ...] = ()
        distributions = []
        for _ in range(gamma):
            q = draw_distribution("q", drafted, 2)
            distributions.append(q)
            drafted += (int(q.ids[source.choose(q.probs)]),)
        target = [draw_distribution("p", drafted[:i], 2) for i in range(gamma + 1)]
        verdict = verifier(Proposal(drafted, tuple(distributions)), target, source)
        assert verdict.path == tuple(range(len(verdict.path)))
        return (*drafted[: len(verdict.path)], verdict.next_token)

    def complete(tokens: tuple[int, ...], share: Fraction) -> None:
        """Add the distribution of all texts of gamma + 1 tokens that begin with these."""
        if len(tokens) > gamma:
            texts[tokens] += share
            return
        for token, p in enumerate(draw_distribution("p", tokens, 2).probs):
            complete((*tokens, token), share * p)

    texts = Counter[tuple[int, ...]]()
    for tokens, share in distribution_of(program).items():
        assert isinstance(tokens, tuple)
        complete(tokens, share)
    ours, texts = texts, Counter()
    complete((), Fraction(1))
    assert ours == texts and sum(texts.values()) == 1


class ScriptedSource:
    """Accepts as scripted, rejects what comes after, and notes what it is asked."""

    def __init__(self, *accepted: bool) -> None:
        self._accepted = list(accepted)
        self.asked: list[Any] = []

    def bernoulli(self, probability: Any) -> bool:
        self.asked.append(probability)
        return self._accepted.pop(0) if self._accepted else False

    def choose(self, probs: Any) -> int:
        return next(i for i, share in enumerate(probs) if share)


@pytest.mark.parametrize("length", range(1, 9))
def test_verify_draws_from_the_residual_of_the_rejected_position(length: int) -> None:
    """Wherever the rejection is, of up to 8 drafted tokens; after none, from the last p."""
    p = [fraction_distribution([i + 1, 2, 3 * i + 1]) for i in range(length + 1)]
    q = tuple(fraction_distribution([1, 2 * i + 3, 1]) for i in range(length))
    chain = Proposal((1,) * length, q)
    for kept in range(length):
        verdict = verify(chain, p, ScriptedSource(*[True] * kept))
        excess = [
            max(Fraction(0), x - y) for x, y in zip(p[kept].probs, q[kept].probs, strict=True)
        ]
        assert len(verdict.path) == kept and len(verdict.acceptance) == kept + 1
        assert list(verdict.next_distribution.probs) == [x / sum(excess) for x in excess]
        assert verdict.acceptance[-1] == min(1, p[kept].probs[1] / q[kept].probs[1])
    assert verify(chain, p, ScriptedSource(*[True] * length)).next_distribution is p[-1]


@pytest.mark.parametrize("length", range(1, 9))
def test_verify_block_tests_each_prefix_with_its_own_weight(length: int) -> None:
    """Against the recursion of the paper, written out here, for up to 8 drafted tokens."""
    p = [fraction_distribution([8 + i, 10, 2]) for i in range(length + 1)]
    q = tuple(fraction_distribution([1, 24 + i, 15]) for i in range(length))
    weights = [Fraction(1)]
    for i in range(length):
        weights.append(min(Fraction(1), weights[-1] * p[i].probs[1] / q[i].probs[1]))
    assert all(after < before for before, after in itertools.pairwise(weights))
    expected = [weights[-1]]
    for kept in range(length - 1, 0, -1):
        pairs = zip(p[kept].probs, q[kept].probs, strict=True)
        mass = sum(max(Fraction(0), weights[kept] * x - y) for x, y in pairs)
        expected.append(mass / (mass + 1 - weights[kept]))
    for kept in range(length + 1):
        source = ScriptedSource(*[False] * (length - kept), True)
        verdict = verify_block(Proposal((1,) * length, q), p, source)
        assert len(verdict.path) == kept and list(verdict.acceptance) == weights[1:]
        assert source.asked == expected[: length - max(kept, 1) + 1]
        if kept == length:
            assert verdict.next_distribution is p[-1]
            continue
        pairs = zip(p[kept].probs, q[kept].probs, strict=True)
        excess = [max(Fraction(0), weights[kept] * x - y) for x, y in pairs]
        assert list(verdict.next_distribution.probs) == [x / sum(excess) for x in excess]


@pytest.mark.parametrize("verifier", [verify, verify_block])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_siblings_continue_after_the_candidate_that_was_accepted(
    count: int, verifier: Verifier
) -> None:
    """In fractions: the joint distribution of the token and of the one after it, where each
    candidate has another continuation."""
    q = fraction_distribution([3, 2, 1])

    def program(source: Any) -> tuple[int, int]:
        drawn = tuple(int(source.choose(q.probs)) for _ in range(count))
        p = [draw_distribution("p", (), 3)]
        p += [draw_distribution("p", (token,), 3) for token in drawn]
        verdict = verifier(Proposal(drawn, (q,) * count, (-1,) * count), p, source)
        if verdict.path:
            assert verdict.next_distribution is p[1 + verdict.path[0]]
            return drawn[verdict.path[0]], verdict.next_token
        after = draw_distribution("p", (verdict.next_token,), 3)
        return verdict.next_token, int(source.choose(after.probs))

    ours = distribution_of(program)
    for first, share in enumerate(draw_distribution("p", (), 3).probs):
        for second, other in enumerate(draw_distribution("p", (first,), 3).probs):
            assert ours[first, second] == share * other


def test_verify_of_eight_siblings_accepts_any_of_them() -> None:
    p = [fraction_distribution([i + 1, 5]) for i in range(9)]
    q = fraction_distribution([1, 1])
    for i in range(8):
        source = ScriptedSource(*[False] * i, True)
        verdict = verify(Proposal((1,) * 8, (q,) * 8, (-1,) * 8), p, source)
        assert verdict.path == (i,) and verdict.next_distribution is p[1 + i]
