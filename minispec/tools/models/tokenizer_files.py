"""Reads tokenizers from single files: a SentencePiece model, a Llama 3 `tokenizer.model`, a tekken
JSON. Nothing is unpickled.

Knows nothing of how text is encoded beyond the pattern that splits it, nor of the files beside.
"""

import base64
import itertools
from pathlib import Path

from msgspec import Struct

from minispec.io.schema import Index, Size, read_bytes, read_json
from minispec.text.sentencepiece_tokenizer import SentencePieceTokenizer
from minispec.text.tiktoken_tokenizer import TiktokenTokenizer
from minispec.text.vocabulary import AddedToken, Settings, Vocabulary, convert_to_file_error
from minispec.tools.models.patterns import LLAMA3

# Llama 3's vocabulary file does not list the 256 special tokens; these are used by Llama 3.1.
_LLAMA3_NAMES = {0: "begin_of_text", 1: "end_of_text", 4: "finetune_right_pad_id"}
_LLAMA3_NAMES |= {6: "start_header_id", 7: "end_header_id", 8: "eom_id", 9: "eot_id"}
_LLAMA3_NAMES |= {10: "python_tag"}


def from_sentencepiece(path: Path, settings: Settings | None = None) -> SentencePieceTokenizer:
    """The tokenizer in a SentencePiece model, with the settings of other files. Raises
    FileError."""
    return SentencePieceTokenizer(str(path), read_bytes(path), settings)


def from_llama3_model(path: Path, settings: Settings | None = None) -> TiktokenTokenizer:
    """The tokenizer in a Llama 3 `tokenizer.model`: lines of a token in base64 and its rank. Raises
    FileError."""
    settings = settings or Settings()
    content = read_bytes(path)
    with convert_to_file_error(path, "a Llama 3 tokenizer.model (lines of base64 and rank)"):
        lines = [line.split() for line in content.splitlines()]
        ranked = {int(rank): base64.b64decode(token, validate=True) for token, rank in lines}
        if not ranked or len(set(ranked.values())) != len(lines):
            raise ValueError("it has no tokens, or duplicate ones")
        first, reserved = len(lines), itertools.count()
        names = (
            _LLAMA3_NAMES.get(i) or f"reserved_special_token_{next(reserved)}" for i in range(256)
        )
        special = {first + i: AddedToken(f"<|{name}|>") for i, name in enumerate(names)}
        special |= {i: token for i, token in settings.added.items() if i in special}
        numbers = {token.content: i for i, token in special.items()}
        ends = [numbers.get(t.content) for r, t in settings.named.items() if r == "eos_token"]
        vocabulary = Vocabulary(
            source=str(path),
            tokens=[ranked[rank] for rank in range(first)] + [b""] * 256,
            order=range(first),
            pattern=LLAMA3,
            special=special,
            eos_ids=[i for i in ends if i is not None],
            bos_id=None if settings.add_bos is False else first,
            chat_template=settings.chat_template,
            variables={"bos_token": special[first].content} | settings.variables,
        )
        return TiktokenTokenizer(vocabulary)


class _TekkenConfig(Struct):
    pattern: str
    default_vocab_size: Size
    default_num_special_tokens: Size


class _TekkenToken(Struct):
    rank: Index
    token_bytes: str


class _TekkenSpecial(Struct):
    rank: Index
    token_str: str


class _Tekken(Struct):
    config: _TekkenConfig
    vocab: list[_TekkenToken]
    special_tokens: list[_TekkenSpecial] | None = None


def from_tekken(path: Path) -> TiktokenTokenizer:
    """The tokenizer in Mistral's tekken JSON: special tokens first, then as many ranks as the
    vocabulary size leaves. Raises FileError."""
    data = read_json(path, _Tekken)
    with convert_to_file_error(path, "a tekken JSON"):
        size, count = data.config.default_vocab_size, data.config.default_num_special_tokens
        if not 3 <= count < size <= count + len(data.vocab) < 2**24:
            raise ValueError(
                f"{len(data.vocab)} tokens and {count} special ones do not add up to {size}"
            )
        ranked = {entry.rank: base64.b64decode(entry.token_bytes) for entry in data.vocab}
        names = {i: f"<SPECIAL_{i}>" for i in range(count)}
        names |= {0: "<unk>", 1: "<s>", 2: "</s>"}  # older files list no others
        names |= {token.rank: token.token_str for token in data.special_tokens or ()}
        vocabulary = Vocabulary(
            source=str(path),
            tokens=[b""] * count + [ranked[rank] for rank in range(size - count)],
            order=range(count, size),
            pattern=data.config.pattern,
            special={i: AddedToken(name) for i, name in names.items()},
            bos_id=1,
        )
        return TiktokenTokenizer(vocabulary)
