"""An evolving shortlist, after EvoSpec (arXiv 2605.27390): a small core, and ids from the context.

Four parts share a fixed budget, in this order; a part adds only ids that no earlier part has:

1. core: the most frequent ids of a ranking, and the end ids;
2. recency: the distinct ids of the text's last tokens, the latest first;
3. successor: the ids that followed the last token earlier in this text;
4. semantic: members of the clusters of head rows that score highest for the draft's hidden state.

The core is fixed, recency has an upper bound, successors are at most a handful, and the semantic
part fills the rest: it shrinks where the others grow.

By default one shortlist serves a whole round. A shortlist per draft step is as good with fewer
clusters, but its head rows are gathered, and its centroids read, at each step.

The idea of a static core with retrieved ids is the paper's. In v1 it has a core of 32,000 ids, an
HNSW index of the head's rows, an offline bigram graph, the target's own top 10, and a buffer of 256
ids under ARC that changes only after an emitted token was missing: ``evospec_paper``. These four
parts, how each is built and how they share the budget, are ours.
"""

import numpy as np
import torch
from torch import Tensor

from minispec.errors import ArgumentError
from minispec.models.quantized_matrix import Rows
from minispec.shortlists.frspec import complete_ranking, truncate_ranking
from minispec.shortlists.semantic import Ids, SemanticIndex
from minispec.shortlists.statistical import StatisticalIndex, recent_ids
from minispec.types import BaseShortlist, Context, Round

_CORE, _RECENCY = 1 / 4, 1 / 6  # shares of the budget


class EvoSpecShortlist(BaseShortlist):
    """Core, recency, successors and semantic neighbours under one budget."""

    name = "evospec"
    part_names = ("core", "recency", "successor", "semantic")

    def __init__(
        self,
        ranking: Tensor,
        budget: int,
        eos_ids: tuple[int, ...],
        clusters: Tensor,
        rows: Rows,
        *,
        core: int | None = None,
        recency: int | None = None,
        per_round: bool = True,
    ) -> None:
        """``ranking`` (N,) ids, most frequent first; ``clusters`` (V,) of the LM head's ``rows``
        (V, D), see ``kmeans``. ``core`` and ``recency``: the number of ids of these parts, by
        default a quarter and a sixth of the budget. Raises ArgumentError if ``core`` is not in
        1..budget."""
        if core is None:
            core = min(budget, max(1, len(eos_ids), round(_CORE * budget)))
        if not 1 <= core <= budget:
            raise ArgumentError(f"a core of {core} ids does not fit a budget of {budget}")
        self.budget, self.per_round = budget, per_round
        self._max_recent = round(_RECENCY * budget) if recency is None else recency
        self._core: Ids = truncate_ranking(ranking, core, eos_ids).numpy()
        self._in_core = np.zeros(len(clusters), bool)  # (V,)
        self._in_core[self._core] = True
        all_ids = complete_ranking(ranking, len(clusters))  # (V,)
        self.semantic = SemanticIndex(clusters, rows, all_ids, self._core)
        self.statistical = StatisticalIndex(len(clusters))
        self.rows_probed = len(self.semantic.centroids)

    def select(self, context: Context) -> Tensor:
        return torch.from_numpy(np.sort(np.concatenate([*self._choose(context).values()])))

    def explain(self, context: Context) -> dict[str, Tensor]:
        parts = self._choose(context).items()
        return {name: torch.from_numpy(np.sort(ids)) for name, ids in parts}

    def _choose(self, context: Context) -> dict[str, Ids]:
        """The ids of each part, unsorted; no id is in two parts."""
        taken, left = self._in_core.copy(), self.budget - len(self._core)

        def take_free(ids: Ids, limit: int) -> Ids:
            ids = ids[~taken[ids]][:limit]
            taken[ids] = True
            return ids

        recent = take_free(recent_ids(context.tokens), min(left, self._max_recent))
        left -= len(recent)
        successors = take_free(self.statistical.successors(context.tokens[-1]), left)
        left -= len(successors)
        semantic = self.semantic.find_nearest(context.hidden, left, taken)
        parts = (self._core, recent, successors, semantic)
        return dict(zip(self.part_names, parts, strict=True))

    def observe(self, finished: Round) -> None:
        self.statistical.observe(finished)

    def reset(self) -> None:
        self.statistical.reset()
