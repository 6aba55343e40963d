"""Exercises of chapter 13: a part of one's own, and its certificate."""

from collections.abc import Callable

import torch

from minispec.exercises.grading import Exercise, certify_part
from minispec.types import Context, Shortlist
from minispec.verify import Verifier


def _grade_shortlist(answer: Callable[..., Shortlist]) -> str | None:
    for vocab_size, tokens, wanted in (
        (10, (0, 9, 9, 2, 9, 7), [0, 2, 7, 9]),
        (4, (0, 1, 2, 3, 1), [1, 3]),
        (5, (4, 4, 4), [4]),
    ):
        shortlist = answer(vocab_size)
        if shortlist.budget != max(1, vocab_size // 2):
            return (
                f"of {vocab_size} ids the budget is {shortlist.budget}, expected {vocab_size // 2}"
            )
        ids = shortlist.select(Context(tokens, torch.zeros(vocab_size), 0)).tolist()
        if ids != wanted:
            return f"of {vocab_size} ids it selects {ids} after {list(tokens)}: expected {wanted}"
    return certify_part(shortlist=answer)


def _grade_verifier(answer: Verifier) -> str | None:
    return certify_part(verifier=answer)


EXERCISES = (
    Exercise("RecentShortlist", "A shortlist of the recent ids.", _grade_shortlist),
    Exercise("verify_on_shortlist", "A verifier for any shortlist.", _grade_verifier, defect=True),
)
