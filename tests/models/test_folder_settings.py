"""Settings of a folder: read as transformers reads them, or refused by name."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)
from transformers.utils import logging

from helpers.conformity import (
    IDS,
    assert_refused,
    edit_config,
    our_logits,
    relative_error,
    write_byte_tokenizer,
)
from minispec.errors import FileWarning

logging.disable_progress_bar()

SHAPE = dict(
    vocab_size=256,
    hidden_size=32,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=8,
    max_position_embeddings=64,
    initializer_range=0.4,
)
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LINEAR = {"rope_type": "linear", "factor": 4.0}


def save_llama(folder: Path, **changes: Any) -> None:
    """A Llama with random weights and no settings of its rope."""
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SHAPE | changes)).save_pretrained(folder)
    finish(folder, {"rope_parameters": None})


def save_gemma(folder: Path, **changes: Any) -> None:
    """A Gemma 3 with random weights, a window of 4 and no settings of its ropes."""
    torch.manual_seed(0)
    more = {"sliding_window": 4, "num_hidden_layers": 3, "pad_token_id": 0}
    Gemma3ForCausalLM(Gemma3TextConfig(**SHAPE | more | changes)).save_pretrained(folder)
    finish(folder, {"rope_parameters": None, "layer_types": None, "_sliding_window_pattern": None})


def finish(folder: Path, changes: dict[str, Any]) -> None:
    write_byte_tokenizer(folder)
    (folder / "generation_config.json").unlink()
    change_config(folder, changes | {"eos_token_id": None})


def change_config(folder: Path, changes: dict[str, Any]) -> None:
    """Change settings; None removes one."""

    def change(data: dict[str, Any]) -> None:
        data.update(changes)
        for name in [name for name, value in changes.items() if value is None]:
            del data[name]

    edit_config(folder, change)


def read_theirs(folder: Path) -> PreTrainedModel:
    """What transformers reads in the folder."""
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    model = LlamaForCausalLM if kind == "llama" else Gemma3ForCausalLM
    return model.from_pretrained(folder, dtype=torch.float32).eval()


def assert_read_alike(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FileWarning)
        ours = our_logits(folder, IDS)
    assert relative_error(ours, read_theirs(folder), IDS) < 1e-4


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_theta": 100.0},
        {"rope_parameters": {"rope_theta": 100.0}, "rope_theta": 200.0},
        {"rope_scaling": LINEAR, "rope_theta": 100.0},
        {"rope_scaling": {"type": "linear", "factor": 4.0}},
        {"rope_scaling": {"type": "default", **LINEAR}},
        {"rope_scaling": {"rope_type": "default", "factor": 4.0}},
        {"rope_scaling": LINEAR, "rope_parameters": {"rope_type": "default", "rope_theta": 100.0}},
        {"rope_scaling": {}, "rope_parameters": LINEAR | {"rope_theta": 100.0}},
        {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 16}},
        {"rope_scaling": LLAMA3, "original_max_position_embeddings": 16},
        {"rope_parameters": LLAMA3, "original_max_position_embeddings": 16},
        {
            "rope_scaling": LLAMA3 | {"original_max_position_embeddings": 32},
            "original_max_position_embeddings": 16,
        },
        {"rope_scaling": LLAMA3},
        {"hidden_act": "swish"},
        {"hidden_act": None, "rms_norm_eps": None, "head_dim": None, "num_key_value_heads": None},
        {"max_position_embeddings": None, "rope_scaling": LLAMA3},
        {"pretraining_tp": 2, "torch_dtype": "bfloat16", "attention_dropout": 0.5, "mine": [1]},
        {"layer_types": ["full_attention"] * 2, "sliding_window": 64},
    ],
    ids=lambda changes: ",".join(changes),
)
def test_load_reads_settings_of_a_llama_as_transformers_does(tmp_path, changes):
    save_llama(tmp_path)
    change_config(tmp_path, changes)
    assert_read_alike(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_theta": 100.0, "rope_local_base_freq": 50.0},
        {"rope_scaling": LINEAR},
        {"rope_parameters": {"full_attention": LINEAR | {"rope_theta": 100.0}}},
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 100.0},
                "sliding_attention": {"rope_theta": 50.0},
            },
            "rope_theta": 300.0,
            "rope_local_base_freq": 300.0,
            "rope_scaling": LINEAR,
        },
        {"sliding_window_pattern": 2},
        {"sliding_window_pattern": 2, "layer_types": ["sliding_attention"] * 3},
        {"max_position_embeddings": None, "query_pre_attn_scalar": None, "rms_norm_eps": None},
        {"num_key_value_heads": None, "tie_word_embeddings": None, "hidden_activation": None},
    ],
    ids=lambda changes: ",".join(changes),
)
def test_load_reads_settings_of_a_gemma_as_transformers_does(tmp_path, changes):
    save_gemma(tmp_path)
    change_config(tmp_path, changes)
    assert_read_alike(tmp_path)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, ["yarn", "'linear'"]),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, ["dynamic"]),
        ({"rope_scaling": {"type": "su"}, "rope_parameters": {"rope_theta": 1e4}}, ["'su'"]),
        ({"rope_scaling": LINEAR, "rope_parameters": {"rope_type": "yarn"}}, ["yarn"]),
        ({"rope_scaling": {"factor": 4.0}}, ["rope_scaling", "factor 4.0", "rope_type"]),
        ({"rope_scaling": LINEAR | {"factor": None}}, ["linear", "factor"]),
        ({"rope_scaling": LINEAR | {"factor": -1}}, ["factor", "-1"]),
        ({"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}}, ["high_freq_factor 1.0"]),
        ({"rope_parameters": {"full_attention": LINEAR}}, ["each kind of layer"]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor", "0.5"]),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, ["partial_rotary_factor"]),
        ({"rope_theta": 0}, ["rope_theta"]),
        ({"rope_theta": "1e4"}, ["rope_theta", "str"]),
        ({"rms_norm_eps": True}, ["rms_norm_eps", "bool"]),
        ({"sliding_window": 8}, ["sliding_window 8"]),
        ({"layer_types": ["sliding_attention"] * 2}, ["layer_types"]),
        ({"per_layer_config": {"0": {"head_dim": 4}}}, ["per_layer_config"]),
        ({"text_config": {"hidden_size": 3}}, ["text_config"]),
        ({"is_encoder_decoder": True}, ["is_encoder_decoder"]),
        ({"model_type": "gemma3_text"}, ["disagree", "gemma3_text", "LlamaForCausalLM"]),
        ({"model_type": "mistral"}, ["'mistral'"]),
        ({"architectures": ["LlamaModel"]}, ["'LlamaModel'", "LlamaForCausalLM"]),
        ({"architectures": None, "model_type": None}, ["architecture None"]),
        ({"architectures": 7}, ["architecture 7"]),
        ({"num_attention_heads": 3, "head_dim": None}, ["multiple", "head_dim"]),
        ({"num_hidden_layers": 2**62}, ["num_hidden_layers"]),
        ({"vocab_size": 10**400}, ["vocab_size"]),
        ({"max_position_embeddings": 64.5}, ["max_position_embeddings", "float"]),
        ({"eos_token_id": "2"}, ["eos_token_id"]),
        ({"eos_token_id": [[2]]}, ["eos_token_id"]),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_load_refuses_settings_of_a_llama_by_name(tmp_path, changes, words):
    save_llama(tmp_path)
    change_config(tmp_path, changes)
    assert_refused(tmp_path, "config.json", *words)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, ["'rope_type'"]),
        ({"rope_parameters": {"rope_theta": 100.0}}, ["full_attention", "'rope_theta'"]),
        ({"rope_parameters": {"sliding_attention": LINEAR}}, ["local layers"]),
        ({"rope_parameters": {"full_attention": [1]}}, ["full_attention"]),
        ({"sliding_window": 0}, ["sliding_window"]),
        ({"sliding_window": 2**70}, ["sliding_window"]),
        ({"sliding_window": 0.5}, ["sliding_window"]),
        ({"sliding_window_pattern": 0}, ["sliding_window_pattern"]),
        ({"query_pre_attn_scalar": -1}, ["query_pre_attn_scalar"]),
        ({"query_pre_attn_scalar": True}, ["query_pre_attn_scalar"]),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_load_refuses_settings_of_a_gemma_by_name(tmp_path, changes, words):
    save_gemma(tmp_path)
    change_config(tmp_path, changes)
    assert_refused(tmp_path, "config.json", *words)


def test_load_refuses_a_gemma_without_the_window_of_its_local_layers(tmp_path):
    save_gemma(tmp_path)
    edit_config(tmp_path, lambda data: data.update(sliding_window=None))
    assert_refused(tmp_path, "sliding_window null")
