"""EvoSpec's evolving shortlist (arXiv 2605.27390): a small core, and what the context asks for.

Four parts share a budget that is never exceeded. What an earlier part brought, a later one
does not bring again:

1. core: the most frequent ids of some text, a ranking's first, and the ids that end an answer;
2. recency: the distinct ids of the text's last tokens, the latest first;
3. successors: what came after the last token when it stood in this text before;
4. semantic: members of the clusters that the draft's state scores highest.

Who gives way: the core stands always, recency has a share that it cannot exceed, successors
are a handful, and the semantic part fills what they leave, so it yields where they grow.

One list serves a round, by default. A list for each step needs fewer clusters to be as good,
but its rows must be gathered, and its centroids read, at each step.

Known of the paper are its abstract and these four parts; how they are built and share the
budget is our formulation.
"""

import numpy as np
import torch
from torch import Tensor

from minispec.errors import ArgumentError
from minispec.shortlists.frspec import truncate_ranking
from minispec.shortlists.semantic import Ids, SemanticIndex, whole
from minispec.shortlists.statistical import StatisticalIndex, recent
from minispec.types import Context, Round

_CORE, _RECENCY = 1 / 4, 1 / 6  # shares of the budget


class EvoSpecShortlist:
    """Core, recency, successors and semantic index under one budget."""

    name = "evospec"

    def __init__(
        self,
        ranking: Tensor,
        budget: int,
        eos_ids: tuple[int, ...],
        clusters: Tensor,
        rows: Tensor,
        *,
        core: int | None = None,
        recency: int | None = None,
        per_round: bool = True,
    ) -> None:
        """``ranking`` (N,) ids, most frequent first; ``clusters`` (V,) of the head's ``rows``
        (V, D), see ``semantic``; ``core`` and ``recency``: how many ids, a quarter and a sixth
        of the budget if not given. Raises ArgumentError for a core that is not in 1..budget."""
        if core is None:
            core = min(budget, max(1, len(eos_ids), round(_CORE * budget)))
        if not 1 <= core <= budget:
            raise ArgumentError(f"a core of {core} ids does not fit a budget of {budget}")
        self.budget, self.per_round = budget, per_round
        self._recency = round(_RECENCY * budget) if recency is None else recency
        self._core: Ids = truncate_ranking(ranking, core, eos_ids).numpy()
        self._in_core = np.zeros(len(clusters), bool)  # (V,)
        self._in_core[self._core] = True
        everything = whole(ranking, len(clusters))
        self.semantic = SemanticIndex(clusters, rows, everything, self._core)
        self.statistical = StatisticalIndex(len(clusters))

    @property
    def rows_probed(self) -> int:
        """Rows of D numbers that choosing a list reads, beside those of the list itself."""
        return len(self.semantic.centroids)

    def select(self, context: Context) -> Tensor:
        return torch.from_numpy(np.sort(np.concatenate([*self._parts(context).values()])))

    def explain(self, context: Context) -> dict[str, Tensor]:
        """What ``select`` returns, by the part that brought it: disjoint, each sorted."""
        parts = self._parts(context).items()
        return {name: torch.from_numpy(np.sort(ids)) for name, ids in parts}

    def _parts(self, context: Context) -> dict[str, Ids]:
        """What each part brings, in any order; no id comes twice."""
        taken, room = self._in_core.copy(), self.budget - len(self._core)

        def fresh(ids: Ids, most: int) -> Ids:
            ids = ids[~taken[ids]][:most]
            taken[ids] = True
            return ids

        latest = fresh(recent(context.tokens), min(room, self._recency))
        after = fresh(self.statistical.successors(context.tokens[-1]), room - len(latest))
        near = self.semantic.near(context.hidden, room - len(latest) - len(after), taken)
        return {"core": self._core, "recency": latest, "successor": after, "semantic": near}

    def observe(self, finished: Round) -> None:
        self.statistical.observe(finished)

    def reset(self) -> None:
        self.statistical.reset()
