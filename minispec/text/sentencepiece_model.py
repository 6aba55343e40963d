"""SentencePiece's `.model` format: one protocol buffer.

Its fields, with their numbers: pieces (1) with text (1), score (2) and kind (3); the trainer's
settings (2), with the kind of model (3), byte fallback (35) and the names of the unknown (45), BOS
(46) and EOS (47) pieces; the normaliser (3), with its name (1), whether it puts a space before a
text (3), removes extra white space (4) and writes spaces as U+2581 (5).

Knows nothing of how text becomes ids.
"""

import struct
from collections.abc import Sequence
from typing import TypeAlias

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
# A later value of a field replaces the earlier one: appended to a model, this turns the space
# before a text off.
WITHOUT_PREFIX = b"\x1a\x02\x18\x00"


Piece: TypeAlias = tuple[str, int]  # its text, with U+2581 for a space, and one of the kinds above


def read_pieces(content: bytes) -> list[Piece]:
    """The pieces of a model. Raises ValueError or IndexError for anything else."""
    pieces, at, total = [], 0, len(content)
    while at < total:
        # Nearly all pieces are written like this: a text of less than 120 bytes, a score and, in
        # some files, a kind. There may be a quarter of a million of them.
        if content[at] == 10 and (size := content[at + 1]) < 128 and at + 2 + size <= total:
            start, end = at + 4, at + 2 + size
            stop = start + content[at + 3]
            plain, rest = content[at + 2] == 10 and content[stop] == 21, end - stop
            if plain and (rest == 5 or (rest == 7 and content[stop + 5] == 24)):
                kind = NORMAL if rest == 5 else content[stop + 6]
                pieces.append((content[start:stop].decode(), kind))
                at = end
                continue
        key, at = _read_varint(content, at)
        size, at = _read_varint(content, at)
        if key & 7 != 2 or at + size > total:
            raise ValueError("not a protocol buffer of pieces")
        if key == 10:
            pieces.append(_read_piece(content, at, at + size))
        at += size
    return pieces


def _read_piece(content: bytes, at: int, end: int) -> Piece:
    text, kind = b"", NORMAL
    while at < end:
        key, at = _read_varint(content, at)
        if key & 7 == 5:
            at += 4
            continue
        value, at = _read_varint(content, at)
        if key == 24:
            kind = value
        elif key & 7 == 2:
            text = content[at : at + value] if key == 10 else text
            at += value
        elif key & 7:
            raise ValueError("not a piece of a model")
    return text.decode(), kind


def _read_varint(content: bytes, at: int) -> tuple[int, int]:
    """The number at a position, seven bits to a byte, and the position after it."""
    value = shift = 0
    while (byte := content[at]) >= 128:
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if shift > 63:
            raise ValueError("not a number of a protocol buffer")
    return value | byte << shift, at + 1


def build_bpe_model(
    pieces: Sequence[Piece],
    scores: Sequence[float],
    *,
    unknown: int | None,
    bos: int | None,
    eos: int | None,
    prefix: bool,
) -> bytes:
    """A BPE model with these pieces, and with an identity as its normaliser. ``unknown``, ``bos``
    and ``eos`` are ids; ``prefix``: whether a space goes before a text."""
    content = bytearray()
    for (text, kind), score in zip(pieces, scores, strict=True):
        parts = _field(1, text.encode()) + b"\x15" + struct.pack("<f", score)
        content += _field(1, parts + _field(3, kind))
    trained = _field(3, 2) + _field(35, int(any(kind == BYTE for _, kind in pieces)))
    for number, named in ((45, unknown), (46, bos), (47, eos)):
        trained += _field(number, b"" if named is None else pieces[named][0].encode())
    normalised = _field(1, b"identity") + _field(3, int(prefix)) + _field(4, 0) + _field(5, 1)
    return bytes(content) + _field(2, trained) + _field(3, normalised)


def _field(number: int, value: int | bytes) -> bytes:
    """One field: an integer, or bytes with their length before them."""

    def varint(n: int) -> bytes:
        return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + varint(n >> 7)

    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value
