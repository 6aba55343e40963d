"""Speculative decoding that waits for the device once in a round.

Drafting, choosing, the target's pass, verification and the rebuilding of the draft's cache are
queued one after the other; each finds what the one before left on the device. What comes back,
in one copy, is what the host decides by: the tokens, how many were accepted, and the hidden
state that the next list may look at. Uniforms travel ahead: all that a round may spend are sent
before it begins, and those that it leaves open the next.

The reference's loop, ``minispec.decode``, is the oracle: same seed, same tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastpath.cuda.backend import DeviceDraft, DeviceTarget
from fastpath.cuda.device import fetched, sent
from fastpath.cuda.verify import Outcome, choose, distributions, verify
from minispec.commit import Output, StopRule
from minispec.decode import check_gamma, checked, read
from minispec.errors import ArgumentError, ShortlistError
from minispec.sampling import Sampling, SeededRandom
from minispec.stopwatch import Stopwatch
from minispec.types import Context, Distribution, Evidence, Proposal, Round, Shortlist, Tokenizer


def speculative(
    target: DeviceTarget,
    draft: DeviceDraft,
    shortlist: Shortlist,
    prompt: Sequence[int],
    *,
    gamma: int,
    sampling: Sampling,
    rng: SeededRandom,
    stop: StopRule,
    tokenizer: Tokenizer | None = None,
    trace: bool = False,
) -> Iterator[Round]:
    """``minispec.decode.speculative`` for a target and a draft on the device.

    ``shortlist`` selects once a round: one that looks at each drafted token has to wait for it.
    The laws that ``observe`` gets are on the device. The random source is read ahead, by at most
    the 2 * gamma + 1 uniforms of a round.

    Raises as the reference, and ArgumentError for a list per step, and for top-k or top-p.
    """
    check_gamma(gamma)
    if not shortlist.per_round:
        raise ArgumentError(f"{shortlist.name} selects at every step: this loop asks once a round")
    if sampling.top_k or sampling.top_p < 1:
        raise ArgumentError("top-k and top-p have no kernels: this loop takes a temperature only")
    output = checked(target, prompt, stop, tokenizer)
    shortlist.reset()
    queue = _Queue(target, draft, sampling.temperature, len(prompt) + output.remaining)
    return _rounds(queue, shortlist, gamma, list(prompt), rng, output, trace)


def _rounds(
    queue: "_Queue",
    shortlist: Shortlist,
    gamma: int,
    tokens: list[int],
    rng: SeededRandom,
    output: Output,
    trace: bool,
) -> Iterator[Round]:
    if output.remaining == 0:
        return
    watch = Stopwatch()
    hidden = queue.prefill(tokens)
    watch.lap("prefill")
    uniforms: list[float] = []
    vocabulary = torch.arange(queue.target.head.vocab_size)
    stopped = False
    while not stopped:
        # 1) The list, and everything a round may need, go to the device.
        length = 0 if hidden is None else min(gamma, output.remaining - 1)
        ids = vocabulary[:1]
        if hidden is not None and length:
            ids = shortlist.select(Context(tuple(tokens), hidden, 0))
            if len(ids) > shortlist.budget:
                raise ShortlistError(
                    f"{shortlist.name}: {len(ids)} ids, {shortlist.budget} allowed"
                )
        watch.lap("shortlist")
        uniforms += [rng.uniform() for _ in range(2 * length + 1 - len(uniforms))]
        pending = queue.round(tokens[-1], length, ids, torch.tensor(uniforms, dtype=torch.float64))

        # 2) The one wait.
        numbers = fetched(pending.numbers)  # (4 + 2 * length + D,)
        passed, next_token, fault, finite = (int(n) for n in numbers[:4])
        if fault or not finite:
            raise ArgumentError("a largest logit is not finite: no law exists")
        drafted = tuple(int(n) for n in numbers[4 : 4 + length])
        examined = min(passed + 1, length)
        acceptance = tuple(numbers[4 + length : 4 + length + examined].tolist())
        hidden = numbers[4 + 2 * length :].to(pending.dtype)
        del uniforms[: length + examined + 1]
        watch.lap("device")

        # 3) Commit, and forget what was rejected.
        committed = output.commit([*drafted[:passed], next_token])
        kept = committed.tokens
        stopped = committed.stop is not None
        tokens += kept
        queue.keep(len(kept))

        # 4) The list learns, of nothing past a stop.
        q = tuple(Distribution(ids, probs) for probs in pending.q)
        p = tuple(Distribution(vocabulary, probs) for probs in pending.p)
        next_distribution = (
            Distribution(vocabulary, pending.outcome.distribution)
            if len(kept) == passed + 1
            else None
        )
        shown = len(kept) if stopped else length
        evidence = Evidence(
            Proposal(drafted[:shown], q[:shown]),
            p[: len(kept)],
            acceptance[: len(kept)],
            next_distribution,
        )
        finished = Round(
            tokens=kept,
            text=committed.text,
            path=tuple(range(passed))[: len(kept)],
            proposed=drafted[:shown],
            shortlist_sizes=(len(ids),) * min(shown, length),
            seconds={},
            stop=committed.stop,
            evidence=evidence,
        )
        watch.lap("commit")
        shortlist.observe(finished)
        watch.lap("observe")
        yield replace(
            finished, seconds=watch.collect(), evidence=_here(evidence) if trace else None
        )
        watch.resume()


def _here(evidence: Evidence) -> Evidence:
    """Evidence whose laws are on the host."""

    def distribution(there: Distribution) -> Distribution:
        return Distribution(there.ids, there.probs.cpu())

    proposal = Proposal(
        evidence.proposal.tokens, tuple(map(distribution, evidence.proposal.draft_distributions))
    )
    last = evidence.next_distribution and distribution(evidence.next_distribution)
    return Evidence(
        proposal, tuple(map(distribution, evidence.target_distributions)), evidence.acceptance, last
    )


@dataclass(frozen=True, eq=False)
class _Pending:
    """A queued round: ``numbers`` is all that the host waits for; laws stay where they are."""

    numbers: Tensor
    q: Sequence[Tensor]  # (K,) each
    p: Tensor  # (length + 1, V)
    outcome: Outcome
    dtype: torch.dtype


class _Queue:
    """Target and draft with their caches, and a round of both that nobody waits for."""

    def __init__(
        self, target: DeviceTarget, draft: DeviceDraft, temperature: float, capacity: int
    ) -> None:
        self.target, self._draft, self._temperature = target, draft, temperature
        self._heat = temperature or 1.0  # greedy laws need no sums
        self._cache: Any = target.new_cache(capacity)
        self._draft_cache: Any = draft.new_cache(capacity)
        self._start = 0  # positions that count in both caches
        self._state: Tensor | None = None  # (1, D)
        self._ids = self._sent_ids = torch.empty(
            0, dtype=torch.int64
        )  # the host's and the device's

    def prefill(self, tokens: Sequence[int]) -> Tensor | None:
        """Reads a prompt short of its last token; the hidden state (D,) of the first step."""
        for features in read(self.target, tokens[:-1], self._cache):
            start, end = self._start, self._cache.length
            ids, states = (
                torch.tensor(tokens[start + 1 : end + 1]),
                self._draft.fuse(features.aux_hidden_states),
            )
            self._state = self._draft.step(ids, states, self._draft_cache)[-1:]
            self._start = end
        return None if self._state is None else self._draft.apply_final_norm(self._state[0])

    @torch.inference_mode()
    def round(self, last: int, length: int, ids: Tensor, uniforms: Tensor) -> _Pending:
        """Queues a round: ``length`` tokens from ids (K,), read after ``last``, then verified.
        Nothing in here may look at a value on the device: the host would wait for it."""
        draft, table = self._draft, self.target.head.table
        if ids is not self._ids:
            self._ids, self._sent_ids = ids, sent(ids)
        listed, numbers = self._sent_ids, sent(uniforms)
        chain, places, q, finite = [sent(torch.tensor([last]))], [], [], []
        state = self._state
        if length:
            draft.head.pack(ids)
        for depth in range(length):
            assert state is not None  # a draft that has read nothing proposes nothing
            scores = draft.head.packed.scores(draft.on_device(state), temperature=self._heat)
            q.append(distributions(scores, self._temperature))  # (1, K)
            finite.append(scores.best[:, 0])
            place, token = choose(q[-1], numbers, depth, listed)
            places.append(place)
            chain.append(token)
            if depth + 1 < length:
                state = draft.step(token, state, self._draft_cache)
        read_ids = torch.cat(chain)  # (length + 1,)
        features = self.target.step(read_ids, self._cache)
        scores = table.scores(features.hidden, temperature=self._heat)
        p = distributions(scores, self._temperature)  # (length + 1, V)
        finite.append(scores.best[:, 0])
        drafted = read_ids[1:]
        outcome = verify(
            drafted,
            torch.cat(places) if places else drafted,
            listed[None],
            torch.full_like(drafted, len(ids)),
            torch.cat(q) if q else p[:0],
            p,
            numbers[length:],
        )

        # What is emitted, and rubbish behind it: the draft reads both, and forgets the rubbish.
        passed, next_token = outcome.found[:1], outcome.found[1:2]
        row = torch.arange(length + 1, device=passed.device)
        emitted = torch.where(row == passed, next_token, torch.cat((drafted, next_token)))
        self._draft_cache.truncate(self._start)
        states = draft.step(emitted, draft.fuse(features.aux_hidden_states), self._draft_cache)
        self._state = state = states.index_select(0, passed)
        parts = (
            outcome.found,
            torch.cat(finite).isfinite().all()[None],
            drafted,
            outcome.acceptance,
            draft.on_device(state)[0],
        )
        packed = torch.cat([part.double() for part in parts])  # ids are exact in float64
        return _Pending(packed, [distribution[0] for distribution in q], p, outcome, state.dtype)

    def keep(self, count: int) -> None:
        """Of the round's positions the first ``count`` stay."""
        self._start += count
        self._cache.truncate(self._start)
        self._draft_cache.truncate(self._start)
