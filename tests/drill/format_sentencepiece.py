"""Damaged SentencePiece models: fields of their protocol buffer, one by one."""

import random
import struct
from typing import Any

Field = tuple[int, int, Any]  # number, wire type, value: bytes, or an integer
_NUMBERS = (0, 1, 2, 3, 4, 5, 6, 7, 100, 2**31 - 1, 2**31, 2**62, 2**63, 2**64 - 1)
_FLOATS = (float("nan"), float("inf"), -1e30, 0.0, 3.0)
_TEXTS = (b"", b"x", b"\xff\xfe", b"<0x41>", b"<0xZZ>", b"a b", b"\0", b"x" * 100_000, b"</s>")


def parse(content: bytes) -> list[Field]:
    """The fields of a message. Raises ValueError."""
    found, at = [], 0
    while at < len(content):
        key, at = _varint(content, at)
        number, wire = key >> 3, key & 7
        value: Any
        if wire == 0:
            value, at = _varint(content, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
            value, at = content[at : at + size], at + size
        elif wire == 2:
            size, at = _varint(content, at)
            value, at = content[at : at + size], at + size
        else:
            raise ValueError("an unknown wire type")
        if at > len(content) or not number:
            raise ValueError("cut off")
        found.append((number, wire, value))
    return found


def build(fields: list[Field]) -> bytes:
    """The bytes of a message."""
    found = bytearray()
    for number, wire, value in fields:
        found += _encode(number << 3 | wire)
        if wire == 0:
            found += _encode(value)
        else:
            found += (_encode(len(value)) if wire == 2 else b"") + value
    return bytes(found)


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(content) or shift > 63:
            raise ValueError("cut off")
        byte = content[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _encode(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


class SentencePiece:
    """One ``tokenizer.model``."""

    name = "sentencepiece"

    def damage(self, content: bytes, rng: random.Random) -> tuple[bytes, str, str]:
        """The damaged file, the field and what was done to it."""
        fields = parse(content)
        tops = sorted({number for number, _, _ in fields})
        top = rng.choice(tops)
        index = rng.choice([i for i, each in enumerate(fields) if each[0] == top])
        name = {1: "pieces", 2: "trainer_spec", 3: "normalizer_spec"}.get(top, str(top))
        kind = rng.choice(
            ("inner", "inner", "inner", "inner", "removed", "twice", "swapped", "cut")
        )
        number, wire, value = fields[index]
        if kind == "inner" and wire == 2:
            inner = parse(value)
            at = rng.randrange(len(inner))
            inner[at], how = _change(inner[at], rng)
            fields[index] = (number, wire, build(inner))
            return build(fields), f"{name}.{inner[at][0]}", how
        if kind == "removed":
            del fields[index]
        elif kind == "twice":
            fields.insert(index, fields[index])
        elif kind == "swapped":
            other = rng.randrange(len(fields))
            fields[index], fields[other] = fields[other], fields[index]
        else:
            size = rng.choice((0, 1, 2**31, 2**40))
            damaged = build(fields[:index]) + _encode(number << 3 | 2) + _encode(size) + value
            return damaged + build(fields[index + 1 :]), name, f"length {size}"
        return build(fields), name, kind

    def diff(self, intact: bytes, damaged: bytes) -> dict[str, Any] | None:
        """The parts that differ; None if it is not a protocol buffer."""
        try:
            old, new = parse(intact), parse(damaged)
            found: dict[str, Any] = {}
            if len(old) != len(new):
                found["pieces"] = len(new)
            for before, after in zip(old, new, strict=False):
                if before != after:
                    before_inner = parse(before[2]) if before[1] == 2 else [before]
                    after_inner = parse(after[2]) if after[1] == 2 else [after]
                    name = {1: "pieces", 2: "trainer_spec", 3: "normalizer_spec"}.get(after[0], "?")
                    for field in [f for f in after_inner if f not in before_inner] or [(0, 0, 0)]:
                        value = field[2]
                        if field[1] == 5:
                            (value,) = struct.unpack("<f", value)
                        found[f"{name}.{field[0]}"] = value
        except (ValueError, struct.error):
            return None
        return found


def _change(field: Field, rng: random.Random) -> tuple[Field, str]:
    number, wire, _ = field
    if wire == 0:
        new = rng.choice(_NUMBERS)
        return (number, wire, new), str(new)
    if wire == 5:
        real = rng.choice(_FLOATS)
        return (number, wire, struct.pack("<f", real)), str(real)
    if wire == 2:
        text = rng.choice(_TEXTS)
        return (number, wire, text), repr(text[:12])
    return (number, 0, 1), "another wire type"
