"""Models that transformers runs: one that is loaded, or a folder whose architecture is not ours.

Code in a folder is never run, pickled weights are never read, and a folder whose weights are not
exactly those of its class is refused. transformers is imported here and in what this file imports,
and by nothing else.

Knows nothing of what a model is used for.
"""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from minispec.checks import check_parts
from minispec.errors import ArgumentError, FileError, MinispecError
from minispec.io.files import is_finite
from minispec.text.tokenizer import TableTokenizer
from minispec.tokenizer import Tokenizer
from minispec.tools.models.hf_folder import fit_tokenizer
from minispec.tools.models.tokenizer_folder import read_tokenizer
from minispec.tools.models.wrapped_checks import wrap
from minispec.tools.models.wrapped_target import WrappedTarget


def wrap_loaded(model: Any, tokenizer: Any) -> tuple[WrappedTarget, Tokenizer]:
    """A loaded model, as it is, with its tokenizer: one of transformers, or a ``Tokenizer``, which
    is taken as it is too. Raises ArgumentError, and FileError for one that is not supported."""
    if not isinstance(model, PreTrainedModel):
        raise ArgumentError(
            f"the model is a {type(model).__name__}: give a name, a path, or a PreTrainedModel "
            "(of peft: merge_and_unload())"
        )
    if not hasattr(tokenizer, "save_pretrained"):
        check_parts(tokenizer=tokenizer)
        return wrap(model), tokenizer
    converted, target = _convert_tokenizer(tokenizer), wrap(model)
    fit_tokenizer(converted, target.head.vocab_size, _list_eos_ids(model), type(model).__name__)
    return target, converted


def load_folder(
    folder: Path, settings: Mapping[str, Any], dtype: torch.dtype
) -> tuple[WrappedTarget, Tokenizer]:
    """The model in a folder, of which ``settings`` is config.json, and its tokenizer. Raises
    FileError for one that is not a causal language model of transformers, that is damaged, or that
    cannot be a target, with the reason."""
    kind, path = settings.get("model_type"), folder / "config.json"
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind) if isinstance(kind, str) else None
    named = settings.get("architectures") or [known]
    if known is None or named != [known]:
        raise FileError(
            f"{path}: architecture {named!a} of model_type {kind!a} is neither one of minispec's "
            f"nor a causal language model of transformers {transformers.__version__}"
        )
    tokenizer = read_tokenizer(folder)
    with _report_failure(folder):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True, use_safetensors=True,
            dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
    model, report = loaded
    model.eval().requires_grad_(False)
    for problem in ("missing_keys", "mismatched_keys", "unexpected_keys", "error_msgs"):
        if found := sorted(map(str, report.get(problem) or ())):
            raise FileError(
                f"{folder}: {len(found)} {problem.replace('_', ' ')} for {known}, {found[0]} first"
            )
    for name, weight in model.named_parameters():
        if not is_finite(weight):
            raise FileError(f"{folder}: {name} contains NaN or infinity: the file is damaged")
    try:
        target = wrap(model)
    except ArgumentError as error:
        raise FileError(f"{folder}: {error}") from None
    fit_tokenizer(tokenizer, target.head.vocab_size, _list_eos_ids(model), str(folder))
    return target, tokenizer


@contextmanager
def _report_failure(folder: Path) -> Iterator[None]:
    """Turns whatever transformers raises into a FileError of one line; its notes and progress bars
    are not shown."""
    level, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except MinispecError:
        raise
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FileError(f"{folder}: transformers cannot load it: {first}") from None
    finally:
        logging.set_verbosity(level)
        if has_bars:
            logging.enable_progress_bar()


def _convert_tokenizer(tokenizer: Any) -> TableTokenizer:
    """A tokenizer of transformers, through the files that it saves."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            tokenizer.save_pretrained(folder)
            return read_tokenizer(Path(folder))
        except FileError as error:
            text = str(error).replace(folder, "its files")
            raise FileError(f"{type(tokenizer).__name__} is not supported: {text}") from None


def _list_eos_ids(model: PreTrainedModel) -> tuple[int, ...]:
    """The ids that end an answer, by the configuration of the model or of its generation."""
    found = list[int]()
    for config in (model.generation_config, model.config):
        ids = getattr(config, "eos_token_id", None)
        found += ids if isinstance(ids, list) else [] if ids is None else [ids]
    rows = len(model.get_output_embeddings().weight)
    return tuple(dict.fromkeys(i for i in found if 0 <= i < rows))
