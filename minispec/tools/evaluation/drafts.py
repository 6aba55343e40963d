"""The draft that a model decodes with: the one that ships for it, a file, or a part of one's own.

Knows nothing of how it is used.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from minispec.errors import ArgumentError, FileError
from minispec.io import draft_file
from minispec.tools.evaluation import plugins
from minispec.tools.models import known_models
from minispec.tools.models.pretrained import Pretrained
from minispec.types import Draft

# A file, the folder of an EAGLE-3 draft, ``MODULE:CLASS``, or a draft of one's own: an instance, a
# class or a factory.
DraftLike = str | Path | Draft | Callable[..., Draft]


def find_draft(model: str, draft: Any) -> Any:
    """The draft that ``draft`` stands for in ``load``: the path of a file or folder that exists, a
    part of one's own, or None. Raises ArgumentError, FileError."""
    if draft is False:
        return None
    if draft is None:
        is_known = model in (known_models.POCKET, *known_models.SOURCES)
        return draft_file.find_draft(model) if is_known else None
    if not isinstance(draft, str | Path):
        plugins.check_part("draft", draft, plugins.name_of(draft))
        return draft
    path = Path(draft)
    if not path.exists() and plugins.is_import_path(str(draft)):
        part = plugins.import_part(str(draft))
        plugins.check_part("draft", part, str(draft))
        return part
    if not path.exists():
        raise FileError(f"draft {path} does not exist: give a file made by `minispec train draft`")
    return path


def build_own_draft(part: Any, model: Pretrained) -> Draft:
    """A draft of one's own for a model, from an instance, a class or a factory. Raises
    ArgumentError for a head of another vocabulary."""
    inputs: dict[str, Callable[[], Any]] = {
        "target": lambda: model.target,
        "tokenizer": lambda: model.tokenizer,
        "model": lambda: model,
    }
    built: Draft = plugins.build_part("draft", part, inputs, plugins.name_of(part))
    if built.head.vocab_size != model.target.head.vocab_size:
        raise ArgumentError(
            f"draft {plugins.name_of(part)} has a head of {built.head.vocab_size} ids, the target "
            f"one of {model.target.head.vocab_size}: use the target's"
        )
    return built
