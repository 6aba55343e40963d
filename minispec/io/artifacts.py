"""Artifacts: the files that ship for a known model, in one folder per model.

    minispec/artifacts/MODEL/draft.safetensors         a trained draft
                             index.safetensors         clusters of the LM head's rows
                             router.safetensors        clusters with a router
                             rankings/NAME.safetensors token ids in order of frequency

Knows nothing of what is in these files.
"""

from importlib import resources
from pathlib import Path

from platformdirs import user_cache_path

from minispec.errors import FileError


def cache_folder() -> Path:
    """The user's cache folder, for fetched models and measurements. Raises FileError for a user
    without a home."""
    try:
        return user_cache_path("minispec")
    except (RuntimeError, KeyError):
        raise FileError(
            "no home folder was found for fetched models: set HOME, or XDG_CACHE_HOME to a folder"
        ) from None


def find_artifact(model: str, name: str) -> Path | None:
    """The path of an artifact ("draft", "index", "router", "rankings/general") of a known model;
    None if there is none."""
    if Path(model).name != model or ".." in Path(name).parts:
        return None  # a path, not the name of a model
    path = Path(str(resources.files("minispec"))) / "artifacts" / model / f"{name}.safetensors"
    return path if path.is_file() else None
