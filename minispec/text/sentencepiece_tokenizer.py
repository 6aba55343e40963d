"""SentencePiece models, unigram or BPE, on top of the sentencepiece library.

Knows nothing of files.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import sentencepiece

from minispec.errors import FileError, TextError
from minispec.text.sentencepiece_model import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    WITHOUT_PREFIX,
    Piece,
    read_pieces,
)
from minispec.text.tokenizer import TableTokenizer
from minispec.text.vocabulary import (
    AddedToken,
    Settings,
    Vocabulary,
    convert_to_file_error,
    fill_gaps,
)


class SentencePieceTokenizer(TableTokenizer):
    """The ``content`` of a SentencePiece ``.model`` from ``source``, with the settings that other
    files give. Raises FileError if it is anything else.

    If the model puts a space before every text, ``decode`` removes it again. With a model that
    normalises, decoding gives the normalised text. U+2581, the library's sign for a space, is read
    as a space.
    """

    def __init__(self, source: str, content: bytes, settings: Settings | None = None) -> None:
        settings = settings or Settings()
        with convert_to_file_error(source, "a SentencePiece model"):
            if not content:
                raise ValueError("empty")  # the library would accept it as a model without pieces
            self._model: Any = sentencepiece.SentencePieceProcessor(model_proto=content)
            vocabulary = _read_vocabulary(self._model, read_pieces(content), source, settings)
        super().__init__(vocabulary)
        self._content = content
        self.leading_space = "".join(self._model.encode("a", out_type=str)).startswith("\u2581")
        self._begins_after_special = settings.legacy

    @cached_property
    def _model_without_prefix(self) -> Any:
        content = self._content + WITHOUT_PREFIX
        return sentencepiece.SentencePieceProcessor(model_proto=content)

    def _encode_text(self, text: str, start: int, begins: bool) -> list[int]:
        model = self._model if begins or not self.leading_space else self._model_without_prefix
        ids: list[int] = model.encode(text)
        unknown = model.unk_id()
        if unknown in ids:
            unencodable = (i for i, c in enumerate(text) if unknown in model.encode(c))
            index = next(unencodable, 0)
            raise TextError(
                f"{text[index]!a} at character {start + index} has no piece in this vocabulary; "
                "leave out or replace the character"
            )
        return ids


def _read_vocabulary(
    model: Any, pieces: Sequence[Piece], source: str, settings: Settings
) -> Vocabulary:
    """The table of a model, with the tokens that other files add to it or rename in it."""
    tokens = {
        # "<0x0A>" stands for one byte of a character that has no piece of its own.
        i: bytes([int(text[3:5], 16)]) if kind == BYTE else text.replace("\u2581", " ").encode()
        for i, (text, kind) in enumerate(pieces)
    }
    table = {
        i: AddedToken(text, kind != USER_DEFINED)
        for i, (text, kind) in enumerate(pieces)
        if kind in (UNKNOWN, CONTROL, USER_DEFINED)
    }
    for i, token in settings.added.items():
        if i < len(pieces) and i not in table and token.content != pieces[i][0]:
            raise FileError(
                f"{source}: id {i} is the piece {pieces[i][0][:40]!a}, another file says that it "
                f"is the token {token.content[:40]!a}: they must agree"
            )
        table[i], tokens[i] = token, token.content.encode()
    numbers = {token.content: i for i, token in table.items()}
    for token in [*settings.named.values(), *settings.extra]:
        # As in transformers, a token with a role that the vocabulary lacks goes after it.
        if token.content not in numbers:
            known = (i for i, (text, _) in enumerate(pieces) if text == token.content)
            i = next(known, max(tokens) + 1)
            numbers[token.content] = i
            table[i], tokens[i] = token, token.content.encode()
    named = {role: numbers[token.content] for role, token in settings.named.items()}
    bos, eos = named.get("bos_token", model.bos_id()), named.get("eos_token", model.eos_id())
    roles = {"bos_token": bos, "eos_token": eos, "unk_token": model.unk_id()}
    return Vocabulary(
        source=source,
        tokens=fill_gaps(source, tokens),
        special={i: token for i, token in table.items() if token.special},
        added={i: token for i, token in table.items() if not token.special},
        matched=frozenset(
            i for i in table if i < len(pieces) and pieces[i][1] in (NORMAL, USER_DEFINED)
        ),
        eos_ids=[i for i in dict.fromkeys((eos, model.eos_id())) if i >= 0],
        bos_id=bos if bos >= 0 and settings.add_bos is not False else None,
        chat_template=settings.chat_template,
        variables={role: table[i].content for role, i in roles.items() if i in table}
        | settings.variables,
    )
