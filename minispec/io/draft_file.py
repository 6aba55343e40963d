"""A draft's weights on disk, with the fingerprint of the target that they were trained for."""

from collections.abc import Collection
from pathlib import Path
from typing import Annotated

import torch
from msgspec import Meta

from minispec.errors import FileError, FingerprintError
from minispec.io.artifacts import find_artifact
from minispec.io.files import (
    Fingerprints,
    check_fingerprints,
    list_weights,
    open_safetensors,
    read_header,
    read_metadata,
    read_tensors,
    write_tensors,
)
from minispec.models.eagle_draft import EagleDraft, build_draft
from minispec.models.transformer import Transformer

_EAGLE3 = ("d2t", "t2d", "midlayer.", "fc.weight")  # names of EAGLE-3's tensors, and of EAGLE-1's


class _Metadata(Fingerprints, kw_only=True):
    # The layers of the auxiliary hidden states, as "(2, 14, 26)".
    tap_layers: Annotated[str, Meta(pattern=r"^\((\d{1,4}, ?)*\d{0,4}\)$")] = "()"


def find_draft(model: str) -> Path | None:
    """The draft that ships for a known model; None for any other."""
    return find_artifact(model, "draft")


def save_draft(path: Path, draft: EagleDraft, fingerprint: str) -> None:
    """Write a draft in bfloat16, with the fingerprint of its target. Raises FileError."""
    weights = {name: value.to(torch.bfloat16) for name, value in draft.state_dict().items()}
    layers = str(draft.config.aux_hidden_state_layer_ids)
    write_tensors(path, weights, {"model": fingerprint, "tap_layers": layers})


def load_draft(path: Path, target: Transformer, fingerprint: str) -> EagleDraft:
    """Read a draft of this target, in the target's dtype.

    Raises FileError for a file that is not a draft, FingerprintError for another target's.
    """
    remedy = "train its own with `minispec train draft`"
    with open_safetensors(path) as file:
        names = read_header(file, str(path)).keys()
    if kind := name_foreign_draft(names):
        raise FileError(
            f"{path} is {kind}, which minispec cannot load: give a file made by `minispec train "
            "draft`"
        )
    found = read_metadata(path, _Metadata)
    check_fingerprints(path, found, {"model": fingerprint}, remedy)
    exported = str(target.config.aux_hidden_state_layer_ids)
    if found.tap_layers != exported:
        raise FingerprintError(
            f"{path} was trained on hidden states of layers {found.tap_layers.strip('(),')}, "
            f"but this model exports {exported.strip('(),')}"
        )
    draft = build_draft(target)
    draft.load_state_dict(read_tensors(path, list_weights(draft.state_dict())))
    return draft.requires_grad_(False)


def name_foreign_draft(names: Collection[str]) -> str | None:
    """What a file with tensors of these names is, if it holds a draft of another project's."""
    if not any(name.startswith(_EAGLE3) for name in names):
        return None
    if "d2t" in names or "t2d" in names:
        return "an EAGLE-3 draft with a vocabulary of its own (d2t, t2d)"
    return "an EAGLE draft of another project"
