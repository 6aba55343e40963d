"""Exercises of chapter 8: the statistical index."""

from collections.abc import Callable, Sequence

from minispec.exercises.grading import Exercise, compare_values

_TEXTS = [
    ([4, 9, 9, 2, 4, 7], 10), ([4, 9, 9, 2, 4, 7], 2), ([1, 1, 1, 2, 2, 2], 2), ([3], 4),
    ([5, 6, 5, 6, 5], 1),
]  # fmt: skip
_ROUNDS = [
    (9, [3, 5, 8], [3, 5, 1, 2], 2), (4, [7], [6, 2], 0), (1, [2, 3, 4], [2, 3], 2),
    (0, [5], [], 0),
]  # fmt: skip


def _list_recent(tokens: Sequence[int], count: int) -> list[int]:
    return list(dict.fromkeys(reversed(tokens)))[:count]


def _grade_recent(answer: Callable[..., Sequence[int]]) -> str | None:
    return compare_values(
        answer,
        _list_recent,
        _TEXTS,
        {
            "cut before repeated ids are dropped, so that too few are left": (
                lambda tokens, count: list(dict.fromkeys(list(reversed(tokens))[:count]))
            ),
            "the earliest ids instead of the latest": (
                lambda tokens, count: list(dict.fromkeys(tokens))[:count]
            ),
            "an id stands in it twice": lambda tokens, count: list(reversed(tokens))[:count],
        },
    )


def _learn(
    before: int, emitted: Sequence[int], proposed: Sequence[int], accepted: int
) -> set[tuple[int, int]]:
    past = [before, *emitted[:-1]]
    rejected = proposed[accepted : accepted + 1]
    return {*zip(past, emitted, strict=True), *((past[accepted], token) for token in rejected)}


def _learn_all(
    before: int, emitted: Sequence[int], proposed: Sequence[int], accepted: int
) -> set[tuple[int, int]]:
    chain = [before, *proposed]
    later = zip(chain[accepted:], proposed[accepted:], strict=False)
    return _learn(before, emitted, proposed, accepted) | {*later}


def _grade_pairs(answer: Callable[..., set[tuple[int, int]]]) -> str | None:
    return compare_values(
        answer,
        _learn,
        _ROUNDS,
        {
            "drafts after the rejected one continue a token that is not in the text": _learn_all,
            "the rejected token, which the draft may propose again, is not learnt": (
                lambda before, emitted, proposed, accepted: _learn(before, emitted, [], accepted)
            ),
            "the pair with the last token before the round is missing": (
                lambda *round_: {p for p in _learn(*round_) if p[0] != round_[0]}
            ),
            "proposed tokens instead of emitted ones": (
                lambda before, emitted, proposed, accepted: {*zip([before, *proposed], proposed)}  # noqa: B905
            ),
        },
    )


EXERCISES = (
    Exercise("recent_ids", "The distinct ids of the last tokens.", _grade_recent),
    Exercise("learn_pairs", "The pairs that a round teaches.", _grade_pairs, defect=True),
)
