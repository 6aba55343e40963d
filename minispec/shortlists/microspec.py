"""MicroSpec's in-context draft vocabulary (arXiv 2605.26444): text repeats its own tokens.

The paper's (v1): the prompt's ids, the target's three likeliest ids at every prompt position and at
verified ones, and all drafted ids; the last 3,072 of that stream, one shortlist a round; nothing is
trained. Ours: the distinct ids of the whole context, the latest first, filled up to the budget with
the most frequent ids of a ranking, at each step. How the paper gathers head rows on a GPU is left
to a backend.
"""

import numpy as np
import torch
from torch import Tensor

from minispec.shortlists.frspec import truncate_ranking
from minispec.types import BaseShortlist, Context


class InContextShortlist(BaseShortlist):
    """The end ids, then the ids of the context, then the most frequent ids, up to the budget."""

    name = "in_context"

    def __init__(self, ranking: Tensor, budget: int, eos_ids: tuple[int, ...]) -> None:
        """``ranking`` (N,) ids, most frequent first; 1 <= budget <= N."""
        self.budget = budget
        self._eos_ids = eos_ids
        self._frequent = truncate_ranking(ranking, budget, eos_ids).tolist()

    def select(self, context: Context) -> Tensor:
        ids = dict.fromkeys((*self._eos_ids, *reversed(context.tokens), *self._frequent))
        return torch.from_numpy(np.sort(list(ids)[: self.budget]))  # (K,)
