"""The curriculum: easy positions first, harder ones as the draft gets better.

Competence-based (after Platanios et al., arXiv 1903.09848): a position counts in full when its
difficulty is within the draft's competence, and less the further it lies above; never nothing,
since greedy verdicts know only right and wrong, and a draft that is always wrong must begin
somewhere. Both cost nothing to know: the difficulty is what verification has just seen, and
competence follows measured acceptance. Pure functions.
"""

import torch
from torch import Tensor

_START = 0.3  # competence of a draft that is never accepted
_FULL = 0.8  # the acceptance from which on everything counts
_STEP = 0.9  # what each step of the draft's own running ahead leaves of ease


def difficulty(overlap: float, step: int) -> float:
    """In [0, 1]: 0 for a position where the draft's law was the target's at the first step.

    ``overlap`` is sum min(p, q) there: 0 for a token that was not on the list, so long-tail
    tokens are the hardest. Later steps are harder.
    """
    return 1 - overlap * _STEP**step


def competence(acceptance: float) -> float:
    """In [0.3, 1], rising linearly with the mean overlap of the last rounds."""
    return min(1.0, _START + (1 - _START) * acceptance / _FULL)


def weights(difficulties: Tensor, competence: float) -> Tensor:
    """Difficulties (N,) -> weights (N,): 1 where a position is within the competence, less by as
    much as it lies above."""
    return (1 + competence - difficulties).clamp(0, 1).to(torch.float32)
