"""Distributions from logits, and the production random source at its boundaries."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from minispec.errors import ArgumentError
from minispec.models.lm_head import LinearHead
from minispec.sampling import Sampling, SeededRandom, _mask_top_p
from minispec.types import Distribution

LAST_BELOW_ONE = 1 - 2**-53


class FixedRandom(SeededRandom):
    """The production source with a fixed uniform."""

    def __init__(self, uniform: float) -> None:
        self._fixed = uniform

    def uniform(self) -> float:
        return self._fixed


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
        (Sampling(1.0, top_p=0.5), [0.0] * 4, [0.5, 0.5, 0, 0]),  # the boundary falls in a tie
        (Sampling(1.0, top_p=1e-9), [0.0, 1.0, 0.0], [0, 1, 0]),  # never empty
        (Sampling(1.0, top_k=3, top_p=0.6), [0.0] * 4, [0.5, 0.5, 0, 0]),
        (Sampling(1e-30), [1.0, 1.5, 0.0], [0, 1, 0]),
        (Sampling(1e-300), [1.0, 1.5, 1.5], [0, 0.5, 0.5]),  # below the smallest float32
        (Sampling(1e-300), [10.0, 15.0, 15.0], [0, 0.5, 0.5]),  # logits large enough to overflow
    ],
)
def test_distribution_matches_expected_probabilities(
    sampling: Sampling, logits: list[float], expected: list[float]
) -> None:
    assert distribution(logits, sampling) == pytest.approx(expected, abs=1e-7)
    # Excluded ids have probability exactly 0, not almost 0.
    assert [p == 0 for p in distribution(logits, sampling)] == [p == 0 for p in expected]


@given(
    logits=st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=40),
    temperature=st.floats(0.1, 3),
)
def test_distribution_of_bfloat16_logits_matches_float64(
    logits: list[float], temperature: float
) -> None:
    half = torch.tensor(logits, dtype=torch.bfloat16)
    got = Sampling(temperature).distribution(half, torch.arange(len(logits))).probs
    exact = torch.softmax(half.double() / temperature, dim=0)
    assert got.dtype == torch.float32 and (got.double() - exact).abs().max() < 1e-6


def test_distribution_keeps_its_ids_and_owns_its_probabilities() -> None:
    logits, ids = torch.tensor([1.0, 2.0]), torch.tensor([7, 9])
    first = Sampling(1.0).distribution(logits, ids)
    before = first.probs.clone()
    logits.zero_()
    Sampling(1.0).distribution(logits, ids)
    assert torch.equal(first.probs, before) and torch.equal(first.ids, ids)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_process_returns_the_same_logits_or_changes_them_in_float32_or_better(
    dtype: torch.dtype,
) -> None:
    logits, ids = torch.tensor([1.0, 2.0], dtype=dtype), torch.tensor([7, 9])
    assert Sampling(1.0).process(logits, ids, None) is logits
    changed = Sampling(1.0, logit_bias={9: 2**-12}).process(logits, ids, None)
    assert changed.dtype == torch.promote_types(dtype, torch.float32)
    assert changed.tolist() == [1.0, 2.0 + 2**-12]


@pytest.mark.parametrize("logits", [[-math.inf] * 3, [math.nan, 1.0], [math.inf, 0.0]])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_distribution_rejects_a_largest_logit_that_is_not_finite(
    logits: list[float], temperature: float
) -> None:
    with pytest.raises(ArgumentError, match="not finite"):
        distribution(logits, Sampling(temperature))


@pytest.mark.parametrize(
    "fields",
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
def test_sampling_rejects_invalid_settings(fields: dict[str, float]) -> None:
    with pytest.raises(ArgumentError, match="must"):
        Sampling(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["temperature", "top_k", "top_p", "min_p"])
def test_sampling_names_its_own_settings_before_those_that_it_inherits(name: str) -> None:
    with pytest.raises(ArgumentError, match=f"{name.replace('_', '-')} must be"):
        Sampling(**{name: "warm", "repetition_penalty": 0.0})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("probability", "uniform", "accepted"),
    [
        (0.0, 0.0, False),  # probability 0 is never accepted
        (1.0, LAST_BELOW_ONE, True),  # probability 1 is always accepted
        (0.5, 0.5, False),
        (0.5, math.nextafter(0.5, 0), True),
    ],
)
def test_bernoulli_at_its_boundaries(probability: float, uniform: float, accepted: bool) -> None:
    assert FixedRandom(uniform).bernoulli(probability) is accepted


@given(
    weights=st.lists(st.sampled_from([0.0, 1e-30, 0.1, 0.3, 1.0]), min_size=1, max_size=8).filter(
        any
    ),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_choose_at_every_boundary_of_the_cumulative_sum(
    weights: list[float], dtype: torch.dtype
) -> None:
    """At u = 0, at the last float below 1, and just below, at and above each boundary: the index
    whose interval contains u, and never one of probability 0, not even the first or last."""
    probs = torch.tensor(weights, dtype=dtype)
    boundaries = np.cumsum(probs.numpy(), dtype=np.float64)
    fractions = boundaries / boundaries[-1]
    near = {u for f in fractions for u in (math.nextafter(f, 0), f, math.nextafter(f, 1))}
    for uniform in sorted({0.0, LAST_BELOW_ONE, *(u for u in near if 0 <= u < 1)}):
        chosen = FixedRandom(uniform).choose(probs)
        assert probs[chosen] > 0
        below = boundaries[chosen - 1] if chosen else 0.0
        assert below <= uniform * boundaries[-1] <= boundaries[chosen]


def test_seeded_random_spends_one_uniform_per_decision() -> None:
    class CountingRandom(SeededRandom):
        count = 0

        def uniform(self) -> float:
            self.count += 1
            return super().uniform()

    source = CountingRandom(3)
    source.bernoulli(0.0), source.bernoulli(1.0), source.choose(torch.tensor([0.0, 1.0]))
    assert source.count == 3
    fresh = SeededRandom(3)
    [fresh.uniform() for _ in range(3)]
    assert source.uniform() == fresh.uniform()


def test_distribution_with_top_p_1_keeps_every_id() -> None:
    """Even ids after those whose mass already rounds to one in float32."""
    assert distribution([0.0, -17.0], Sampling(1.0))[1] > 0


# ------------------------------------------------------------------ large vocabularies


def mask_top_p_by_sorting(probs: torch.Tensor, mass: float) -> torch.Tensor:
    """The ids that top-p keeps, by sorting all of them."""
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
def test_mask_top_p_matches_a_full_sort(size, spread, digits, mass, seed):
    rng = torch.Generator().manual_seed(seed)
    logits = (spread * torch.randn(size, generator=rng)).round(decimals=digits)
    probs = torch.softmax(logits, 0)
    assert torch.equal(_mask_top_p(probs, mass), mask_top_p_by_sorting(probs, mass))


@given(
    logits=st.lists(st.sampled_from([-math.inf, -1.0, 0.0, 0.5, 2.0]), min_size=1, max_size=9),
    sampling=st.sampled_from(
        [Sampling(), Sampling(0.7), Sampling(1.0, top_k=2), Sampling(1.0, top_p=0.6)]
    ),
)
def test_target_distribution_is_the_distribution_over_its_support(logits, sampling):
    values = torch.tensor(logits)
    if not torch.isfinite(values.max()):
        with pytest.raises(ArgumentError, match="not finite"):
            sampling.target_distribution(values)
        with pytest.raises(ArgumentError, match="not finite"):
            sampling.target_distributions(LinearHead(values[:, None]), torch.ones(1, 1))
        return
    full = sampling.distribution(values, torch.arange(len(values)))
    support = sampling.target_distribution(values)
    assert (support.probs > 0).all()
    scattered = torch.zeros(len(values)).index_put((support.ids,), support.probs)
    assert torch.equal(scattered, full.probs)
    for token in range(len(values)):
        assert support.probability(token) == full.probability(token) == full.probs[token]
    head = LinearHead(values[:, None])
    [from_head] = sampling.target_distributions(head, torch.ones(1, 1))
    assert torch.equal(from_head.ids, support.ids)
    assert torch.equal(from_head.probs, support.probs)


@given(st.sets(st.integers(0, 12), min_size=1), st.sets(st.integers(0, 12), min_size=1))
def test_common_indices_finds_the_ids_in_both_distributions(ours, theirs):
    one, other = (
        Distribution(torch.tensor(sorted(ids)), torch.ones(len(ids))) for ids in (ours, theirs)
    )
    in_one, in_other = one.common_indices(other)
    assert one.ids[in_one].tolist() == other.ids[in_other].tolist() == sorted(ours & theirs)


# ------------------------------------------------------------------ the source's own promises


def test_choose_where_a_uniform_times_the_total_rounds_to_the_total() -> None:
    """Only sums below the smallest normal float64 can."""
    assert FixedRandom(LAST_BELOW_ONE).choose(torch.tensor([0.0, 5e-324], dtype=torch.float64)) == 1
    weights = torch.tensor([5e-324, 1e-323, 0.0], dtype=torch.float64)
    assert FixedRandom(LAST_BELOW_ONE).choose(weights) == 1


@pytest.mark.parametrize(
    ("probs", "uniform", "index"),
    [
        ([0.25, 0.25, 0.5], 0.0, 0),
        ([0.25, 0.25, 0.5], 0.25, 1),  # exactly on a border: the first sum that exceeds it
        ([0.25, 0.25, 0.5], 0.5, 2),
        ([0.25, 0.0, 0.0, 0.75], 0.25, 3),
        ([0.0, 0.5, 0.5], 0.0, 1),
        ([1.0, 1.0, 2.0], 0.25, 1),  # on a border of a sum that is not one
    ],
)
def test_choose_takes_the_first_sum_that_exceeds_the_uniform(
    probs: list[float], uniform: float, index: int
) -> None:
    for dtype in (torch.float32, torch.float64):
        weights = torch.tensor(probs, dtype=dtype)
        assert FixedRandom(uniform).choose(weights) == index
        if uniform:
            below = FixedRandom(math.nextafter(uniform, 0)).choose(weights)
            assert below < index


def test_uniforms_are_used_with_all_their_bits() -> None:
    """Rounded to float32, a uniform just below a border would fall on it."""
    for border in (0.25, 0.5, 0.75):
        below = border - 2**-40
        assert float(np.float32(below)) == border
        assert FixedRandom(below).bernoulli(border) and not FixedRandom(border).bernoulli(border)
        weights = torch.tensor([border, 1 - border])
        assert [FixedRandom(u).choose(weights) for u in (below, border)] == [0, 1]
    values = [SeededRandom(seed).uniform() for seed in range(100)]
    assert sum(float(np.float32(value)) != value for value in values) > 95


def test_choose_adds_up_in_float64() -> None:
    """In float32 the many small probabilities after a large one would vanish."""
    weights = torch.full((3000,), 2.0**-27)
    weights[0] = 1.0
    assert FixedRandom(LAST_BELOW_ONE).choose(weights) == 2999
    total = 1 + 2999 * 2.0**-27
    assert FixedRandom((1 + 1500.5 * 2.0**-27) / total).choose(weights) == 1501


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.5, top_k=2)], ids=str)
@given(numbers=st.lists(st.floats(-9, 9), min_size=1, max_size=9))
def test_soften_is_the_softmax_at_temperature_1_whatever_is_asked_for(sampling, numbers):
    logits, ids = torch.tensor(numbers, dtype=torch.float64), 3 * torch.arange(len(numbers))
    found = sampling.soften(logits, ids)
    assert torch.equal(found.ids, ids)
    assert torch.allclose(found.probs, torch.softmax(logits, 0))
