"""Laws from logits, and the production random source at its boundaries."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from minispec import sampling
from minispec.errors import ArgumentError
from minispec.models.lm_head import LinearHead
from minispec.sampling import Sampling, SeededRandom
from minispec.types import Distribution

LAST_BELOW_ONE = 1 - 2**-53


class FixedRandom(SeededRandom):
    """The production source with its uniform given."""

    def __init__(self, uniform: float) -> None:
        self._given = uniform

    def uniform(self) -> float:
        return self._given


def distribution(logits: list[float], sampling: Sampling) -> list[float]:
    return sampling.distribution(torch.tensor(logits), torch.arange(len(logits))).probs.tolist()


@pytest.mark.parametrize(
    ("sampling", "logits", "expected"),
    [
        (Sampling(), [1.0, 3.0, 3.0], [0, 1, 0]),  # a tie goes to the lowest id
        (Sampling(), [-math.inf, -5.0], [0, 1]),
        (Sampling(1.0), [0.0, 0.0, -math.inf], [0.5, 0.5, 0]),
        (Sampling(1.0, top_k=2), [1.0, 1.0, 1.0, 0.0], [0.5, 0.5, 0, 0]),  # equal logits
        (Sampling(1.0, top_k=2), [math.log(3), 0.0, 0.0, 0.0], [0.75, 0.25, 0, 0]),
        (Sampling(1.0, top_k=1), [0.0, 2.0, 2.0], [0, 1, 0]),
        (Sampling(1.0, top_k=9), [0.0, 0.0], [0.5, 0.5]),
        (Sampling(1.0, top_p=0.5), [0.0] * 4, [0.5, 0.5, 0, 0]),  # the cut falls in a tie
        (Sampling(1.0, top_p=1e-9), [0.0, 1.0, 0.0], [0, 1, 0]),  # never empty
        (Sampling(1.0, top_k=3, top_p=0.6), [0.0] * 4, [0.5, 0.5, 0, 0]),
        (Sampling(1e-30), [1.0, 1.5, 0.0], [0, 1, 0]),
        (Sampling(1e-300), [1.0, 1.5, 1.5], [0, 0.5, 0.5]),  # colder than float32 can say
        (Sampling(1e-300), [10.0, 15.0, 15.0], [0, 0.5, 0.5]),  # and hot enough to overflow
    ],
)
def test_laws(sampling: Sampling, logits: list[float], expected: list[float]) -> None:
    assert distribution(logits, sampling) == pytest.approx(expected, abs=1e-7)
    # What is left out has probability exactly 0, not almost.
    assert [p == 0 for p in distribution(logits, sampling)] == [p == 0 for p in expected]


@given(
    logits=st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=40),
    temperature=st.floats(0.1, 3),
)
def test_half_precision_logits_give_the_law_of_their_float64_values(
    logits: list[float], temperature: float
) -> None:
    half = torch.tensor(logits, dtype=torch.bfloat16)
    got = Sampling(temperature).distribution(half, torch.arange(len(logits))).probs
    exact = torch.softmax(half.double() / temperature, dim=0)
    assert got.dtype == torch.float32 and (got.double() - exact).abs().max() < 1e-6


def test_a_law_keeps_its_ids_and_owns_its_probabilities() -> None:
    logits, ids = torch.tensor([1.0, 2.0]), torch.tensor([7, 9])
    first = Sampling(1.0).distribution(logits, ids)
    before = first.probs.clone()
    logits.zero_()
    Sampling(1.0).distribution(logits, ids)
    assert torch.equal(first.probs, before) and torch.equal(first.ids, ids)


@pytest.mark.parametrize("logits", [[-math.inf] * 3, [math.nan, 1.0], [math.inf, 0.0]])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_without_a_law_are_refused(logits: list[float], temperature: float) -> None:
    with pytest.raises(ArgumentError, match="not finite"):
        distribution(logits, Sampling(temperature))


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": math.nan},
    ],
    ids=str,
)
def test_impossible_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ArgumentError, match="must"):
        Sampling(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("probability", "uniform", "accepted"),
    [
        (0.0, 0.0, False),  # nothing accepts what has probability 0
        (1.0, LAST_BELOW_ONE, True),  # nothing rejects what is certain
        (0.5, 0.5, False),
        (0.5, math.nextafter(0.5, 0), True),
    ],
)
def test_coins_at_their_borders(probability: float, uniform: float, accepted: bool) -> None:
    assert FixedRandom(uniform).bernoulli(probability) is accepted


@given(
    weights=st.lists(st.sampled_from([0.0, 1e-30, 0.1, 0.3, 1.0]), min_size=1, max_size=8).filter(
        any
    ),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_choices_at_every_border_of_the_cumulative_sum(
    weights: list[float], dtype: torch.dtype
) -> None:
    """At u = 0, the last float below 1, and just below, at and above each border: never an
    id of probability 0, first and last included, and the id whose interval holds u."""
    probs = torch.tensor(weights, dtype=dtype)
    borders = np.cumsum(probs.numpy(), dtype=np.float64)
    shares = borders / borders[-1]
    around = {near for s in shares for near in (math.nextafter(s, 0), s, math.nextafter(s, 1))}
    for uniform in sorted({0.0, LAST_BELOW_ONE, *(u for u in around if 0 <= u < 1)}):
        chosen = FixedRandom(uniform).choose(probs)
        assert probs[chosen] > 0
        below = borders[chosen - 1] if chosen else 0.0
        assert below <= uniform * borders[-1] <= borders[chosen]


def test_one_uniform_per_decision_in_a_fixed_order() -> None:
    class Counting(SeededRandom):
        spent = 0

        def uniform(self) -> float:
            self.spent += 1
            return super().uniform()

    source = Counting(3)
    source.bernoulli(0.0), source.bernoulli(1.0), source.choose(torch.tensor([0.0, 1.0]))
    assert source.spent == 3
    fresh = SeededRandom(3)
    [fresh.uniform() for _ in range(3)]
    assert source.uniform() == fresh.uniform()


def test_a_top_p_of_one_leaves_nothing_out() -> None:
    """Not even what comes after shares that already round to one in float32."""
    assert distribution([0.0, -17.0], Sampling(1.0))[1] > 0


# ------------------------------------------------------------------ large vocabularies


def plainly(probs: torch.Tensor, mass: float) -> torch.Tensor:
    """Which ids top-p keeps, by putting all of them in order."""
    order = probs.argsort(descending=True, stable=True)
    before = probs[order].double().cumsum(0) - probs[order]
    keep = torch.empty_like(probs, dtype=torch.bool)
    keep[order] = before < mass
    return keep


@settings(max_examples=150)
@given(
    size=st.sampled_from([1, 7, 1024, 1025, 9000, 40_000]),
    spread=st.sampled_from([0.0, 0.01, 1.0, 5.0, 40.0]),
    digits=st.sampled_from([0, 1, 6]),  # few digits make many ties
    mass=st.sampled_from([1e-9, 0.1, 0.5, 0.95, 0.999999, 0.9999999999]),
    seed=st.integers(0, 2**31),
)
def test_top_p_by_parts_keeps_what_sorting_everything_keeps(size, spread, digits, mass, seed):
    rng = torch.Generator().manual_seed(seed)
    logits = (spread * torch.randn(size, generator=rng)).round(decimals=digits)
    probs = torch.softmax(logits, 0)
    assert torch.equal(sampling._top_p(probs, mass), plainly(probs, mass))


@given(
    logits=st.lists(st.sampled_from([-math.inf, -1.0, 0.0, 0.5, 2.0]), min_size=1, max_size=9),
    shape=st.sampled_from(
        [Sampling(), Sampling(0.7), Sampling(1.0, top_k=2), Sampling(1.0, top_p=0.6)]
    ),
)
def test_a_target_law_is_the_law_over_its_support(logits, shape):
    values = torch.tensor(logits)
    if not torch.isfinite(values.max()):
        with pytest.raises(ArgumentError, match="not finite"):
            shape.target_distribution(values)
        return
    whole, short = (
        shape.distribution(values, torch.arange(len(values))),
        shape.target_distribution(values),
    )
    assert (short.probs > 0).all()
    spread = torch.zeros(len(values)).index_put((short.ids,), short.probs)
    assert torch.equal(spread, whole.probs)
    for token in range(len(values)):
        assert short.probability(token) == whole.probability(token) == whole.probs[token]
    head = LinearHead(values[:, None])
    [through_head] = shape.target_distributions(head, torch.ones(1, 1))
    assert torch.equal(through_head.ids, short.ids)
    assert torch.equal(through_head.probs, short.probs)


@given(st.sets(st.integers(0, 12), min_size=1), st.sets(st.integers(0, 12), min_size=1))
def test_what_two_laws_share(ours, theirs):
    one, other = (
        Distribution(torch.tensor(sorted(ids)), torch.ones(len(ids))) for ids in (ours, theirs)
    )
    here, there = one.shared(other)
    assert one.ids[here].tolist() == other.ids[there].tolist() == sorted(ours & theirs)
