"""Tokenizers with a list of merges, or in the format of `tokenizer.json`, on top of Hugging Face's
tokenizers library: byte-level BPE, and SentencePiece's BPE and unigram models after conversion.

The library that defines the format encodes it, so that normalisers, pre-tokenizers, flags of added
tokens and tokens that BPE does not make of their own bytes need no second implementation here.

Knows nothing of files.
"""

import re
import threading

import tokenizers

from minispec.errors import TextError
from minispec.text.chat_template import RESERVED
from minispec.text.tiktoken_tokenizer import check_bytes
from minispec.text.tokenizer import Match, TableTokenizer
from minispec.text.vocabulary import Vocabulary, is_panic

# Byte-level BPE writes each byte as one printable character: bytes that are printable in Latin-1 as
# themselves, the others, in order, as the characters from U+0100 on.
_VISIBLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTE_OF = {chr(byte): byte for byte in _VISIBLE} | {
    chr(0x100 + n): byte for n, byte in enumerate(sorted(set(range(256)) - set(_VISIBLE)))
}


class HuggingFaceTokenizer(TableTokenizer):
    """A ``library`` tokenizer with its table. ``byte_level``: whether it starts from bytes, all of
    which must then be tokens. ``unknown``: the id of what has no token, if any."""

    def __init__(
        self,
        library: tokenizers.Tokenizer,
        vocabulary: Vocabulary,
        *,
        byte_level: bool,
        leading_space: bool = False,
        unknown: int | None = None,
    ) -> None:
        super().__init__(vocabulary)
        self.leading_space = leading_space
        self._library, self._unknown = library, unknown
        library.no_padding()
        library.no_truncation()
        # In front of a text, this token makes it one that does not begin there.
        library.add_tokens([tokenizers.AddedToken(RESERVED, normalized=False)])
        self._reserved = library.token_to_id(RESERVED)
        self._lock = threading.Lock()  # whether special names are text is a state of the library
        self._absent = None
        if byte_level:
            absent = [byte for c, byte in BYTE_OF.items() if library.token_to_id(c) is None]
            self._absent = re.compile(b"[%s]" % re.escape(bytes(absent))) if absent else None

    def _find(self, text: str, special: bool) -> list[Match]:
        if RESERVED in text:
            raise TextError("the characters U+FDD0 U+FDD1 are reserved; remove them")
        if not special:
            return super()._find(text, special)
        encoded = self._call(text, special=True)
        return [
            (start, end, token)
            for token, (start, end) in zip(encoded.ids, encoded.offsets, strict=True)
            if token in self._special
        ]

    def _encode_text(self, text: str, start: int, begins: bool) -> list[int]:
        check_bytes(text, start, self._absent)
        before = "" if begins else RESERVED
        encoded = self._call(before + text, special=False)
        if self._unknown in encoded.ids:
            index = encoded.offsets[encoded.ids.index(self._unknown)][0] - len(before)
            raise TextError(
                f"{text[index]!a} at character {start + index} has no token in this vocabulary; "
                "leave out or replace the character"
            )
        return encoded.ids[1:] if before else encoded.ids

    def _call(self, text: str, special: bool) -> tokenizers.Encoding:
        """The library's encoding. Raises TextError."""
        try:
            with self._lock:
                self._library.encode_special_tokens = not special
                return self._library.encode(text, add_special_tokens=False)
        except BaseException as error:
            if not is_panic(error) and type(error) is not Exception:
                raise
            detail = ascii(str(error))[1:-1][:100]
            raise TextError(
                f"the vocabulary's own rules cannot split this text ({detail}); "
                "use a shorter text, or another vocabulary"
            ) from None


def decode_byte_level(name: str) -> bytes:
    """The bytes of a token in byte-level BPE's alphabet; as in the library, a name with any other
    character stands for itself."""
    try:
        return bytes([BYTE_OF[character] for character in name])
    except KeyError:
        return name.encode()


def decode_pieces(name: str, byte_fallback: bool) -> bytes:
    """The bytes of a token in SentencePiece's alphabet: U+2581 is a space, `<0x0A>` a byte."""
    if byte_fallback and re.fullmatch("<0x[0-9A-F]{2}>", name):
        return bytes([int(name[3:5], 16)])
    return name.replace("\u2581", " ").encode()
