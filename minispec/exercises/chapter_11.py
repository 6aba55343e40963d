"""Exercises of chapter 11: fast paths and the roofline."""

from collections.abc import Callable
from typing import Any

import torch

from minispec.exercises.grading import Exercise, compare_values
from minispec.models.lm_head import LinearHead

_SIZES = [
    (538.0, 20.4, 0.002304, 1_536, 4),
    (538.0, 20.4, 0.002304, 49_152, 4),
    (900.0, 30.0, 0.01, 500, 2),
]
_V = 12


def _grade_break_even(answer: Callable[..., float]) -> str | None:
    return compare_values(
        answer,
        lambda target, draft, row, ids, gamma: (target + gamma * (draft + ids * row)) / target,
        _SIZES,
        {
            "the draft's head is read at each draft step, not once a round": (
                lambda target, draft, row, ids, gamma: (target + gamma * draft + ids * row) / target
            ),
            "the target's own pass is left out": (
                lambda target, draft, row, ids, gamma: gamma * (draft + ids * row) / target
            ),
            "upside down: the plain pass over the round": (
                lambda target, draft, row, ids, gamma: (
                    target / (target + gamma * (draft + ids * row))
                )
            ),
            "the draft's head is left out": (
                lambda target, draft, row, ids, gamma: (target + gamma * draft) / target
            ),
        },
    )


def _grade_packed(answer: Callable[..., Any]) -> str | None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(_V, 4, generator=generator, dtype=torch.float64)
    hidden = torch.randn(2, 4, generator=generator, dtype=torch.float64)
    reference, head = LinearHead(weight), answer(weight)
    first, second = torch.tensor([0, 3, 5]), torch.tensor([1, 3, 8])
    for change, ids in (
        ("the first shortlist", first),
        ("the same tensor again", first),
        ("other ids of the same number", second),
        ("a shortlist that returns", first),
        ("fewer ids", torch.tensor([0, 3])),
        ("the same sum of other ids", torch.tensor([1, 2])),
        ("all ids", torch.arange(_V)),
    ):
        found, wanted = head.logits_of(hidden, ids), reference.logits_of(hidden, ids)
        if found.shape != wanted.shape:
            return f"{change}: logits of shape {tuple(found.shape)}, expected {tuple(wanted.shape)}"
        if not torch.allclose(found, wanted):
            return f"{change}: the logits are those of other rows; the mistake: a stale copy"
    copied = head.copies
    for _ in range(3):
        head.logits_of(hidden, first)
    if head.copies > copied + 1:
        return "the same tensor again: the rows are copied at every call, which packing is to avoid"
    return None


EXERCISES = (
    Exercise("break_even_tau", "The tau below which speculation loses.", _grade_break_even),
    Exercise("PackedRows", "A packed copy of a shortlist's head rows.", _grade_packed, defect=True),
)
