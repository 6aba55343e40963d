"""EvoSpec's evolving shortlist (arXiv 2605.27390): a small core, and what the context asks for.

Four parts, in the order in which they come first to a budget that is never exceeded:

1. core: the most frequent ids of some text, a ranking's first, and the ids that end an answer;
2. recency: the distinct ids of the text's last tokens;
3. successors: what followed the last token before;
4. semantic: the members of the clusters whose centroids the state scores highest, whole
   clusters at a time, until the budget is full.

So the core always stands; the statistical parts have a share that they cannot exceed; the
semantic part takes all that is left, and gives way where the others grow.

The paper's abstract and not its text was at hand: the parts are the paper's, how they are built
and share the budget is our formulation.
"""

import numpy as np
import torch
from torch import Tensor

from minispec.errors import ArgumentError
from minispec.shortlist.semantic import Ids, SemanticIndex
from minispec.shortlist.static import cut
from minispec.shortlist.statistical import StatisticalIndex, recent
from minispec.types import Context, Round

_WINDOW = 512  # tokens that recency looks back on
_PROBES = 64  # clusters looked up at most


class EvolvingList:
    """Core, recency, successors and semantic index under one budget."""

    name = "evospec"

    def __init__(
        self,
        ranking: Tensor,
        budget: int,
        eos_ids: tuple[int, ...],
        semantic: SemanticIndex,
        statistical: StatisticalIndex,
        *,
        core: int | None = None,
        recency: int | None = None,
        per_round: bool = False,
    ) -> None:
        """``ranking`` (N,) ids, most frequent first. ``core`` and ``recency`` are numbers of
        ids (a quarter and a sixth of the budget). Raises ArgumentError."""
        core = max(1, budget // 4) if core is None else core
        if not 1 <= core <= budget:
            raise ArgumentError(f"a core of {core} ids does not fit a budget of {budget}")
        self.budget, self.per_round = budget, per_round
        self._core = np.sort(cut(ranking, core, eos_ids).numpy())
        self._recency = min(budget // 6 if recency is None else recency, budget - core)
        self._semantic, self._statistical = semantic, statistical
        size = len(semantic.clusters)
        self._in_core = np.zeros(size, bool)  # (V,)
        self._in_core[self._core] = True
        # The rows of an id that is not ranked come last; the core need not be found again.
        rank = np.full(size, len(ranking))
        rank[ranking.numpy()] = np.arange(len(ranking))
        ranked = rank.argsort(kind="stable")
        self._members, self._starts = semantic.inverted(ranked[~self._in_core[ranked]])
        self._window: tuple[int, ...] | None = None

    def select(self, context: Context) -> Tensor:
        return torch.from_numpy(np.sort(np.concatenate([*self._parts(context).values()])))

    def explain(self, context: Context) -> dict[str, Tensor]:
        """What ``select`` returns, by the part that brought it: disjoint, each sorted."""
        parts = self._parts(context)
        return {name: torch.from_numpy(np.sort(ids)) for name, ids in parts.items()}

    def _parts(self, context: Context) -> dict[str, Ids]:
        emitted = len(context.tokens) - context.depth
        window = context.tokens[max(0, emitted - _WINDOW) : emitted]
        if window != self._window:  # kept for the rest of the round
            ids = recent(window, _WINDOW)
            self._recent = ids[~self._in_core[ids]][: self._recency]
            self._taken = self._in_core.copy()
            self._taken[self._recent] = True
            self._window = window
        left = self.budget - len(self._core) - len(self._recent)
        after = self._statistical.successors(context.tokens[-1])
        after = after[~self._taken[after]][:left]
        left -= len(after)
        near = self._near(context.hidden, left, after)
        return {"core": self._core, "recency": self._recent, "successor": after, "semantic": near}

    def _near(self, hidden: Tensor, most: int, after: Ids) -> Ids:
        """At most so many ids of the clusters nearest to a state, none of them taken."""
        best = self._semantic.probe(hidden, _PROBES)
        begin, end = self._starts[best], self._starts[best + 1]
        # Of the members up to so many may be on the list already.
        needed = int(np.searchsorted((end - begin).cumsum(), most + len(self._recent) + len(after)))
        runs = [self._members[b:e] for b, e in zip(begin[: needed + 1], end, strict=False)]
        ids = np.concatenate(runs)
        fresh = ~self._taken[ids]
        for token in after:
            fresh &= ids != token
        return ids[fresh][:most]

    def observe(self, round: Round) -> None:
        self._statistical.observe(round)

    def reset(self) -> None:
        self._statistical.reset()
