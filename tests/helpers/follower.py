"""A shortlist that follows the text, small enough to be checked by hand: for tests of comparisons,
which must hold for every shortlist that learns and can explain itself."""

import torch
from torch import Tensor

from minispec.types import BaseShortlist, Context, Round


class Follower(BaseShortlist):
    """The first ids of a ranking, then the ids that it observed, the latest first."""

    name = "follower"
    part_names = ("core", "recency", "successor")

    def __init__(self, ranking: Tensor, budget: int, per_round: bool = False) -> None:
        self.budget, self.per_round = budget, per_round
        self._core = ranking[: budget // 2].sort().values
        self.seen: list[int] = []
        self.resets = 0

    def select(self, context: Context) -> Tensor:
        return torch.cat([*self.explain(context).values()]).sort().values

    def explain(self, context: Context) -> dict[str, Tensor]:
        """The last token is "recency"; observed tokens, rejected ones included, are "successor"."""
        core = set(self._core.tolist())
        recent = [context.tokens[-1]] if context.tokens[-1] not in core else []
        latest = dict.fromkeys(reversed(self.seen))
        left = self.budget - len(core) - len(recent)
        learnt = [i for i in latest if i not in core and i not in recent][:left]
        parts = {"recency": sorted(recent), "successor": sorted(learnt)}
        return {"core": self._core} | {
            k: torch.tensor(v, dtype=torch.int64) for k, v in parts.items()
        }

    def observe(self, finished: Round) -> None:
        assert finished.evidence is not None
        self.seen += [*finished.proposed, *finished.tokens]

    def reset(self) -> None:
        self.seen = []
        self.resets += 1
