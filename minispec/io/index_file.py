"""The clusters of a semantic index on disk, and the router to them, if there is one."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from minispec.errors import ArgumentError, FileError
from minispec.io.artifacts import find_artifact
from minispec.io.files import check_made_for, check_tensors, read_tensors, write_tensors
from minispec.shortlists.dynaspec import Router

_ROUTER = "router."  # prefix of the router's tensors


def write_index(
    path: Path, clusters: Tensor, router: Mapping[str, Tensor], model: str, tokenizer: str
) -> None:
    """Writes the cluster of each id (V,), and a router to them if there is one (see
    ``routed``), with the fingerprints that they were made for."""
    small = int(clusters.max()) < 2**15
    tensors = {"clusters": clusters.to(torch.int16 if small else torch.int32)}
    tensors |= {_ROUTER + name: value.to(torch.bfloat16) for name, value in router.items()}
    write_tensors(path, tensors, {"model": model, "tokenizer": tokenizer})


def read_index(
    path: Path, vocab_size: int, model: str, tokenizer: str
) -> tuple[Tensor, dict[str, Tensor]]:
    """The cluster of each id (V,) int64, and the router's weights, {} without one.

    Raises FileError for a damaged file, FingerprintError for another model's or tokenizer's.
    """
    made_for = {"model": model, "tokenizer": tokenizer}
    check_made_for(path, made_for, "make its own with `minispec index build`")
    tensors = read_tensors(path)
    router = {n: tensors.pop(n) for n in [*tensors] if n.startswith(_ROUTER)}
    check_tensors(tensors, {"clusters": (vocab_size,)}, str(path))
    clusters = tensors["clusters"]
    if clusters.dtype not in (torch.int16, torch.int32) or clusters.min() < 0:
        raise FileError(f"{path} is no index: the number of each id's cluster was expected")
    return clusters.long(), {n.removeprefix(_ROUTER): value for n, value in router.items()}


def find_index(model: str, given: Path | None) -> Path:
    """The index that was given, or the model's own. Raises ArgumentError."""
    path = given or find_artifact(model, "index")
    if path is None:
        raise ArgumentError(
            f"no index of the head of model {model} is known: make one with "
            "`minispec index build` and give it with --index"
        )
    return path


def build_router(weights: Mapping[str, Tensor], width: int, clusters: int, origin: str) -> Router:
    """The router whose weights a file (``origin``) held. Raises FileError."""
    if not weights:
        raise FileError(f"{origin} has no router: add one with `minispec train router`")
    router = Router(width, clusters)
    shapes = {name: tuple(value.shape) for name, value in router.state_dict().items()}
    check_tensors(weights, shapes, origin)
    router.load_state_dict(dict(weights))
    return router.requires_grad_(False)
