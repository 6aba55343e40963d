"""Drafting: a tree of tokens, a chain if it has no branches, each with the exact distribution that
it was drawn from.

``Drafter`` also keeps the draft's cache correct. Errors there are silent, since verification
corrects whatever a draft with a wrong cache proposes. After each round the cache is truncated to
the start of the round and rebuilt by one draft pass over the emitted tokens, which reads the
target's auxiliary hidden states where drafting had read the draft's own output. The last output
of that pass is the first state of the next round.

Knows nothing of verification.
"""

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from minispec.growth import MAX_DEPTH, Candidate, Growth, TreeShape, choose_candidates
from minispec.logits_processor import History
from minispec.sampling import Sampling
from minispec.selections import CheckedSelections
from minispec.stopwatch import Stopwatch
from minispec.tree import is_chain
from minispec.types import (
    BaseShortlist,
    Context,
    Draft,
    Learner,
    Proposal,
    RandomSource,
    Round,
    Shortlist,
)


class Drafter:
    """A draft with its cache, a shortlist and optionally a learner, for one sequence, whose first
    ``prompt_length`` tokens are the prompt. ``shape``: the largest that it drafts, and what it
    drafts unless its attribute is set to another; chains if not given."""

    def __init__(
        self,
        draft: Draft,
        shortlist: Shortlist,
        capacity: int,
        learner: Learner | None = None,
        prompt_length: int = 0,
        shape: TreeShape | None = None,
    ) -> None:
        self.draft, self.shortlist, self.learner = draft, shortlist, learner
        self.shape = shape or TreeShape.chain(MAX_DEPTH)
        self.extra_rows = self.shape.extra_rows
        self._prompt_length = prompt_length
        self._selections = CheckedSelections(shortlist, draft.head.vocab_size)
        self._capacity = capacity + self.extra_rows
        self._cache: Any = draft.new_cache(self._capacity)
        self._inputs: list[tuple[Tensor, Tensor]] = []  # of all resyncs, to rebuild the cache
        self._delayed: list[tuple[Tensor, Tensor]] = []  # of resyncs that wait for a draft
        self._verified_length = 0  # cached positions computed from the target's hidden states
        self._state: Tensor | None = None  # (D,), the last output; None before the first resync
        # (D,) on the CPU: for each node of the round, -1 for none, what the tokens after it were
        # predicted from, as far as is known.
        self._hidden: dict[int, Tensor] = {}
        self.selections = 0  # calls of ``select`` in this round
        self._is_idle = False  # whether this round was to draft nothing

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

    def hidden_states(self, nodes: Sequence[int]) -> Tensor:
        """The hidden states (n, D) that the tokens after some nodes of the round were predicted
        from; -1: the first ones. After a resync those of all accepted nodes are known too. n is
        lower where a node has none: the first n are given."""
        known = [self._hidden[node] for node in takewhile(self._hidden.__contains__, nodes)]
        return torch.stack(known) if known else torch.zeros(0, 0)

    def resync(
        self, ids: Tensor, aux_hidden_states: Tensor, path: Sequence[int] | None = None
    ) -> None:
        """Rebuild the cache from T positions that the target has processed: their auxiliary
        hidden states (T, n_aux * D), and for each position the token after it, ids (T,). After a
        round, ``path``: the accepted nodes. After a round that was to draft nothing it waits until
        the next draft, so that one pass does for several such rounds."""
        if self._is_idle and self.learner is None:
            self._delayed.append((ids, aux_hidden_states))
            return
        if self.learner and self.learner.invalidates_cache:
            self._inputs.append((ids, aux_hidden_states))
        before = self._state
        states = self._forward(ids, aux_hidden_states)
        if path is not None and before is not None:
            # Where nothing was drafted after an accepted token, it has no state of the draft's.
            for node, state in zip([-1, *path], [before, *states], strict=False):
                if node not in self._hidden:
                    self._hidden[node] = self.draft.apply_final_norm(state).cpu()
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
        depth: int,
        sampling: Sampling,
        rng: RandomSource,
        watch: Stopwatch,
    ) -> Proposal:
        """Draft at most ``depth`` levels of tokens after ``tokens``; none before the first resync,
        and none where bad words exclude the whole shortlist.

        Spends one choice for each token that is drawn. Raises ShortlistError if the shortlist
        breaks its contract.
        """
        self._hidden, self.selections = {}, 0
        self._is_idle = depth == 0
        if self._delayed and not self._is_idle:
            delayed = [torch.cat(parts) for parts in zip(*self._delayed, strict=True)]
            self._forward(*delayed)
            self._delayed = []
        if self._state is None:  # nothing was prefilled: the prompt has one token
            return Proposal((), ())
        growth, ids = Growth(self.shape, depth), None
        states = {-1: self._state}  # of each node, what the tokens after it are predicted from
        rows: list[int] = []  # the nodes that the cache holds
        while plan := growth.plan_level():
            nodes = [node for node, _ in plan]
            if nodes != [-1]:
                rows += nodes
                outputs = self._run_level(growth, nodes, rows, states)
                states |= dict(zip(nodes, outputs, strict=True))
            hidden = self.draft.apply_final_norm(torch.stack([states[node] for node in nodes]))
            watch.lap("draft")
            contexts = [
                Context((*tokens, *growth.read(node)), state.cpu(), len(growth.path(node)))
                for node, state in zip(nodes, hidden, strict=True)
            ]
            choices = []  # the ids for each node
            for context in contexts:
                if ids is None or not self.shortlist.per_round:
                    ids = self._selections.select(context)  # (K,)
                    self.selections += 1
                choices.append(ids)
            watch.lap("shortlist")
            logits = self._score(hidden, choices)
            growth.start_level()
            for (node, count), context, row, own in zip(
                plan, contexts, logits, choices, strict=True
            ):
                found = self._expand(context, row, own, count, sampling, rng, watch)
                growth.add(node, found)
                if found:
                    self._hidden[node] = context.hidden
            watch.lap("draft_head")
        proposal, kept = growth.finish()
        indices = {node: index for index, node in enumerate(kept)} | {-1: -1}
        self._hidden = {indices[n]: state for n, state in self._hidden.items() if n in indices}
        return proposal

    def _run_level(
        self, growth: Growth, level: list[int], rows: list[int], states: dict[int, Tensor]
    ) -> Tensor:
        """One draft pass over B nodes of a level, the last of the ``rows`` -> their states (B, D).
        A node's input is its token, and what it was predicted from."""
        indices = {-1: -1} | {node: row for row, node in enumerate(rows)}
        parents = [indices[growth.parents[node]] for node in rows]
        ids = torch.tensor([growth.tokens[node] for node in level])
        inputs = torch.stack([states[growth.parents[node]] for node in level])  # (B, D)
        if is_chain(parents):  # which runs on drafts that have no trees
            return self.draft.step(ids, inputs, self._cache)
        return self.draft.step(ids, inputs, self._cache, parents)

    def _score(self, hidden: Tensor, choices: list[Tensor]) -> list[Tensor]:
        """hidden (B, D), ids (K,) for each -> the logits (K,) of each. Nodes with the same ids are
        scored together, so that each row of the head is read once."""
        if len(hidden) > 1 and all(ids is choices[0] for ids in choices):
            return [*self.draft.head.logits_of(hidden, choices[0])]
        pairs = zip(hidden, choices, strict=True)
        return [self.draft.head.logits_of(state, ids) for state, ids in pairs]

    def _expand(
        self,
        context: Context,
        logits: Tensor,
        ids: Tensor,
        count: int,
        sampling: Sampling,
        rng: RandomSource,
        watch: Stopwatch,
    ) -> list[Candidate]:
        """At most ``count`` of the ids (K,), with their logits (K,), as candidates for the position
        after ``context.tokens``."""
        history = History(context.tokens, self._prompt_length)
        if sampling.excludes_all(ids, history):
            return []
        logits = sampling.process(logits, ids, history)
        if self.learner:
            watch.lap("draft_head")
            logits = self.learner.adjust_logits(logits, ids, context, sampling)
            watch.lap("learn")
        soft = sampling.temperature == 0 and not self.shape.is_chain
        confidence = sampling.soften(logits, ids) if soft else sampling.shape(logits, ids)
        # The top candidates are picked by their confidence alone.
        drawn = soft and self.shape.candidates != "top"
        q = sampling.shape(logits, ids) if drawn else confidence
        return choose_candidates(self.shape.candidates, q, confidence, count, rng)

    @property
    def rows_probed(self) -> int:
        """Rows of D numbers that the shortlist read to choose the ids of this round; 0 for one that
        is not a ``BaseShortlist``."""
        if not isinstance(self.shortlist, BaseShortlist):
            return 0
        return self.selections * self.shortlist.rows_probed
