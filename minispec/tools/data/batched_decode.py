"""Batched autoregressive decoding with continuous batching (Orca; vLLM).

A step reads the weights once for all rows of the batch, which makes generating training data
affordable. A row that ends is refilled with the next prompt at the next step. Each row has its own
random source, positions and end, so that its completion is the one of decoding its prompt alone.

Knows nothing of speculation.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from minispec.errors import ArgumentError, ContextError
from minispec.logits_processor import History
from minispec.models.reference import Reference
from minispec.sampling import Sampling
from minispec.types import Features, RandomSource


@dataclass(frozen=True, eq=False)
class Completion:
    """The completion of prompt ``index``. ``features`` are the target's at each position of its
    input: the prompt and all new tokens but the last, T = len(prompt) + len(tokens) - 1."""

    index: int
    tokens: tuple[int, ...]
    features: Features | None


@dataclass
class _Row:
    """A row of the batch while it decodes prompt ``index``; ``last`` is its newest token."""

    index: int
    last: int
    rng: RandomSource
    tokens: list[int] = field(default_factory=list)
    features: list[Features] = field(default_factory=list)


@torch.inference_mode()
def decode_batch(
    target: Reference,
    prompts: Sequence[Sequence[int]],
    samplings: Sequence[Sampling],
    rngs: Sequence[RandomSource],
    *,
    rows: int,
    max_new_tokens: int,
    eos_ids: Sequence[int],
    keep_features: bool = False,
) -> Iterator[Completion]:
    """Decodes prompt ``i`` with ``samplings[i]`` and ``rngs[i]``, ``rows`` prompts at a time;
    yields completions in the order in which they finish. A completion ends with an EOS id, which
    is kept, or at ``max_new_tokens``.

    Raises, before anything is decoded, ArgumentError for an empty prompt, arguments of unequal
    length or no rows, and ContextError for a prompt whose completion may not fit the context.
    """
    if not len(prompts) == len(samplings) == len(rngs):
        raise ArgumentError(
            f"{len(prompts)} prompts need as many samplings and random sources, "
            f"got {len(samplings)} and {len(rngs)}"
        )
    if rows < 1 or max_new_tokens < 0:
        raise ArgumentError(
            f"{rows} rows and {max_new_tokens} new tokens: need at least 1 row and 0 tokens"
        )
    if not prompts or max_new_tokens == 0:
        return
    if not all(prompts):
        raise ArgumentError("a prompt has no tokens: give each at least one")
    capacity = max(map(len, prompts)) + max_new_tokens
    if capacity > target.context_limit:
        raise ContextError(
            f"the longest prompt and {max_new_tokens} new tokens take {capacity} positions, "
            f"the context holds {target.context_limit}"
        )
    rows = min(rows, len(prompts)) if target.runs_batches else 1
    cache = target.new_cache(capacity, rows)
    prefix = _Prefix(target, _shared_prefix(prompts))
    waiting = iter(range(len(prompts)))
    active: list[_Row | None] = [None] * rows

    while True:
        for slot in range(rows):
            if active[slot] is None and (index := next(waiting, None)) is not None:
                prompt_features = prefix.fill(cache, slot, prompts[index][:-1])
                kept = [prompt_features] if keep_features else []
                active[slot] = _Row(index, prompts[index][-1], rngs[index], features=kept)
        if not any(active):
            return

        ids = torch.tensor([[row.last if row else 0] for row in active])  # (B, 1)
        step = target(ids, cache)  # hidden (B, 1, D)
        logits = target.head.logits(step.hidden[:, 0])  # (B, V)
        for slot, row in enumerate(active):
            if row is None:
                cache.lengths[slot] = 0  # an idle row still runs; its output is unused
                continue
            prompt = prompts[row.index]
            history = History((*prompt, *row.tokens), len(prompt))
            distribution = samplings[row.index].target_distribution(logits[slot], history)
            row.last = int(distribution.ids[row.rng.choose(distribution.probs)])
            row.tokens.append(row.last)
            if keep_features:
                row.features.append(Features(step.hidden[slot], step.aux_hidden_states[slot]))
            if row.last in eos_ids or len(row.tokens) == max_new_tokens:
                features = _concatenate(row.features) if keep_features else None
                yield Completion(row.index, tuple(row.tokens), features)
                active[slot] = None
                cache.lengths[slot] = 0


class _Prefix:
    """The shared prefix of all prompts (a system message): prefilled once, then copied into the
    cache of each row (prefix caching)."""

    def __init__(self, target: Reference, ids: Sequence[int]) -> None:
        """Prefills the prefix ``ids`` (P,)."""
        self._target, self._length = target, len(ids)
        self._cache = target.new_cache(max(1, len(ids)))
        self._features = target(torch.tensor([list(ids)], dtype=torch.int64), self._cache)

    def fill(self, cache: Any, slot: int, ids: Sequence[int]) -> Features:
        """Prefills row ``slot`` with ``ids`` (T,), which begin with the prefix; returns the
        features of all T positions."""
        row = cache.sequence(slot)
        row.copy_prefix(self._cache, self._length)
        rest = torch.tensor([list(ids[self._length :])], dtype=torch.int64)  # (1, T - P)
        features = self._target(rest, row)
        cache.lengths[slot] = len(ids)
        return _concatenate([_drop_batch(self._features), _drop_batch(features)])


def _drop_batch(features: Features) -> Features:
    """Features of a batch of one row -> features of the sequence."""
    return Features(features.hidden[0], features.aux_hidden_states[0])


def _concatenate(parts: Sequence[Features]) -> Features:
    return Features(
        torch.cat([p.hidden for p in parts]), torch.cat([p.aux_hidden_states for p in parts])
    )


def _shared_prefix(prompts: Sequence[Sequence[int]]) -> Sequence[int]:
    """The longest common prefix of all prompts, each without its last token."""
    columns = zip(*(prompt[:-1] for prompt in prompts), strict=False)  # up to the shortest
    return [ids[0] for ids in itertools.takewhile(lambda ids: len(set(ids)) == 1, columns)]
