"""The curriculum: easy positions first, harder ones as the draft gets better.

Competence-based (after Platanios et al., arXiv 1903.09848): a position counts when its
difficulty is within the draft's competence. Both cost nothing to know. The difficulty is what
verification has just seen; competence follows measured acceptance. Pure functions.
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
    """1 where a position is within the competence, falling linearly to 0 over 0.2 above."""
    return ((competence + 0.2 - difficulties) / 0.2).clamp(0, 1).to(torch.float32)
