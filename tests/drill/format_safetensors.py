"""Damaged safetensors files: the length, the header, metadata (JSON inside it too) and values."""

import json
import random
import re
import struct
from typing import Any

import numpy as np

from drill.format_json import Json, choose_path, damage_document, name_field
from drill.values import MISSING

_TYPES = {
    "F64": "f8", "F32": "f4", "F16": "f2", "BF16": "u2", "I64": "i8", "I32": "i4", "I16": "i2",
    "I8": "i1", "U8": "u1", "U16": "u2", "U32": "u4", "U64": "u8", "BOOL": "u1", "C64": "c8",
    "F8_E4M3": "u1", "F8_E5M2": "u1",
}  # fmt: skip


class Safetensors:
    """One safetensors file."""

    name = "safetensors"

    def damage(self, content: bytes, rng: random.Random) -> tuple[bytes, str, str]:
        """The damaged file, the field and what was done to it."""
        header, data = split(content)
        kind = rng.choice(("header", "header", "header", "dtype", "dtype", "values", "values",
                           "metadata", "metadata", "length", "offsets"))  # fmt: skip
        metadata = header.get("__metadata__")
        if kind == "metadata" and metadata:
            return _damage_metadata(header, metadata, data, rng)
        names = [name for name in header if name != "__metadata__"]
        name = rng.choice(names)
        entry = header[name]
        if kind == "length":
            size = rng.choice((0, 1, 2**31, 2**62, 2**64 - 1, len(content), len(content) - 8))
            return struct.pack("<Q", size) + content[8:], "header length", str(size)
        if kind == "dtype":
            return _change_dtype(header, name, data, rng)
        if kind == "offsets":
            other = rng.choice(names)
            key = rng.choice(("data_offsets", "shape", "dtype"))
            entry[key], header[other][key] = header[other][key], entry[key]
            return join(json.dumps(header), data), f"TENSOR.{key}", "swapped"
        if kind == "values" and len(data) > entry["data_offsets"][0]:
            return _change_values(header, name, data, rng)
        path = choose_path(header, rng)
        text, how = damage_document(header, path, rng)
        return join(text, data), _name(path), how

    def diff(self, intact: bytes, damaged: bytes) -> dict[str, Any] | None:
        """The fields that differ, with their new values; None if it is not a safetensors file."""
        try:
            (old, old_data), (new, new_data) = split(intact), split(damaged)
            found: dict[str, Any] = {}
            for name in old.keys() | new.keys():
                before, after = old.get(name), new.get(name)
                if name == "__metadata__":
                    found |= _metadata_differences(before or {}, after or {})
                elif before is None or after is None:
                    found["TENSOR"] = MISSING
                else:
                    keys = ("dtype", "shape")
                    found |= {f"{name}.{k}": after[k] for k in keys if before[k] != after[k]}
                    if (bits := tensor(after, new_data)).tobytes() != tensor(
                        before, old_data
                    ).tobytes():
                        found[f"{name}.data"] = decode(after["dtype"], bits)
        except (ValueError, LookupError, TypeError, struct.error, RecursionError, MemoryError):
            return None
        return found


def split(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The header and the data."""
    (size,) = struct.unpack("<Q", content[:8])
    if size > len(content) - 8:
        raise ValueError("the header is longer than the file")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def join(header: str, data: bytes) -> bytes:
    """A file of a header and data."""
    text = header.encode("utf-8", "surrogatepass")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def tensor(entry: dict[str, Any], data: bytes) -> np.ndarray:
    """The bits of a tensor."""
    start, end = entry["data_offsets"]
    if not 0 <= start <= end <= len(data):
        raise ValueError("offsets outside the file")
    return np.frombuffer(data[start:end], _TYPES[entry["dtype"]])


def decode(dtype: str, bits: np.ndarray) -> np.ndarray:
    """The values of a tensor's bits."""
    if dtype == "BF16":
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return bits


def _name(path: tuple[str | int, ...]) -> str:
    if not path:
        return "header"
    if path[0] == "__metadata__":
        return name_field(path)
    return ".".join(("TENSOR", *(str(key) for key in path[1:2]), *("[]" for _ in path[2:3])))


def _damage_metadata(
    header: dict[str, Any], metadata: dict[str, str], data: bytes, rng: random.Random
) -> tuple[bytes, str, str]:
    key = rng.choice(list(metadata))
    field = f"__metadata__.{key}"
    inner = metadata[key]
    if inner.startswith(("{", "[")):  # JSON inside a metadata value
        damaged, below, how = Json().damage(inner.encode(), rng)
        metadata[key] = damaged.decode("utf-8", "replace")
        return join(json.dumps(header), data), f"{field}.{below}", how
    text, how = damage_document(header, ("__metadata__", key), rng)
    if rng.random() < 0.5 and re.search(r"\d", inner):
        how, metadata[key] = rng.choice((
            ("2^63", re.sub(r"\d+", str(2**63), inner, count=1)),
            ("negative", re.sub(r"\d+", "-1", inner, count=1)),
            ("5,000 digits", re.sub(r"\d+", "1" * 5000, inner, count=1)),
            ("other digit", re.sub(r"\d", "7", inner, count=1)),
            ("another script", re.sub(r"\d", "\u0663", inner, count=1)),
            ("empty", ""),
        ))  # fmt: skip
        text = json.dumps(header)
    return join(text, data), field, how


def _change_dtype(
    header: dict[str, Any], name: str, data: bytes, rng: random.Random
) -> tuple[bytes, str, str]:
    """Another dtype that fits the same bytes, where possible with another shape."""
    entry = header[name]
    new = rng.choice([*_TYPES, "Q4_1", "f32"])
    old_size, new_size = (np.dtype(_TYPES.get(t, "u1")).itemsize for t in (entry["dtype"], new))
    how = f"{entry['dtype']} -> {new}"
    if rng.random() < 0.5 and entry["shape"]:
        entry["shape"][-1] = entry["shape"][-1] * old_size // new_size
        how += ", shape fitted"
    entry["dtype"] = new
    return join(json.dumps(header), data), "TENSOR.dtype", how


def _change_values(
    header: dict[str, Any], name: str, data: bytes, rng: random.Random
) -> tuple[bytes, str, str]:
    """A value that a checksum alone could see, or that no such tensor may hold."""
    entry = header[name]
    start, _ = entry["data_offsets"]
    kind = np.dtype(_TYPES[entry["dtype"]])
    values = tensor(entry, data).copy()
    index = rng.randrange(len(values)) if len(values) else 0
    special = {"f4": (np.nan, np.inf, 1e30, 2.0), "f2": (np.nan, np.inf, 2.0), "f8": (np.nan, 1.0),
               "u2": (0x7FC0, 0x7F80, 0x4000)}  # fmt: skip
    whole = (np.iinfo(kind).min, np.iinfo(kind).max, 0, 1, -1) if kind.kind in "iu" else (1.0,)
    value = rng.choice(special.get(kind.str.lstrip("<|>"), whole))
    if len(values):
        with np.errstate(all="ignore"):
            values[index] = np.array(value).astype(kind)
    changed = values.tobytes()
    return (
        join(json.dumps(header), data[:start] + changed + data[start + len(changed) :]),
        "TENSOR.data",
        f"{entry['dtype']} {value}",
    )


def _metadata_differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key in old.keys() | new.keys():
        before, after = old.get(key, MISSING), new.get(key, MISSING)
        if before == after:
            continue
        inner = None
        if isinstance(before, str) and before.startswith("{") and isinstance(after, str):
            inner = Json().diff(before.encode(), after.encode("utf-8", "replace"))
        if inner is None:
            found[f"metadata.{key}"] = after
        else:
            found |= {f"metadata.{key}.{field}": value for field, value in inner.items()}
    return found
