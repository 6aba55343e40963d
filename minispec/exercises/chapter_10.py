"""Exercises of chapter 10: alignment while serving."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from minispec.exercises.grading import Exercise, certify_part, compare_values
from minispec.learning.losses import LOSSES
from minispec.types import Learner

_PAIRS = [
    ([0.6, 0.3, 0.1], [0.1, 0.6, 0.3]), ([0.2, 0.2, 0.6], [0.5, 0.4, 0.1]),
    ([0.9, 0.1], [0.2, 0.8]),
]  # fmt: skip


def _differentiate(p: Sequence[float], q: Sequence[float]) -> list[float]:
    """The gradient of 1 - alpha with respect to the logits of q, by PyTorch."""
    z = torch.tensor([q], dtype=torch.float64).log().requires_grad_()
    columns = torch.arange(len(p))[None]
    LOSSES["tv"](
        z.log_softmax(-1), torch.tensor([p], dtype=torch.float64), columns
    ).sum().backward()
    assert z.grad is not None
    gradient: list[float] = z.grad[0].tolist()
    return gradient


def _less(p: Sequence[float], q: Sequence[float]) -> list[bool]:
    return [b < a for a, b in zip(p, q, strict=True)]


def _grade_gradient(answer: Callable[..., Sequence[float]]) -> str | None:
    return compare_values(
        answer,
        _differentiate,
        _PAIRS,
        {
            "that is the gradient of alpha, which rises: change the sign": (
                lambda p, q: [-g for g in _differentiate(p, q)]
            ),
            "the mean over q is not subtracted: a softmax's logits are known up to a constant": (
                lambda p, q: [-b * less for b, less in zip(q, _less(p, q), strict=True)]
            ),
            "that is the gradient of the cross-entropy": (
                lambda p, q: [b - a for a, b in zip(p, q, strict=True)]
            ),
            "that is the gradient with respect to q, not to the logits": (
                lambda p, q: [-float(less) for less in _less(p, q)]
            ),
        },
    )


def _grade_learner(answer: Callable[[Any], Learner]) -> str | None:
    return certify_part(learner=answer)


EXERCISES = (
    Exercise("acceptance_gradient", "The gradient of the rejection probability.", _grade_gradient),
    Exercise("RaisingLearner", "A draft that learns from each round.", _grade_learner, defect=True),
)
