"""Speculative decoding on a GPU that waits for the device once in a round.

Draft steps, sampling, the target's pass, verification and the draft's resync are queued one
after another; each reads what the previous one left on the device. One copy returns what the host
needs: the tokens, the number accepted, and the hidden state for the next shortlist. The uniforms
that a round may spend are sent before it starts; unspent ones are used in the next round.

Tested against the reference loop, ``minispec.decode``: the same seed gives the same tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastpath.cuda.backend import DeviceDraft, DeviceTarget
from fastpath.cuda.device import to_device, to_host
from fastpath.cuda.verify import Outcome, choose, compute_distributions, verify
from minispec.commit import Output, StopRule
from minispec.decode import prefill
from minispec.errors import ArgumentError
from minispec.preconditions import check_gamma, open_output
from minispec.sampling import Sampling, SeededRandom
from minispec.selections import CheckedSelections
from minispec.stopwatch import Stopwatch
from minispec.tokenizer import Tokenizer
from minispec.types import Context, Distribution, Evidence, Proposal, Round, Shortlist


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

    ``shortlist`` must be per round: selecting at each step would wait for each drafted token.
    The distributions that ``observe`` receives are on the device. The random source is read ahead,
    by at most the 2 * gamma + 1 uniforms of a round.

    Raises as the reference, and ArgumentError for a shortlist per step, and for a sampling that has
    more than a temperature.
    """
    check_gamma(gamma)
    if not shortlist.per_round:
        raise ArgumentError(
            f"{shortlist.name} selects at every step: this loop needs a per-round shortlist"
        )
    if sampling != Sampling(sampling.temperature):
        raise ArgumentError(
            f"{sampling}: this loop has kernels for the temperature alone; decode on the device "
            "with minispec.decode.speculative"
        )
    output = open_output(target, prompt, stop, tokenizer)
    shortlist.reset()
    queue = _RoundQueue(target, draft, sampling.temperature, len(prompt) + output.remaining)
    return _rounds(queue, shortlist, gamma, list(prompt), rng, output, trace)


def _rounds(
    queue: "_RoundQueue",
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
    selections = CheckedSelections(shortlist, len(vocabulary))
    stopped = False
    while not stopped:
        # 1) Send the shortlist and all uniforms that the round may spend.
        length = 0 if hidden is None else min(gamma, output.remaining - 1)
        ids = vocabulary[:1]
        if hidden is not None and length:
            ids = selections.select(Context(tuple(tokens), hidden, 0))
        watch.lap("shortlist")
        uniforms += [rng.uniform() for _ in range(2 * length + 1 - len(uniforms))]
        pending = queue.enqueue_round(
            tokens[-1], length, ids, torch.tensor(uniforms, dtype=torch.float64)
        )

        # 2) Wait for the device.
        numbers = to_host(pending.numbers)  # (4 + 2 * length + D,)
        accepted, next_token, fault, finite = (int(n) for n in numbers[:4])
        if fault or not finite:
            raise ArgumentError("the largest logit is not finite: its softmax is undefined")
        drafted = tuple(int(n) for n in numbers[4 : 4 + length])
        examined = min(accepted + 1, length)
        acceptance = tuple(numbers[4 + length : 4 + length + examined].tolist())
        hidden = numbers[4 + 2 * length :].to(pending.dtype)
        del uniforms[: length + examined + 1]
        watch.lap("device")

        # 3) Commit, and roll the caches back to the kept tokens.
        committed = output.commit([*drafted[:accepted], next_token])
        kept = committed.tokens
        stopped = committed.stop is not None
        tokens += kept
        queue.truncate(len(kept))

        # 4) Update the shortlist, with nothing after a stop.
        q = tuple(Distribution(ids, probs) for probs in pending.q)
        p = tuple(Distribution(vocabulary, probs) for probs in pending.p)
        next_distribution = (
            Distribution(vocabulary, pending.outcome.distribution)
            if len(kept) == accepted + 1
            else None
        )
        num_shown = len(kept) if stopped else length
        evidence = Evidence(
            Proposal(drafted[:num_shown], q[:num_shown]),
            p[: len(kept)],
            acceptance[: len(kept)],
            next_distribution,
        )
        finished = Round(
            tokens=kept,
            text=committed.text,
            path=tuple(range(accepted))[: len(kept)],
            proposed=drafted[:num_shown],
            shortlist_sizes=(len(ids),) * min(num_shown, length),
            seconds={},
            stop=committed.stop,
            evidence=evidence,
        )
        watch.lap("commit")
        shortlist.observe(finished)
        watch.lap("observe")
        yield replace(
            finished,
            seconds=watch.collect(),
            evidence=_copy_evidence_to_host(evidence) if trace else None,
        )
        watch.resume()


def _copy_evidence_to_host(evidence: Evidence) -> Evidence:
    """Evidence with its distributions on the host."""

    def copy(distribution: Distribution) -> Distribution:
        return Distribution(distribution.ids, distribution.probs.cpu())

    q, p = evidence.proposal.draft_distributions, evidence.target_distributions
    proposal = Proposal(evidence.proposal.tokens, tuple(map(copy, q)))
    last = evidence.next_distribution and copy(evidence.next_distribution)
    return Evidence(proposal, tuple(map(copy, p)), evidence.acceptance, last)


@dataclass(frozen=True, eq=False)
class _PendingRound:
    """A queued round. The host waits for ``numbers`` alone; distributions stay on the device."""

    numbers: Tensor
    q: Sequence[Tensor]  # (K,) each
    p: Tensor  # (length + 1, V)
    outcome: Outcome
    dtype: torch.dtype


class _RoundQueue:
    """Target and draft with their caches, and rounds queued without waiting for the device."""

    def __init__(
        self, target: DeviceTarget, draft: DeviceDraft, temperature: float, capacity: int
    ) -> None:
        self.target, self._draft, self._temperature = target, draft, temperature
        self._score_temperature = temperature or 1.0  # greedy distributions need no sums
        self._cache: Any = target.new_cache(capacity)
        self._draft_cache: Any = draft.new_cache(capacity)
        self._start = 0  # committed positions in both caches
        self._state: Tensor | None = None  # (1, D)
        # The current shortlist on the host and on the device.
        self._ids = self._device_ids = torch.empty(0, dtype=torch.int64)

    def prefill(self, tokens: Sequence[int]) -> Tensor | None:
        """Runs target and draft over a prompt without its last token. Returns the hidden state (D,)
        of the first draft step, None for a prompt of one token."""
        for features in prefill(self.target, tokens[:-1], self._cache):
            start, end = self._start, self._cache.length
            ids, states = (
                torch.tensor(tokens[start + 1 : end + 1]),
                self._draft.fuse(features.aux_hidden_states),
            )
            self._state = self._draft.step(ids, states, self._draft_cache)[-1:]
            self._start = end
        return None if self._state is None else self._draft.apply_final_norm(self._state[0])

    @torch.inference_mode()
    def enqueue_round(self, last: int, length: int, ids: Tensor, uniforms: Tensor) -> _PendingRound:
        """Queues a round: ``length`` tokens drafted from ids (K,) after the token ``last``, then
        verified. It must not read any value on the device: the host would wait for it."""
        draft, table = self._draft, self.target.head.table
        if ids is not self._ids:
            self._ids, self._device_ids = ids, to_device(ids)
        device_ids, device_uniforms = self._device_ids, to_device(uniforms)
        chain, indices, q, finite = [to_device(torch.tensor([last]))], [], [], []
        state = self._state
        if length:
            draft.head.pack(ids)
        for depth in range(length):
            assert state is not None  # only a prompt of one token has no state, and length 0
            scores = draft.head.packed.scores(
                draft.normalize_on_device(state), temperature=self._score_temperature
            )
            q.append(compute_distributions(scores, self._temperature))  # (1, K)
            finite.append(scores.top_logits[:, 0])
            index, token = choose(q[-1], device_uniforms, depth, device_ids)
            indices.append(index)
            chain.append(token)
            if depth + 1 < length:
                state = draft.step(token, state, self._draft_cache)
        chain_ids = torch.cat(chain)  # (length + 1,)
        features = self.target.step(chain_ids, self._cache)
        scores = table.scores(features.hidden, temperature=self._score_temperature)
        p = compute_distributions(scores, self._temperature)  # (length + 1, V)
        finite.append(scores.top_logits[:, 0])
        drafted = chain_ids[1:]
        outcome = verify(
            drafted,
            torch.cat(indices) if indices else drafted,
            device_ids[None],
            torch.full_like(drafted, len(ids)),
            torch.cat(q) if q else p[:0],
            p,
            device_uniforms[length:],
        )

        # The emitted tokens, then unused ones, which ``truncate`` drops from the draft cache.
        accepted, next_token = outcome.decision[:1], outcome.decision[1:2]
        row = torch.arange(length + 1, device=accepted.device)
        emitted = torch.where(row == accepted, next_token, torch.cat((drafted, next_token)))
        self._draft_cache.truncate(self._start)
        states = draft.step(emitted, draft.fuse(features.aux_hidden_states), self._draft_cache)
        self._state = state = states.index_select(0, accepted)
        parts = (
            outcome.decision,
            torch.cat(finite).isfinite().all()[None],
            drafted,
            outcome.acceptance,
            draft.normalize_on_device(state)[0],
        )
        packed = torch.cat([part.double() for part in parts])  # ids are exact in float64
        return _PendingRound(
            packed, [distribution[0] for distribution in q], p, outcome, state.dtype
        )

    def truncate(self, count: int) -> None:
        """Keeps the first ``count`` positions of the round in both caches."""
        self._start += count
        self._cache.truncate(self._start)
        self._draft_cache.truncate(self._start)
