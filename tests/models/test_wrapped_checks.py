"""Which models of transformers are refused as targets, by name and with the reason."""

import functools
from typing import Any

import pytest
import torch
from torch import nn
from transformers.utils import logging

from helpers.wrapped_models import build_model, make_model
from minispec.errors import ArgumentError
from minispec.tools.models.wrapped_checks import wrap

logging.disable_progress_bar()

REFUSED: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "mamba": ("MambaConfig", "MambaForCausalLM", {}, "recurrent state"),
    "rwkv": ("RwkvConfig", "RwkvForCausalLM", {}, "recurrent state"),
    "jamba, a hybrid": ("JambaConfig", "JambaForCausalLM", dict(num_key_value_heads=2), "state"),
    "lfm2, with convolutions": (
        "Lfm2Config", "Lfm2ForCausalLM",
        dict(num_key_value_heads=2, layer_types=["conv", "full_attention", "conv"]), "'conv'",
    ),
    "t5": ("T5Config", "T5ForConditionalGeneration", {}, "encoder"),
    "bert": ("BertConfig", "BertLMHeadModel", dict(is_decoder=True), "not those of its LM head"),
    "opt, with two widths": (
        "OPTConfig", "OPTForCausalLM", dict(word_embed_proj_dim=16, ffn_dim=48), "export 32",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_wrap_refuses_by_name_with_the_reason(name):
    config, model, changes, reason = REFUSED[name]
    with pytest.raises(ArgumentError) as caught:
        wrap(build_model(config, model, changes))
    message = str(caught.value)
    assert message.startswith(f"{model} cannot be a target: ") and reason in message, message
    assert "\n" not in message


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda model: model.train(), "model.eval()"),
        (lambda model: model.half(), "float16"),
        (lambda model: model.config.update({"quantization_config": {"bits": 4}}), "quantised"),
        (lambda model: model.set_output_embeddings(nn.Identity()), "LM head is not a matrix"),
        (
            lambda model: model.config.update({"layer_types": ["chunked_attention"]}),
            "chunked_attention",
        ),
    ],
)
def test_wrap_refuses_a_model_in_a_wrong_state(change, reason):
    model = make_model("gpt2")
    change(model)
    with pytest.raises(ArgumentError, match="GPT2LMHeadModel cannot be a target") as caught:
        wrap(model)
    assert reason in str(caught.value)


def test_wrap_refuses_logits_that_the_config_does_not_explain():
    model = make_model("granite")
    forward = model.forward

    def shift(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits = output.logits + torch.arange(output.logits.shape[-1])
        return output

    model.forward = shift
    with pytest.raises(ArgumentError, match="not those of its LM head"):
        wrap(model)


def test_wrap_refuses_a_cache_that_keeps_more_than_keys_and_values():
    model = make_model("gpt2")
    forward, seen = model.base_model.forward, [0.0]

    def remembers(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        if kwargs.get("use_cache"):
            seen[0] += 0.1  # a state that no rollback reaches
            output.last_hidden_state = output.last_hidden_state + seen[0]
        return output

    model.base_model.forward = functools.wraps(forward)(remembers)
    with pytest.raises(ArgumentError, match="after a rollback"):
        wrap(model)


def test_wrap_finds_a_model_that_ignores_masks():
    model = make_model("gpt2")
    forward = model.base_model.forward

    def ignores(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs | {"attention_mask": None})

    model.base_model.forward = functools.wraps(forward)(ignores)
    assert "4-D mask" in wrap(model).why_chains
