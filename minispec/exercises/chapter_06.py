"""Exercises of chapter 6: the vocabulary bottleneck and FR-Spec."""

from collections.abc import Callable, Sequence

import torch

from minispec.exercises.grading import Exercise, certify_part, compare_values
from minispec.types import Context, Shortlist

_COUNTS = [
    ([1, 0, 3, 0, 0, 3, 0, 2], 3, (6,)), ([1, 0, 3, 0, 0, 3, 0, 2], 5, (6, 7)),
    ([2, 2, 2, 2], 2, ()), ([0, 5, 4, 9], 2, (3,)), ([0, 0, 9, 8, 7], 2, (0,)),
]  # fmt: skip


def _rank(counts: Sequence[int]) -> list[int]:
    return sorted(range(len(counts)), key=lambda i: (-counts[i], i))


def _truncate(counts: Sequence[int], budget: int, eos_ids: Sequence[int]) -> list[int]:
    others = [i for i in _rank(counts) if i not in eos_ids]
    return sorted([*eos_ids, *others[: budget - len(eos_ids)]])


def _grade_cut(answer: Callable[..., Sequence[int]]) -> str | None:
    return compare_values(
        answer,
        _truncate,
        _COUNTS,
        {
            "the ends are left out: the draft can never propose one": (
                lambda counts, budget, eos_ids: sorted(_rank(counts)[:budget])
            ),
            "the ends come on top of the budget": lambda counts, budget, eos_ids: sorted(
                {*eos_ids, *_rank(counts)[:budget]}
            ),
            "ids must be sorted": lambda counts, budget, eos_ids: [
                *(i for i in _rank(counts) if i not in eos_ids)
            ][: budget - len(eos_ids)]
            + [*eos_ids],
            "equal counts go to the lower id": lambda counts, budget, eos_ids: sorted([
                *eos_ids,
                *[i for i in sorted(range(len(counts)), key=lambda i: (-counts[i], -i))
                  if i not in eos_ids][: budget - len(eos_ids)],
            ]),
        },
    )  # fmt: skip


def _grade_alternating(answer: Callable[..., Shortlist]) -> str | None:
    shortlist = answer(4)
    if shortlist.per_round:
        return "per_round is True, so that select is called at draft step 0 alone: leave it False"
    steps = [Context((0, 1), torch.zeros(4), depth) for depth in range(3)]
    ids = [shortlist.select(context).tolist() for context in steps]
    if ids != [[0, 2], [1, 3], [0, 2]]:
        return f"of 4 ids the draft steps 0, 1, 2 select {ids}: expected [0, 2], [1, 3], [0, 2]"
    return certify_part(shortlist=answer)


EXERCISES = (
    Exercise("cut_ranking", "The ids of a static shortlist.", _grade_cut),
    Exercise(
        "AlternatingShortlist", "The even ids, then the odd ones, in turn.", _grade_alternating,
        defect=True,
    ),
)  # fmt: skip
