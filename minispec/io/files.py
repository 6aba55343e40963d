"""Files: written atomically, checked when read.

A file written here exists complete or not at all, whatever interrupts: it is written under a
temporary name in the same folder, then renamed. A safetensors file whose shapes are known must
have exactly those tensors, all finite, or is refused in one line.

Knows nothing of what the tensors mean.
"""

import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from minispec.errors import FileError, FingerprintError


@contextmanager
def write_aside(path: Path) -> Iterator[Path]:
    """A context with a temporary path beside ``path``, which is renamed to ``path`` on success and
    removed otherwise. Raises FileError if the folder or the disk refuses."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror or error}") from None
    aside = Path(name)
    try:
        yield aside
        # mkstemp creates private files; the final one gets the usual permissions.
        umask = os.umask(0)
        os.umask(umask)
        aside.chmod(0o666 & ~umask)
        os.replace(aside, path)
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically. Raises FileError."""
    with write_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically. Raises FileError, and ValueError for NaN."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON. Raises FileError if the file is missing or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path} is not a JSON file: {error}") from None


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file atomically. Raises FileError."""
    with write_aside(path) as aside:
        try:
            save_file({k: v.contiguous() for k, v in tensors.items()}, aside, dict(metadata))
        except SafetensorError as error:
            raise FileError(f"cannot write {path}: {error}") from None


def read_metadata(path: Path) -> dict[str, str]:
    """Read the metadata of a safetensors file. Raises FileError."""
    with open_safetensors(path) as file:
        return dict(file.metadata() or {})


def check_fingerprints(path: Path, expected: Mapping[str, str], remedy: str) -> dict[str, str]:
    """Read the metadata of a file and check it for the ``expected`` fingerprints, by kind
    ("model", "tokenizer"). Raises FileError, and FingerprintError, which ends in the remedy."""
    metadata = read_metadata(path)
    for kind, ours in expected.items():
        if (theirs := metadata.get(kind, "none")) != ours:
            raise FingerprintError(
                f"{path} was made for {kind} {theirs[:12]}, this one is {ours[:12]}: {remedy}"
            )
    return metadata


def read_tensors(
    path: Path, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, Tensor]:
    """Read a safetensors file; with ``shapes`` it must hold exactly those tensors.

    Raises FileError: missing, damaged, other names, a wrong shape, NaN or infinity.
    """
    with open_safetensors(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if shapes is not None:
        check_tensors(tensors, shapes, str(path))
    return tensors


def check_tensors(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], origin: str
) -> None:
    """Raises FileError unless the tensors have exactly these names and shapes, and are finite."""
    if missing := shapes.keys() - tensors.keys():
        raise FileError(f"{origin} lacks {len(missing)} tensors, {min(missing)} first")
    if extra := tensors.keys() - shapes.keys():
        raise FileError(f"{origin} has {len(extra)} unexpected tensors, {min(extra)} first")
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            actual = tuple(tensors[name].shape)
            raise FileError(f"{origin}: {name} has shape {actual}, expected {tuple(shape)}")
        if tensors[name].is_floating_point() and not _is_finite(tensors[name]):
            raise FileError(f"{origin}: {name} contains NaN or infinity: the file is damaged")


def _is_finite(values: Tensor) -> bool:
    # One pass without copies, unlike isfinite(): a NaN becomes the minimum and maximum.
    # (torch has no aminmax() for eight bits.)
    values = values.float() if values.element_size() == 1 else values
    return not values.numel() or all(map(math.isfinite, values.aminmax()))


@contextmanager
def open_safetensors(path: Path) -> Iterator[Any]:
    """Open a safetensors file, to read tensors and slices one by one. Raises FileError."""
    if not path.is_file():
        raise FileError(f"{path} does not exist, expected a safetensors file")
    try:
        file = safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise FileError(f"{path} is not a safetensors file, or is damaged: {error}") from None
    with file:
        try:
            yield file
        except SafetensorError as error:
            raise FileError(f"{path} is damaged, or has other tensors: {error}") from None
