"""What one pass of an LM head found besides logits."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Scores:
    """What one pass over K rows found for H hidden states, all of it in fresh tensors.

    ``logits`` (H, K) float32; ``best`` (H, top) float32, the largest logits in their order, ties
    to the lower place, NaN first; ``places`` (H, top) int64, where in the list they stand;
    ``totals`` (H,) float64, the sums of exp((logit - best) / temperature).
    """

    logits: Tensor
    best: Tensor
    places: Tensor
    totals: Tensor

    def log_sum_exp(self) -> Tensor:
        """(H,) float32; at a temperature other than 1, of the logits divided by it, less what
        their best is."""
        return torch.where(
            self.best[:, 0].isfinite(),
            self.best[:, 0] + self.totals.log().float(),
            self.best[:, 0],
        )
