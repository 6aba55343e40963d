"""Files: written atomically, checked when read.

A file written here exists complete or not at all, whatever interrupts: it is written into a
temporary folder beside its place, then renamed. A safetensors file is checked from its header, its
names, shapes and dtypes, before anything is allocated; what is then read must be finite.

Knows nothing of what the tensors mean.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from msgspec import Struct
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from minispec.errors import FileError, FingerprintError
from minispec.io.schema import Sha256, check_file, convert_metadata
from minispec.io.unfinished import remove_unfinished, temporary_folder

T = TypeVar("T")
DTYPES = {  # by their names in safetensors files; others are refused by name
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
FLOATS = frozenset(dtype for dtype in DTYPES.values() if dtype.is_floating_point)
INTEGERS = frozenset((torch.int64, torch.int32, torch.int16, torch.uint8))
_LARGEST_HEADER = 2**22  # bytes; that of a file with 10,000 tensors has 1 MB
_LARGEST_SIZE = 2**31
_FORMATS = {
    b"PK\x03\x04": "a PyTorch checkpoint or another zip file",
    b"GGUF": "a GGUF file",
    b"version https://git-lfs": "a Git LFS pointer without the file's content",
}


# ------------------------------------------------------------------ writing


@contextmanager
def write_aside(path: Path) -> Iterator[Path]:
    """A context with a temporary path, whose file is renamed to ``path`` on success and removed
    otherwise. What a killed process left of the same file is removed too.

    A crash of the machine leaves the old file or the new one: the new one is on the disk before it
    is renamed. Raises FileError if the folder or the disk refuses.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_unfinished(path)
        with temporary_folder(path) as folder:
            aside = folder / path.name
            yield aside
            # Some writers create private files; the final one gets the usual permissions.
            umask = os.umask(0)
            os.umask(umask)
            aside.chmod(0o666 & ~umask)
            with aside.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(aside, path)
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror or error}") from None


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically. Raises FileError."""
    with write_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically. Raises FileError, and ValueError for NaN."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file atomically: the same content gives the same bytes. Raises
    FileError."""
    with write_aside(path) as aside:
        try:
            save_file({k: v.contiguous() for k, v in tensors.items()}, aside, dict(metadata))
        except SafetensorError as error:
            raise FileError(f"cannot write {path}: {error}") from None
        if len(metadata) > 1:
            _sort_metadata(aside)


def _sort_metadata(path: Path) -> None:
    # The library writes metadata in another order each time.
    with path.open("rb+") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= size  # as the library writes it, without its padding
        file.seek(8)
        file.write(text.ljust(size))


# ------------------------------------------------------------------ reading


class TensorSpec(NamedTuple):
    """What a tensor of a file must be: its shape, None for any size, and its dtype, one of some."""

    shape: tuple[int | None, ...]
    dtypes: frozenset[torch.dtype] = FLOATS


Layout = Mapping[str, TensorSpec]  # the tensors that a file must have, by name


class Fingerprints(Struct, kw_only=True):
    """The metadata of a file that was made for one model, or for one tokenizer."""

    model: Sha256 | None = None
    tokenizer: Sha256 | None = None


def read_metadata(path: Path, schema: type[T]) -> T:
    """Read the metadata of a safetensors file into its schema. Raises FileError."""
    with open_safetensors(path) as file:
        return convert_metadata(dict(file.metadata() or {}), schema, str(path))


def check_fingerprints(
    path: Path, found: Fingerprints, expected: Mapping[str, str], remedy: str
) -> None:
    """Check a file's fingerprints for the ``expected`` ones, by kind ("model", "tokenizer"). Raises
    FingerprintError, which ends in the remedy."""
    for kind, ours in expected.items():
        theirs = getattr(found, kind)
        if theirs is None:
            raise FingerprintError(f"{path} does not say which {kind} it was made for: {remedy}")
        if theirs != ours:
            raise FingerprintError(
                f"{path} was made for {kind} {theirs[:12]}, this one is {ours[:12]}: {remedy}"
            )


def list_weights(state: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> Layout:
    """The layout of a file with these weights, in a dtype, or in any floating one."""
    dtypes = {} if dtype is None else {"dtypes": frozenset((dtype,))}
    return {name: TensorSpec(tuple(value.shape), **dtypes) for name, value in state.items()}


def read_tensors(path: Path, layout: Layout | None = None) -> dict[str, Tensor]:
    """Read a safetensors file; with a ``layout`` it must hold exactly those tensors.

    Raises FileError: missing, damaged, other names, a wrong shape or dtype, NaN or infinity.
    """
    with open_safetensors(path) as file:
        header = read_header(file, str(path))
        if layout is not None:
            check_layout(header, layout, str(path))
        tensors = {name: file.get_tensor(name) for name in header}
    if layout is not None:
        _check_finite(tensors, str(path))
    return tensors


def check_tensors(tensors: Mapping[str, Tensor], layout: Layout, origin: str) -> None:
    """Raises FileError unless the tensors have exactly these names, shapes and dtypes, and are
    finite."""
    header = {name: (tuple(value.shape), value.dtype) for name, value in tensors.items()}
    check_layout(header, layout, origin)
    _check_finite(tensors, origin)


def read_header(file: Any, origin: str) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """The shape and dtype of each tensor of an open safetensors file. Raises FileError for a dtype
    or a size that no file of ours has."""
    header = {}
    for name in file.keys():  # noqa: SIM118
        part = file.get_slice(name)
        shape, dtype = tuple(part.get_shape()), DTYPES.get(part.get_dtype())
        if dtype is None:
            known = ", ".join(DTYPES)
            raise FileError(f"{origin}: {name!a} has dtype {part.get_dtype()}, expected {known}")
        if len(shape) > 8 or any(size >= _LARGEST_SIZE for size in shape):
            raise FileError(f"{origin}: {name!a} has a shape beyond all limits: it is damaged")
        header[name] = shape, dtype
    return header


def check_layout(
    header: Mapping[str, tuple[tuple[int, ...], torch.dtype]], layout: Layout, origin: str
) -> None:
    """Raises FileError unless a header has exactly the tensors of a layout."""
    if missing := layout.keys() - header.keys():
        raise FileError(f"{origin} lacks {len(missing)} tensors, {min(missing)} first")
    if extra := header.keys() - layout.keys():
        raise FileError(f"{origin} has {len(extra)} unexpected tensors, {min(extra)!a} first")
    for name, (wanted, dtypes) in layout.items():
        shape, dtype = header[name]
        fits = all(size in (actual, None) for size, actual in zip(wanted, shape, strict=False))
        if len(shape) != len(wanted) or not fits:
            words = str(wanted).replace("None", "any")
            raise FileError(f"{origin}: {name} has shape {shape}, expected {words}")
        if dtype not in dtypes:
            words = " or ".join(key for key, value in DTYPES.items() if value in dtypes)
            name_of = {value: key for key, value in DTYPES.items()}
            found = name_of.get(dtype, str(dtype))
            raise FileError(f"{origin}: {name} has dtype {found}, expected {words}")


def _check_finite(tensors: Mapping[str, Tensor], origin: str) -> None:
    for name, value in tensors.items():
        if value.is_floating_point() and not is_finite(value):
            raise FileError(f"{origin}: {name} contains NaN or infinity: the file is damaged")


def is_finite(values: Tensor) -> bool:
    """Whether all numbers (...) are finite, in float32 too, in which most models run."""
    # One pass without copies, unlike isfinite(): a NaN becomes the minimum and maximum.
    # (torch has no aminmax() for eight bits.)
    values = values.float() if values.element_size() == 1 else values
    if not values.numel():
        return True
    return all(math.isfinite(extreme.float()) for extreme in values.aminmax())


def name_format(path: Path) -> str | None:
    """What a file is, if it is of a known other format. Raises FileError."""
    start = _read_start(path)
    return next((kind for magic, kind in _FORMATS.items() if start.startswith(magic)), None)


def _read_start(path: Path) -> bytes:
    check_file(path)
    try:
        with path.open("rb") as raw:
            return raw.read(24)
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from None


@contextmanager
def open_safetensors(path: Path) -> Iterator[Any]:
    """Open a safetensors file, to read tensors and slices one by one. Raises FileError."""
    start = _read_start(path)
    if kind := name_format(path):
        raise FileError(f"{path} is not a safetensors file but {kind}")
    if len(start) >= 8 and (size := int.from_bytes(start[:8], "little")) > _LARGEST_HEADER:
        raise FileError(
            f"{path} is not a safetensors file, or is damaged: its header would have {size:,} bytes"
        )
    try:
        file = safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise FileError(f"{path} is not a safetensors file, or is damaged: {error}") from None
    with file:
        try:
            yield file
        except SafetensorError as error:
            raise FileError(f"{path} is damaged, or has other tensors: {error}") from None
