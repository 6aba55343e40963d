"""A draft's weights on disk, with the fingerprint of the target that they were trained for."""

from pathlib import Path

import torch

from minispec.errors import FingerprintError
from minispec.io.artifacts import find_artifact
from minispec.io.files import check_fingerprints, read_tensors, write_tensors
from minispec.models.eagle_draft import EagleDraft, build_draft
from minispec.models.transformer import Transformer

_LAYERS = "tap_layers"  # metadata: the layers of the auxiliary hidden states, as "(2, 14, 26)"


def find_draft(model: str) -> Path | None:
    """The draft that ships for a known model; None for any other."""
    return find_artifact(model, "draft")


def save_draft(path: Path, draft: EagleDraft, fingerprint: str) -> None:
    """Write a draft in bfloat16, with the fingerprint of its target. Raises FileError."""
    weights = {name: value.to(torch.bfloat16) for name, value in draft.state_dict().items()}
    layers = str(draft.config.aux_hidden_state_layer_ids)
    write_tensors(path, weights, {"model": fingerprint, _LAYERS: layers})


def load_draft(path: Path, target: Transformer, fingerprint: str) -> EagleDraft:
    """Read a draft of this target, in the target's dtype.

    Raises FileError for a file that is not a draft, FingerprintError for another target's.
    """
    remedy = "train its own with `minispec train draft`"
    trained_on = check_fingerprints(path, {"model": fingerprint}, remedy).get(_LAYERS, "none")
    exported = str(target.config.aux_hidden_state_layer_ids)
    if trained_on != exported:
        raise FingerprintError(
            f"{path} was trained on hidden states of layers {trained_on.strip('(),')}, "
            f"but this model exports {exported.strip('(),')}"
        )
    draft = build_draft(target)
    shapes = {name: tuple(value.shape) for name, value in draft.state_dict().items()}
    draft.load_state_dict(read_tensors(path, shapes))
    return draft.requires_grad_(False)
