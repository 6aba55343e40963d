"""Reads the header of a GGUF file: its settings, and where its tensors lie.

Counts, lengths and offsets are compared with the file's length before anything is read, and the
tensors must lie as llama.cpp demands: in order, without gaps beyond the alignment, within the file.
The `gguf` package reads such files too, but believes what they say of themselves.

Knows nothing of what the settings mean, and reads no weights.
"""

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from minispec.errors import FileError
from minispec.io.schema import check_file

_SCALARS = {  # by the number of their type
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<B",
    10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
_BOOL, _STRING, _ARRAY = 7, 8, 9
# Far above every published model: 2,000 tensors, a vocabulary of 262,144 and 600,000 merges.
_MOST_ENTRIES, _MOST_ELEMENTS, _LONGEST_NAME = 2**16, 2**22, 2**16


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies: its shape (outermost dimension first, as in PyTorch), its kind of
    quantisation, and its first byte and number of bytes in the file."""

    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    start: int
    size: int


@dataclass(frozen=True, eq=False)
class GGUFHeader:
    """The settings and tensors of a file, by name, and its content, mapped into memory."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, TensorEntry]
    content: mmap.mmap

    def read_bytes(self, name: str) -> np.ndarray:
        """The bytes of a tensor, uint8 (rows, bytes of a row), still in the file."""
        entry = self.tensors[name]
        data = np.frombuffer(self.content, np.uint8, entry.size, entry.start)
        return data.reshape(*entry.shape[:-1], -1)


def read_header(path: Path) -> GGUFHeader:
    """Read and check a file's header. Raises FileError."""
    check_file(path)
    try:
        with path.open("rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: an empty file
        raise FileError(f"{path} is not a GGUF file: {error}") from None
    try:
        return _read(path, content)
    except FileError as error:
        raise FileError(f"{path} is not a GGUF file or is damaged: {error}") from None
    except UnicodeDecodeError as error:
        raise FileError(
            f"{path} is damaged: a name or text is not UTF-8 ({error.reason})"
        ) from None


def _read(path: Path, content: mmap.mmap) -> GGUFHeader:
    cursor = _Cursor(content)
    if content[:4] != b"GGUF":
        raise FileError(f"it begins with {content[:4]!r}, expected b'GGUF'")
    cursor.at = 4
    version = cursor.read("<I")
    if version & 0xFFFF == 0:
        raise FileError("it is big-endian; gguf-convert-endian, of the package gguf, converts it")
    if version not in (2, 3):
        raise FileError(f"version {version} is not supported: must be 2 or 3")
    num_tensors, num_settings = cursor.read("<Q"), cursor.read("<Q")
    for name, count in (("tensors", num_tensors), ("settings", num_settings)):
        if count > _MOST_ENTRIES:
            raise FileError(f"it claims {count:,} {name}, expected at most {_MOST_ENTRIES:,}")
    metadata: dict[str, Any] = {}
    for _ in range(num_settings):
        name = cursor.read_name()
        if name in metadata:
            raise FileError(f"setting {name!a} is there twice")
        try:
            metadata[name] = cursor.read_value(cursor.read("<I"))
        except FileError as error:
            raise FileError(f"{name}: {error}") from None
    alignment = metadata.get("general.alignment", 32)
    # A bool is an int to Python.
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise FileError(f"general.alignment {alignment!a} must be a power of two")
    return GGUFHeader(path, metadata, _read_tensors(cursor, num_tensors, alignment), content)


def _read_tensors(cursor: "_Cursor", count: int, alignment: int) -> dict[str, TensorEntry]:
    found: dict[str, tuple[tuple[int, ...], GGMLQuantizationType, int, int]] = {}
    expected = 0  # the offset of the next tensor, from the start of the data
    for _ in range(count):
        name = cursor.read_name()
        if name in found:
            raise FileError(f"tensor {name!a} is there twice")
        dimensions = cursor.read("<I")
        if not 1 <= dimensions <= 4:
            raise FileError(f"tensor {name!a} has {dimensions} dimensions, expected 1 to 4")
        shape = tuple(cursor.read("<Q") for _ in range(dimensions))[::-1]
        number, offset = cursor.read("<I"), cursor.read("<Q")
        try:
            kind = GGMLQuantizationType(number)
        except ValueError:
            raise FileError(f"tensor {name!a} is of the unknown type {number}") from None
        block, block_bytes = GGML_QUANT_SIZES[kind]
        if not prod(shape) or shape[-1] % block:
            raise FileError(
                f"tensor {name!a} has shape {shape}, expected rows of whole blocks of {block}"
            )
        if offset != expected:
            raise FileError(f"tensor {name!a} lies at {offset:,}, expected {expected:,}")
        size = prod(shape) // block * block_bytes
        found[name] = shape, kind, offset, size
        expected = _round_up(offset + size, alignment)
        if offset + size > len(cursor.content):
            raise FileError(
                f"tensor {name!a} of shape {shape} would have {size:,} bytes, the file has "
                f"{len(cursor.content):,}"
            )
    start = _round_up(cursor.at, alignment)
    for name, (_, _, offset, size) in found.items():
        if start + offset + size > len(cursor.content):
            raise FileError(f"tensor {name!a} lies beyond its end: is the download complete?")
    return {
        name: TensorEntry(shape, kind, start + offset, size)
        for name, (shape, kind, offset, size) in found.items()
    }


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step


class _Cursor:
    """A position in the file, which moves on with what is read."""

    def __init__(self, content: mmap.mmap) -> None:
        self.content, self.at = content, 0
        self._elements = 0  # of all arrays so far

    def read(self, kind: str) -> Any:
        """One number."""
        size = struct.calcsize(kind)
        self._need(size)
        (value,) = struct.unpack_from(kind, self.content, self.at)
        self.at += size
        return value

    def read_name(self) -> str:
        name = self._read_strings(1, _LONGEST_NAME)[0]
        if not name:
            raise FileError("a name is empty")
        return name

    def read_value(self, kind: int) -> Any:
        """A number, flag, text or flat list, by the number of its type."""
        if kind == _ARRAY:
            return self._read_array(self.read("<I"), self.read("<Q"))
        if kind == _STRING:
            return self._read_strings(1)[0]
        if kind not in _SCALARS:
            raise FileError(f"its type {kind} is unknown")
        value = self.read(_SCALARS[kind])
        return self._read_flags([value])[0] if kind == _BOOL else value

    def _read_array(self, kind: int, count: int) -> list[Any]:
        self._elements += count
        if self._elements > _MOST_ELEMENTS:
            raise FileError(f"a list of {count:,}: a header may hold {_MOST_ELEMENTS:,} in all")
        if kind == _STRING:
            return self._read_strings(count)
        if kind not in _SCALARS:
            raise FileError(f"a list of the type {kind} is not supported: must be flat")
        dtype = np.dtype(_SCALARS[kind])
        self._need(count * dtype.itemsize)
        values = np.frombuffer(self.content, dtype, count, self.at).tolist()
        self.at += count * dtype.itemsize
        return self._read_flags(values) if kind == _BOOL else values

    def _read_flags(self, values: list[int]) -> list[bool]:
        if any(value > 1 for value in values):
            raise FileError(f"the flag {max(values)} is neither 0 nor 1")
        return [bool(value) for value in values]

    def _read_strings(self, count: int, longest: int | None = None) -> list[str]:
        self._need(8 * count)
        content, at, end = self.content, self.at, len(self.content)
        unpack, texts = struct.Struct("<Q").unpack_from, []
        for _ in range(count):
            if end - at < 8:
                raise FileError("it ends within a text")
            (length,) = unpack(content, at)
            at += 8
            if length > end - at or (longest and length > longest):
                raise FileError(
                    f"a text claims {length:,} bytes, {min(end - at, longest or end):,} fit"
                )
            texts.append(content[at : at + length].decode())
            at += length
        self.at = at
        return texts

    def _need(self, size: int) -> None:
        if size > len(self.content) - self.at:
            raise FileError(f"it ends at byte {len(self.content):,}, within its header")
