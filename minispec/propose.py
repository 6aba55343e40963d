"""Drafting: a chain of tokens, each with the exact distribution that it was drawn from.

``Drafter`` also keeps the draft's cache correct. Errors there are silent, since verification
corrects whatever a draft with a wrong cache proposes. After each round the cache is truncated to
the start of the round and rebuilt by one draft pass over the emitted tokens, which reads the
target's auxiliary hidden states where drafting had read the draft's own output. The last output
of that pass is the first state of the next round.

Knows nothing of verification.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minispec.errors import ShortlistError
from minispec.logits_processor import History
from minispec.sampling import Sampling
from minispec.stopwatch import Stopwatch
from minispec.types import (
    BaseShortlist,
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
    """A draft with its cache, a shortlist and optionally a learner, for one sequence, whose first
    ``prompt_length`` tokens are the prompt."""

    def __init__(
        self,
        draft: Draft,
        shortlist: Shortlist,
        capacity: int,
        learner: Learner | None = None,
        prompt_length: int = 0,
    ) -> None:
        self.draft, self.shortlist, self.learner = draft, shortlist, learner
        self._prompt_length = prompt_length
        self._selections = CheckedSelections(shortlist, draft.head.vocab_size)
        self._capacity = capacity
        self._cache: Any = draft.new_cache(capacity)
        self._inputs: list[tuple[Tensor, Tensor]] = []  # of all resyncs, to rebuild the cache
        self._verified_length = 0  # cached positions computed from the target's hidden states
        self._state: Tensor | None = None  # (D,), the last output; None before the first resync
        # (D,) on the CPU: what the tokens of the round were predicted from, as far as is known.
        self._hidden: list[Tensor] = []

    @property
    def top_ids_wanted(self) -> int:
        """How many of the target's likeliest ids the shortlist or the learner needs."""
        shortlist = self.shortlist
        ours = shortlist.top_ids_wanted if isinstance(shortlist, BaseShortlist) else 0
        return max(ours, self.learner.top_ids_wanted if self.learner else 0)

    @property
    def reader(self) -> BaseShortlist | None:
        """The shortlist if it is to be shown the prompt (``BaseShortlist.on_prefill``)."""
        shortlist = self.shortlist
        return (
            shortlist if isinstance(shortlist, BaseShortlist) and shortlist.reads_prompt else None
        )

    def hidden_states(self, count: int) -> Tensor:
        """The hidden states (n, D) that the first ``count`` tokens of the round were predicted
        from: drafted ones, and after a resync that of the token after a wholly accepted path. n
        is lower where there are fewer."""
        return torch.stack(self._hidden[:count]) if self._hidden else torch.zeros(0, 0)

    def resync(self, ids: Tensor, aux_hidden_states: Tensor) -> None:
        """Rebuild the cache from T positions that the target has processed: their auxiliary
        hidden states (T, n_aux * D), and for each position the token after it, ids (T,)."""
        if self.learner and self.learner.invalidates_cache:
            self._inputs.append((ids, aux_hidden_states))
        before = self._state
        states = self._forward(ids, aux_hidden_states)
        if before is not None and len(self._hidden) == len(ids) - 1:
            # All drafted tokens were accepted: nothing was drafted where the last one came from.
            last = states[-2] if len(ids) > 1 else before
            self._hidden.append(self.draft.apply_final_norm(last).cpu())
        if self.learner:
            self.learner.on_prefill(ids, aux_hidden_states, self.draft.apply_final_norm(states))

    def learn(self, finished: Round) -> Mapping[str, int]:
        """Let the learner, if there is one, learn from a round. Returns its counts by name, with
        ``changed`` among them if the draft's weights changed."""
        if self.learner is None:
            return {}
        update = self.learner.observe(finished)
        if not update.weights_changed:
            return update.counts
        if self.learner.invalidates_cache and finished.stop is None:
            # No key or value of the old weights is kept, not even as padding.
            self._cache, self._verified_length = self.draft.new_cache(self._capacity), 0
            for ids, aux_hidden_states in self._inputs:
                self._forward(ids, aux_hidden_states)
        return {**update.counts, "changed": 1}

    def _forward(self, ids: Tensor, aux_hidden_states: Tensor) -> Tensor:
        self._cache.truncate(self._verified_length)  # drop the last round's draft
        states = self.draft.step(ids, self.draft.fuse(aux_hidden_states), self._cache)  # (T, D)
        self._verified_length += len(ids)
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
        """Draft at most ``gamma`` tokens after ``tokens``; none before the first resync, and none
        where bad words exclude the whole shortlist.

        Spends one choice for each token. Raises ShortlistError if the shortlist breaks its
        contract.
        """
        drafted: list[int] = []
        distributions: list[Distribution] = []
        self._hidden = []
        state, ids = self._state, None
        if state is None:  # nothing was prefilled: the prompt has one token
            return Proposal((), ())
        for depth in range(gamma):
            hidden = self.draft.apply_final_norm(state)  # (D,)
            watch.lap("draft")
            context = Context((*tokens, *drafted), hidden.cpu(), depth)
            if ids is None or not self.shortlist.per_round:
                ids = self._selections.select(context)  # (K,)
                watch.lap("shortlist")
            history = History(context.tokens, self._prompt_length)
            if sampling.excludes_all(ids, history):
                break
            self._hidden.append(context.hidden)
            logits = sampling.process(self.draft.head.logits_of(hidden, ids), ids, history)  # (K,)
            if self.learner:
                watch.lap("draft_head")
                logits = self.learner.adjust_logits(logits, ids, context, sampling)
                watch.lap("learn")
            distribution = sampling.shape(logits, ids)
            drafted.append(int(distribution.ids[rng.choose(distribution.probs)]))
            distributions.append(distribution)
            watch.lap("draft_head")
            if depth + 1 < gamma:
                state = self.draft.step(torch.tensor(drafted[-1:]), state[None], self._cache)[0]
        watch.lap("draft")
        return Proposal(tuple(drafted), tuple(distributions))

    def rows_probed(self, steps: int) -> int:
        """Rows of D numbers that the shortlist reads to choose the ids of ``steps`` draft steps;
        0 for a shortlist that is not a ``BaseShortlist``."""
        if not isinstance(self.shortlist, BaseShortlist):
            return 0
        selections = min(steps, 1) if self.shortlist.per_round else steps
        return selections * self.shortlist.rows_probed


class CheckedSelections:
    """What a shortlist selects, checked and as copies.

    Distributions record the copy, and heads recognise it by its identity: a shortlist cannot
    edit it. One that edits the tensor it returned last is refused by name.
    """

    def __init__(self, shortlist: Shortlist, vocab_size: int) -> None:
        self._shortlist, self._vocab_size = shortlist, vocab_size
        # The last tensor that ``select`` returned, and the copy of it.
        self._last: tuple[Tensor, Tensor] | None = None

    def select(self, context: Context) -> Tensor:
        """ids (K,) int64; the same tensor as before if the shortlist returned the same. Raises
        ShortlistError if the shortlist breaks its contract."""
        ids = self._shortlist.select(context)
        if self._last and not torch.equal(*self._last):
            raise ShortlistError(
                f"{self._shortlist.name}: ids were edited in place after they were selected: "
                "return other ids as a new tensor"
            )
        if self._last is None or ids is not self._last[0]:
            self._check_ids(ids)
            self._last = ids, ids.clone()
        return self._last[1]

    def _check_ids(self, ids: Tensor) -> None:
        """Check a selection before its head rows are read. Raises ShortlistError."""
        name, budget = self._shortlist.name, self._shortlist.budget
        if not isinstance(ids, Tensor) or ids.dtype != torch.int64 or ids.dim() != 1:
            tensor = isinstance(ids, Tensor)
            kind = f"{ids.dtype} {tuple(ids.shape)}" if tensor else f"a {type(ids).__name__}"
            raise ShortlistError(f"{name}: ids are {kind}, expected an int64 tensor (K,)")
        if not 1 <= len(ids) <= budget:
            raise ShortlistError(f"{name}: {len(ids)} ids, expected 1 to {budget}")
        values = ids.cpu().numpy()  # reading one element of a tensor is slow
        if values[0] < 0 or values[-1] >= self._vocab_size:
            raise ShortlistError(
                f"{name}: ids {values[0]}..{values[-1]} are not within 0..{self._vocab_size - 1}"
            )
        if not (values[1:] > values[:-1]).all():
            raise ShortlistError(f"{name}: ids are not sorted or not unique")


def top_k_candidates(distribution: Distribution, count: int) -> Proposal:
    """The ``count`` most likely ids of a draft distribution as candidates for one position, ties
    to the lower id. They are picked, not drawn, so each is recorded with a point mass on it."""
    order = np.argsort(-np.asarray(distribution.probs), kind="stable")[:count].tolist()
    distributions = []
    for i in order:
        distributions.append(Distribution(distribution.ids, distribution.probs * 0))
        distributions[-1].probs[i] = 1
    return Proposal(tuple(int(distribution.ids[i]) for i in order), tuple(distributions))
