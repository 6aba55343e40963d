"""Prompts from files and from stdin: text with one prompt a line, or JSON lines.

    Why is the sky blue?                                    FILE.txt, FILE.md, or without a suffix
    {"prompt": "Why is the sky blue?"}                      FILE.jsonl, FILE.ndjson
    {"question_id": 81, "turns": ["Tell ...", "Shorter."]}  MT-Bench, Spec-Bench
    {"messages": [{"role": "user", "content": "Why ..."}]}  chat datasets, OpenAI
    {"conversations": [{"from": "human", "value": "..."}]}  ShareGPT

Of several turns the first is the prompt: methods are compared on answers to the same text, and
later turns depend on the answers before them. What is left out is said in a warning.
"""

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct, field

from minispec.errors import FileError, FileWarning
from minispec.io.schema import decode_json, read_bytes
from minispec.io.utf8 import decode_utf8

STDIN = "-"
_TEXT = ("", ".txt", ".text", ".md")
_JSON_LINES = (".jsonl", ".ndjson")
_UTF16 = (b"\xff\xfe", b"\xfe\xff")  # text, but not UTF-8
_FORMATS = "one prompt per line (.txt), or JSON lines (.jsonl)"


class _Message(Struct):
    role: str
    content: str


class _ShareGptMessage(Struct):
    role: str = field(name="from")
    content: str = field(name="value")


class _Line(Struct):
    """One line of JSON; other fields are ignored."""

    prompt: str | None = None
    turns: list[str] | None = None
    messages: list[_Message] | None = None
    conversations: list[_ShareGptMessage] | None = None


def read_prompts(path: str | Path) -> list[str]:
    """The prompts of a file, or of stdin for "-"; blank lines are skipped, and line ends may be
    Windows' own. Raises FileError, and TextError for bytes that are not UTF-8."""
    name, suffix = str(path), Path(path).suffix.lower()
    if name == STDIN:
        origin, content = "stdin", sys.stdin.buffer.read() if sys.stdin else b""
    else:
        if suffix not in (*_TEXT, *_JSON_LINES):
            raise FileError(f"{name} ends in {suffix}, expected {_FORMATS}")
        origin, content = name, read_bytes(Path(path))
    if b"\0" in content and content[:2] not in _UTF16:
        raise FileError(f"{origin} is not text, expected {_FORMATS}")
    lines = [line.strip() for line in decode_utf8(content, origin).split("\n")]
    numbered = {number: line for number, line in enumerate(lines, 1) if line}
    if not numbered:
        raise FileError(f"{origin} holds no prompts: write one per line")
    if suffix in _JSON_LINES or (name == STDIN and _is_json(next(iter(numbered.values())))):
        return list(_parse_lines(origin, numbered))
    if _is_json(next(iter(numbered.values()))):
        raise FileError(f"{origin} holds JSON where prompts were expected: name it FILE.jsonl")
    return list(numbered.values())


def _is_json(line: str) -> bool:
    """Whether a line is JSON of one of the forms above."""
    try:
        return line.startswith("{") and _find_texts(decode_json(line, _Line, "")) is not None
    except FileError:
        return False


def _parse_lines(origin: str, numbered: dict[int, str]) -> Iterator[str]:
    """The prompt of each line. Raises FileError."""
    several = systems = 0
    for number, line in numbered.items():
        place = f"{origin}, line {number}"
        parsed = decode_json(line, _Line, place)
        texts = _find_texts(parsed)
        if texts is None:
            raise FileError(f"{place}: expected a field prompt, turns, messages or conversations")
        if not texts or not texts[0].strip():
            raise FileError(f"{place}: has no text of a user")
        several += len(texts) > 1
        systems += any(each.role == "system" for each in parsed.messages or ())
        yield texts[0]
    for count, what in ((several, "later turns"), (systems, "system messages")):
        if count:
            message = f"{origin}: {what} of {count} prompts are left out"
            warnings.warn(message, FileWarning, stacklevel=2)


def _find_texts(line: _Line) -> list[str] | None:
    """The user's turns of one line; None without any known field."""
    if line.prompt is not None:
        return [line.prompt]
    if line.turns is not None:
        return line.turns
    said = line.conversations if line.messages is None else line.messages
    if said is None:
        return None
    return [each.content for each in said if each.role in ("user", "human")]
