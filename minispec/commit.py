"""The one rule by which decided tokens become output, and by which output ends.

Plain and speculative decoding both hand their tokens, one at a time or a run at once, to the
same rule, so they stop at the same place: at an end id, at the token that completes a stop
string, or at a limit, also in the middle of an accepted run. Text is handed out as soon as no
stop string can begin in it any more.

Knows nothing of models and of laws.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from minispec.errors import ArgumentError
from minispec.stream_decoder import StreamDecoder
from minispec.types import Tokenizer


@dataclass(frozen=True)
class StopRule:
    """When an output ends. The end id itself is part of the tokens and silent in the text;
    a stop string is part of the tokens and not of the text. Raises ArgumentError."""

    max_new_tokens: int
    eos_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 0:
            raise ArgumentError(f"max-new-tokens {self.max_new_tokens} must be 0 or above")
        if not all(self.stop_strings):
            raise ArgumentError("a stop string is empty: it would stop everything")


@dataclass(frozen=True)
class Committed:
    """What of a run of tokens was kept, the text that is decided now, and why it ended."""

    tokens: tuple[int, ...]
    text: str
    stop: str | None


class Output:
    """The output of one prompt as it grows."""

    def __init__(self, rule: StopRule, tokenizer: Tokenizer | None, room: int) -> None:
        """``room``: how many tokens the context can still take; without a tokenizer there is
        no text, and stop strings are refused (ArgumentError)."""
        if rule.stop_strings and tokenizer is None:
            raise ArgumentError("stop strings need a tokenizer")
        self._rule = rule
        self._stream = StreamDecoder(tokenizer) if tokenizer else None
        self._vocabulary_size = tokenizer.vocab_size if tokenizer else 0
        self._held = ""  # text in which a stop string may have begun
        self._limit = min(rule.max_new_tokens, room)
        self._limit_name = "length" if rule.max_new_tokens <= room else "context"
        self._count = 0

    @property
    def remaining(self) -> int:
        """How many tokens may still be emitted."""
        return self._limit - self._count

    def commit(self, tokens: Sequence[int]) -> Committed:
        """Takes tokens in their order until one of them ends the output."""
        text = ""
        for index, token in enumerate(tokens):
            self._count += 1
            stop = self._text_of(token)
            text += self._released(stop)
            if stop is None and token in self._rule.eos_ids:
                stop = "eos"
            if stop is None and self.remaining == 0:
                stop = self._limit_name
            if stop:
                return Committed(tuple(tokens[: index + 1]), text + self._rest(stop), stop)
        return Committed(tuple(tokens), text, None)

    def _text_of(self, token: int) -> str | None:
        """Adds a token's text to what is held; says whether a stop string is complete."""
        # A model may have more rows than its tokenizer has ids: those are silent.
        if self._stream and token < self._vocabulary_size:
            self._held += self._stream.feed([token])
        return "stop_string" if any(s in self._held for s in self._rule.stop_strings) else None

    def _released(self, stop: str | None) -> str:
        if stop:
            end = min(i for s in self._rule.stop_strings if (i := self._held.find(s)) >= 0)
        else:
            end = len(self._held) - max(map(self._begun, self._rule.stop_strings), default=0)
        text, self._held = self._held[:end], self._held[end:]
        return text

    def _begun(self, stop_string: str) -> int:
        """How many characters of a stop string the held text ends with."""
        begins = (stop_string[:n] for n in range(len(stop_string), 0, -1))
        return next((len(begin) for begin in begins if self._held.endswith(begin)), 0)

    def _rest(self, stop: str) -> str:
        """What is still to be said at the end; a stop string and what follows it is not."""
        if stop == "stop_string" or not self._stream:
            return ""
        return self._held + self._stream.flush()
