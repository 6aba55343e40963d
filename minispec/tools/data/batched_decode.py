"""Plain decoding of many prompts at once, in rows of different lengths.

Reading the weights once per step and using them for every row is what makes a model write
training data at a useful rate. A row that ends is refilled with the next prompt at once, so
no row waits for the slowest. What a row writes is what it would write alone: it has its own
random source, its own positions and its own end.

Knows nothing of speculation.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from minispec.errors import ArgumentError, ContextError
from minispec.models.kv_cache import KVCache
from minispec.models.transformer import Transformer
from minispec.sampling import Sampling
from minispec.types import Features, RandomSource


@dataclass(frozen=True, eq=False)
class Completion:
    """A finished row. ``features`` are those of every position that the target has read:
    the prompt and all new tokens but the last, T = len(prompt) + len(tokens) - 1."""

    index: int
    tokens: tuple[int, ...]
    features: Features | None


@dataclass
class _Row:
    index: int
    last: int
    rng: RandomSource
    tokens: list[int] = field(default_factory=list)
    features: list[Features] = field(default_factory=list)


@torch.inference_mode()
def decode_batch(
    target: Transformer,
    prompts: Sequence[Sequence[int]],
    samplings: Sequence[Sampling],
    randoms: Sequence[RandomSource],
    *,
    rows: int,
    max_new_tokens: int,
    eos_ids: Sequence[int],
    keep_features: bool = False,
) -> Iterator[Completion]:
    """Decodes prompt ``i`` under ``samplings[i]`` with ``randoms[i]``; yields in order of
    completion. A row ends with an EOS id, which is kept, or at ``max_new_tokens``.

    Raises ArgumentError for an empty prompt, unequal lists or no rows, ContextError for a
    prompt that does not fit the context together with its answer, both before anything is
    decoded.
    """
    if not len(prompts) == len(samplings) == len(randoms):
        raise ArgumentError(
            f"{len(prompts)} prompts need as many samplings and random sources, "
            f"got {len(samplings)} and {len(randoms)}"
        )
    if rows < 1 or max_new_tokens < 0:
        raise ArgumentError(
            f"{rows} rows and {max_new_tokens} new tokens: at least 1 row and 0 tokens are needed"
        )
    if not prompts or max_new_tokens == 0:
        return
    if not all(prompts):
        raise ArgumentError("a prompt has no tokens: at least one is needed")
    capacity = max(map(len, prompts)) + max_new_tokens
    if capacity > target.context_limit:
        raise ContextError(
            f"the longest prompt and {max_new_tokens} new tokens take {capacity} positions, "
            f"the context holds {target.context_limit}"
        )
    rows = min(rows, len(prompts))
    cache = target.new_cache(capacity, rows)
    prefix = _Prefix(target, _shared_prefix(prompts))
    waiting = iter(range(len(prompts)))
    active: list[_Row | None] = [None] * rows

    while True:
        for slot in range(rows):
            if active[slot] is None and (index := next(waiting, None)) is not None:
                features = prefix.fill(cache, slot, prompts[index][:-1])
                kept = [features] if keep_features else []
                active[slot] = _Row(index, prompts[index][-1], randoms[index], features=kept)
        if not any(active):
            return

        ids = torch.tensor([[row.last if row else 0] for row in active])  # (B, 1)
        step = target(ids, cache)
        logits = target.head.logits(step.hidden[:, 0])  # (B, V)
        for slot, row in enumerate(active):
            if row is None:
                cache.lengths[slot] = 0  # an idle row computes rubbish in place
                continue
            distribution = samplings[row.index].target_distribution(logits[slot])
            row.last = int(distribution.ids[row.rng.choose(distribution.probs)])
            row.tokens.append(row.last)
            if keep_features:
                row.features.append(Features(step.hidden[slot], step.aux_hidden_states[slot]))
            if row.last in eos_ids or len(row.tokens) == max_new_tokens:
                whole = _joined(row.features) if keep_features else None
                yield Completion(row.index, tuple(row.tokens), whole)
                active[slot] = None
                cache.lengths[slot] = 0


class _Prefix:
    """What all prompts begin with (a system message) is read once and copied into each row."""

    def __init__(self, target: Transformer, ids: Sequence[int]) -> None:
        self._target, self._length = target, len(ids)
        self._cache = target.new_cache(max(1, len(ids)))
        self._features = target(torch.tensor([list(ids)], dtype=torch.int64), self._cache)

    def fill(self, cache: KVCache, slot: int, ids: Sequence[int]) -> Features:
        """Reads ``ids`` (T,), which begin with the prefix, into a row: features of all T."""
        row = cache.row(slot)
        row.keys[:, :, : self._length] = self._cache.keys[:, :, : self._length]
        row.values[:, :, : self._length] = self._cache.values[:, :, : self._length]
        row.advance(self._length)
        rest = torch.tensor([list(ids[self._length :])], dtype=torch.int64)  # (1, T - prefix)
        features = self._target(rest, row)
        cache.lengths[slot] = len(ids)
        return _joined([_row_of(self._features), _row_of(features)])


def _row_of(features: Features) -> Features:
    return Features(features.hidden[0], features.aux_hidden_states[0])


def _joined(parts: Sequence[Features]) -> Features:
    return Features(
        torch.cat([p.hidden for p in parts]), torch.cat([p.aux_hidden_states for p in parts])
    )


def _shared_prefix(prompts: Sequence[Sequence[int]]) -> Sequence[int]:
    """The longest beginning that all prompts share, short of anyone's last token."""
    places = zip(*(prompt[:-1] for prompt in prompts), strict=False)  # to the shortest's end
    return [ids[0] for ids in itertools.takewhile(lambda ids: len(set(ids)) == 1, places)]
