"""The production random source keeps what it promises to the last bit: float64 uniforms, and the
first index whose cumulative sum exceeds the uniform times the total."""

import math
import random
from fractions import Fraction
from itertools import accumulate, pairwise

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from minispec.sampling import SeededRandom

_TOTAL = 64  # a power of two, so that a uniform times the total is exact


class FixedRandom(SeededRandom):
    """The production source with a fixed uniform."""

    def __init__(self, uniform: float) -> None:
        self._fixed = uniform

    def uniform(self) -> float:
        return self._fixed


def test_uniform_has_all_bits_of_a_float64() -> None:
    """53 bits, as Python's generator of the same seed: rounded to float32 or bfloat16 a run would
    still look random, but tokens of probability below 2^-24 would never come."""
    source, python = SeededRandom(11), random.Random(11)
    values = [source.uniform() for _ in range(100)]
    assert values == [python.random() for _ in range(100)]
    assert sum(float(np.float32(value)) != value for value in values) > 90


def test_seeds_give_different_uniforms() -> None:
    assert len({SeededRandom(seed).uniform() for seed in range(100)}) == 100


@given(
    borders=st.sets(st.integers(1, _TOTAL - 1), max_size=6),
    zeros=st.sets(st.integers(0, 7)),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_choose_takes_the_first_index_whose_sum_exceeds_the_uniform(
    borders: set[int], zeros: set[int], dtype: torch.dtype
) -> None:
    """At each border of the cumulative sum exactly, one float64 below and one above it."""
    steps = [0, *sorted(borders), _TOTAL]
    weights = [after - before for before, after in pairwise(steps)]
    for place in sorted(zeros):
        weights.insert(min(place, len(weights)), 0)
    sums = list(accumulate(weights))
    near = {u for s in steps for u in (math.nextafter(s / _TOTAL, i) for i in (0, s / _TOTAL, 1))}
    for uniform in sorted(u for u in near if 0 <= u < 1):
        exact = Fraction(uniform) * _TOTAL
        expected = next(i for i, total in enumerate(sums) if total > exact)
        assert FixedRandom(uniform).choose(torch.tensor(weights, dtype=dtype)) == expected


def test_choose_sums_float32_probabilities_in_float64() -> None:
    """In float32, 1 + 2^-25 is 1, and the last ids would have no share."""
    probs = torch.tensor([1.0, *[2.0**-25] * 1000])
    chosen = [FixedRandom(1 - i * 2.0**-26).choose(probs) for i in range(1, 1500, 100)]
    assert len(set(chosen)) > 10 and max(chosen) > 900


@pytest.mark.parametrize("probability", [0.1, 1 / 3, 0.5, 1 - 2**-30, 2**-40])
def test_bernoulli_is_exact_to_the_last_bit(probability: float) -> None:
    for wrap in (float, np.float64, torch.tensor):
        value = wrap(probability) if wrap is not torch.tensor else torch.tensor(
            probability, dtype=torch.float64
        )  # fmt: skip
        assert not FixedRandom(probability).bernoulli(value)
        assert FixedRandom(math.nextafter(probability, 0)).bernoulli(value)
