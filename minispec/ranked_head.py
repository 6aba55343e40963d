"""The target's likeliest ids: what a shortlist or a learner may ask for beside distributions.

At temperature 0 a distribution has one entry, and no penalty or temperature is to change what is
learnt from the target, so the likeliest ids are those of its raw logits.

Knows nothing of how they are used.
"""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from minispec.types import Head

_BLOCK = 64  # states whose logits are ranked at once


@runtime_checkable
class RankingHead(Protocol):
    """A head on a fast path that ranks logits while it computes them."""

    def rank_logits(self, hidden: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """(T, D) -> logits of all ids (T, V), the ``count`` likeliest ids (T, k), the best first,
        ties to the lower id, and their logits (T, k)."""
        ...


class RankedHead:
    """The LM head of a target, for passes whose likeliest ids are wanted as well: the logits of a
    pass are computed once, for its distributions and for the ranking."""

    def __init__(self, head: Head, count: int) -> None:
        """``count``: k, the number of ids for each state, at most the vocabulary's."""
        self.wrapped, self._count = head, min(count, head.vocab_size)
        # The last hidden states (T, D), their logits (T, V), ids (T, k) and logits (T, k) of these.
        self._last: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    @property
    def vocab_size(self) -> int:
        """V, the number of rows."""
        return self.wrapped.vocab_size

    def logits(self, hidden: Tensor) -> Tensor:
        """(T, D) -> logits of all ids (T, V); of the same tensor they are computed once."""
        return self._compute(hidden)[1]

    def logits_of(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """(..., D), (K,) -> logits of these ids (..., K)."""
        return self.wrapped.logits_of(hidden, ids)

    def argmax(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """(T, D) -> ids (T,) of the largest logits, ties to the lowest id, and these logits
        (T,)."""
        _, logits, ids, values = self._compute(hidden)
        return ids[:, 0].to(logits.device), values[:, 0].to(logits.device)

    def rank(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """(T, D) -> the k likeliest ids (T, k), the best first, ties to the lower id, and their
        logits (T, k), both on the CPU."""
        if self._last and self._last[0] is hidden:
            return self._last[2:]
        # A whole prompt: its logits would take much memory at once.
        blocks = [self._rank(part)[1:] for part in hidden.split(_BLOCK)]
        ids, logits = zip(*blocks, strict=True)
        return torch.cat(ids), torch.cat(logits)

    def _compute(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if self._last is None or self._last[0] is not hidden:
            self._last = (hidden, *self._rank(hidden))
        return self._last

    def _rank(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(T, D) -> logits (T, V), ids (T, k) and their logits (T, k)."""
        if isinstance(self.wrapped, RankingHead):
            return self.wrapped.rank_logits(hidden, self._count)
        logits = self.wrapped.logits(hidden)
        return logits, *_rank_rows(logits, self._count)


def _rank_rows(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """logits (T, V) -> ids (T, k) and logits (T, k)."""
    values, ids = logits.topk(count, dim=-1)  # (T, k); equal values are in any order
    smallest = values[:, -1:]
    if bool(((logits == smallest).sum(-1) > (values == smallest).sum(-1)).any()):
        # Ids that are equal to the last are left out: the lower ones have to be in.
        ids = logits.argsort(dim=-1, descending=True, stable=True)[:, :count]
        values = logits.gather(-1, ids)
    ids, order = ids.sort(-1)
    order = values.gather(-1, order).argsort(dim=-1, descending=True, stable=True)
    ids = ids.gather(-1, order)
    return ids.cpu(), logits.gather(-1, ids.to(logits.device)).cpu()
