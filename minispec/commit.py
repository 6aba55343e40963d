"""Committing: how verified tokens become output, and where the output stops.

Plain and speculative decoding commit their tokens by the same rule, so both stop at the same
token: at an EOS id, at the token that completes a stop string, or at a length limit, even in
the middle of an accepted run. Text is returned as soon as it cannot be part of a stop string.

Knows nothing of models or distributions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from minispec.checks import convert_fields, to_ids, to_int, to_texts
from minispec.errors import ArgumentError
from minispec.stream_decoder import StreamDecoder
from minispec.tokenizer import Tokenizer


@dataclass(frozen=True)
class StopRule:
    """When an output stops. The EOS id is included in the tokens and has no text; the tokens of a
    stop string are included, its text is not. Raises ArgumentError on construction."""

    max_new_tokens: int
    eos_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        convert_fields(self, max_new_tokens=to_int, eos_ids=_to_tuple, stop_strings=to_texts)
        if self.max_new_tokens < 0:
            raise ArgumentError(f"max-new-tokens {self.max_new_tokens} must be 0 or above")
        if not all(self.stop_strings):
            raise ArgumentError("a stop string is empty: it needs at least one character")


def _to_tuple(ids: Any, name: str) -> tuple[int, ...]:
    return tuple(to_ids(ids, name))


@dataclass(frozen=True)
class Committed:
    """The tokens that were kept, the text that they complete, and why the output stopped, if so:
    "eos", "stop_string", "length" or "context"."""

    tokens: tuple[int, ...]
    text: str
    stop: str | None


class Output:
    """The growing output of one prompt."""

    def __init__(self, rule: StopRule, tokenizer: Tokenizer | None, capacity: int) -> None:
        """``capacity``: the number of tokens that still fit the model's context. Without a
        tokenizer all text is empty, and stop strings raise ArgumentError."""
        if rule.stop_strings and tokenizer is None:
            raise ArgumentError("stop strings need a tokenizer")
        self._rule = rule
        self._stream = StreamDecoder(tokenizer) if tokenizer else None
        self._vocab_size = tokenizer.vocab_size if tokenizer else 0
        self._held = ""  # text in which a stop string may have begun
        self._limit = min(rule.max_new_tokens, capacity)
        self._limit_name = "length" if rule.max_new_tokens <= capacity else "context"
        self._count = 0

    @property
    def remaining(self) -> int:
        """The number of tokens that may still be emitted."""
        return self._limit - self._count

    def commit(self, tokens: Sequence[int]) -> Committed:
        """Append tokens in order until one of them stops the output."""
        text = ""
        for index, token in enumerate(tokens):
            self._count += 1
            stop = self._append_text(token)
            text += self._release_text(stop)
            if stop is None and token in self._rule.eos_ids:
                stop = "eos"
            if stop is None and self.remaining == 0:
                stop = self._limit_name
            if stop:
                return Committed(tuple(tokens[: index + 1]), text + self._flush(stop), stop)
        return Committed(tuple(tokens), text, None)

    def _append_text(self, token: int) -> str | None:
        """Add a token's text to the text held back; "stop_string" if it completes one."""
        # A model may have more head rows than its tokenizer has ids: those have no text.
        if self._stream and token < self._vocab_size:
            self._held += self._stream.feed([token])
        return "stop_string" if any(s in self._held for s in self._rule.stop_strings) else None

    def _release_text(self, stop: str | None) -> str:
        """Take the text that no stop string can include from the text held back."""
        if stop:
            end = min(i for s in self._rule.stop_strings if (i := self._held.find(s)) >= 0)
        else:
            partial = max(map(self._count_overlap, self._rule.stop_strings), default=0)
            end = len(self._held) - partial
        text, self._held = self._held[:end], self._held[end:]
        return text

    def _count_overlap(self, stop_string: str) -> int:
        """The number of a stop string's first characters that the text held back ends with."""
        prefixes = (stop_string[:n] for n in range(len(stop_string) - 1, 0, -1))
        return next((len(prefix) for prefix in prefixes if self._held.endswith(prefix)), 0)

    def _flush(self, stop: str) -> str:
        """The last text of the output, without a stop string and what follows it."""
        if stop == "stop_string" or not self._stream:
            return ""
        return self._held + self._stream.flush()
