"""Reads an EAGLE-3 draft of another project from a folder: SafeAILab's layout or speculators'.

The tensors are checked by their names and shapes, the vocabulary's map by its content (see
``eagle3_map``), before the draft is built. The folder's code, if it has any, is never run.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from minispec.errors import FileError, FingerprintError
from minispec.io.files import TensorSpec, check_layout, is_finite, open_safetensors, read_header
from minispec.models.eagle3_draft import Eagle3Draft, ReducedHead
from minispec.models.lm_head import PackedHead
from minispec.models.reference import Reference
from minispec.tokenizer import Tokenizer
from minispec.tools.models import eagle3_map
from minispec.tools.models.eagle3_config import Eagle3Config, read_config, with_query_key_norm

# The layer's parameters, and their names after "midlayer." (SafeAILab) or "layers.0."
# (speculators).
_LAYER_NAMES = {
    "embedding_norm": "input_layernorm",
    "state_norm": "hidden_norm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "attention.query_norm": "self_attn.q_norm",
    "attention.key_norm": "self_attn.k_norm",
    "mlp_norm": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}
LAYERS = ("midlayer.", "layers.0.")
_UNUSED = ("rotary_emb.", "midlayer.self_attn.rotary_emb.", "verifier_")  # some trainers save them
EXPORTED_FOR = "minispec_model"  # metadata: the fingerprint of the target, in exports of ours
_MAPS = ("d2t", "t2d")
_OWN = ("lm_head.weight", "embed_tokens.weight")


def load_folder(
    folder: Path, target: Reference, tokenizer: Tokenizer, fingerprint: str
) -> Eagle3Draft:
    """The draft in a folder, in the target's dtype and on its device. From now on the target
    outputs the auxiliary hidden states that this draft reads.

    Raises FileError for a folder that holds no such draft, FingerprintError for another target's;
    nothing of the target changes then.
    """
    if not (folder / "config.json").is_file():
        ours = folder / "draft.safetensors"
        advice = f"give {ours}" if ours.is_file() else "give a file made by `minispec train draft`"
        raise FileError(f"draft {folder} is a folder without an EAGLE-3 draft: {advice}")
    config = read_config(folder, target.config)
    tensors = _read_tensors(folder, fingerprint)
    if any("q_norm" in name for name in tensors):
        config = with_query_key_norm(config)
    head = _build_head(tensors, config, target, tokenizer, str(folder))
    draft = _build_draft(tensors, config, head, target, str(folder))
    layers = config.model.aux_hidden_state_layer_ids
    target.config = replace(target.config, aux_hidden_state_layer_ids=layers)
    return draft


def _read_tensors(folder: Path, fingerprint: str) -> dict[str, Tensor]:
    """The tensors of all files, without a prefix "model." that some have."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        found = next(iter(sorted(folder.glob("*.bin"))), None)
        what = f"only {found.name}, which is pickled" if found else "no .safetensors file"
        raise FileError(
            f"draft {folder} has {what}: save its tensors with safetensors.torch.save_file"
        )
    tensors: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for path in files:
            file = stack.enter_context(open_safetensors(path))
            theirs = (file.metadata() or {}).get(EXPORTED_FOR, fingerprint)
            if theirs != fingerprint:
                raise FingerprintError(
                    f"{path} was exported for model {theirs[:12]}, this one is {fingerprint[:12]}: "
                    "give the draft of this model"
                )
            for name in read_header(file, str(path)):
                short = name.removeprefix("model.")
                if not short.startswith(_UNUSED):
                    tensors[short] = _get(file, name, path)
    return tensors


def _get(file: Any, name: str, path: Path) -> Tensor:
    try:
        value: Tensor = file.get_tensor(name)
    except SafetensorError as error:
        raise FileError(f"{path} is damaged: {name}: {error}") from None
    if value.is_floating_point() and not is_finite(value):
        raise FileError(f"{path}: {name} contains NaN or infinity: the file is damaged")
    return value


def _build_head(
    tensors: Mapping[str, Tensor],
    config: Eagle3Config,
    target: Reference,
    tokenizer: Tokenizer,
    origin: str,
) -> ReducedHead | PackedHead:
    """The draft's own head, or the target's where the folder has none."""
    maps = {name: tensors[name] for name in _MAPS if name in tensors}
    size, rows = config.model.vocab_size, tensors.get("lm_head.weight")
    if rows is None:
        if maps:
            raise FileError(f"{origin} lacks the tensor lm_head.weight, which its {min(maps)} maps")
        if config.model.hidden_size != target.config.hidden_size:
            raise FileError(
                f"{origin} lacks the tensor lm_head.weight: the target's has another width"
            )
        return PackedHead(target.head.weight)
    if rows.dim() != 2 or rows.shape[1] != config.model.hidden_size:
        raise FileError(
            f"{origin}: lm_head.weight has shape {tuple(rows.shape)}, expected (any, "
            f"{config.model.hidden_size})"
        )
    count = config.draft_vocab_size or len(rows)
    if len(rows) != count:
        hint = ": the target's head was written over the draft's" if len(rows) == size else ""
        raise FileError(
            f"{origin}: lm_head has {len(rows)} rows, draft_vocab_size is {count}{hint}"
        )
    weight, device = target.embedding.weight, target.embedding.weight.device
    rows = rows.to(weight.dtype)
    if not maps:
        if count != size:
            raise FileError(
                f"{origin} has a head of {count} of {size} ids, and neither d2t nor t2d to say "
                "which: without a map they would be taken for the first ones"
            )
        return PackedHead(rows.to(device))
    ids = eagle3_map.read_map(maps, count, size, origin)
    eagle3_map.check_head(rows, ids, target.head.tensor.cpu(), origin)
    text = torch.tensor(tokenizer.encode(eagle3_map.ORDINARY_TEXT))
    eagle3_map.check_coverage(ids, text, origin)
    order = ids.argsort()
    return ReducedHead(rows[order].to(device), ids[order], size)


def _build_draft(
    tensors: Mapping[str, Tensor],
    config: Eagle3Config,
    head: ReducedHead | PackedHead,
    target: Reference,
    origin: str,
) -> Eagle3Draft:
    """The draft with the tensors of the folder. Raises FileError for other names and shapes,
    FingerprintError for those of a draft for another target."""
    width, weight = target.config.hidden_size, target.embedding.weight
    inputs = len(config.model.aux_hidden_state_layer_ids) * width
    reads = tensors["fc.weight"].shape[-1] if "fc.weight" in tensors else inputs
    if (config.target_hidden_size or width) != width or reads != inputs:
        raise FingerprintError(
            f"{origin}: fc reads {reads} numbers, the hidden states of this model's auxiliary "
            f"layers have {inputs}: the draft is for another target"
        )
    embedding = tensors.get("embed_tokens.weight", weight.detach())
    if embedding.shape != (config.model.vocab_size, config.model.hidden_size):
        raise FileError(
            f"{origin}: the embedding (its own or the target's) has shape "
            f"{tuple(embedding.shape)}, expected "
            f"{(config.model.vocab_size, config.model.hidden_size)}"
        )
    with torch.device("meta"):  # without memory: a damaged configuration could ask for any
        draft = Eagle3Draft(config.model, config.norms, embedding.to(weight), head, width)
    given = {name: value for name, value in tensors.items() if name not in (*_MAPS, *_OWN)}
    prefix = next((p for p in LAYERS if any(name.startswith(p) for name in given)), LAYERS[0])
    names = {own: name_in_file(own, prefix) for own in draft.state_dict()}
    layout = {
        names[own]: TensorSpec(tuple(value.shape)) for own, value in draft.state_dict().items()
    }
    header = {name: (tuple(value.shape), value.dtype) for name, value in given.items()}
    check_layout(header, layout, origin)
    state = {own: given[name].to(weight) for own, name in names.items()}
    draft.load_state_dict(state, assign=True)
    return draft.eval().requires_grad_(False)


def name_in_file(own: str, prefix: str) -> str:
    """The name in a folder of a parameter of ``EagleDraft``; ``prefix``: one of ``LAYERS``."""
    stem = own.removesuffix(".weight")
    if stem in _LAYER_NAMES:
        return f"{prefix}{_LAYER_NAMES[stem]}.weight"
    return "fc.weight" if stem == "fusion" else own
