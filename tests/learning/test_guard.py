"""The guard: a threshold with hysteresis on a running mean."""

import hypothesis.strategies as st
from hypothesis import given

from minispec.learning.guard import Guard


def test_guard_becomes_active_below_the_margin_and_inactive_at_zero() -> None:
    guard = Guard(horizon=2, margin=0.25)
    for gain, mean, switched, active in [
        (-0.5, -0.5, False, False),  # one gain of two
        (-0.5, -0.5, True, True),
        (-0.5, -0.5, False, True),  # already active
        (0.0, -0.25, False, True),  # above the margin, but still below 0
        (1.0, 0.375, False, False),
        (-0.5, -0.0625, False, False),  # below 0, but not below the margin
        (-0.9375, -0.5, True, True),
    ]:
        assert guard.record(gain) is switched
        assert (guard.gain, guard.active) == (mean, active)


def test_guard_takes_the_borders_themselves_as_harmless() -> None:
    guard = Guard(horizon=1, margin=0.25)
    assert not guard.record(-0.25) and not guard.active
    assert guard.record(-1.0) and guard.active
    assert not guard.record(0.0) and not guard.active


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=12), st.integers(1, 4))
def test_guard_averages_the_first_gains_evenly(gains: list[float], horizon: int) -> None:
    guard, mean = Guard(horizon, margin=0.1), 0.0
    for number, gain in enumerate(gains, 1):
        guard.record(gain)
        mean += (gain - mean) / (number if number < horizon else horizon)
        assert guard.gain == mean
        if number <= horizon:
            assert abs(guard.gain - sum(gains[:number]) / number) < 1e-12
