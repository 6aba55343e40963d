"""The factors of a low-rank head on disk, with the fingerprint of their model."""

from pathlib import Path

import torch
from torch import Tensor

from minispec.errors import FileError
from minispec.io.files import (
    Fingerprints,
    TensorSpec,
    check_fingerprints,
    read_metadata,
    read_tensors,
    write_tensors,
)

_REMEDY = "fit its own with `minispec index build --lowrank`"


def write_factors(path: Path, factors: tuple[Tensor, Tensor], model: str) -> None:
    """Write the factors (D, r) and (D, r) of ``lowrank.fit_factors`` in bfloat16, with the model's
    fingerprint. Raises FileError."""
    expand, projection = (factor.bfloat16() for factor in factors)
    write_tensors(path, {"expand": expand, "projection": projection}, {"model": model})


def read_factors(path: Path, hidden_size: int, model: str) -> tuple[Tensor, Tensor]:
    """Read the factors (D, r) and (D, r), for a hidden size D.

    Raises FileError for a damaged file, FingerprintError for another model's.
    """
    check_fingerprints(path, read_metadata(path, Fingerprints), {"model": model}, _REMEDY)
    spec = TensorSpec((hidden_size, None), frozenset((torch.bfloat16,)))
    tensors = read_tensors(path, {"expand": spec, "projection": spec})
    expand, projection = tensors["expand"].float(), tensors["projection"].float()
    if expand.shape != projection.shape or not 1 <= expand.shape[1] <= hidden_size:
        raise FileError(
            f"{path} is damaged: its factors have shapes {tuple(expand.shape)} and "
            f"{tuple(projection.shape)}, expected the same, of rank 1 to {hidden_size}"
        )
    return expand, projection
