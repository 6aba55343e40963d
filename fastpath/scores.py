"""Logits of an LM head with their top-k and log-sum-exp, as one pass over the rows returns them."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of K head rows for H hidden states, all of them in freshly allocated tensors.

    ``logits`` (H, K) float32; ``top_logits`` (H, top) float32, the largest logits in descending
    order, ties to the lower index, NaN first; ``top_indices`` (H, top) int64, their indices into
    the K rows; ``exp_sums`` (H,) float64, the sums of exp((logit - top_logits[0]) / temperature).
    """

    logits: Tensor
    top_logits: Tensor
    top_indices: Tensor
    exp_sums: Tensor

    def log_sum_exp(self) -> Tensor:
        """Log-sum-exp (H,) float32 of the logits at temperature 1.

        At another temperature T it is the top logit + log sum exp((logit - top logit) / T).
        """
        return torch.where(
            self.top_logits[:, 0].isfinite(),
            self.top_logits[:, 0] + self.exp_sums.log().float(),
            self.top_logits[:, 0],
        )
