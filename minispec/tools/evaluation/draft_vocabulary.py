"""Shortlists for a draft whose LM head has a part of the vocabulary (EAGLE-3's ``d2t``).

The whole head is one more static shortlist. Any other one is reduced to the ids that the head has:
retrieval then chooses among them. The output stays exact, since a shortlist may be any.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from minispec.shortlists.frspec import FRSpecShortlist
from minispec.shortlists.full import FullShortlist
from minispec.types import BaseShortlist, Context, Round, Shortlist


class ReducedShortlist(BaseShortlist):
    """The ids that another shortlist selects and the draft's head has; its first ids where the two
    have none in common."""

    def __init__(self, inner: Shortlist, ids: Tensor, vocab_size: int) -> None:
        """``ids`` (K,): those of the head, sorted."""
        self._inner, self._fallback = inner, ids[: inner.budget]
        self.name, self.budget, self.per_round = inner.name, inner.budget, inner.per_round
        if isinstance(inner, BaseShortlist):
            self.rows_probed, self.part_names = inner.rows_probed, inner.part_names
            self.top_ids_wanted, self.reads_prompt = inner.top_ids_wanted, inner.reads_prompt
        self._has = torch.zeros(vocab_size, dtype=torch.bool)
        self._has[ids] = True
        self._last: tuple[Tensor, Tensor] | None = None  # what was selected, and what is left of it

    def select(self, context: Context) -> Tensor:
        selected = self._inner.select(context)
        if self._last is None or self._last[0] is not selected:
            kept = selected[self._has[selected]]
            self._last = selected, kept if len(kept) else self._fallback
        return self._last[1]

    def explain(self, context: Context) -> Mapping[str, Tensor]:
        assert isinstance(self._inner, BaseShortlist)  # it has parts
        parts = self._inner.explain(context)
        return {name: ids[self._has[ids]] for name, ids in parts.items()}

    def on_prefill(self, tokens: Sequence[int], top_ids: Tensor) -> None:
        assert isinstance(self._inner, BaseShortlist)  # it reads the prompt
        self._inner.on_prefill(tokens, top_ids)

    def observe(self, finished: Round) -> None:
        self._inner.observe(finished)

    def reset(self) -> None:
        self._inner.reset()


def reduce_shortlist(shortlist: Shortlist, ids: Tensor, vocab_size: int) -> Shortlist:
    """A shortlist of a vocabulary of V, for a draft whose head has the ids (K,), sorted: of the
    full vocabulary all of them, of any other those that it selects."""
    if isinstance(shortlist, FullShortlist):
        return FRSpecShortlist(ids, len(ids), ())
    return ReducedShortlist(shortlist, ids, vocab_size)
