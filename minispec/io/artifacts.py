"""Artifacts: what ships for a known model, one folder a model.

    minispec/artifacts/MODEL/draft.safetensors         a trained draft
                             index.safetensors         clusters of the LM head's rows
                             router.safetensors        such clusters with a router to them
                             rankings/NAME.safetensors token ids in order of frequency

Knows nothing of what is in these files.
"""

from importlib import resources
from pathlib import Path

from platformdirs import user_cache_path


def cache_folder() -> Path:
    """The user's cache folder, where fetched models are kept."""
    return user_cache_path("minispec")


def find_artifact(model: str, name: str) -> Path | None:
    """The file of artifact ``name`` ("draft", "index", "router", "rankings/general") that ships
    for a known model; None if there is none."""
    if Path(model).name != model or ".." in Path(name).parts:
        return None  # a path, not a name
    path = Path(str(resources.files("minispec"))) / "artifacts" / model / f"{name}.safetensors"
    return path if path.is_file() else None
