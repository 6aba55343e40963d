"""A draft's weights on disk, with the fingerprint of the target that they were trained for."""

from pathlib import Path

import torch

from minispec.errors import FingerprintError
from minispec.io.artifacts import find_artifact
from minispec.io.files import check_made_for, read_tensors, write_tensors
from minispec.models.eagle_draft import EagleDraft, build_draft
from minispec.models.transformer import Transformer


def find_draft(model: str) -> Path | None:
    """Where the package keeps the draft of a known model, None for any other."""
    return find_artifact(model, "draft")


def save_draft(path: Path, draft: EagleDraft, fingerprint: str) -> None:
    """Writes a draft in bfloat16, with the fingerprint of the target that it was made for."""
    weights = {name: value.to(torch.bfloat16) for name, value in draft.state_dict().items()}
    aux_hidden_states = str(draft.config.aux_hidden_state_layer_ids)
    write_tensors(path, weights, {"model": fingerprint, "tap_layers": aux_hidden_states})


def load_draft(path: Path, target: Transformer, fingerprint: str) -> EagleDraft:
    """A draft of this target, in the target's dtype.

    Raises FileError for a file that is no draft, FingerprintError for another target's.
    """
    remedy = "train its own with `minispec train draft`"
    metadata = check_made_for(path, {"model": fingerprint}, remedy)
    listens, aux_hidden_states = (
        metadata.get("tap_layers"),
        str(target.config.aux_hidden_state_layer_ids),
    )
    if listens != aux_hidden_states:
        raise FingerprintError(
            f"{path} listens to layers {listens}, this model shows {aux_hidden_states}"
        )
    draft = build_draft(target)
    shapes = {name: tuple(value.shape) for name, value in draft.state_dict().items()}
    draft.load_state_dict(read_tensors(path, shapes))
    return draft.requires_grad_(False)
