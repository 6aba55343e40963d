"""What is asked: streams of prompts, and one of conversations whose topic switches.

A conversation has up to four turns, each of another domain than the one before. A prompt that
stands alone is a conversation of one turn, so that all streams are walked alike.

Knows nothing of methods.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from minispec.errors import ArgumentError, ContextError
from minispec.text.tokenizer import prompt_ids
from minispec.tools.data import corpus
from minispec.tools.models.pretrained import Pretrained
from minispec.types import Tokenizer

SWITCH = "switch"  # the name of the stream that switches
_TURNS = 4


@dataclass(frozen=True)
class Stream:
    """Prompts of one kind; the name of one of the project's domains says which."""

    name: str
    prompts: tuple[str, ...]


@dataclass(frozen=True)
class Turn:
    """One prompt: the stream that it is from, and the ids that it adds to the conversation."""

    domain: str
    ids: tuple[int, ...]


Plan = dict[str, list[list[Turn]]]  # by stream, by conversation, by turn


def load_streams(names: Sequence[str], limit: int | None = None, base: bool = False) -> list[Stream]:
    """Streams by the names of domains or of files; the stem of a file names its stream. With
    ``limit`` only so many prompts of each. Those of a domain suit chat models, or ``base`` ones.

    Raises ArgumentError for a name that is neither or twice, FileError for a bad file.
    """
    if limit is not None and limit < 1:
        raise ArgumentError(f"limit {limit} must be 1 or above")
    streams = []
    for name in names:
        if name in corpus.DOMAINS:
            streams.append(Stream(name, tuple(corpus.load_prompts(name, base)[:limit])))
        elif Path(name).suffix or Path(name).exists():
            streams.append(Stream(Path(name).stem, tuple(corpus.read_prompts(name)[:limit])))
        else:
            raise ArgumentError(
                f"prompts {name!r} are neither a file nor one of {', '.join(corpus.DOMAINS)}"
            )
    stems = [stream.name for stream in streams]
    if len(set(stems)) != len(stems) or {"all", SWITCH} & set(stems):
        raise ArgumentError(
            f"streams {', '.join(stems)}: names must differ, and none be 'all' or {SWITCH!r}"
        )
    return streams


def conversations(streams: Sequence[Stream], seed: int) -> list[list[tuple[str, str]]]:
    """Conversations of (name of a stream, prompt), every prompt in one of them.

    The next turn is of the stream that has most prompts left, of several one by lot, and never
    of the stream before. So streams of about the same length switch at every turn, all in
    turn; a stream longer than all others together is left with prompts that follow nothing.
    Raises ArgumentError for fewer than two streams.
    """
    if len(streams) < 2:
        raise ArgumentError(f"stream {SWITCH!r} needs two or more streams to switch between")
    lots = random.Random(seed)
    left = {stream.name: list(reversed(stream.prompts)) for stream in streams}
    found: list[list[tuple[str, str]]] = [[]]
    while any(left.values()):
        before = found[-1][-1][0] if found[-1] else None
        others = [name for name in left if left[name] and name != before]
        if len(found[-1]) == _TURNS or not others:
            found.append([])
            continue
        name = max(others, key=lambda name: (len(left[name]), lots.random()))
        found[-1].append((name, left[name].pop()))
    return found


def _turns(tokenizer: Tokenizer, conversation: Sequence[tuple[str, str]], raw: bool) -> list[Turn]:
    """The ids that each turn adds behind the answer before it, whose end id is taken away: in a
    chat what closes that answer, the message and the opening of the next; ``raw``, a blank line
    and the text. Raises TextError."""
    first, *later = conversation
    found = [Turn(first[0], tuple(prompt_ids(tokenizer, first[1], raw)))]
    for domain, text in later:
        ids = tokenizer.encode(f"\n\n{text}") if raw else tokenizer.chat(text, later=True)
        found.append(Turn(domain, tuple(ids)))
    return found


class FinishedTurn(Protocol):
    """A turn that is over: its prompt, all turns before it included, and its answer."""

    @property
    def prompt(self) -> tuple[int, ...]:
        """Its ids, with those of all turns and answers before it."""
        ...

    @property
    def tokens(self) -> tuple[int, ...]:
        """The ids of the answer, its end included."""
        ...


def build_prompt(talk: Sequence[FinishedTurn], turn: Turn, eos_ids: Sequence[int]) -> tuple[int, ...]:
    """A conversation so far and its next turn as one prompt."""
    if not talk:
        return turn.ids
    last = talk[-1]
    ended = last.tokens[-1] in eos_ids
    return (*last.prompt, *(last.tokens[:-1] if ended else last.tokens), *turn.ids)


def plan_streams(
    model: Pretrained,
    streams: Sequence[Stream],
    *,
    switching: bool,
    max_new_tokens: int,
    seed: int,
    raw: bool,
) -> Plan:
    """The streams as ids, and if asked for the one that switches between them, in which answers
    take at most ``max_new_tokens``. Raises ArgumentError, TextError, ContextError."""
    talks = {stream.name: [[(stream.name, text)] for text in stream.prompts] for stream in streams}
    if switching:
        talks[SWITCH] = conversations(streams, seed)
    limit = model.target.context_limit
    plan: Plan = {}
    for name in talks:
        plan[name] = [_turns(model.tokenizer, talk, raw) for talk in talks[name]]
        for number, turns in enumerate(plan[name], 1):
            # Answers of full length between the turns, so that the last prompt fits for certain.
            most = sum(len(turn.ids) for turn in turns) + max_new_tokens * (len(turns) - 1)
            if most >= limit:
                kind = "prompt" if len(turns) == 1 else "conversation"
                raise ContextError(
                    f"{kind} {number} of {name} has {most} tokens, the context holds {limit}: "
                    "shorten it" + ("" if kind == "prompt" else " or --max-new-tokens")
                )
    return plan
