"""Proposals: a chain of tokens, and for each the exact law that it was drawn from.

Also the bookkeeping of the draft's cache, which is where drafts go wrong in silence, since
verification corrects every token that a confused draft proposes. After each round the cache
is cut back to where the round began, and one pass over the tokens that were really emitted,
with the target's taps in place of the draft's own guesses, rebuilds it; that pass's last
output is the next round's first state.

Knows nothing of verification.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minispec.errors import ShortlistError
from minispec.sampling import Sampling
from minispec.stopwatch import Stopwatch
from minispec.types import (
    Context,
    Distribution,
    Draft,
    Learner,
    Proposal,
    RandomSource,
    Round,
    Shortlist,
)


class Drafter:
    """A draft with its cache and its shortlist, and perhaps a learner, for one sequence."""

    def __init__(
        self, draft: Draft, shortlist: Shortlist, capacity: int, learner: Learner | None = None
    ) -> None:
        self.draft, self.shortlist, self.learner = draft, shortlist, learner
        self._capacity = capacity
        self._cache: Any = draft.new_cache(capacity)
        self._read: list[tuple[Tensor, Tensor]] = []  # where what was read may be read again
        self._vouched = 0  # positions whose state came from the target
        self._state: Tensor | None = None  # (D,), None until something was read

    def resync(self, ids: Tensor, aux_hidden_states: Tensor) -> None:
        """Rebuilds the cache: taps (T, n_aux * D) of positions that the target has read,
        and for each the token that follows it, ids (T,)."""
        if self.learner and self.learner.reaches_cache:
            self._read.append((ids, aux_hidden_states))
        states = self._pass(ids, aux_hidden_states)
        if self.learner:
            self.learner.on_prefill(ids, aux_hidden_states, self.draft.apply_final_norm(states))

    def learn(self, finished: Round) -> Mapping[str, int]:
        """Lets the learner learn from a round; what it did, counted by name."""
        events = self.learner.observe(finished) if self.learner else {}
        if self._read and events.get("changed") and finished.stop is None:
            # Keys and values of other weights: none of them survives, not even as rubbish.
            self._cache, self._vouched = self.draft.new_cache(self._capacity), 0
            for ids, aux_hidden_states in self._read:
                self._pass(ids, aux_hidden_states)
        return events

    def _pass(self, ids: Tensor, aux_hidden_states: Tensor) -> Tensor:
        self._cache.truncate(self._vouched)  # the chain of the last round is forgotten
        states = self.draft.step(ids, self.draft.fuse(aux_hidden_states), self._cache)  # (T, D)
        self._vouched += len(ids)
        self._state = states[-1]
        return states

    def propose(
        self,
        tokens: Sequence[int],
        gamma: int,
        sampling: Sampling,
        rng: RandomSource,
        watch: Stopwatch,
    ) -> Proposal:
        """Draws a chain of at most ``gamma`` tokens to follow ``tokens``.

        Raises ShortlistError if the list breaks its contract. Spends one choice a token.
        """
        drafted: list[int] = []
        distributions: list[Distribution] = []
        state, ids = self._state, None
        if state is None:  # a prompt of a single token: there is nothing to go on yet
            return Proposal((), ())
        for depth in range(gamma):
            hidden = self.draft.apply_final_norm(state)  # (D,)
            watch.lap("draft")
            context = Context((*tokens, *drafted), hidden, depth)
            if ids is None or not self.shortlist.per_round:
                ids = self._checked(self.shortlist.select(context))  # (K,)
                watch.lap("shortlist")
            logits = self.draft.head.logits_of(hidden, ids)  # (K,)
            if self.learner:
                watch.lap("draft_head")
                logits = self.learner.adjust_logits(logits, ids, context, sampling)
                watch.lap("learn")
            distribution = sampling.distribution(logits, ids)
            drafted.append(int(distribution.ids[rng.choose(distribution.probs)]))
            distributions.append(distribution)
            watch.lap("draft_head")
            if depth + 1 < gamma:
                state = self.draft.step(torch.tensor(drafted[-1:]), state[None], self._cache)[0]
        watch.lap("draft")
        return Proposal(tuple(drafted), tuple(distributions))

    def rows_probed(self, steps: int) -> int:
        """Rows of D numbers that choosing the lists of so many draft steps reads: a list that
        reads none need not say so."""
        times = min(steps, 1) if self.shortlist.per_round else steps
        return times * getattr(self.shortlist, "rows_probed", 0)

    def _checked(self, ids: Tensor) -> Tensor:
        """The door: what passes here may be multiplied with rows and written into laws."""
        name, budget = self.shortlist.name, self.shortlist.budget
        size = self.draft.head.vocab_size
        if not isinstance(ids, Tensor) or ids.dtype != torch.int64 or ids.dim() != 1:
            tensor = isinstance(ids, Tensor)
            kind = f"{ids.dtype} {tuple(ids.shape)}" if tensor else f"a {type(ids).__name__}"
            raise ShortlistError(f"{name}: ids are {kind}, not int64 (K,) in a tensor")
        if not 1 <= len(ids) <= budget:
            raise ShortlistError(f"{name}: {len(ids)} ids, allowed are 1 to {budget}")
        values = ids.cpu().numpy()  # each look at a tensor costs several at an array
        if values[0] < 0 or values[-1] >= size:
            raise ShortlistError(
                f"{name}: ids {values[0]}..{values[-1]} are not within 0..{size - 1}"
            )
        if not (values[1:] > values[:-1]).all():
            raise ShortlistError(f"{name}: ids are not sorted or not unique")
        return ids


def top_k_candidates(distribution: Distribution, count: int) -> Proposal:
    """The ``count`` likeliest ids of a draft's law as candidates for one and the same place,
    ties to the lower id. Nothing is drawn, so each comes from the law that is all on it."""
    order = np.argsort(-np.asarray(distribution.probs), kind="stable")[:count].tolist()
    distributions = []
    for i in order:
        distributions.append(Distribution(distribution.ids, distribution.probs * 0))
        distributions[-1].probs[i] = 1
    return Proposal(tuple(int(distribution.ids[i]) for i in order), tuple(distributions))
