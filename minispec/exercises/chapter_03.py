"""Exercises of chapter 3: distributions, sampling and rejection by hand."""

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import wraps
from itertools import accumulate

from minispec.exercises.grading import Exercise, compare_values

Weights = Mapping[int, Fraction]
_HALF, _THIRD, _SIXTH, _ZERO = Fraction(1, 2), Fraction(1, 3), Fraction(1, 6), Fraction(0)
_PAIRS = [
    ({0: _HALF, 1: _THIRD, 2: _SIXTH}, {1: Fraction(3, 4), 2: Fraction(1, 4)}),
    ({0: _SIXTH, 1: _HALF, 2: _THIRD}, {0: _HALF, 1: _THIRD, 2: _SIXTH}),
    ({0: _HALF, 1: _THIRD, 2: _SIXTH}, {2: Fraction(1)}),
    ({0: _HALF, 1: _HALF}, {0: _HALF, 1: _HALF}),
]


def _normalise(weights: Weights) -> dict[int, Fraction]:
    total = sum(weights.values())
    return {i: w / total for i, w in weights.items() if w}


def _residual(p: Weights, q: Weights) -> dict[int, Fraction]:
    rest = {i: max(p[i] - q.get(i, _ZERO), _ZERO) for i in p}
    return _normalise(rest if any(rest.values()) else p)


def _residual_on_shortlist(p: Weights, q: Weights) -> dict[int, Fraction]:
    rest = {i: max(p[i] - q[i], _ZERO) for i in p if i in q}
    return _normalise(rest if any(rest.values()) else p)


def _residual_without_sign(p: Weights, q: Weights) -> dict[int, Fraction]:
    rest = {i: abs(p[i] - q.get(i, _ZERO)) for i in p}
    return _normalise(rest if any(rest.values()) else p)


def _drop_zeros(answer: Callable[..., Weights]) -> Callable[..., Weights]:
    """The same function, which gives only ids with a probability above 0."""

    @wraps(answer)
    def call(p: Weights, q: Weights) -> Weights:
        return {i: w for i, w in answer(p, q).items() if w}

    return call


def _grade_residual(answer: Callable[..., Weights]) -> str | None:
    return compare_values(
        _drop_zeros(answer),
        _residual,
        _PAIRS,
        {
            "ids that the shortlist lacks are never given back": _residual_on_shortlist,
            "|p - q| in place of the positive part of p - q": _residual_without_sign,
            "the shares do not sum to 1: divide by their sum": lambda p, q: {
                i: w for i, w in ((i, max(p[i] - q.get(i, _ZERO), _ZERO)) for i in p) if w
            },
            "p itself": lambda p, q: dict(p),
        },
    )


_BEFORE_ONE = math.nextafter(1.0, 0.0)
_TENTHS = [0.1] * 10  # their sum, in floating point, is below 1
_DRAWS = [
    ([0.5, 0.25, 0.25], 0.6), ([0.5, 0.25, 0.25], 0.5), ([0.5, 0.0, 0.5], 0.5),
    ([0.0, 0.75, 0.25], 0.0), ([0.25, 0.75], 0.2), ([*_TENTHS, 0.0], _BEFORE_ONE),
]  # fmt: skip


def _choose(probs: Sequence[float], u: float) -> int:
    found = (i for i, total in enumerate(accumulate(probs)) if total > u)
    return next(found, max(i for i, p in enumerate(probs) if p > 0))


def _grade_choose(answer: Callable[..., int]) -> str | None:
    return compare_values(
        answer,
        _choose,
        _DRAWS,
        {
            "u <= sum takes an id of probability 0 at u = 0: ask for u < sum": lambda probs, u: (
                next(
                    (i for i, total in enumerate(accumulate(probs)) if u <= total),
                    max(i for i, p in enumerate(probs) if p > 0),
                )
            ),
            "where rounding leaves the sum below u, the last id has probability 0": (
                lambda probs, u: next(
                    (i for i, total in enumerate(accumulate(probs)) if u < total), len(probs) - 1
                )
            ),
            "the likeliest id, whatever u is": lambda probs, u: list(probs).index(max(probs)),
        },
    )


EXERCISES = (
    Exercise("residual", "What is drawn from after a rejection.", _grade_residual),
    Exercise("choose", "An index drawn by one uniform number.", _grade_choose, defect=True),
)
