"""Competence-based curriculum (Platanios et al., arXiv 1903.09848): easy positions first.

A position has full weight in the loss while its difficulty is at most the draft's competence,
and less weight the further its difficulty exceeds it. The weight never becomes zero for a draft
of competence above zero: under greedy decoding the acceptance rate is nearly 0 or 1, and a draft
that is always rejected still has to start learning. Difficulty and competence follow from the
acceptance rates measured during verification, without further computation. Pure functions.
"""

import torch
from torch import Tensor

_INITIAL_COMPETENCE = 0.3  # of a draft that is never accepted
_FULL_ACCEPTANCE = 0.8  # the mean acceptance rate at which every position has full weight
_DECAY = 0.9  # factor on the acceptance rate for each further draft step


def difficulty(acceptance_rate: float, step: int) -> float:
    """1 - alpha * 0.9 ** step, in [0, 1].

    ``acceptance_rate`` is alpha = sum min(p, q) at the position: under greedy decoding 0 for a
    token outside the shortlist, so long-tail tokens are the hardest. Later draft steps are harder.
    """
    return 1 - acceptance_rate * _DECAY**step


def competence(mean_acceptance: float) -> float:
    """In [0.3, 1], linear in the mean acceptance rate of the recent rounds up to 0.8."""
    return min(
        1.0, _INITIAL_COMPETENCE + (1 - _INITIAL_COMPETENCE) * mean_acceptance / _FULL_ACCEPTANCE
    )


def weights(difficulties: Tensor, competence: float) -> Tensor:
    """Difficulties (N,) -> loss weights (N,) float32: 1 up to the competence, then decreasing
    linearly with the difficulty."""
    return (1 + competence - difficulties).clamp(0, 1).to(torch.float32)
