"""Exercises of chapter 2: speculation and its theorem."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import accumulate
from operator import mul

from minispec.exercises.grading import Exercise, certify_part, compare_values
from minispec.verify import Verifier

_RATES = [
    [Fraction(1, 2)] * 3, [Fraction(9, 10), Fraction(2, 3), Fraction(1, 4)],
    [Fraction(1), Fraction(0)], [],
]  # fmt: skip


def _count_expected(rates: Sequence[Fraction]) -> Fraction:
    return 1 + sum(accumulate(rates, mul), Fraction(0))


def _grade_expected(answer: Callable[..., Fraction]) -> str | None:
    return compare_values(
        answer,
        _count_expected,
        [(rates,) for rates in _RATES],
        {
            "the target's own token, which every round emits, is left out": (
                lambda rates: _count_expected(rates) - 1
            ),
            "a token counts only if all before it were accepted: multiply the rates": (
                lambda rates: 1 + sum(rates)
            ),
            "that is the probability that the whole chain is accepted": (
                lambda rates: [Fraction(1), *accumulate(rates, mul)][-1]
            ),
        },
    )


def _grade_verify(answer: Verifier) -> str | None:
    return certify_part(verifier=answer)


EXERCISES = (
    Exercise("expected_tokens", "The tokens that a round emits, on average.", _grade_expected),
    Exercise("verify_chain", "Verify a chain token by token.", _grade_verify, defect=True),
)
