"""Streams of prompts, and a stream of conversations that switch their topic.

A conversation has up to four turns, each from another domain than the turn before it. A single
prompt is a conversation of one turn, so that all streams have the same form.

Knows nothing of decoding methods.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from minispec.errors import ArgumentError, ContextError
from minispec.text.tokenizer import encode_prompt
from minispec.tokenizer import Tokenizer
from minispec.tools.data import corpus, prompt_files
from minispec.tools.models.pretrained import Pretrained

SWITCH = "switch"  # the name of the stream of conversations that switch their topic
_TURNS = 4  # per conversation, at most


@dataclass(frozen=True)
class Stream:
    """Prompts of one kind, named after their domain or file."""

    name: str
    prompts: tuple[str, ...]


@dataclass(frozen=True)
class Turn:
    """One prompt of a conversation: the stream it is from, and the ids that it appends."""

    domain: str
    ids: tuple[int, ...]


Plan = dict[str, list[list[Turn]]]  # by stream, by conversation, by turn


def load_streams(
    names: Sequence[str], limit: int | None = None, base: bool = False
) -> list[Stream]:
    """One stream per domain or file in ``names``, "-" for stdin; a file's stream is named after its
    stem. With ``limit``, only the first prompts of each. A domain's prompts are for chat models,
    or with ``base`` for base models.

    Raises ArgumentError for a name that is neither a domain nor a file or is given twice,
    FileError for a file that cannot be read or is not a file of prompts, TextError for one that is
    not UTF-8.
    """
    if limit is not None and limit < 1:
        raise ArgumentError(f"limit {limit} must be 1 or above")
    streams = []
    for name in names:
        if name in corpus.DOMAINS:
            streams.append(Stream(name, tuple(corpus.load_prompts(name, base)[:limit])))
        elif name == prompt_files.STDIN:
            streams.append(Stream("stdin", tuple(prompt_files.read_prompts(name)[:limit])))
        elif Path(name).suffix or Path(name).exists():
            streams.append(Stream(Path(name).stem, tuple(prompt_files.read_prompts(name)[:limit])))
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


def build_conversations(streams: Sequence[Stream], seed: int) -> list[list[tuple[str, str]]]:
    """Conversations of (name of a stream, prompt); every prompt is in one of them.

    The next turn comes from the stream with the most prompts left (ties drawn at random), never
    from the stream of the turn before. Streams of about the same length thus switch at every turn;
    a stream longer than all others together ends in conversations of one turn. Raises
    ArgumentError for fewer than two streams.
    """
    if len(streams) < 2:
        raise ArgumentError(f"stream {SWITCH!r} needs two or more streams to switch between")
    ties = random.Random(seed)
    left = {stream.name: list(reversed(stream.prompts)) for stream in streams}
    conversations: list[list[tuple[str, str]]] = [[]]
    while any(left.values()):
        before = conversations[-1][-1][0] if conversations[-1] else None
        others = [name for name in left if left[name] and name != before]
        if len(conversations[-1]) == _TURNS or not others:
            conversations.append([])
            continue
        name = max(others, key=lambda name: (len(left[name]), ties.random()))
        conversations[-1].append((name, left[name].pop()))
    return conversations


def _encode_turns(
    tokenizer: Tokenizer, conversation: Sequence[tuple[str, str]], raw: bool
) -> list[Turn]:
    """The ids that each turn appends after the answer before it, whose EOS id is removed: in a chat
    the end of that answer, the message and the header of the next answer; ``raw``, a blank line
    and the text. Raises TextError."""
    first, *later = conversation
    turns = [Turn(first[0], tuple(encode_prompt(tokenizer, first[1], raw)))]
    for domain, text in later:
        ids = tokenizer.encode(f"\n\n{text}") if raw else tokenizer.chat(text, later=True)
        turns.append(Turn(domain, tuple(ids)))
    return turns


class FinishedTurn(Protocol):
    """A turn that was answered: its prompt, with all turns before it, and the answer."""

    @property
    def prompt(self) -> tuple[int, ...]:
        """The ids of the prompt, with those of all earlier turns and answers."""
        ...

    @property
    def tokens(self) -> tuple[int, ...]:
        """The ids of the answer, its EOS id included."""
        ...


def build_prompt(
    finished: Sequence[FinishedTurn], turn: Turn, eos_ids: Sequence[int]
) -> tuple[int, ...]:
    """The ids of a conversation's finished turns and its next turn as one prompt."""
    if not finished:
        return turn.ids
    last = finished[-1]
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
    """Encodes the streams, and with ``switching`` a stream of conversations made of them, whose
    answers have at most ``max_new_tokens``. Raises ArgumentError, TextError, and ContextError for
    a prompt or conversation that does not fit the context."""
    texts = {stream.name: [[(stream.name, text)] for text in stream.prompts] for stream in streams}
    if switching:
        texts[SWITCH] = build_conversations(streams, seed)
    limit = model.target.context_limit
    plan: Plan = {}
    for name, conversations in texts.items():
        plan[name] = [_encode_turns(model.tokenizer, each, raw) for each in conversations]
        for number, turns in enumerate(plan[name], 1):
            # With answers of full length between the turns, so that the last prompt fits too.
            most = sum(len(turn.ids) for turn in turns) + max_new_tokens * (len(turns) - 1)
            if most >= limit:
                kind = "prompt" if len(turns) == 1 else "conversation"
                raise ContextError(
                    f"{kind} {number} of {name} has {most} tokens, the context holds {limit}: "
                    "shorten it" + ("" if kind == "prompt" else " or --max-new-tokens")
                )
    return plan
