"""Which models of transformers can be targets: refused by name, and then tried.

A model is refused by what it says of itself (recurrent layers, an encoder, quantised weights), and
accepted only after a few passes over a dozen ids: its logits must be those of its LM head over its
hidden states, and passes in chunks and after a rollback must equal those of a fresh pass, passes
over a tree those over its paths. So a model that is not known here is run rightly or not at all.

Knows nothing of files and of text.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from minispec.errors import ArgumentError
from minispec.models.lm_head import LinearHead
from minispec.models.model_config import ModelConfig, default_aux_layer_ids
from minispec.tools.models.wrapped_cache import LayerShape
from minispec.tools.models.wrapped_target import (
    WrappedParts,
    WrappedTarget,
    find_cache_name,
)

# Rounding, relative to the largest number; some models compute a part in float32 in any dtype.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.1}
_KINDS = ("full_attention", "sliding_attention")
_FIXED_ROPES = ("default", "linear", "llama3", "yarn")  # the same angles for every length of text
_PROBE = 12  # ids, at most
_CONTEXTS = ("max_position_embeddings", "max_seq_len", "seq_length")


def wrap(model: PreTrainedModel) -> WrappedTarget:
    """A loaded model as a target, in its own dtype and on its own device. Raises ArgumentError for
    one that cannot be, with the reason."""
    _check_kind(model)
    with _report_failure(model, "its configuration is not that of a language model of text alone"):
        head = _find_head(model)
        config = _build_config(model, head)
    ids = torch.arange(1, min(_PROBE, config.context_limit) + 1) * 7919 % head.vocab_size
    with _report_failure(model, "a pass over a few ids failed"):
        factor, hidden = _match_logits(model, head, ids)
    windows, why_chains = _find_windows(model)
    with _report_failure(
        model, "its cache is not one of keys and values alone, which can be rolled back"
    ):
        shapes = _find_shapes(model, ids)
        target = WrappedTarget(WrappedParts(model, config, head, factor, shapes, windows))
        _check_rollback(target, ids, hidden)
    if not why_chains and not _runs_trees(target, ids):
        why_chains = "its passes do not follow a 4-D mask and position ids"
    target.why_chains = why_chains
    return target


def _check_kind(model: PreTrainedModel) -> None:
    """Refuse what a model says of itself. Raises ArgumentError."""
    config = model.config
    reason = None
    if config.is_encoder_decoder:
        reason = "it has an encoder: each token must follow from those before it"
    elif getattr(model, "_is_stateful", False):
        reason = "it has a recurrent state, which cannot be rolled back to before a rejected token"
    elif others := {*(getattr(config, "layer_types", None) or ())} - {*_KINDS}:
        reason = (
            f"it has layers of {min(others)!a}, whose cache cannot be rolled back or masked by "
            f"position: only {' and '.join(_KINDS)} can"
        )
    elif getattr(config, "quantization_config", None):
        reason = "its weights are quantised (quantization_config)"
    elif model.training:
        reason = "it is in training mode, in which dropout is random: call model.eval()"
    elif model.dtype not in TOLERANCE:
        reason = f"its weights are {model.dtype}: use float32, bfloat16 or float64"
    elif model.config._attn_implementation not in ("eager", "sdpa"):
        reason = (
            f"its attention is {model.config._attn_implementation!a}: load it with "
            "attn_implementation='sdpa' or 'eager'"
        )
    if reason:
        raise _refuse(model, reason)


def _refuse(model: PreTrainedModel, reason: str) -> ArgumentError:
    return ArgumentError(f"{type(model).__name__} cannot be a target: {reason}")


@contextmanager
def _report_failure(model: PreTrainedModel, what: str) -> Iterator[None]:
    """Turns whatever a model raises into an ArgumentError of one line."""
    try:
        yield
    except ArgumentError:
        raise
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise _refuse(model, f"{what} ({first})") from None


def _find_head(model: PreTrainedModel) -> LinearHead:
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if not isinstance(head, nn.Linear) or not isinstance(embedding, nn.Embedding):
        raise _refuse(model, "its LM head is not a matrix, or its embedding none")
    inputs, outputs = tuple(embedding.weight.shape), tuple(head.weight.shape)
    if inputs[1] != outputs[1] or inputs[0] < outputs[0]:
        raise _refuse(
            model,
            f"its embedding has shape {inputs}, its LM head {outputs}: a draft needs one for both",
        )
    bias = None if head.bias is None else head.bias.detach()
    return LinearHead(head.weight, bias, getattr(model.config, "final_logit_softcapping", None))


def _build_config(model: PreTrainedModel, head: LinearHead) -> ModelConfig:
    """The configuration of a draft for the model: a Llama's layer of its sizes."""
    config, width = model.config, head.weight.shape[1]
    heads = config.num_attention_heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    return ModelConfig(
        vocab_size=head.vocab_size,
        hidden_size=width,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads if heads % key_heads == 0 else heads,
        head_dim=2 * -(-width // heads // 2),
        intermediate_size=getattr(config, "intermediate_size", None) or 4 * width,
        context_limit=_find_context(model),
        aux_hidden_state_layer_ids=default_aux_layer_ids(config.num_hidden_layers),
    )


def _find_context(model: PreTrainedModel) -> int:
    """The positions of a text. Ropes whose angles change with the length of the text would make
    cached keys stale: the context ends where they would change."""
    config = model.config
    limits = [getattr(config, name, None) for name in _CONTEXTS]
    limit = next((limit for limit in limits if limit), None)
    if limit is None:
        raise _refuse(model, f"its config has none of {', '.join(_CONTEXTS)}")
    ropes = getattr(config, "rope_parameters", None) or {}
    for rope in [ropes, *(each for each in ropes.values() if isinstance(each, dict))]:
        if (kind := rope.get("rope_type", "default")) not in _FIXED_ROPES:
            original = rope.get("original_max_position_embeddings") or getattr(
                config, "original_max_position_embeddings", None
            )
            if kind not in ("dynamic", "longrope"):
                raise _refuse(model, f"its rope_type {kind!a} may make cached keys stale")
            limit = min(limit, original or limit)
    return int(limit)


@torch.inference_mode()
def _match_logits(model: PreTrainedModel, head: LinearHead, ids: Tensor) -> tuple[float, Tensor]:
    """The factor of the hidden states with which the head gives the model's logits, and the hidden
    states (T, D) times it, of a fresh pass over ids (T,)."""
    given = ids[None].to(model.device)
    logits = model(input_ids=given, use_cache=False, return_dict=True).logits[0]
    output = model.base_model(
        input_ids=given, use_cache=False, return_dict=True, output_hidden_states=True
    )
    layers = model.config.num_hidden_layers
    if output.hidden_states is None or len(output.hidden_states) != layers + 1:
        raise _refuse(model, f"it does not export the hidden states of its {layers} layers")
    width = head.weight.shape[1]
    if sizes := {states.shape[-1] for states in output.hidden_states} - {width}:
        raise _refuse(model, f"its layers export {min(sizes)} numbers, its LM head reads {width}")
    hidden = output.last_hidden_state[0]
    divisor, factor = (
        getattr(model.config, name, None) or 1.0 for name in ("logits_scaling", "logit_scale")
    )
    for each in (1.0, 1 / divisor, factor):
        if _are_close(head.logits(hidden * each), logits):
            return each, hidden * each
    raise _refuse(
        model, "its logits are not those of its LM head over its last hidden states, with the "
        "bias, factor and soft-capping that its config names",
    )  # fmt: skip


def _find_windows(model: PreTrainedModel) -> tuple[dict[str, int | None], str]:
    """The sliding window of each kind of layer, "" if the model has one kind; or why it cannot be
    given masks, "" if it can."""
    config = model.config
    if getattr(config, "alibi", False) or config.model_type in ("bloom", "mpt"):
        return {}, "ALiBi weighs keys by their place in the cache, not by their position"
    window = getattr(config, "sliding_window", None)
    kinds = {*(getattr(config, "layer_types", None) or ())}
    if _KINDS[1] in kinds:
        return {_KINDS[0]: None, _KINDS[1]: window}, ""
    if window is None or kinds:
        return {"": None}, ""
    if not hasattr(sys.modules[type(model).__module__], "create_sliding_window_causal_mask"):
        return {}, "it has a sliding window that transformers' mask functions do not make"
    return {"": window}, ""


@torch.inference_mode()
def _find_shapes(model: PreTrainedModel, ids: Tensor) -> tuple[LayerShape, ...]:
    cache: Any = DynamicCache()
    given = {find_cache_name(model): cache}
    model.base_model(ids[None].to(model.device), use_cache=True, **given)
    return tuple(
        LayerShape(layer.keys.shape[1], layer.keys.shape[3], layer.values.shape[3])
        for layer in cache.layers
    )


def _check_rollback(target: WrappedTarget, ids: Tensor, hidden: Tensor) -> None:
    """Read ids (T,) in chunks, with others in between that are rolled back: their hidden states
    must be those of a fresh pass (T, D). Raises ArgumentError."""
    cache, found, others = target.new_cache(len(ids) + 2), list[Tensor](), ids.flip(0)
    for start in range(0, len(ids), 3):
        if start + 2 <= target.context_limit:
            target.step(others[:2], cache)
        cache.truncate(start)
        found.append(target.step(ids[start : start + 3], cache).hidden)
    if not _are_close(torch.cat(found), hidden):
        raise _refuse(
            target.model, "after a rollback its hidden states differ from those of a fresh pass"
        )


def _runs_trees(target: WrappedTarget, ids: Tensor) -> bool:
    """Whether the nodes of a tree after half of ids (T,) have the hidden states of their paths."""
    start, parents = len(ids) // 2, (-1, -1, 0, 1, 0)
    nodes = ids[: len(parents)]
    if start < len(parents):
        return False

    def run(tokens: Tensor, *arguments: Any) -> Tensor:
        cache = target.new_cache(start + len(parents))
        target.step(ids[:start], cache)
        return target.step(tokens, cache, *arguments).hidden

    try:
        found = run(nodes, parents)
    except Exception:  # whatever a model raises that takes no such mask
        return False
    paths = ([0, 2], [1, 3], [0, 4])
    return all(_are_close(found[path], run(nodes[path])) for path in paths)


def _are_close(found: Tensor, expected: Tensor) -> bool:
    """Whether numbers agree up to rounding in their dtype."""
    limit = TOLERANCE[expected.dtype] * float(expected.abs().max())
    return found.shape == expected.shape and float((found - expected).abs().max()) <= limit
