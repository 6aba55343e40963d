"""The clusters of a semantic index on disk, optionally with a router (DynaSpec)."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from minispec.errors import ArgumentError, FileError
from minispec.io.artifacts import find_artifact
from minispec.io.files import (
    Fingerprints,
    TensorSpec,
    check_fingerprints,
    check_tensors,
    list_weights,
    open_safetensors,
    read_header,
    read_metadata,
    read_tensors,
    write_tensors,
)
from minispec.shortlists.dynaspec import Router

_ROUTER = "router."  # prefix of the router's tensors
_WEIGHTS = frozenset((torch.bfloat16,))
_ROUTER_LAYOUT = {
    "inner.weight": TensorSpec((None, None), _WEIGHTS),
    "inner.bias": TensorSpec((None,), _WEIGHTS),
    "outer.weight": TensorSpec((None, None), _WEIGHTS),
    "outer.bias": TensorSpec((None,), _WEIGHTS),
}
_NUMBERS = frozenset((torch.int16, torch.int32))  # of clusters


def write_index(
    path: Path, clusters: Tensor, router: Mapping[str, Tensor], model: str, tokenizer: str
) -> None:
    """Write the cluster of each id (V,), the router's weights, {} for none, and the fingerprints
    of the model and the tokenizer. Raises FileError."""
    small = int(clusters.max()) < 2**15
    tensors = {"clusters": clusters.to(torch.int16 if small else torch.int32)}
    tensors |= {_ROUTER + name: value.to(torch.bfloat16) for name, value in router.items()}
    write_tensors(path, tensors, {"model": model, "tokenizer": tokenizer})


def read_index(
    path: Path, vocab_size: int, model: str, tokenizer: str
) -> tuple[Tensor, dict[str, Tensor]]:
    """Read the cluster of each id (V,) int64, and the router's weights, {} for none.

    Raises FileError for a damaged file, FingerprintError for another model's or tokenizer's.
    """
    found = read_metadata(path, Fingerprints)
    expected = {"model": model, "tokenizer": tokenizer}
    check_fingerprints(path, found, expected, "build its own with `minispec index build`")
    with open_safetensors(path) as file:
        names = read_header(file, str(path)).keys()
    layout = {"clusters": TensorSpec((vocab_size,), _NUMBERS)}
    if names != layout.keys():
        layout |= {f"{_ROUTER}{name}": spec for name, spec in _ROUTER_LAYOUT.items()}
    tensors = read_tensors(path, layout)
    clusters = tensors.pop("clusters").long()
    low, high = int(clusters.min()), int(clusters.max())
    if low < 0 or high >= vocab_size:
        raise FileError(
            f"{path} has clusters {low}..{high}, expected numbers within 0..{vocab_size - 1}"
        )
    return clusters, {name.removeprefix(_ROUTER): value for name, value in tensors.items()}


def find_index(model: str, given: Path | None) -> Path:
    """The path ``given``, else that of the index that ships for the model. Raises ArgumentError if
    there is none."""
    path = given or find_artifact(model, "index")
    if path is None:
        raise ArgumentError(
            f"no index ships for model {model}: build one with `minispec index build` and pass it "
            "with --index"
        )
    return path


def build_router(
    weights: Mapping[str, Tensor], hidden_size: int, clusters: int, origin: str
) -> Router:
    """A router with the weights read from the file ``origin``. Raises FileError."""
    if not weights:
        raise FileError(f"{origin} has no router: add one with `minispec train router`")
    router = Router(hidden_size, clusters)
    check_tensors(weights, list_weights(router.state_dict()), origin)
    router.load_state_dict(dict(weights))
    return router.requires_grad_(False)
