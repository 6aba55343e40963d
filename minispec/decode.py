"""Decoding: the loop in which target, draft, list and verification meet.

``autoregressive()`` and ``speculative()`` are the same loop; plain decoding is the case in
which nobody proposes anything. Both are generators of rounds: stop reading, and nothing is
left behind.

What holds at the start of each round: ``tokens`` are the prompt and all that was emitted; the
target has read all of them but the last; the draft has read (by the target's taps) as many.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from minispec.commit import Output, StopRule
from minispec.errors import ArgumentError, ContextError
from minispec.propose import Drafter
from minispec.sampling import Sampling
from minispec.stopwatch import Stopwatch
from minispec.types import (
    Draft,
    Evidence,
    Features,
    Learner,
    Proposal,
    RandomSource,
    Round,
    Shortlist,
    Target,
    Tokenizer,
)
from minispec.verify import Verifier, verify

MAX_GAMMA = 16
_PREFILL = 512  # positions read at once: a whole long prompt's attention mask would be large


def autoregressive(
    target: Target,
    prompt: Sequence[int],
    *,
    sampling: Sampling,
    rng: RandomSource,
    stop: StopRule,
    tokenizer: Tokenizer | None = None,
    trace: bool = False,
) -> Iterator[Round]:
    """Plain decoding: one token a round, drawn from the target's law.

    Spends one choice a token. Raises ArgumentError for an empty prompt, ContextError for one
    that fills the context, both before any work. Where the context ends before
    ``stop.max_new_tokens``, the last round's ``stop`` is "context".
    """
    output = checked(target, prompt, stop, tokenizer)
    return _rounds(target, None, 0, list(prompt), sampling, rng, output, trace)


def speculative(
    target: Target,
    draft: Draft,
    shortlist: Shortlist,
    prompt: Sequence[int],
    *,
    gamma: int,
    sampling: Sampling,
    rng: RandomSource,
    stop: StopRule,
    tokenizer: Tokenizer | None = None,
    trace: bool = False,
    continued: bool = False,
    verifier: Verifier = verify,
    learner: Learner | None = None,
) -> Iterator[Round]:
    """Speculative decoding: the same law as ``autoregressive``, several tokens a round.

    Each round drafts up to ``gamma`` tokens from ids that ``shortlist`` selects, has the
    target verify them in one pass, and emits the accepted ones and one of the target's own.
    A chain is cut short where the output may not grow that far. The list is reset first, unless
    the prompt is ``continued``: the turns so far of a conversation, which the list has followed,
    and the next. The models read all of it again. With a ``learner``, whose ``draft`` is then
    the one to hand in, the draft learns between rounds.

    Spends, in this order: one choice a drafted token, one coin a token examined (by
    ``verify_block``: a prefix, from the longest), one choice.
    Raises as ``autoregressive`` does, and ArgumentError for gamma outside 1..16.
    """
    check_gamma(gamma)
    output = checked(target, prompt, stop, tokenizer)
    if not continued:
        shortlist.reset()
    if learner:
        learner.start(continued)
    drafter = Drafter(draft, shortlist, len(prompt) + output.remaining, learner)
    return _rounds(target, drafter, gamma, list(prompt), sampling, rng, output, trace, verifier)


def check_gamma(gamma: int) -> None:
    """Raises ArgumentError for a gamma out of range."""
    if not 1 <= gamma <= MAX_GAMMA:
        raise ArgumentError(f"gamma {gamma} must lie in 1..{MAX_GAMMA}")


def read(target: Target, ids: Sequence[int], cache: Any) -> Iterator[Features]:
    """Has the target read a text of any length, chunk by chunk: the features of each."""
    for start in range(0, len(ids), _PREFILL):
        yield target.step(torch.tensor(ids[start : start + _PREFILL]), cache)


def checked(
    target: Target, prompt: Sequence[int], stop: StopRule, tokenizer: Tokenizer | None
) -> Output:
    """The output of a prompt that can be decoded. Raises as ``autoregressive``."""
    if not prompt:
        raise ArgumentError("the prompt has no tokens: at least one is needed")
    size = target.head.vocab_size
    if not 0 <= min(prompt) <= max(prompt) < size:
        raise ArgumentError(f"the prompt has ids outside 0..{size - 1}")
    room = target.context_limit - len(prompt)
    if room < 1:
        raise ContextError(
            f"the prompt has {len(prompt)} tokens, the context holds {target.context_limit}: "
            "shorten the prompt"
        )
    return Output(stop, tokenizer, room)


def _rounds(
    target: Target,
    drafter: Drafter | None,
    gamma: int,
    tokens: list[int],
    sampling: Sampling,
    rng: RandomSource,
    output: Output,
    trace: bool,
    verifier: Verifier = verify,
) -> Iterator[Round]:
    if output.remaining == 0:
        return
    watch = Stopwatch()
    cache = target.new_cache(len(tokens) + output.remaining)

    # The prompt, short of its last token, which the first round reads.
    for features in read(target, tokens[:-1], cache):
        if drafter:
            start, end = cache.length - len(features.aux_hidden_states), cache.length
            drafter.resync(torch.tensor(tokens[start + 1 : end + 1]), features.aux_hidden_states)
    watch.lap("prefill")

    stopped = False
    while not stopped:
        # 1) Propose. No more than may still be emitted, beside the target's own token.
        proposal = Proposal((), ())
        if drafter:
            length = min(gamma, output.remaining - 1)
            proposal = drafter.propose(tokens, length, sampling, rng, watch)

        # 2) The target reads the last token and the chain in one pass: n + 1 laws.
        start = cache.length
        features = target.step(torch.tensor([tokens[-1], *proposal.tokens]), cache)
        distributions = sampling.target_distributions(target.head, features.hidden)
        watch.lap("target")

        # 3) Verify.
        verdict = verifier(proposal, distributions, rng)
        accepted = [proposal.tokens[node] for node in verdict.path]
        watch.lap("verify")

        # 4) Commit, and forget what was rejected.
        committed = output.commit([*accepted, verdict.next_token])
        kept = committed.tokens
        stopped = committed.stop is not None
        tokens += kept
        cache.truncate(start + len(kept))
        watch.lap("commit")

        # 5) The draft reads what was emitted, with what the target made of it.
        if drafter and not stopped:
            drafter.resync(torch.tensor(kept), features.aux_hidden_states[: len(kept)])
            watch.lap("draft")

        # 6) List and draft learn from the round, of which nothing lies past a stop.
        if stopped:
            proposal = Proposal(
                proposal.tokens[: len(kept)], proposal.draft_distributions[: len(kept)]
            )
        complete = len(kept) == len(accepted) + 1
        evidence = Evidence(
            proposal,
            tuple(distributions[: len(kept)]),
            verdict.acceptance[: len(proposal)],
            verdict.next_distribution if complete else None,
        )
        finished = Round(
            tokens=kept,
            text=committed.text,
            path=verdict.path[: len(kept)],
            proposed=proposal.tokens,
            shortlist_sizes=tuple(
                len(distribution.ids) for distribution in proposal.draft_distributions
            ),
            seconds={},
            stop=committed.stop,
            evidence=evidence,
            rows_probed=drafter.rows_probed(len(proposal)) if drafter else 0,
        )
        if drafter:
            drafter.shortlist.observe(finished)
            watch.lap("observe")
            finished = replace(finished, events=drafter.learn(finished))
            watch.lap("learn")

        # 7) Hand it out. Time that passes until the next round is asked for is not ours.
        yield replace(finished, seconds=watch.collect(), evidence=evidence if trace else None)
        watch.resume()
