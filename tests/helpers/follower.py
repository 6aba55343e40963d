"""A shortlist that follows the text and has parts, small enough to check by hand."""

import torch
from torch import Tensor

from minispec.types import BaseShortlist, Context, Round


class Follower(BaseShortlist):
    """The first ids of a ranking, the last token, then the observed ids, the latest first."""

    name, part_names = "follower", ("core", "recency", "successor")

    def __init__(self, ranking: Tensor, budget: int, per_round: bool = False) -> None:
        self.budget, self.per_round = budget, per_round
        self._core = ranking[: budget // 2].sort().values
        self.observed: list[int] = []
        self.resets = 0

    def select(self, context: Context) -> Tensor:
        return torch.cat([*self.explain(context).values()]).sort().values

    def explain(self, context: Context) -> dict[str, Tensor]:
        """The last token is "recency"; observed ids, rejected ones included, are "successor"."""
        core = set(self._core.tolist())
        recent = [context.tokens[-1]] if context.tokens[-1] not in core else []
        latest = dict.fromkeys(reversed(self.observed))
        free = self.budget - len(core) - len(recent)
        learnt = [i for i in latest if i not in core and i not in recent][:free]
        parts = {"recency": sorted(recent), "successor": sorted(learnt)}
        return {"core": self._core} | {
            name: torch.tensor(ids, dtype=torch.int64) for name, ids in parts.items()
        }

    def observe(self, finished: Round) -> None:
        assert finished.evidence is not None
        self.observed += [*finished.proposed, *finished.tokens]

    def reset(self) -> None:
        self.observed = []
        self.resets += 1
