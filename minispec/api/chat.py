"""A conversation of several turns, in which shortlist and learner keep their state.

The models read the whole conversation again at each turn. Knows nothing of methods.
"""

import time
from collections.abc import Iterator, Sequence

from minispec.api.results import Output
from minispec.checks import to_text
from minispec.text.tokenizer import encode_prompt
from minispec.tokenizer import Tokenizer
from minispec.tools.evaluation.assembly import Decoder
from minispec.tools.evaluation.measure import measure
from minispec.types import RandomSource, Round


def time_first(rounds: Iterator[Round], started: float, delays: list[float]) -> Iterator[Round]:
    """The same rounds; appends the seconds from ``started`` (``time.perf_counter``) to the first
    one to ``delays``."""
    for finished in rounds:
        if not delays:
            delays.append(time.perf_counter() - started)
        yield finished


class Chat:
    """A conversation, made by ``Model.chat``. ``token_ids``: all of it so far, templates
    included."""

    def __init__(
        self,
        decode: Decoder,
        tokenizer: Tokenizer,
        rng: RandomSource,
        method: str,
        raw: bool,
        parse_special: bool = False,
    ) -> None:
        self.method = method
        self.token_ids: tuple[int, ...] = ()
        self._decode, self._tokenizer, self._rng = decode, tokenizer, rng
        self._raw, self._parse_special = raw, parse_special

    def send(self, text: str) -> Output:
        """The answer to the next message. Raises TextError, and ContextError for a conversation
        that has filled the model's context."""
        started, delays = time.perf_counter(), list[float]()
        prompt = self.build_prompt(text)
        figures = measure(time_first(self._run(prompt), started, delays), prompt)
        return Output.of(figures, self.method, delays[0] if delays else None)

    def stream(self, text: str) -> Iterator[Round]:
        """The rounds of the answer to the next message, as they are decoded. Whatever has been
        yielded belongs to the conversation, also if the iteration is abandoned. Raises as
        ``send``."""
        return self._run(self.build_prompt(text))

    def _run(self, prompt: Sequence[int]) -> Iterator[Round]:
        """The rounds of a prompt, checked now and decoded when they are asked for."""
        rounds = self._decode(prompt, self._rng, continued=bool(self.token_ids))
        return self._follow(rounds, prompt)

    def _follow(self, rounds: Iterator[Round], prompt: Sequence[int]) -> Iterator[Round]:
        self.token_ids = tuple(prompt)
        for finished in rounds:
            self.token_ids += finished.tokens
            yield finished

    def build_prompt(self, text: str) -> list[int]:
        """Ids of the conversation and the next message. The template closes the answer before it,
        so that answer's own end id is dropped. Raises ArgumentError, TextError."""
        text = to_text(text, "the message")
        if not self.token_ids:
            return encode_prompt(self._tokenizer, text, self._raw, self._parse_special)
        ended = self.token_ids[-1] in self._tokenizer.eos_ids
        before = self.token_ids[:-1] if ended else self.token_ids
        if self._raw:
            return [*before, *self._tokenizer.encode(f"\n\n{text}", special=self._parse_special)]
        return [*before, *self._tokenizer.chat(text, later=True)]
