"""A draft's weights on disk, with the fingerprint of the target that they were trained for."""

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Literal

import torch
from msgspec import Meta, field

from minispec.errors import FileError, FingerprintError
from minispec.io.artifacts import find_artifact
from minispec.io.files import (
    Fingerprints,
    check_fingerprints,
    list_weights,
    name_format,
    open_safetensors,
    read_header,
    read_metadata,
    read_tensors,
    write_tensors,
)
from minispec.models.eagle_draft import EagleDraft, build_draft
from minispec.models.reference import Reference

_EAGLE3 = ("d2t", "t2d", "midlayer.", "fc.weight")  # names of EAGLE-3's tensors, and of EAGLE-1's


_LAYERS = "tap_layers"  # metadata: the layers of the auxiliary hidden states, as "(2, 14, 26)"
_Layers = Annotated[str, Meta(pattern=r"^\((\d{1,4}, ?)*\d{0,4}\)$")]


class _Metadata(Fingerprints, kw_only=True):
    layers: _Layers = field(name=_LAYERS, default="()")
    norms: Literal["eagle3.1"] | None = None  # the norms that a draft has beside those of EAGLE-3


def find_draft(model: str) -> Path | None:
    """The draft that ships for a known model; None for any other."""
    return find_artifact(model, "draft")


def save_draft(path: Path, draft: EagleDraft, fingerprint: str) -> None:
    """Write a draft in bfloat16, with the fingerprint of its target. Raises FileError."""
    weights = {name: value.to(torch.bfloat16) for name, value in draft.state_dict().items()}
    layers = str(draft.config.aux_hidden_state_layer_ids)
    norms = {"norms": "eagle3.1"} if draft.norms else {}
    write_tensors(path, weights, {"model": fingerprint, _LAYERS: layers, **norms})


def load_draft(path: Path, target: Reference, fingerprint: str) -> EagleDraft:
    """Read a draft of this target, in the target's dtype.

    Raises FileError for a file that is not a draft, FingerprintError for another target's.
    """
    remedy = "train its own with `minispec train draft`"
    if (kind := name_format(path)) is None:
        with open_safetensors(path) as file:
            kind = name_foreign_draft(read_header(file, str(path)))
    if kind:
        raise FileError(
            f"{path} is {kind}, which cannot be used as a draft: give a file made by `minispec "
            "train draft`, or of an EAGLE-3 draft its folder"
        )
    found = read_metadata(path, _Metadata)
    check_fingerprints(path, found, {"model": fingerprint}, remedy)
    exported = str(target.config.aux_hidden_state_layer_ids)
    if found.layers != exported:
        raise FingerprintError(
            f"{path} was trained on hidden states of layers {found.layers.strip('(),')}, "
            f"but this model exports {exported.strip('(),')}"
        )
    draft = build_draft(target, norms=found.norms is not None)
    layout = list_weights(draft.state_dict(), torch.bfloat16)  # as ``save_draft`` writes them
    draft.load_state_dict(read_tensors(path, layout))
    return draft.requires_grad_(False)


def name_foreign_draft(names: Collection[str]) -> str | None:
    """What a file with tensors of these names is, if it holds a draft of another project's."""
    if not any(name.startswith(_EAGLE3) for name in names):
        return None
    if "d2t" in names or "t2d" in names:
        return "an EAGLE-3 draft with a vocabulary of its own (d2t, t2d)"
    return "an EAGLE draft of another project"
