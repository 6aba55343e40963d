"""The whole vocabulary, without pruning: the baseline that shortlists are compared with."""

import torch
from torch import Tensor

from minispec.types import BaseShortlist, Context


class FullShortlist(BaseShortlist):
    """All ids, at every step."""

    name = "full"
    per_round = True

    def __init__(self, vocab_size: int) -> None:
        self.budget = vocab_size
        self._ids = torch.arange(vocab_size)  # (V,)

    def select(self, context: Context) -> Tensor:
        return self._ids
