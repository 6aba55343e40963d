"""Exercises of chapter 1: why decoding is bound by memory."""

from collections.abc import Callable

from minispec.exercises.grading import Exercise, compare_values

_MACHINES = [(40e9, 1000e9), (3.35e12, 60e12), (100e9, 500e9)]  # bytes, operations per second


def _grade_ridge(answer: Callable[..., float]) -> str | None:
    return compare_values(
        answer,
        lambda bandwidth, operations, size: size * operations / (2 * bandwidth),
        [(*machine, size) for machine in _MACHINES for size in (1, 2, 4)],
        {
            "one operation for each weight and position, where it is two": (
                lambda bandwidth, operations, size: size * operations / bandwidth
            ),
            "the bytes of a weight are left out": (
                lambda bandwidth, operations, size: operations / (2 * bandwidth)
            ),
            "upside down: bandwidth over operations": (
                lambda bandwidth, operations, size: 2 * bandwidth / (size * operations)
            ),
        },
    )


def _grade_seconds(answer: Callable[..., float]) -> str | None:
    return compare_values(
        answer,
        lambda n, w, b, f: max(4 * w / b, 2 * n * w / f),
        [(n, w, *m) for m in _MACHINES for n in (1, 5, 300) for w in (1e6, 134e6)],
        {
            "the weights are read again for each position": (
                lambda n, w, b, f: max(4 * n * w / b, 2 * n * w / f)
            ),
            "reading and computing overlap, so the longer of the two counts, not their sum": (
                lambda n, w, b, f: 4 * w / b + 2 * n * w / f
            ),
            "the shorter of the two instead of the longer": (
                lambda n, w, b, f: min(4 * w / b, 2 * n * w / f)
            ),
        },
    )


EXERCISES = (
    Exercise(
        "ridge_positions", "Up to how many positions is a pass bound by memory?", _grade_ridge
    ),
    Exercise("pass_seconds", "The seconds of a pass by the roofline.", _grade_seconds, defect=True),
)
