"""Readers of tokenizer files on their own: ``tokenizer.json``, SentencePiece, Llama 3, tekken."""

import base64
import json
from pathlib import Path

from drill.format_json import Json
from drill.format_sentencepiece import SentencePiece
from drill.format_text import Lines
from drill.reader import Outcome, Part, Reader, describe_tokenizer
from drill.rules import SENTENCEPIECE, TOKENIZER_JSON
from drill.values import Rule, is_absent, is_anything, is_index, is_size, is_text, list_of
from helpers import tiny_model
from helpers.small_tokenizers import LOSSLESS, train_sentencepiece


def _write_json(folder: Path) -> None:
    tiny_model.write_tokenizer(folder)


def _write_sentencepiece(folder: Path) -> None:
    train_sentencepiece(folder, **LOSSLESS)


def byte_pairs() -> list[bytes]:
    """The bytes and a few merges of them, in order."""
    words = ["th", "in", "er", "an", " t", "he", "the", " the"]
    return [bytes([byte]) for byte in range(256)] + [word.encode() for word in words]


def _write_llama3(folder: Path) -> None:
    lines = [base64.b64encode(token) + b" %d" % i for i, token in enumerate(byte_pairs())]
    (folder / "tokenizer.model").write_bytes(b"\n".join(lines) + b"\n")


def _write_tekken(folder: Path) -> None:
    vocab = [
        {"rank": i, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
        for i, token in enumerate(byte_pairs())
    ]
    special = [{"rank": i, "token_str": f"[S{i}]", "is_control": True} for i in range(3, 10)]
    config = {
        "pattern": r"\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+", "num_vocab_tokens": len(vocab),
        "default_vocab_size": len(vocab) + 10, "default_num_special_tokens": 10, "version": "v3",
    }  # fmt: skip
    data = {"config": config, "vocab": vocab, "special_tokens": special}
    (folder / "tekken.json").write_text(json.dumps(data))


def _load_json(folder: Path) -> Outcome:
    from minispec.tools.models import tokenizer_json

    return describe_tokenizer(tokenizer_json.from_tokenizer_json(folder / "tokenizer.json"))


def _load_sentencepiece(folder: Path) -> Outcome:
    from minispec.tools.models import tokenizer_files

    return describe_tokenizer(tokenizer_files.from_sentencepiece(folder / "small.model"))


def _load_llama3(folder: Path) -> Outcome:
    from minispec.tools.models import tokenizer_files

    return describe_tokenizer(tokenizer_files.from_llama3_model(folder / "tokenizer.model"))


def _load_tekken(folder: Path) -> Outcome:
    from minispec.tools.models import tokenizer_files

    return describe_tokenizer(tokenizer_files.from_tekken(folder / "tekken.json"))


def _is_ranked(line: object) -> bool:
    """A token in base64 and a rank."""
    match str(line).split():
        case [token, rank]:
            try:
                base64.b64decode(token, validate=True)
            except ValueError:
                return False
            return rank.isascii() and rank.isdecimal()
        case []:
            return True
    return False


TEKKEN: dict[str, Rule] = {
    "config.pattern": is_text,
    "config.default_vocab_size": is_size,
    "config.default_num_special_tokens": is_size,
    "vocab": list_of(is_anything),
    "vocab.[].rank": is_index,
    "vocab.[].token_bytes": is_text,
    "special_tokens": is_absent,
    "special_tokens.[].rank": is_index,
    "special_tokens.[].token_str": is_text,
    "special_tokens.[].is_control": is_anything,
    "special_tokens_": is_anything,
}
READERS = (
    Reader("tokenizer.json", _write_json, _load_json,
           (Part("tokenizer.json", Json(), TOKENIZER_JSON),), 3),
    Reader("sentencepiece", _write_sentencepiece, _load_sentencepiece,
           (Part("small.model", SentencePiece(), SENTENCEPIECE),), 3),
    Reader("llama 3 tokenizer", _write_llama3, _load_llama3,
           (Part("tokenizer.model", Lines(),
                 {"line": list_of(_is_ranked), "lines": list_of(_is_ranked)}),), 3),
    Reader("tekken", _write_tekken, _load_tekken, (Part("tekken.json", Json(), TEKKEN),), 3),
)  # fmt: skip
