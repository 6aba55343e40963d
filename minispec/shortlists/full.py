"""No pruning: every id of the vocabulary, which is what EAGLE-3 itself does."""

import torch
from torch import Tensor

from minispec.types import Context, Round


class FullShortlist:
    """All ids, at every step."""

    name = "full"
    per_round = True

    def __init__(self, vocab_size: int) -> None:
        self.budget = vocab_size
        self._ids = torch.arange(vocab_size)  # (V,)

    def select(self, context: Context) -> Tensor:
        return self._ids

    def observe(self, finished: Round) -> None:
        """Learns nothing: there is nothing left to choose."""

    def reset(self) -> None:
        """Has learnt nothing."""
