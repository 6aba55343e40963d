"""Files: written aside and renamed, read with suspicion.

A file written here exists whole or not at all, whatever interrupts: it is written under a
temporary name in the same folder and renamed. A safetensors file of which the shapes are known
has exactly those tensors, all finite, or is refused in one line.

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
    """Hands out a temporary path beside ``path``; on success it becomes ``path``, otherwise
    it is removed. Raises FileError in one line if the folder or the disk refuses."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror or error}") from None
    aside = Path(name)
    try:
        yield aside
        # mkstemp makes files private; what is kept is as readable as any other file.
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
    """Writes UTF-8 text, whole or not at all."""
    with write_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes a value as readable JSON, whole or not at all; refuses NaN."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads JSON. Raises FileError if the file is missing or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path} is not a JSON file: {error}") from None


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file, whole or not at all. Raises FileError."""
    with write_aside(path) as aside:
        try:
            save_file({k: v.contiguous() for k, v in tensors.items()}, aside, dict(metadata))
        except SafetensorError as error:
            raise FileError(f"cannot write {path}: {error}") from None


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file."""
    with open_safetensors(path) as file:
        return dict(file.metadata() or {})


def check_made_for(path: Path, wanted: Mapping[str, str], remedy: str) -> dict[str, str]:
    """The metadata of a file, which must name just these fingerprints, by what they are of.
    Raises FingerprintError, which ends in the remedy."""
    metadata = read_metadata(path)
    for kind, ours in wanted.items():
        if (theirs := metadata.get(kind, "none")) != ours:
            raise FingerprintError(
                f"{path} was made for {kind} {theirs[:12]}, this one is {ours[:12]}: {remedy}"
            )
    return metadata


def read_tensors(
    path: Path, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, Tensor]:
    """Reads a safetensors file; with ``shapes`` it must hold just those tensors.

    Raises FileError: missing, damaged, another set of names, a wrong shape, NaN or infinity.
    """
    with open_safetensors(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if shapes is not None:
        check_tensors(tensors, shapes, str(path))
    return tensors


def check_tensors(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], origin: str
) -> None:
    """Raises FileError unless the tensors have just these names and shapes and are finite."""
    if missing := shapes.keys() - tensors.keys():
        raise FileError(f"{origin} lacks {len(missing)} tensors, first {min(missing)}")
    if extra := tensors.keys() - shapes.keys():
        raise FileError(f"{origin} has {len(extra)} tensors too many, first {min(extra)}")
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            found = tuple(tensors[name].shape)
            raise FileError(f"{origin}: {name} has shape {found}, expected {tuple(shape)}")
        if tensors[name].is_floating_point() and not _finite(tensors[name]):
            raise FileError(f"{origin}: {name} holds NaN or infinity: the file is damaged")


def _finite(values: Tensor) -> bool:
    # One pass and no copies, unlike isfinite(): NaN is carried through to the extremes. (Eight
    # bits have no extremes in torch.)
    values = values.float() if values.element_size() == 1 else values
    return not values.numel() or all(map(math.isfinite, values.aminmax()))


@contextmanager
def open_safetensors(path: Path) -> Iterator[Any]:
    """A safetensors file, of which tensors and slices can be read one by one. Raises FileError."""
    if not path.is_file():
        raise FileError(f"{path} does not exist: a safetensors file was expected")
    try:
        file = safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise FileError(f"{path} is not a safetensors file, or damaged: {error}") from None
    with file:
        try:
            yield file
        except SafetensorError as error:
            raise FileError(f"{path} is damaged, or holds other tensors: {error}") from None
