"""Writes a draft as an EAGLE-3 draft with a static draft vocabulary, in two layouts.

"eagle3" is SafeAILab's, which SGLang and vLLM read; "speculators" that of the package of this name,
which vLLM serves together with its target. The layer of ``eagle_draft`` is EAGLE-3's, so nothing is
converted: the head's rows are the target's, of the ids of the shortlist. What the layouts have no
name for, such as a Gemma 3's norms after attention and MLP, is refused.

Knows nothing of how the shortlist was chosen.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minispec.errors import ArgumentError
from minispec.io.files import write_json, write_tensors
from minispec.models.eagle3_draft import Eagle3Draft
from minispec.models.eagle_draft import EagleDraft
from minispec.models.model_config import ModelConfig
from minispec.models.quantized_modules import is_quantized
from minispec.models.rope import RopeScaling
from minispec.tools.models.eagle3_folder import EXPORTED_FOR, LAYERS, name_in_file

LAYOUTS = ("eagle3", "speculators")
_NUM_AUX = 3  # the engines take no other number of auxiliary layers
_TOKENS = 4  # drafted in a round, unless the engine is asked for another number


def export_draft(
    draft: EagleDraft,
    ids: Tensor,
    folder: Path,
    *,
    fingerprint: str,
    layout: str = "eagle3",
    verifier: str | None = None,
) -> None:
    """Write ``config.json`` and ``model.safetensors`` of a draft with the ids (K,), sorted, as its
    vocabulary, in the draft's dtype. ``fingerprint`` is of the draft's target; ``verifier``: the
    name or folder of the target, which the layout "speculators" needs.

    Raises ArgumentError for a draft that the layout cannot hold, before anything is written, and
    FileError.
    """
    check_exportable(draft)
    if layout not in LAYOUTS:
        raise ArgumentError(f"unknown layout {layout!r}: choose from {', '.join(LAYOUTS)}")
    if (layout == "speculators") != (verifier is not None):
        raise ArgumentError(
            f"layout {layout} has no place for a verifier: leave it out"
            if verifier
            else f"layout {layout} names its target: give the name or folder that the engine knows "
            "it by as the verifier (--verifier NAME)"
        )
    config, dtype = draft.config, str(draft.fusion.weight.dtype).removeprefix("torch.")
    layer = _describe_layer(config) | {"torch_dtype": dtype}
    if verifier is None:
        settings = _describe_eagle3(config, layer, len(ids))
        prefix = LAYERS[0]
    else:
        settings = _describe_speculators(config, layer, len(ids), verifier)
        prefix = LAYERS[1]
    write_json(folder / "config.json", settings)
    state = {name_in_file(own, prefix): value for own, value in draft.state_dict().items()}
    head = {"lm_head.weight": draft.head.weight[ids.to(draft.head.weight.device)]}
    tensors = state | head | _build_map(ids, config.vocab_size)
    # The weights come last, so that a folder with weights is complete.
    write_tensors(
        folder / "model.safetensors", tensors, {"format": "pt", EXPORTED_FOR: fingerprint}
    )


def check_exportable(draft: Any) -> None:
    """Raises ArgumentError for a draft that EAGLE-3's layouts cannot hold."""
    if not isinstance(draft, EagleDraft) or isinstance(draft, Eagle3Draft):
        raise ArgumentError(
            "only a draft made by `minispec train draft` is exported: an imported EAGLE-3 draft "
            "has its layout already"
        )
    if is_quantized(draft):
        raise ArgumentError("a quantised draft is not exported: use --dtype float32 or bfloat16")
    if draft.norms:
        raise ArgumentError(
            "a draft with EAGLE-3.1's norms is not exported: give one trained without --norms"
        )
    config = draft.config
    if differing := config.beyond_llama:
        raise ArgumentError(
            f"EAGLE-3's layouts hold a Llama's layer, and this draft differs in "
            f"{', '.join(differing)}: engines could not run it"
        )
    if len(config.aux_hidden_state_layer_ids) != _NUM_AUX:
        raise ArgumentError(
            f"EAGLE-3's layouts hold {_NUM_AUX} auxiliary layers, this draft reads "
            f"{len(config.aux_hidden_state_layer_ids)}: engines could not run it"
        )
    _describe_rope(config)


def _describe_layer(config: ModelConfig) -> dict[str, Any]:
    """The settings of the layer, as of a Llama of one layer."""
    return {
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": 1,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.rms_norm_eps,
        "max_position_embeddings": config.context_limit,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "rope_theta": config.rope_theta,
        **_describe_rope(config),
    }


def _describe_rope(config: ModelConfig) -> dict[str, Any]:
    """``rope_scaling``, if there is any. Raises ArgumentError for one that has no name there."""
    scaling = config.rope_scaling
    if scaling is None:
        return {}
    if isinstance(scaling, RopeScaling):
        found = {"rope_type": "llama3", **vars(scaling)}
    elif len(scaling.factors) == 1:
        found = {"rope_type": "linear", "factor": scaling.factors[0]}
    else:
        raise ArgumentError(
            "this draft's rotary frequencies have a factor each, as in GGUF files, for which "
            "config.json has no name: export it for the model in a Hugging Face folder"
        )
    return {"rope_scaling": found}


def _describe_eagle3(config: ModelConfig, layer: Mapping[str, Any], size: int) -> dict[str, Any]:
    layers = [*config.aux_hidden_state_layer_ids]
    return {
        "architectures": ["LlamaForCausalLMEagle3"],
        **layer,
        "draft_vocab_size": size,
        "eagle_aux_hidden_state_layer_ids": layers,  # vLLM's: outputs of layers counted from 1
        "eagle_config": {  # SGLang's: counted from 0
            "eagle_aux_hidden_state_layer_ids": [i - 1 for i in layers],
            "use_aux_hidden_state": True,
        },
    }


def _describe_speculators(
    config: ModelConfig, layer: Mapping[str, Any], size: int, verifier: str
) -> dict[str, Any]:
    return {
        "architectures": ["Eagle3Speculator"],
        "speculators_model_type": "eagle3",
        "speculators_config": {
            "algorithm": "eagle3",
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": _TOKENS}],
            "default_proposal_method": "greedy",
            "verifier": {"name_or_path": verifier, "architectures": ["LlamaForCausalLM"]},
        },
        "transformer_layer_config": dict(layer),
        "draft_vocab_size": size,
        "norm_before_residual": False,
        "eagle_aux_hidden_state_layer_ids": [*config.aux_hidden_state_layer_ids],
        "tie_word_embeddings": False,
        "torch_dtype": layer["torch_dtype"],
    }


def _build_map(ids: Tensor, vocab_size: int) -> dict[str, Tensor]:
    """``d2t`` (K,) int64 as offsets and ``t2d`` (V,) bool; nothing for the whole vocabulary."""
    if len(ids) == vocab_size:
        return {}
    mask = torch.zeros(vocab_size, dtype=torch.bool)
    mask[ids] = True
    return {"d2t": ids - torch.arange(len(ids)), "t2d": mask}
