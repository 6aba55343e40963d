"""A target's greedy text, written once and read again as often as a draft is to be measured.

Greedy decoding emits the target's text whatever the draft does, so a recorded target, in the
real decoding loop, gives the real number of target passes: only the time is not the target's.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from minispec.batched import batched
from minispec.pretrained import Pretrained
from minispec.sampling import Sampling, SeededRandom
from minispec.types import Features


@dataclass(frozen=True, eq=False)
class Recording:
    """A prompt and its greedy answer: ``taps`` (T, n_taps * D) of every token but the last."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    taps: Tensor


class Length:
    """A cache that knows only how much was read."""

    def __init__(self) -> None:
        self.length = 0

    def truncate(self, length: int) -> None:
        self.length = min(self.length, length)


class RecordedHead:
    """The head of ``RecordedTarget``: its hidden state is the id that is said next."""

    def __init__(self, vocabulary_size: int) -> None:
        self.vocabulary_size = vocabulary_size

    def full(self, hidden: Tensor) -> Tensor:
        logits = torch.zeros(len(hidden), self.vocabulary_size, dtype=hidden.dtype)
        return logits.scatter_(1, hidden.long(), 1.0)

    def rows(self, hidden: Tensor, ids: Tensor) -> Tensor:
        return self.full(hidden)[..., ids]


class RecordedTarget:
    """Says what was recorded. Of what lies past a token that was not said, it shows what was
    recorded in its place, which is of no account, since it is forgotten with that token."""

    def __init__(self, recording: Recording, vocabulary_size: int, context_limit: int) -> None:
        self.head, self.context_limit = RecordedHead(vocabulary_size), context_limit
        self._taps = recording.taps
        following = [*recording.prompt[1:], *recording.answer]
        self._following = torch.tensor(following)[:, None]
        # In the draft's dtype, in which laws are compared: whole numbers up to 2^24 stay exact.
        self._following = self._following.to(recording.taps.dtype)  # (T, 1)

    def new_cache(self, capacity: int) -> Length:
        return Length()

    def step(self, ids: Tensor, cache: Length) -> Features:
        last = len(self._following) - 1
        places = torch.arange(cache.length, cache.length + len(ids)).clamp(max=last)
        cache.length += len(ids)
        return Features(self._following[places], self._taps[places])


def record(
    model: Pretrained, prompts: list[list[int]], max_new_tokens: int, rows: int = 16
) -> list[Recording]:
    """The greedy answers to some prompts; those that end at once are left out."""
    found: dict[int, Recording] = {}
    for row in batched(
        model.reference, prompts, [Sampling()] * len(prompts), [SeededRandom(0) for _ in prompts],
        rows=rows, max_new_tokens=max_new_tokens, eos_ids=model.tokenizer.eos_ids,
        keep_features=True,
    ):  # fmt: skip
        assert row.features is not None
        if len(row.tokens) > 1:
            prompt = tuple(prompts[row.index])
            found[row.index] = Recording(prompt, tuple(row.tokens), row.features.taps)
    return [found[index] for index in sorted(found)]
