"""A target with weights that are read from files.

A file's tensors are first compared with the configuration, by the names and shapes in its header;
only then are they read. So a damaged configuration or file costs no memory.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from msgspec import Meta
from torch import Tensor

from minispec.errors import FileError
from minispec.io.files import is_finite
from minispec.models.model_config import ModelConfig
from minispec.models.quantized_matrix import QuantizedMatrix
from minispec.models.quantized_modules import set_matrix
from minispec.models.transformer import Transformer

# Limits far above every published model, so that no product of two sizes overflows.
Width = Annotated[int, Meta(ge=1, le=2**20)]
Count = Annotated[int, Meta(ge=1, le=2**16)]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that lies in a file: the file, its name and shape there, and how it is read, as
    float32, or, if its model keeps it quantised, as a ``matrix``."""

    origin: str
    name: str
    shape: tuple[int, ...]
    read: Callable[[], Tensor]
    matrix: Callable[[], QuantizedMatrix] | None = None


def build_transformer(
    config: ModelConfig,
    stored: Mapping[str, StoredTensor],
    origin: str,
    name_in_file: Callable[[str], str],
) -> Transformer:
    """A frozen model with the weights that are ``stored`` under the names of its parameters.

    ``origin`` names the file or folder in errors, ``name_in_file`` gives the name that a parameter
    has there. Raises FileError unless they are exactly those of ``config``, and finite.
    """
    if config.num_hidden_layers > len(stored):  # a damaged config could ask for millions
        raise FileError(
            f"{origin} has {len(stored)} tensors, too few for {config.num_hidden_layers} layers"
        )
    # Built without memory, then given the weights: no time is spent on initial ones.
    with torch.device("meta"):
        model = Transformer(config)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if missing := sorted(name_in_file(name) for name in shapes.keys() - stored.keys()):
        raise FileError(f"{origin} lacks {len(missing)} tensors, {missing[0]} first")
    if extra := sorted(stored[name].name for name in stored.keys() - shapes.keys()):
        raise FileError(f"{origin} has {len(extra)} unexpected tensors, {extra[0]} first")
    for name, shape in shapes.items():
        if (found := stored[name]).shape != shape:
            raise FileError(
                f"{found.origin}: {found.name} has shape {found.shape}, expected {shape} by the "
                "model's settings"
            )
    for name in shapes:
        if (read_matrix := stored[name].matrix) is not None:
            matrix = read_matrix()
            _check_finite(stored[name], matrix.is_finite())
            set_matrix(model, name, matrix)
    read = {name: _read_finite(stored[name]) for name in model.state_dict()}
    model.load_state_dict(read, assign=True)
    return model.eval().requires_grad_(False)


def _read_finite(stored: StoredTensor) -> Tensor:
    value = stored.read()
    _check_finite(stored, is_finite(value))
    return value


def _check_finite(stored: StoredTensor, finite: bool) -> None:
    if not finite:
        raise FileError(
            f"{stored.origin}: {stored.name} contains NaN or infinity: the file is damaged"
        )
