"""The clusters of a semantic index on disk, optionally with a router (DynaSpec)."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from minispec.errors import ArgumentError, FileError
from minispec.io.artifacts import find_artifact
from minispec.io.files import check_fingerprints, check_tensors, read_tensors, write_tensors
from minispec.shortlists.dynaspec import Router

_ROUTER = "router."  # prefix of the router's tensors


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
    fingerprints = {"model": model, "tokenizer": tokenizer}
    check_fingerprints(path, fingerprints, "build its own with `minispec index build`")
    tensors = read_tensors(path)
    router = {n: tensors.pop(n) for n in [*tensors] if n.startswith(_ROUTER)}
    check_tensors(tensors, {"clusters": (vocab_size,)}, str(path))
    clusters = tensors["clusters"]
    if clusters.dtype not in (torch.int16, torch.int32) or clusters.min() < 0:
        raise FileError(f"{path} is not an index: expected a cluster number for each id")
    return clusters.long(), {n.removeprefix(_ROUTER): value for n, value in router.items()}


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
    shapes = {name: tuple(value.shape) for name, value in router.state_dict().items()}
    check_tensors(weights, shapes, origin)
    router.load_state_dict(dict(weights))
    return router.requires_grad_(False)
