"""Damaged GGUF files: counts, keys, types, lengths, array elements, tensor infos, offsets.

A file is read into labelled pieces of bytes, one of which is replaced.
"""

import random
import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from drill.values import MISSING

# The types of GGUF's metadata, by number.
_FORMATS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9
_SIZES = (0, 1, 7, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1)


@dataclass
class Value:
    """A value of the metadata: ``kind`` is its type, ``of`` that of an array's elements."""

    kind: int
    value: Any
    of: int = 0


@dataclass
class File:
    """The content of a GGUF file; tensor infos are (name, dimensions, type, offset)."""

    version: int = 3
    metadata: dict[str, Value] = field(default_factory=dict)
    tensors: list[tuple[str, tuple[int, ...], int, int]] = field(default_factory=list)
    data: bytes = b""


class _Cursor:
    def __init__(self, content: bytes) -> None:
        self.content, self.at = content, 0

    def take(self, layout: str) -> Any:
        (value,) = struct.unpack_from("<" + layout, self.content, self.at)
        self.at += struct.calcsize("<" + layout)
        return value

    def text(self) -> str:
        size = self.take("Q")
        if size > len(self.content) - self.at:
            raise ValueError("a text longer than the file")
        self.at += size
        return self.content[self.at - size : self.at].decode()

    def value(self, kind: int) -> Value:
        if kind == _STRING:
            return Value(kind, self.text())
        if kind != _ARRAY:
            return Value(kind, self.take(_FORMATS[kind]))
        of, count = self.take("I"), self.take("Q")
        if count > len(self.content):
            raise ValueError("an array longer than the file")
        return Value(kind, [self.value(of).value for _ in range(count)], of)


def parse(content: bytes) -> File:
    """The content of a file. Raises ValueError, LookupError or struct.error."""
    cursor = _Cursor(content)
    if cursor.take("I") != 0x46554747:
        raise ValueError("not GGUF")
    version, tensors, count = cursor.take("I"), cursor.take("Q"), cursor.take("Q")
    if max(tensors, count) > len(content):
        raise ValueError("counts beyond the file")
    file = File(version)
    for _ in range(count):
        name = cursor.text()
        if name in file.metadata:
            raise ValueError("a key twice")
        file.metadata[name] = cursor.value(cursor.take("I"))
    for _ in range(tensors):
        name = cursor.text()
        shape = tuple(cursor.take("Q") for _ in range(min(cursor.take("I"), 9)))
        file.tensors.append((name, shape, cursor.take("I"), cursor.take("Q")))
    alignment = file.metadata.get("general.alignment", Value(4, 32)).value
    file.data = content[cursor.at + -cursor.at % alignment :]
    return file


def _text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(data)) + data


def _item(kind: int, value: Any) -> bytes:
    if kind == _STRING:
        return _text(value)
    return struct.pack("<" + _FORMATS[kind], value)


def pieces(file: File) -> list[tuple[str, bytes]]:
    """The bytes of a file in labelled pieces, without the tensors' data."""
    found = [("magic", b"GGUF"), ("version", struct.pack("<I", file.version))]
    found += [("n_tensors", struct.pack("<Q", len(file.tensors)))]
    found += [("n_kv", struct.pack("<Q", len(file.metadata)))]
    for name, value in file.metadata.items():
        found += [(f"{name}:key", _text(name)), (f"{name}:type", struct.pack("<I", value.kind))]
        if value.kind == _ARRAY:
            found += [(f"{name}:of", struct.pack("<I", value.of))]
            found += [(f"{name}:count", struct.pack("<Q", len(value.value)))]
            items = b"".join(_item(value.of, each) for each in value.value)
            found += [(f"{name}:items", items)]
        else:
            found += [(f"{name}:value", _item(value.kind, value.value))]
    for name, shape, kind, offset in file.tensors:
        found += [("TENSOR:name", _text(name)), ("TENSOR:rank", struct.pack("<I", len(shape)))]
        found += [("TENSOR:shape", struct.pack("<Q", size)) for size in shape]
        found += [("TENSOR:type", struct.pack("<I", kind))]
        found += [("TENSOR:offset", struct.pack("<Q", offset))]
    return found


def join(parts: list[tuple[str, bytes]], data: bytes) -> bytes:
    """A file of pieces and the tensors' data."""
    head = b"".join(part for _, part in parts)
    return head + b"\0" * (-len(head) % 32) + data


class Gguf:
    """One GGUF file."""

    name = "gguf"

    def damage(self, content: bytes, rng: random.Random) -> tuple[bytes, str, str]:
        """The damaged file, the field and what was done to it."""
        file = parse(content)
        if rng.random() < 0.45:
            return _damage_value(file, rng)
        parts = pieces(file)
        labels = [i for i, (label, _) in enumerate(parts)]
        tensors = [i for i in labels if parts[i][0].startswith("TENSOR")]
        others = [i for i in labels if i not in set(tensors)]
        index = rng.choice(tensors if rng.random() < 0.4 else others)
        label, old = parts[index]
        if label.endswith((":items", ":value", ":key", ":name")):
            new, how = _damage_bytes(old, rng)
        elif len(old) == 8:
            size = rng.choice((*_SIZES, *(struct.unpack("<Q", old)[0] + n for n in (-1, 1, 32))))
            new, how = struct.pack("<Q", size % 2**64), str(size)
        else:
            size = rng.choice((0, 1, 2, 8, 9, 10, 12, 13, 30, 99, 2**31, 2**32 - 1))
            new, how = struct.pack("<I", size), str(size)
        if rng.random() < 0.1:
            parts.insert(index, parts[index])
            how = "duplicate"
        else:
            parts[index] = (label, new)
        return join(parts, file.data), label, how

    def diff(self, intact: bytes, damaged: bytes) -> dict[str, Any] | None:
        """The fields that differ, with their new values; None if it is not a GGUF file."""
        try:
            old, new = parse(intact), parse(damaged)
        except (ValueError, LookupError, struct.error, ArithmeticError, RecursionError, TypeError):
            return None
        found: dict[str, Any] = {}
        if old.version != new.version:
            found["version"] = new.version
        for name in old.metadata.keys() | new.metadata.keys():
            before, after = old.metadata.get(name), new.metadata.get(name)
            if after is None or before is None:
                found[name] = MISSING if after is None else after.value
            elif (before.kind, before.of) != (after.kind, after.of):
                found[f"{name}:type"] = after.kind, after.of
                found[name] = after.value
            elif repr(before.value) != repr(after.value):
                found |= _value_differences(name, before.value, after.value)
        for before, after in zip(old.tensors, new.tensors, strict=False):
            for label, was, now in zip(
                ("name", "shape", "type", "offset"), before, after, strict=True
            ):
                if was != now:
                    found[f"TENSOR:{label}"] = now
        if len(old.tensors) != len(new.tensors):
            found["n_tensors"] = len(new.tensors)
        if old.data != new.data:
            found["TENSOR:data"] = np.frombuffer(new.data, np.uint8)
        return found


def _value_differences(name: str, before: Any, after: Any) -> dict[str, Any]:
    if isinstance(before, list) and len(before) == len(after):
        changed = [
            i for i, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1]
        ]
        return {f"{name}[]": [after[i] for i in changed]}
    return {f"{name}:count" if isinstance(before, list) else name: after}


def _damage_value(file: File, rng: random.Random) -> tuple[bytes, str, str]:
    """A key's value, or an element of an array, of the same or of another type."""
    name = rng.choice(list(file.metadata))
    old = file.metadata[name]
    if rng.random() < 0.06:
        del file.metadata[name]
        return join(pieces(file), file.data), name, "missing"
    if old.kind == _ARRAY and rng.random() < 0.6 and old.value:
        return _damage_element(file, name, old, rng)
    how, kind, value, of = rng.choice(_list_values(old))
    file.metadata[name] = Value(kind, value, of)
    if how == "10,000 arrays deep":
        parts = pieces(file)
        index = [label for label, _ in parts].index(f"{name}:of")
        parts[index : index + 3] = [(name, struct.pack("<IQ", _ARRAY, 1) * 10_000)]
        return join(parts, file.data), name, how
    return join(pieces(file), file.data), name, how


def _damage_element(
    file: File, name: str, old: Value, rng: random.Random
) -> tuple[bytes, str, str]:
    index = rng.randrange(len(old.value))
    items = list(old.value)
    if old.of == _STRING:
        how, new = rng.choice((
            ("empty", ""), ("other text", items[index] + "x"), ("another's", rng.choice(items)),
            ("spaces", "a b c"), ("null byte", "\0"), ("long", "x" * 100_000),
            ("bytes, not UTF-8", "\udcff\udcfe"), ("a marker", "<|im_end|>"),
        ))  # fmt: skip
    elif old.of == 6:
        how, new = rng.choice((("NaN", float("nan")), ("infinity", float("inf")), ("1e30", 1e30),
                               ("zero", 0.0)))  # fmt: skip
    else:
        how, new = rng.choice((("zero", 0), ("one", 1), ("7", 7), ("99", 99), ("127", 127)))
    kind = rng.choice(("replace", "replace", "remove", "repeat"))
    if kind == "replace":
        items[index] = new
    elif kind == "remove":
        how = "an element removed"
        del items[index]
    else:
        how = "an element twice"
        items.insert(index, items[index])
    file.metadata[name] = Value(_ARRAY, items, old.of)
    return join(pieces(file), file.data), f"{name}[]", how


def _list_values(old: Value) -> list[tuple[str, int, Any, int]]:
    """Values of all types, and some close to the old one: (what, type, value, element type)."""
    found = [
        ("bool true", 7, True, 0), ("bool false", 7, False, 0), ("empty text", 8, "", 0),
        ("text", 8, "text", 0), ("digits as text", 8, "4", 0), ("long text", 8, "x" * 100_000, 0),
        ("NaN", 6, float("nan"), 0), ("infinity", 6, float("inf"), 0), ("-1.0", 6, -1.0, 0),
        ("0.5", 6, 0.5, 0), ("5e-324", 12, 5e-324, 0), ("1e308", 12, 1e308, 0),
        ("0", 4, 0, 0), ("1", 4, 1, 0), ("-1", 5, -1, 0), ("2^31", 4, 2**31, 0),
        ("2^62", 10, 2**62, 0), ("2^63", 10, 2**63, 0), ("2^64 - 1", 10, 2**64 - 1, 0),
        ("-2^63", 11, -(2**63), 0), ("empty array", 9, [], 4), ("an array of one", 9, [1], 4),
        ("an array of text", 9, ["a", "b"], 8), ("an array of NaN", 9, [float("nan")], 6),
        ("10,000 arrays deep", 9, [], 4),
    ]  # fmt: skip
    if old.kind in (4, 10):
        found += [("one more", old.kind, old.value + 1, 0), ("double", old.kind, old.value * 2, 0)]
        found += [("as 64 bits", 10, old.value, 0), ("as a float", 6, float(old.value), 0)]
    elif old.kind == 6:
        found += [("double", 6, old.value * 2, 0), ("negative", 6, -old.value, 0)]
    elif old.kind == _STRING:
        found += [("longer", 8, old.value + "x", 0), ("cut", 8, old.value[:-1], 0)]
    elif old.kind == _ARRAY:
        found += [("cut", 9, old.value[: len(old.value) // 2], old.of)]
    return found


def _damage_bytes(old: bytes, rng: random.Random) -> tuple[bytes, str]:
    if rng.random() < 0.5 and len(old) >= 8:
        size = rng.choice(_SIZES)
        return struct.pack("<Q", size) + old[8:], f"length {size}"
    index = rng.randrange(len(old)) if old else 0
    return old[:index] + bytes([rng.randrange(256)]) + old[index + 1 :], "a byte changed"
