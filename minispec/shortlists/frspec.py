"""FR-Spec (arXiv 2502.14856): a static draft vocabulary of the most frequent ids of some text.

Token frequencies are so uneven that a quarter of the vocabulary covers almost all of ordinary
text. The draft then reads a quarter of the LM head at little loss in acceptance, as long as the
text resembles the one that was counted. In code, law or medicine the shortlist lacks the ids that
matter there.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from minispec.types import BaseShortlist, Context


def truncate_ranking(ranking: Tensor, budget: int, eos_ids: tuple[int, ...]) -> Tensor:
    """The first ``budget`` ids (K,) of a ranking (N,), in its order, always with the end ids:
    a draft that cannot propose them wastes the last round of every answer. They displace the
    least frequent ids, so the budget holds."""
    ends = torch.tensor(eos_ids[:budget], dtype=torch.int64)
    others = ranking[~torch.isin(ranking, ends)][: budget - len(ends)]
    ranked = ranking[torch.isin(ranking, torch.cat((others, ends)))]
    return torch.cat((ranked, ends[~torch.isin(ends, ranking)]))  # (K,)


def complete_ranking(ranking: Tensor, vocab_size: int) -> npt.NDArray[np.int64]:
    """All ids (V,): those of a ranking (N,) in its order, then the others in ascending order."""
    rest = np.setdiff1d(np.arange(vocab_size), ranking.numpy())
    return np.concatenate((ranking.numpy(), rest))


class FRSpecShortlist(BaseShortlist):
    """The same ids at every step: the first of a frequency ranking."""

    name = "frspec"
    per_round = True

    def __init__(self, ranking: Tensor, budget: int, eos_ids: tuple[int, ...]) -> None:
        """``ranking`` (N,) ids, most frequent first; 1 <= budget <= N."""
        self.budget = budget
        # One tensor for all steps: the head keeps its rows packed as long as it gets this object.
        self._ids = truncate_ranking(ranking, budget, eos_ids).sort().values  # (K,)

    def select(self, context: Context) -> Tensor:
        return self._ids
