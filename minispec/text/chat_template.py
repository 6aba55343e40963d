"""Chat templates: a model's own Jinja template turns messages into the text that it was trained on.

A template gets the variables that transformers gives it. Each turn is rendered twice, with the
message and with a placeholder instead: so it is known which characters are the user's, whose
names of special tokens stay text, and a template that changes a message, leaves it out, or rewrites
earlier turns is refused by name.

Knows nothing of ids.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from minispec.errors import TextError
from minispec.text.template_sandbox import render_template

# Unicode sets these two characters aside for uses inside a program; texts do not contain them.
RESERVED = "\ufdd0\ufdd1"
_REMEDY = "use --raw with --parse-special and write the turns out"

Span = tuple[int, int]
Message = Mapping[str, str]


@dataclass(frozen=True)
class RenderedTurn:
    """Text that a template made, and where in it the user's message is."""

    text: str
    user: tuple[Span, ...]


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja template, and the variables that it may read beside the messages, such as
    ``bos_token``. Whether it can be rendered shows when it is."""

    source: str
    variables: Mapping[str, str]

    def render_first(self, prompt: str) -> RenderedTurn:
        """A conversation's first message, up to the start of its answer. Raises TextError."""
        return self._locate(_split(self._first), [], prompt)

    def render_later(self, prompt: str) -> RenderedTurn:
        """A later message, up to the start of its answer; it begins with what ends the answer
        before it. Raises TextError."""
        before = [_message("user", _mark(0)), _message("assistant", _mark(1))]
        return self._locate(_split(self._later), before, prompt)

    def _locate(self, parts: Sequence[str], before: list[Message], prompt: str) -> RenderedTurn:
        if RESERVED in prompt:
            raise TextError("the characters U+FDD0 U+FDD1 are reserved; remove them")
        text = self._render([*before, _message("user", prompt)])
        text = text.partition(_mark(1))[2] if before else text
        for content in (prompt, prompt.strip(), prompt.lstrip(), prompt.rstrip()):
            if content.join(parts) == text and len(parts) > 1:
                starts = accumulate(
                    (len(p) + len(content) for p in parts[1:-1]), initial=len(parts[0])
                )
                return RenderedTurn(text, tuple((s, s + len(content)) for s in starts))
        change = "rewrites" if len(parts) > 1 else "leaves out"
        raise TextError(f"the model's chat template {change} this message; {_REMEDY}")

    @cached_property
    def _first(self) -> str:
        return self._render([_message("user", _mark(2))])

    @cached_property
    def _later(self) -> str:
        """What follows an answer, the same after the first and the second one."""
        tails, start = [], self._render([_message("user", _mark(0))])
        messages = [_message("user", _mark(0)), _message("assistant", _mark(1))]
        for _ in range(2):
            text = self._render([*messages, _message("user", _mark(2))])
            head, found, tail = text.rpartition(_mark(1))
            # The answer's first token brings the space that some templates write before it.
            if not found or head.rstrip() != start.rstrip():
                raise TextError(
                    "the model's chat template rewrites earlier turns when a conversation goes on; "
                    "begin a new conversation for each message"
                )
            tails.append(tail)
            start = text.replace(_mark(2), _mark(0))
            messages += [_message("user", _mark(0)), _message("assistant", _mark(1))]
        if tails[0] != tails[1]:
            raise TextError(
                "the model's chat template renders later turns differently; "
                "begin a new conversation for each message"
            )
        return tails[0]

    def _render(self, messages: Sequence[Message]) -> str:
        try:
            return render_template(self.source, {**self.variables, "messages": messages})
        except TextError as error:
            raise TextError(f"{error}; {_REMEDY}") from None


def _mark(number: int) -> str:
    """A placeholder for a message."""
    return f"{RESERVED}{number}{RESERVED}"


def _split(text: str) -> list[str]:
    return text.split(_mark(2))


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}
