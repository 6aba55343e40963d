"""DynaSpec's routed clusters (arXiv 2510.13847): a small classifier chooses where to draft from.

The paper's: the ids of the LM head are partitioned into coarse clusters. A light classifier,
trained on the tokens that follow in text, routes each context to a few clusters, and their union
is the shortlist, larger at the first positions of a round than at later ones. The target verifies
over the whole vocabulary. On a GPU the router runs in parallel with the draft.

Ours: the clusters are those of the semantic index. They fill a budget instead of being a fixed
number of whole clusters, in descending order of probability per head row. The budget halves with
every second position, down to a quarter: about as a token's chance falls that all tokens before
it are accepted. The router has one hidden layer and reads the hidden state that the head rows will
be multiplied with, which the paper's does not wait for. The end ids are always on the shortlist.

Cost, in numbers read from memory: (D + C) * H for a hidden layer of H units, at each step.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minispec.shortlists.frspec import complete_ranking
from minispec.shortlists.semantic import InvertedLists
from minispec.types import BaseShortlist, Context

_UNITS = 128
_LEAST = 1 / 4  # of the budget, at later draft steps


class Router(nn.Module):
    """A classifier of hidden states (..., D): logits over C clusters (..., C)."""

    def __init__(self, hidden_size: int, clusters: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(hidden_size, _UNITS), nn.Linear(_UNITS, clusters)

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., D) -> logits (..., C)."""
        return self.outer(F.silu(self.inner(hidden)))


class DynaSpecShortlist(BaseShortlist):
    """The members of the clusters that the router prefers, for each head row they cost."""

    name = "dynaspec"

    def __init__(
        self,
        ranking: Tensor,
        budget: int,
        eos_ids: tuple[int, ...],
        clusters: Tensor,
        router: Router,
    ) -> None:
        """``ranking`` (N,) ids, most frequent first, orders the members of a cluster; ``clusters``
        (V,) int64."""
        self.budget, self._router = budget, router
        self._eos_ids = np.array(eos_ids, np.int64)
        all_ids = complete_ranking(ranking, len(clusters))  # (V,)
        self._inverted = InvertedLists(clusters, all_ids, self._eos_ids)
        self._log_sizes = np.log(self._inverted.sizes)  # (C,)

    def budget_at(self, depth: int) -> int:
        """The number of ids at a draft step, the whole budget at the first."""
        return max(1, round(self.budget * max(_LEAST, 2 ** (-depth / 2))))

    @torch.inference_mode()
    def select(self, context: Context) -> Tensor:
        logits = self._router(context.hidden.to(self._router.inner.weight.dtype)).float()
        scores = logits.numpy()[self._inverted.numbers] - self._log_sizes  # (C,) log of p per row
        budget = self.budget_at(context.depth)
        members = self._inverted.top_clusters(scores, budget)
        ids = np.concatenate((self._eos_ids, members))[:budget]
        return torch.from_numpy(np.sort(ids))  # (K,)
