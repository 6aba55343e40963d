"""Settings of a GGUF file: read as llama.cpp reads them, or refused by name."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.gguf_files import TOKENS, write_gguf
from helpers.toys import toy_transformer
from minispec.errors import FileError
from minispec.models.model_config import ModelConfig
from minispec.models.rope import FrequencyFactors, RopeScaling
from minispec.models.transformer import Transformer
from minispec.tools.models import gguf_config, gguf_file

FACTORS = "rope_freqs.weight"


def build_model(**changes: Any) -> Transformer:
    shape = {"num_hidden_layers": 2, "aux_hidden_state_layer_ids": ()}
    return toy_transformer(vocab_size=len(TOKENS), **shape | changes).float()


def load_config(folder: Path, **options: Any) -> ModelConfig:
    """The configuration of a small Llama with some settings of its file changed."""
    write_gguf(folder / "x.gguf", build_model(), **options)
    return gguf_file.load(folder / "x.gguf")[0].config


@pytest.mark.parametrize(
    "fields, factor",
    [
        ({}, None),
        ({"rope.scale_linear": 4.0}, 4.0),
        ({"rope.scaling.factor": 4.0}, 4.0),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, 4.0),
        ({"rope.scaling.factor": 4.0, "rope.scale_linear": 2.0}, 4.0),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, None),
        ({"rope.scaling.type": "linear"}, None),
        ({"rope.scaling.factor": 0.0, "rope.scale_linear": 2.0}, None),
        ({"rope.scaling.factor": 1.0}, None),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_load_reads_linear_rope_scaling_in_every_spelling(tmp_path, fields, factor):
    expected = None if factor is None else FrequencyFactors((factor,))
    assert load_config(tmp_path, **fields).rope_scaling == expected


@pytest.mark.parametrize("linear", [1.0, 4.0])
def test_load_reads_the_rope_factors_of_a_tensor(tmp_path, linear):
    pairs = build_model().config.head_dim // 2
    factors = np.linspace(1, 8, pairs, dtype=np.float32)
    config = load_config(
        tmp_path, extra={FACTORS: factors}, **{"rope.scaling.factor": float(linear)}
    )
    assert config.rope_scaling == FrequencyFactors(tuple(linear * float(f) for f in factors))


def test_frequency_factors_can_say_what_llama3_scaling_says():
    frequencies = 100.0 ** -torch.linspace(0, 1, 9, dtype=torch.float64)
    scaled = RopeScaling(8.0, 1.0, 4.0, 32).scale(frequencies)
    assert len(set((frequencies / scaled).tolist())) > 3
    factors = FrequencyFactors(tuple((frequencies / scaled).tolist()))
    assert torch.allclose(factors.scale(frequencies), scaled, rtol=1e-14)


@pytest.mark.parametrize(
    "fields",
    [
        {"attention.causal": True, "expert_count": 0, "logit_scale": 0.0},
        {"rope.scaling.original_context_length": 5, "rope.scaling.finetuned": False},
        {"vocab_size": 9, "tensor_data_layout": "Meta AI original pth"},
        {"attention.head_count": [2, 2], "feed_forward_length": [40, 40]},
        {"attention.value_length": 8, "rope.dimension_count": 8},
        {"attention.sliding_window": 4096},
    ],
    ids=lambda fields: ",".join(fields),
)
def test_load_reads_settings_that_change_nothing(tmp_path, fields):
    shape = dict(num_attention_heads=2, num_key_value_heads=1, head_dim=8, intermediate_size=40)
    write_gguf(tmp_path / "x.gguf", build_model(**shape), **fields)
    config = gguf_file.load(tmp_path / "x.gguf")[0].config
    assert {name: getattr(config, name) for name in shape} == shape
    assert config.rope_scaling is None and config.vocab_size == len(TOKENS)


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"rope.scaling.type": "yarn"}, ["llama.rope.scaling.type", "'yarn'", "'linear'"]),
        ({"rope.scaling.type": "longrope"}, ["'longrope'"]),
        ({"rope.scaling.factor": -1.0}, ["rope.scaling.factor"]),
        ({"rope.scaling.factor": float("nan")}, ["rope.scaling.factor"]),
        ({"rope.scaling.factor": "4"}, ["rope.scaling.factor", "str"]),
        ({"rope.scale_linear": float("inf")}, ["rope.scale_linear"]),
        ({"rope.scaling.attn_factor": 2.0}, ["llama.rope.scaling.attn_factor", "must be 1"]),
        ({"rope.freq_base": 0.0}, ["rope.freq_base"]),
        ({"rope.freq_base": float("inf")}, ["rope.freq_base"]),
        ({"rope.freq_base": "x"}, ["rope.freq_base", "str"]),
        ({"rope.dimension_sections": [1, 2]}, ["llama.rope.dimension_sections"]),
        ({"attention.layer_norm_rms_epsilon": float("inf")}, ["rms_epsilon"]),
        ({"attention.layer_norm_rms_epsilon": "x"}, ["rms_epsilon"]),
        ({"attention.layer_norm_rms_epsilon": None}, ["rms_epsilon"]),
        ({"attention.head_count": True}, ["head_count", "bool"]),
        ({"attention.head_count": [1, 2]}, ["head_count [1, 2]", "same in all layers"]),
        ({"attention.key_length": 2**31}, ["key_length"]),
        ({"attention.value_length": 3}, ["value_length 3"]),
        ({"attention.scale": 0.5}, ["llama.attention.scale 0.5"]),
        ({"attention.clamp_kqv": 8.0}, ["clamp_kqv"]),
        ({"attention.sliding_window": 8}, ["sliding_window 8"]),
        ({"expert_count": 8}, ["llama.expert_count 8"]),
        ({"logit_scale": 0.5}, ["logit_scale"]),
        ({"of.tomorrow": 1}, ["llama.of.tomorrow"]),
        ({"block_count": 2**31}, ["block_count"]),
        ({"block_count": 60_000}, ["60000 layers"]),
        ({"embedding_length": True}, ["embedding_length", "bool"]),
        ({"embedding_length": 4.0}, ["embedding_length", "float"]),
        ({"context_length": None}, ["context_length"]),
        ({"extra": {FACTORS: np.ones(3, np.float32)}}, ["3 rope factors"]),
        ({"extra": {FACTORS: np.zeros(4, np.float32)}}, ["rope factor 0.0"]),
        ({"extra": {FACTORS: np.full(4, np.nan, np.float32)}}, ["rope factor nan"]),
        ({"extra": {FACTORS: np.ones((2, 2), np.float32)}}, ["rope_freqs", "(2, 2)"]),
        ({"extra": {"blk.00.ffn_up.weight": np.ones(3, np.float32)}}, ["blk.00.ffn_up"]),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("quantized", [False, True])
def test_load_refuses_settings_by_name(tmp_path, fields, words, quantized):
    write_gguf(tmp_path / "x.gguf", build_model(head_dim=8), **fields)
    with pytest.raises(FileError) as caught:
        gguf_file.load(tmp_path / "x.gguf", quantized)
    message = str(caught.value)
    assert str(tmp_path) in message and "\n" not in message
    assert all(word in message for word in words), message


def test_load_names_missing_tensors_as_the_file_does(tmp_path):
    write_gguf(tmp_path / "x.gguf", build_model(), block_count=3)
    with pytest.raises(FileError, match=r"lacks 9 tensors, blk\.2\.attn_k\.weight first"):
        gguf_file.load(tmp_path / "x.gguf")


def test_load_names_a_type_that_cannot_be_dequantised(tmp_path):
    write_gguf(tmp_path / "x.gguf", build_model(), extra={"output_norm.weight": np.ones(24)})
    with pytest.raises(FileError, match=r"output_norm\.weight is of type F64.*F16 or Q8_0"):
        gguf_file.load(tmp_path / "x.gguf")


# ------------------------------------------------------------------ Gemma 3

SETTINGS: dict[str, Any] = {
    "general.architecture": "gemma3",
    "tokenizer.ggml.tokens": ["a", "b"],
    "gemma3.block_count": 12,
    "gemma3.context_length": 64,
    "gemma3.embedding_length": 32,
    "gemma3.feed_forward_length": 24,
    "gemma3.attention.head_count": 2,
    "gemma3.attention.key_length": 8,
    "gemma3.attention.layer_norm_rms_epsilon": 1e-6,
    "gemma3.attention.sliding_window": 4,
}


def read_gemma(**changes: Any) -> ModelConfig:
    fields = {f"gemma3.{name}": value for name, value in changes.items()}
    metadata = {name: v for name, v in (SETTINGS | fields).items() if v is not None}
    return gguf_config.read_config(metadata, tied=True, rope_factors=None)


def test_read_config_reads_the_settings_of_a_gemma():
    config = read_gemma()
    assert config.local_layers == (1, 2, 3, 4, 5, 7, 8, 9, 10, 11)
    assert (config.sliding_window, config.local_rope_theta) == (4, 10_000.0)
    assert config.attention_scale is None and config.query_key_norm and config.post_norms
    other = read_gemma(**{"attention.sliding_window_pattern": 4, "rope.freq_base_swa": 50.0})
    assert other.local_layers == (1, 2, 3, 5, 6, 7, 9, 10, 11) and other.local_rope_theta == 50.0
    assert read_gemma(**{"rope.scaling.factor": 8.0}).rope_scaling == FrequencyFactors((8.0,))


def test_read_config_scales_the_attention_of_the_largest_gemma_by_its_hidden_size():
    assert read_gemma(block_count=62).attention_scale == (32 / 2) ** -0.5


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"attention.sliding_window": None}, "sliding_window None"),
        ({"attention.sliding_window": 0}, "sliding_window 0"),
        ({"attention.key_length_swa": 4}, "key_length_swa 4"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping 30.0"),
        ({"attention.sliding_window_pattern": [True, False]}, "sliding_window_pattern"),
    ],
)
def test_read_config_refuses_settings_of_a_gemma_by_name(changes, words):
    with pytest.raises(FileError, match=words):
        read_gemma(**changes)


@pytest.mark.parametrize(
    "architecture, settings",
    [
        ("qwen2", {"attention_bias": True}),
        ("qwen3", {"query_key_norm": True}),
        ("smollm3", {"rope_free_layers": (4,), "num_hidden_layers": 5}),
    ],
)
def test_load_reads_other_architectures(tmp_path, architecture, settings):
    model = build_model(**settings)
    write_gguf(tmp_path / "x.gguf", model, architecture)
    loaded, _ = gguf_file.load(tmp_path / "x.gguf")
    assert {name: getattr(loaded.config, name) for name in settings} == settings
    ids = torch.arange(20)
    expected = model.step(ids, model.new_cache(20)).hidden
    assert torch.allclose(loaded.step(ids, loaded.new_cache(20)).hidden, expected, atol=1e-5)


def test_load_refuses_other_architectures_by_name(tmp_path):
    write_gguf(tmp_path / "x.gguf", build_model(), "phi3")
    with pytest.raises(FileError, match="architecture 'phi3' is not supported: must be one of"):
        gguf_file.load(tmp_path / "x.gguf")
