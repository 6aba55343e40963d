"""DynaSpec's routed clusters (arXiv 2510.13847): a small classifier says where to draft from.

Theirs: the LM head's ids are partitioned into coarse clusters; a light classifier, trained on
what follows in text, routes each context to a few of them, and their union is the list, while
the target verifies over the whole vocabulary; on a GPU routing runs beside the draft.

Ours: the clusters are made as the semantic index's are, filled in up to a budget instead of a fixed
number of whole ones, those first whose probability is highest for each row that they cost; the
classifier (one hidden layer) reads the state that the list's rows will be multiplied with, which
theirs does not wait for; ids that end an answer are always on the list.

Cost, in numbers read from memory: (D + C) * H for a hidden layer of H units, at each step.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minispec.shortlists.semantic import InvertedLists, whole
from minispec.types import Context, Round

_UNITS = 128


class Router(nn.Module):
    """Scores of C clusters for states (..., D) -> (..., C): a law over them, as logits."""

    def __init__(self, width: int, clusters: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(width, _UNITS), nn.Linear(_UNITS, clusters)

    def forward(self, hidden: Tensor) -> Tensor:
        """States (..., D) -> scores (..., C)."""
        return self.outer(F.silu(self.inner(hidden)))


class RoutedShortlist:
    """The members of the clusters that a router scores highest."""

    name = "routed"
    per_round = False

    def __init__(
        self,
        ranking: Tensor,
        budget: int,
        eos_ids: tuple[int, ...],
        clusters: Tensor,
        router: Router,
    ) -> None:
        """``ranking`` (N,) ids, most frequent first, orders a cluster's members; ``clusters``
        (V,) int64."""
        self.budget, self._router = budget, router
        self._ends = np.array(eos_ids, np.int64)
        self._lists = InvertedLists(clusters, whole(ranking, len(clusters)), self._ends)
        self._log_sizes = np.log(self._lists.sizes)

    @torch.inference_mode()
    def select(self, context: Context) -> Tensor:
        scores = self._router(context.hidden.to(self._router.inner.weight.dtype)).float()
        worth = scores.numpy()[self._lists.numbers] - self._log_sizes
        found = self._lists.best(worth, self.budget)
        ids = np.concatenate((self._ends, found))[: self.budget]
        return torch.from_numpy(np.sort(ids))

    def observe(self, finished: Round) -> None:
        """Learns nothing: its router was trained before."""

    def reset(self) -> None:
        """Has learnt nothing."""
