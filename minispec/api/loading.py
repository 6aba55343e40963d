"""Loading a model to generate text with, and its draft: what ``minispec.load`` does.

Knows nothing of how text is generated.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from minispec.api.model import Model
from minispec.checks import to_flag, to_path
from minispec.errors import ArgumentError, FileError
from minispec.io import draft_file
from minispec.tools.evaluation import plugins
from minispec.tools.models import backend as backends
from minispec.tools.models import known_models, pretrained
from minispec.tools.models.pretrained import Pretrained
from minispec.tools.models.threads import set_threads
from minispec.types import Draft

# A file, ``MODULE:CLASS``, or a draft of one's own: an instance, a class or a factory.
DraftLike = str | Path | Draft | Callable[..., Draft]


def load(
    name: str | Path | Any = "smollm2",
    *,
    tokenizer: Any = None,
    dtype: str | None = None,
    backend: str = "auto",
    device: str | None = None,
    draft: DraftLike | Literal[False] | None = None,
    index: str | Path | None = None,
    threads: int | None = None,
    measure_backends: bool = False,
    adapt: bool = False,
) -> Model:
    """Loads a model with its draft.

    ``name``: "pocket", which ships with the package, "smollm2" or "gemma3-270m" (after ``minispec
    fetch NAME``), a folder in Hugging Face layout, a GGUF file, or a loaded PreTrainedModel of
    transformers, which is used as it is, with its ``tokenizer``. Llama, Mistral, Qwen 2, Qwen 3,
    SmolLM3 and Gemma 3 have an implementation of minispec's, other folders that of transformers
    (docs/your-model.md). ``dtype``: "float32" (None), "bfloat16", "float64" or "int8".
    ``backend``: "reference", "cpu", "compiled" or "cuda"; "auto" takes the fastest that was
    measured before (by ``minispec doctor``, or now with ``measure_backends``), else the reference,
    and with ``adapt`` one on which a draft can learn. ``device``: where the reference runs, "cpu"
    (None), "cuda" or "mps". ``draft``: None for the draft that ships for the model, a file made by
    ``minispec train draft``, the folder of an EAGLE-3 draft, False for none, or a draft of one's
    own as an instance, a class, a factory or "MODULE:CLASS"; a class is called with the values of
    the parameters that it names, from ``target``, ``tokenizer`` and ``model``. ``index``: a file
    made by ``minispec index build``, None for the one that ships. ``threads``: torch's threads, for
    the whole process.

    Raises ArgumentError, FileError, FingerprintError.
    """
    set_threads(threads)
    adapt = to_flag(adapt, "adapt")
    is_loaded = hasattr(name, "get_output_embeddings")
    own = find_draft("" if is_loaded else str(to_path(name, "the model")), draft)
    if is_loaded:
        loaded = _wrap_loaded(name, tokenizer, dtype, device)
    elif tokenizer is not None:
        raise ArgumentError(f"model {name} has a tokenizer of its own: leave tokenizer out")
    else:  # torch's own dtypes and devices may be given
        dtype = str(dtype or "float32").removeprefix("torch.")
        loaded = pretrained.load(str(name), dtype, str(device or "cpu"))
    loaded = replace(loaded, index=None if index is None else to_path(index, "index"))
    eagle = None
    if isinstance(own, Path):
        eagle = pretrained.load_draft(own, loaded)
    loaded, placed = backends.place_on_backend(loaded, eagle, backend, measure_backends, adapt)
    if own is not None and not isinstance(own, Path):
        placed = _build_own_draft(own, loaded)
    return Model(loaded, placed)


def _wrap_loaded(model: Any, tokenizer: Any, dtype: Any, device: Any) -> Pretrained:
    if dtype is not None or device is not None:
        raise ArgumentError(
            "dtype and device of a loaded model are its own: use model.to(...) before, and leave "
            "them out"
        )
    if tokenizer is None:
        raise ArgumentError(f"a loaded {type(model).__name__} needs its tokenizer: tokenizer=...")
    return pretrained.wrap(model, tokenizer)


def find_draft(model: str, draft: Any) -> Any:
    """The draft that ``draft`` stands for in ``load``: the path of a file that exists, a part of
    one's own, or None. Raises ArgumentError, FileError."""
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


def _build_own_draft(part: Any, model: Pretrained) -> Draft:
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
