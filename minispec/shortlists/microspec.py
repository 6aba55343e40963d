"""MicroSpec's in-context vocabulary (arXiv 2605.26444): the draft may say what was said.

Theirs: a list of fewer than 3,000 ids, built anew at each step from the context, because text
returns to its own words; nothing is trained. Ours, since only the abstract was at hand: the
distinct ids of the whole context, the latest first, and where these do not fill the budget the
most frequent ids of a ranking. Their gathering of rows aside on a GPU is left to a backend.
"""

import numpy as np
import torch
from torch import Tensor

from minispec.shortlists.frspec import truncate_ranking
from minispec.types import Context, Round


class InContextShortlist:
    """The ids of the context, before the most frequent ones."""

    name = "in_context"
    per_round = False

    def __init__(self, ranking: Tensor, budget: int, eos_ids: tuple[int, ...]) -> None:
        """``ranking`` (N,) ids, most frequent first; 1 <= budget <= N."""
        self.budget = budget
        self._ends = eos_ids
        self._frequent = truncate_ranking(ranking, budget, eos_ids).tolist()

    def select(self, context: Context) -> Tensor:
        ids = dict.fromkeys((*self._ends, *reversed(context.tokens), *self._frequent))
        return torch.from_numpy(np.sort(list(ids)[: self.budget]))

    def observe(self, finished: Round) -> None:
        """Learns nothing: the context itself is what it knows."""

    def reset(self) -> None:
        """Has learnt nothing."""
