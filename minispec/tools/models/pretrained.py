"""Pretrained models: loaded by name, from a GGUF file or from a Hugging Face folder, in a dtype
and on a device; or one of transformers that is loaded already.

Knows nothing of what a model is used for.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minispec.errors import ArgumentError, FileError
from minispec.io import draft_file
from minispec.models.eagle_draft import EagleDraft
from minispec.models.int8 import round_rows
from minispec.models.quantized_modules import is_quantized
from minispec.models.reference import Reference
from minispec.models.transformer import Transformer
from minispec.tokenizer import Tokenizer
from minispec.tools.extras import check_extra
from minispec.tools.models import eagle3_folder, gguf_file, hf_config, hf_folder, known_models
from minispec.types import Target

DTYPES = ("float64", "float32", "bfloat16", "int8", "gguf")
DEVICES = ("cpu", "cuda", "mps")


@dataclass(frozen=True, eq=False)
class Pretrained:
    """A model ready to run.

    ``name``: as given to ``load``; ``reference``: its weights in the reference implementation, or
    in that of transformers;
    ``target``: the target that decodes, the reference itself or a backend's; ``fingerprint``: of
    its LM head's rows in float32, whatever ``dtype`` it runs in; ``device``: where the reference's
    weights are; ``index``: a file with clusters of the head rows, None for the one that ships;
    ``draft_ids`` (K,): the ids that the draft's head has, sorted, None for all.
    """

    name: str
    reference: Reference
    target: Target
    tokenizer: Tokenizer
    fingerprint: str
    dtype: str = "float32"
    backend: str = "reference"
    index: Path | None = None
    device: str = "cpu"
    draft_ids: Tensor | None = None

    @property
    def implementation(self) -> str:
        """What runs the model: "minispec", or a class of transformers."""
        return getattr(self.reference, "implementation", "minispec")


def load(name: str, dtype: Any = None, device: Any = None) -> Pretrained:
    """A model by name (fetched before), or from the path of a GGUF file or of a folder of
    safetensors in Hugging Face layout, of an architecture of ``hf_families`` or, with the extra
    "transformers", of that library; ``dtype`` is one of ``DTYPES`` (None: "float32"), ``device`` of
    ``DEVICES`` (None: "cpu"); torch's own may be given. A draft that ``load_draft`` reads for it
    is placed on the same device.

    Raises ArgumentError for an unknown name, or a device or dtype that this machine does not have,
    FileError for files that hold no such model.
    """
    dtype, device = str(dtype or "float32").removeprefix("torch."), str(device or "cpu")
    if dtype not in DTYPES:
        raise ArgumentError(f"unknown dtype {dtype!r}: choose from {', '.join(DTYPES)}")
    check_device(device, dtype)
    tokenizer: Tokenizer
    if name == known_models.POCKET:
        target, tokenizer = hf_folder.load(known_models.model_path(name))
    elif name in known_models.SOURCES:
        path = known_models.model_path(name)
        if not path.exists():
            command = f"minispec fetch {name}"
            if known_models.SOURCES[name].terms:
                command += " --accept-licence"
            raise FileError(f"model {name} is not downloaded yet: run `{command}`")
        target, tokenizer = gguf_file.load(path, dtype == "gguf")
    elif Path(name).is_dir():
        settings = hf_config.read_settings(Path(name))
        if not hf_config.is_own_architecture(settings):
            return _load_by_transformers(name, settings, dtype, device)
        target, tokenizer = hf_folder.load(Path(name))
    elif Path(name).is_file():
        target, tokenizer = gguf_file.load(Path(name), dtype == "gguf")
    else:
        names = ", ".join((known_models.POCKET, *known_models.SOURCES))
        raise ArgumentError(
            f"unknown model {name!r}: give {names}, a .gguf file or a folder of safetensors"
        )
    if dtype == "gguf" and not is_quantized(target):
        raise ArgumentError(
            f"dtype gguf multiplies the blocks of a GGUF file as they are, and {name} is a folder "
            "of safetensors: use float32, bfloat16 or int8"
        )
    fingerprint = target.head.fingerprint()
    target = _convert(target, dtype).to(device)
    return Pretrained(name, target, target, tokenizer, fingerprint, dtype, device=device)


def load_draft(path: Path, model: Pretrained) -> EagleDraft:
    """The draft in a file made by ``minispec train draft``, or in the folder of an EAGLE-3 draft,
    whose auxiliary hidden states the model then outputs. Raises as ``draft_file.load_draft`` and
    ``eagle3_folder.load_folder``."""
    target, fingerprint = model.reference, model.fingerprint
    if path.is_dir():
        return eagle3_folder.load_folder(path, target, model.tokenizer, fingerprint)
    return draft_file.load_draft(path, target, fingerprint)


def _load_by_transformers(
    name: str, settings: dict[str, Any], dtype: str, device: str
) -> Pretrained:
    check_extra("transformers", "transformers")
    from minispec.tools.models import wrapped_model

    if dtype in ("int8", "gguf"):
        raise ArgumentError(f"dtype {dtype} needs an implementation of minispec's, {name} has none")
    target, tokenizer = wrapped_model.load_folder(Path(name), settings, torch.float32)
    fingerprint = target.head.fingerprint()
    if dtype != "float32":  # read again: a model that is cast has its angles of rotation cast too
        found = wrapped_model.load_folder(Path(name), settings, getattr(torch, dtype))
        target, tokenizer = found
    target = target.to(device)
    return Pretrained(name, target, target, tokenizer, fingerprint, dtype, device=device)


def wrap(model: Any, tokenizer: Any, dtype: Any = None, device: Any = None) -> Pretrained:
    """A loaded PreTrainedModel of transformers and its tokenizer, in the model's own dtype and on
    its own device; see ``wrapped_model.wrap_loaded``. Raises ArgumentError, FileError."""
    if dtype is not None or device is not None:
        raise ArgumentError(
            "dtype and device of a loaded model are its own: use model.to(...) before, and leave "
            "them out"
        )
    if tokenizer is None:
        raise ArgumentError(f"a loaded {type(model).__name__} needs its tokenizer: tokenizer=...")
    check_extra("transformers", "transformers")
    from minispec.tools.models import wrapped_model

    target, tokenizer = wrapped_model.wrap_loaded(model, tokenizer)
    weight, fingerprint = target.head.weight, target.head.fingerprint()
    dtype, place = str(weight.dtype).removeprefix("torch."), weight.device.type
    check_device(place, dtype)
    name = type(model).__name__
    return Pretrained(name, target, target, tokenizer, fingerprint, dtype, device=place)


def check_device(device: str, dtype: str = "float32") -> None:
    """Raises ArgumentError unless this machine and its PyTorch can run ``dtype`` on a device."""
    if device not in DEVICES:
        raise ArgumentError(f"unknown device {device!r}: choose from {', '.join(DEVICES)}")
    reason = None
    if device == "cuda" and not torch.cuda.is_available():
        built = torch.backends.cuda.is_built()
        reason = "no CUDA device was found" if built else "this PyTorch build has no CUDA"
    if device == "mps" and not torch.backends.mps.is_available():
        built = torch.backends.mps.is_built()
        reason = "no Apple GPU was found" if built else "this PyTorch build has no MPS"
    if reason:
        raise ArgumentError(f"device {device} is not available: {reason}; use --device cpu")
    if device != "cpu" and dtype == "gguf":
        raise ArgumentError("dtype gguf runs on the CPU alone: use --device cpu or another --dtype")
    if device == "mps" and dtype == "float64":
        raise ArgumentError("device mps has no float64: use --dtype float32 or --device cpu")


def _convert(model: Transformer, dtype: str) -> Transformer:
    """The model in a dtype; "int8" rounds the rows of its matrices and keeps them in float32."""
    if dtype == "gguf":
        return model
    if dtype != "int8":
        return model.to(getattr(torch, dtype))
    for weight in model.parameters():
        if weight.dim() == 2:
            weight.data = round_rows(weight.data)
    model.config = replace(model.config, int8_rows=True)
    return model
