"""What changes logits before they become a distribution: biases, penalties and bad words.

Names, ranges and order are vLLM's, which applies all of them before the temperature, as
transformers does. Penalties depend on the tokens before a position. In speculative decoding these
include the tokens drafted before it: p at the i-th drafted token counts the i - 1 before.

Knows nothing of models, temperatures or drafts.
"""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minispec.checks import convert_fields, to_dict, to_real, to_sequence
from minispec.errors import ArgumentError
from minispec.tree import find_path


@dataclass(frozen=True)
class History:
    """The tokens before a position: the first ``prompt_length`` are the prompt's, the others were
    emitted or drafted after it. ``parents``: of the tree that the last tokens are, if they are
    one."""

    tokens: Sequence[int]
    prompt_length: int
    parents: Sequence[int] = ()

    @property
    def output(self) -> Sequence[int]:
        """The tokens after the prompt."""
        return self.tokens[self.prompt_length :]

    def without_last(self, count: int) -> "History":
        """The history of the position ``count`` tokens earlier; in a tree of the tokens on the way
        to it alone."""
        end, start = len(self.tokens) - count, len(self.tokens) - len(self.parents)
        path = find_path(self.parents, end - start - 1) if end > start else ()
        drafted = [self.tokens[start + node] for node in path]
        return History((*self.tokens[: min(start, end)], *drafted), self.prompt_length)


@dataclass(frozen=True, kw_only=True)
class LogitsProcessor:
    """Changes of logits, made in this order.

    ``logit_bias``: pairs of an id and what is added to its logit, -100 to 100; a mapping will do.
    ``repetition_penalty`` (Keskar et al., arXiv 1909.05858): a logit whose id occurs in the prompt
    or the output is divided by it if positive, else multiplied; above 0, 1 changes nothing.
    ``frequency_penalty``, times the number of occurrences in the output, is subtracted, and so is
    ``presence_penalty`` if there is any; -2 to 2, 0 changes nothing. ``bad_words``: sequences of
    ids that the output never contains: where it ends with all but the last id of one, that id is
    excluded. Raises ArgumentError on construction.
    """

    logit_bias: tuple[tuple[int, float], ...] = ()
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    bad_words: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        convert_fields(
            self, repetition_penalty=to_real, frequency_penalty=to_real, presence_penalty=to_real
        )
        biases = {
            _check_id(token): float(to_real(bias, f"logit-bias of token {token}"))
            for token, bias in to_dict(self.logit_bias, "logit-bias").items()
        }
        words = tuple(
            tuple(map(_check_id, to_sequence(word, "each of bad-words")))
            for word in to_sequence(self.bad_words, "bad-words")
        )
        object.__setattr__(self, "logit_bias", tuple(sorted(biases.items())))
        object.__setattr__(self, "bad_words", words)
        for token, bias in biases.items():
            if not abs(bias) <= 100:
                raise ArgumentError(f"logit-bias {bias} of token {token} must lie in -100..100")
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0):
            raise ArgumentError(
                f"repetition-penalty {self.repetition_penalty} must be above 0; 1 changes nothing"
            )
        for name in ("frequency", "presence"):
            penalty = getattr(self, f"{name}_penalty")
            if not abs(penalty) <= 2:
                raise ArgumentError(
                    f"{name}-penalty {penalty} must lie in -2..2; 0 changes nothing"
                )
        if not all(words):
            raise ArgumentError("a bad word has no tokens: it needs at least one")

    @property
    def changes_logits(self) -> bool:
        """Whether anything is asked for."""
        return bool(self.logit_bias) or self.needs_history

    @property
    def needs_history(self) -> bool:
        """Whether a change depends on the tokens before a position."""
        return bool(self.bad_words) or self._has_penalties

    @property
    def _has_penalties(self) -> bool:
        return (self.repetition_penalty, self.frequency_penalty, self.presence_penalty) != (1, 0, 0)

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raises ArgumentError for a bias or a bad word outside a vocabulary."""
        named = [*dict(self.logit_bias), *(token for word in self.bad_words for token in word)]
        if named and max(named) >= vocab_size:
            raise ArgumentError(
                f"logit-bias or bad-words name token {max(named)}, which is not within "
                f"0..{vocab_size - 1}"
            )

    def process(self, logits: Tensor, ids: Tensor, history: History | None) -> Tensor:
        """logits (K,) of sorted ids (K,) -> logits (K,) in the same dtype, -inf where excluded.
        Raises ArgumentError if the history is needed and not given, or if no id is left."""
        if self.logit_bias:
            tokens, biases = zip(*self.logit_bias, strict=True)
            logits = logits + _sum_by_id(tokens, ids, biases).to(logits.dtype)
        if not self.needs_history:
            return logits
        if history is None:
            raise ArgumentError("penalties and bad words need the history of each position")
        if self._has_penalties:
            seen = _sum_by_id(history.tokens, ids) > 0  # (K,)
            penalized = torch.where(
                logits > 0, logits / self.repetition_penalty, logits * self.repetition_penalty
            )
            logits = torch.where(seen, penalized, logits)
            counts = _sum_by_id(history.output, ids).to(logits.dtype)  # (K,)
            logits = logits - self.frequency_penalty * counts
            logits = logits - self.presence_penalty * counts.clamp(max=1)
        return logits.masked_fill(self.find_excluded(ids, history), -math.inf)

    def find_excluded(self, ids: Tensor, history: History) -> Tensor:
        """True for those of the ids (K,) that would complete a bad word. (K,) bool. Raises
        ArgumentError if all would."""
        excluded = self._completes_bad_word(ids, history)
        if excluded.all():
            raise ArgumentError("bad-words exclude every token that could follow: give fewer")
        return excluded

    def excludes_all(self, ids: Tensor, history: History) -> bool:
        """Whether bad words exclude all of the ids (K,): a draft then has nothing to propose."""
        return bool(self.bad_words) and bool(self._completes_bad_word(ids, history).all())

    def _completes_bad_word(self, ids: Tensor, history: History) -> Tensor:
        output = tuple(history.output)
        last = [
            word[-1]
            for word in self.bad_words
            if output[len(output) - len(word) + 1 :] == word[:-1]
        ]
        return torch.isin(ids, torch.tensor(last, dtype=torch.int64))


def _check_id(token: Any) -> int:
    """A token id. Raises ArgumentError."""
    try:
        number = operator.index(token)
    except TypeError:
        raise ArgumentError(f"token {token!r} of logit-bias or bad-words is not an id") from None
    if number < 0:
        raise ArgumentError(f"token {number} of logit-bias or bad-words must be 0 or above")
    return number


def _sum_by_id(
    tokens: Sequence[int], ids: Tensor, weights: Sequence[float] | None = None
) -> Tensor:
    """How often each of the ids (K,) is among the tokens, or the sum of their weights. (K,)"""
    each = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    found = torch.tensor(tokens, dtype=torch.int64)
    return torch.bincount(found, each, minlength=int(ids[-1]) + 1)[ids]
