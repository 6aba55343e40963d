"""FR-Spec (arXiv 2502.14856): the most frequent ids of some text, the same for everyone.

Token frequencies are so uneven that a quarter of the vocabulary covers almost all of ordinary
text, so the draft's head shrinks by three quarters at little loss, as long as the text is of
the kind that was counted. In code, law or medicine the list misses what matters there.
"""

import torch
from torch import Tensor

from minispec.types import Context, Round


def truncate_ranking(ranking: Tensor, budget: int, eos_ids: tuple[int, ...]) -> Tensor:
    """The first ``budget`` ids (K,) of a ranking (N,), in its order, the ids that end an answer
    always among them: a draft that cannot propose the end wastes the last round of every
    answer. They take the places of the least frequent ids, so the budget holds."""
    ends = torch.tensor(eos_ids[:budget], dtype=torch.int64)
    others = ranking[~torch.isin(ranking, ends)][: budget - len(ends)]
    ranked = ranking[torch.isin(ranking, torch.cat((others, ends)))]
    return torch.cat((ranked, ends[~torch.isin(ends, ranking)]))


class FRSpecShortlist:
    """The same ids at every step: a ranking, cut to a budget."""

    name = "frspec"
    per_round = True

    def __init__(self, ranking: Tensor, budget: int, eos_ids: tuple[int, ...]) -> None:
        """``ranking`` (N,) ids, most frequent first; 1 <= budget <= N."""
        self.budget = budget
        # Made once: the head recognises the list by identity and keeps its rows side by side.
        self._ids = truncate_ranking(ranking, budget, eos_ids).sort().values  # (K,)

    def select(self, context: Context) -> Tensor:
        return self._ids

    def observe(self, finished: Round) -> None:
        """Learns nothing: that is what static means."""

    def reset(self) -> None:
        """Has learnt nothing."""
