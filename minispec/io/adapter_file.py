"""LoRA adapters on disk, with the fingerprints of the model and the draft they were trained for."""

import hashlib
from pathlib import Path

from minispec.io.files import (
    Fingerprints,
    check_fingerprints,
    list_weights,
    read_metadata,
    read_tensors,
    write_tensors,
)
from minispec.io.schema import Sha256
from minispec.learning import lora
from minispec.models.eagle_draft import EagleDraft


class _Metadata(Fingerprints, kw_only=True):
    draft: Sha256 | None = None


def save_adapters(path: Path, draft: EagleDraft, fingerprint: str) -> None:
    """Write the adapters of a draft, with the fingerprints of its target model and of itself."""
    metadata = {"model": fingerprint, "draft": _fingerprint(draft)}
    write_tensors(path, lora.get_adapter_state(draft), metadata)


def load_adapters(path: Path, draft: EagleDraft, fingerprint: str) -> None:
    """Read adapters into a draft that has some (see ``lora.add_adapters``).

    Raises FileError for other targets, another rank or a damaged file, FingerprintError for
    adapters of another model or another draft.
    """
    found = read_metadata(path, _Metadata)
    expected = {"model": fingerprint, "draft": _fingerprint(draft)}
    check_fingerprints(path, found, expected, "train adapters for this one")
    lora.set_adapter_state(draft, read_tensors(path, list_weights(lora.get_adapter_state(draft))))


def _fingerprint(draft: EagleDraft) -> str:
    """SHA-256 of the frozen weights in float32, the same with and without adapters."""
    digest = hashlib.sha256()
    weights = {n.replace(".base.", "."): p for n, p in draft.named_parameters()}
    for name in sorted(n for n in weights if n.endswith(".weight")):  # without A and B
        digest.update(name.encode())
        digest.update(weights[name].detach().float().contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()
