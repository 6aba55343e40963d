"""Exercises of chapter 9: EvoSpec and the switch of topic."""

from collections.abc import Callable, Sequence

import torch

from minispec.exercises.grading import Exercise, certify_part, compare_values
from minispec.types import Context, Shortlist

Parts = Sequence[tuple[Sequence[int], int]]
_PARTS: list[tuple[int, Parts]] = [
    (6, [([0, 1, 2], 3), ([2, 7, 0, 8, 9], 2), ([7, 1, 4, 5], 9)]),
    (4, [([3, 1], 2), ([3, 1], 2), ([1, 9, 8, 7], 9)]),
    (3, [([0, 1, 2, 3, 4], 2), ([5, 6], 1), ([7], 5)]),
    (2, [([5, 6, 7], 3), ([1], 1)]),
]


def _fill(
    budget: int, parts: Parts, *, limit_first: bool = False, capped: bool = True
) -> list[list[int]]:
    taken: set[int] = set()
    found = []
    for ids, limit in parts:
        most = min(limit, budget - len(taken)) if capped else limit
        given = ids[:limit] if limit_first else ids
        added = [i for i in given if i not in taken][:most]
        taken.update(added)
        found.append(added)
    return found


def _grade_fill(answer: Callable[..., Sequence[Sequence[int]]]) -> str | None:
    return compare_values(
        answer,
        _fill,
        _PARTS,
        {
            "an id that an earlier part has uses up this part's limit": (
                lambda budget, parts: _fill(budget, parts, limit_first=True)
            ),
            "more ids than the budget": lambda budget, parts: _fill(budget, parts, capped=False),
            "an id stands in two parts": lambda budget, parts: [
                list(ids[:limit]) for ids, limit in parts
            ],
        },
    )


def _grade_following(answer: Callable[..., Shortlist]) -> str | None:
    shortlist = answer(9)
    ids = shortlist.select(Context((0, 1, 8, 5, 5, 7), torch.zeros(9), 0)).tolist()
    if ids != [0, 1, 5, 7]:
        return f"after 0, 1, 8, 5, 5, 7 it selects {ids}: expected [0, 1, 5, 7], of a budget of 4"
    return certify_part(shortlist=answer)


EXERCISES = (
    Exercise("fill", "Parts that share a budget.", _grade_fill),
    Exercise(
        "FollowingShortlist", "Two frequent ids and the last two of the text.", _grade_following,
        defect=True,
    ),
)  # fmt: skip
