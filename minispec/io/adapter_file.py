"""LoRA adapters on disk, with the fingerprints of the model and the draft that they belong to."""

import hashlib
from pathlib import Path

from minispec.errors import FileError, FingerprintError
from minispec.io.files import read_metadata, read_tensors, write_tensors
from minispec.learning import lora
from minispec.models.eagle_draft import EagleDraft


def save_adapters(path: Path, draft: EagleDraft, fingerprint: str) -> None:
    """Writes the adapters with the fingerprints of their target model and of their draft."""
    write_tensors(path, lora.state(draft), {"model": fingerprint, "draft": _fingerprint(draft)})


def load_adapters(path: Path, draft: EagleDraft, fingerprint: str) -> None:
    """Reads adapters into an adapted draft.

    Raises FileError for other targets, another rank or a damaged file, FingerprintError for
    adapters of another model or another draft.
    """
    metadata = read_metadata(path)
    expected = {"model": fingerprint, "draft": _fingerprint(draft)}
    for kind, wanted in expected.items():
        if kind not in metadata:
            raise FileError(f"{path} is no adapter: it names no {kind} that it was made for")
        if metadata[kind] != wanted:
            raise FingerprintError(
                f"{path} was made for {kind} {metadata[kind][:12]}, this one is {wanted[:12]}"
            )
    shapes = {name: tuple(value.shape) for name, value in lora.state(draft).items()}
    lora.restore(draft, read_tensors(path, shapes))


def _fingerprint(draft: EagleDraft) -> str:
    """SHA-256 over the frozen weights in float32, whether adapted or not."""
    digest = hashlib.sha256()
    weights = {n.replace(".base.", "."): p for n, p in draft.named_parameters()}
    for name in sorted(n for n in weights if n.endswith(".weight")):  # not A and U
        digest.update(name.encode())
        digest.update(weights[name].detach().float().contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()
