"""The configuration of a model from ``config.json`` and ``generation_config.json`` of its folder.

Settings are read as transformers reads them: with its defaults, and of two that disagree the one
that counts there. A setting of another value that would change what is computed is refused by name.

Knows nothing of weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec import Struct

from minispec.errors import ArgumentError, FileError
from minispec.io.schema import convert, read_json
from minispec.models.model_config import ModelConfig, default_aux_layer_ids
from minispec.tools.models.hf_families import FAMILIES
from minispec.tools.models.hf_rope import warn
from minispec.tools.models.hf_settings import Config, EndIds

_LARGEST = 2**22  # bytes; a configuration has a few thousand
_ARCHITECTURES = {family.architecture: kind for kind, family in FAMILIES.items()}
# Settings that may be null, unlike absent: without a window, and with keys of each head's own.
_NULLS = ("sliding_window", "num_key_value_heads")


class _Generation(Struct):
    """What is read of ``generation_config.json``."""

    eos_token_id: EndIds | None = None


@dataclass(frozen=True)
class FolderConfig:
    """What a folder says of its model: the configuration, whether it is a Gemma 3, and the ids that
    end an answer by any of the files."""

    model: ModelConfig
    is_gemma: bool
    eos_ids: tuple[int, ...]


def read_settings(folder: Path) -> dict[str, Any]:
    """All settings in ``config.json``. Raises FileError for code in the folder, which would have to
    be run to know the model."""
    path = folder / "config.json"
    settings = read_json(path, dict[str, Any], _LARGEST)
    if settings.get("auto_map"):
        raise FileError(
            f"{path}: auto_map names Python code in the folder, which is never run: if the library "
            f"has this model_type, {settings.get('model_type')!a}, of its own, remove auto_map"
        )
    return settings


def is_own_architecture(settings: Mapping[str, Any]) -> bool:
    """Whether settings name an architecture that is implemented here, even beside another."""
    named = _list_architectures(settings)
    kind = settings.get("model_type")
    if kind is None and not named:
        return True
    return kind in [*FAMILIES] or any(name in [*_ARCHITECTURES] for name in named)


def read_config(folder: Path) -> FolderConfig:
    """Read the configuration in a folder. Raises FileError by the names of the file's settings;
    warns of settings that disagree."""
    path, raw = folder / "config.json", read_settings(folder)
    data = {name: value for name, value in raw.items() if value is not None}
    kind = _find_kind(data, path)
    family = FAMILIES[kind]
    for name, wanted in family.only.items():
        if (value := data.get(name, wanted[0])) not in wanted:
            raise FileError(f"{path}: {name} {value!a} is not supported: must be {wanted[0]!a}")
    given = {name: None for name in _NULLS if raw.get(name, name) is None}
    try:
        config = convert(data | given, family.settings, str(path))
        model = ModelConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads or config.num_attention_heads,
            intermediate_size=config.intermediate_size,
            context_limit=config.max_position_embeddings,
            rms_norm_eps=config.rms_norm_eps,
            tie_word_embeddings=config.tie_word_embeddings,
            aux_hidden_state_layer_ids=default_aux_layer_ids(config.num_hidden_layers),
            **family.read(config, path),
        )
    except ArgumentError as error:
        raise FileError(f"{path}: {error}") from None
    return FolderConfig(model, kind == "gemma3_text", read_eos_ids(folder, config))


def _list_architectures(settings: Mapping[str, Any]) -> list[Any]:
    named = settings.get("architectures") or []
    return named if isinstance(named, list) else [named]


def _find_kind(data: Mapping[str, Any], path: Path) -> str:
    """The model type, by which transformers chooses the model; ``architectures``, by which vLLM
    does, must not contradict it."""
    names = _list_architectures(data)
    kinds = [_ARCHITECTURES.get(str(name)) for name in names]
    if (found := data.get("model_type")) is not None:
        names, kinds = [*names, found], [*kinds, found if found in [*FAMILIES] else None]
    if None in kinds or not kinds:
        wrong = names[kinds.index(None)] if kinds else None
        raise FileError(
            f"{path}: architecture {wrong!a} is not supported: must be one of "
            f"{', '.join(_ARCHITECTURES)}"
        )
    if len(set(kinds)) > 1:
        raise FileError(f"{path}: architectures and model_type disagree: {names!a}")
    return str(kinds[0])


def read_eos_ids(folder: Path, config: Config) -> tuple[int, ...]:
    """The ids that end an answer by either file."""
    path = folder / "generation_config.json"
    generation = read_json(path, _Generation, _LARGEST) if path.exists() else _Generation()
    ends: list[int] = []
    for found in (generation.eos_token_id, config.eos_token_id):
        ends += found if isinstance(found, list) else [] if found is None else [found]
    if unknown := [i for i in ends if i >= config.vocab_size]:
        warn(f"{folder}: eos_token_id {unknown[0]} is outside the model's {config.vocab_size} ids")
    return tuple(dict.fromkeys(i for i in ends if 0 <= i < config.vocab_size))
