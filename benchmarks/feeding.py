"""EvoSpec's shortlist of this project, fed with the paper's two cheapest ideas.

``FedByTarget``: a fifth part, the target's ten likeliest ids at the positions that were verified
last, rejected ones among them, as EvoSpec (arXiv 2605.27390) takes them after a missing token.
``FedByBigrams``: the heaviest successors of the last token in the bigram graph, where the
statistical index has only what this text has shown. Both are one sixth of the budget at most, at
the expense of the semantic part.

They are shortlists of one's own, to be compared like any other:

    minispec compare --backend cpu --limit 4 --max-new-tokens 128 --methods frspec@0.25,\
        evospec@512,benchmarks.feeding:FedByTarget@512,benchmarks.feeding:FedByBigrams@512
"""

import numpy as np
from torch import Tensor

from minispec.shortlists.evospec import EvoSpecShortlist
from minispec.shortlists.semantic import Ids
from minispec.shortlists.statistical import recent_ids
from minispec.tools.evaluation import shortlist_files
from minispec.tools.models.pretrained import Pretrained
from minispec.types import Context, Round

_SHARE = 1 / 6  # of the budget
_LIKELIEST, _POSITIONS, _SUCCESSORS = 10, 16, 32


class _FedShortlist(EvoSpecShortlist):
    """EvoSpec's four parts, and a fifth before the semantic one."""

    part_names = ("core", "recency", "successor", "fed", "semantic")

    def choose_fed(self, context: Context) -> Ids:
        """The ids (n,) of the fifth part, the first to be taken first; some may be taken."""
        raise NotImplementedError

    def _choose(self, context: Context) -> dict[str, Ids]:
        taken, left = self._in_core.copy(), self.budget - len(self._core)
        found = [self._core]
        for ids, limit in (
            (recent_ids(context.tokens), self._max_recent),
            (self.statistical.successors(context.tokens[-1]), left),
            (self.choose_fed(context), round(_SHARE * self.budget)),
        ):
            found.append(ids[~taken[ids]][: min(left, limit)])
            taken[found[-1]] = True
            left -= len(found[-1])
        found.append(self.semantic.find_nearest(context.hidden, left, taken))
        return dict(zip(self.part_names, found, strict=True))


class FedByTarget(_FedShortlist):
    """With the target's likeliest ids at the positions verified last."""

    name = "evospec, fed by the target"
    top_ids_wanted = _LIKELIEST
    _verified: tuple[list[int], ...] = ()  # the likeliest ids of each position

    def reset(self) -> None:
        super().reset()
        self._verified = ()

    def observe(self, finished: Round) -> None:
        super().observe(finished)
        assert finished.evidence is not None
        self._verified = (*self._verified, *finished.evidence.top_ids.tolist())[-_POSITIONS:]

    def choose_fed(self, context: Context) -> Ids:
        ids = dict.fromkeys(i for row in reversed(self._verified) for i in row)
        return np.fromiter(ids, np.int64, len(ids))


class FedByBigrams(_FedShortlist):
    """With the heaviest successors of the last token in the graph of bigrams."""

    name = "evospec, fed by bigrams"

    def __init__(
        self,
        ranking: Tensor,
        budget: int,
        eos_ids: tuple[int, ...],
        clusters: Tensor,
        rows: Tensor,
        model: Pretrained,
    ) -> None:
        super().__init__(ranking, budget, eos_ids, clusters, rows)
        self._graph = shortlist_files.read_bigrams(model)

    def choose_fed(self, context: Context) -> Ids:
        return self._graph.successors(context.tokens[-1], _SUCCESSORS)[0]
