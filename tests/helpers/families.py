"""Small random models of each family in a folder, made by transformers, and its greedy text."""

import random
from pathlib import Path
from typing import Any

import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from helpers.conformity import write_byte_tokenizer
from minispec.commit import StopRule
from minispec.decode import autoregressive
from minispec.sampling import Sampling, SeededRandom
from minispec.types import Target

CONTEXT = 128
FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "smollm3": (SmolLM3Config, SmolLM3ForCausalLM),
    "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM),
}


def draw_settings(family: str, seed: int) -> dict[str, Any]:
    """A configuration of a family drawn at random, with windows much shorter than the text."""
    rng = random.Random(f"{family} {seed}")
    key_heads, group, layers = rng.choice([1, 2, 3]), rng.choice([1, 2, 4]), rng.choice([2, 4, 5])
    settings: dict[str, Any] = dict(
        vocab_size=rng.choice([256, 301]),
        hidden_size=key_heads * group * rng.choice([8, 16]),
        intermediate_size=rng.choice([17, 40]),
        num_hidden_layers=layers,
        num_attention_heads=key_heads * group,
        num_key_value_heads=key_heads,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=rng.choice([1e-6, 1e-2]),
        tie_word_embeddings=rng.random() < 0.5,
        initializer_range=0.2,
        pad_token_id=0,
    )
    if family != "gemma3":
        settings["rope_parameters"] = {
            "rope_type": "default", "rope_theta": rng.choice([100.0, 1e4, 2e6])
        }  # fmt: skip
    window = {"use_sliding_window": True, "sliding_window": rng.choice([1, 5, 20])}
    windows = window if seed // 2 % 2 else {}
    biases = {"attention_bias": seed % 2 == 0}
    match family:
        case "llama":
            settings |= biases | {"mlp_bias": rng.random() < 0.5}
        case "mistral":
            settings["sliding_window"] = rng.choice([None, 1, 5, 20])
        case "qwen2":
            settings |= windows | {"max_window_layers": rng.choice([0, 1, 3])}
        case "qwen3":
            settings |= windows | biases | {"max_window_layers": rng.choice([0, 1, 3])}
            settings["head_dim"] = rng.choice([8, 20])
        case "smollm3":
            settings |= windows | biases | {"mlp_bias": rng.random() < 0.5}
            settings["no_rope_layer_interval"] = rng.choice([1, 2, 4])
        case "gemma3":
            settings |= {"sliding_window": rng.choice([1, 5, 20]), "head_dim": 8}
    return settings


def make_model(family: str, settings: dict[str, Any]) -> PreTrainedModel:
    """A model of a family with random weights, none of them a constant, and peaked logits."""
    config, model_class = FAMILIES[family]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: PreTrainedModel = model_class(config(**settings)).eval()
        for name, weight in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                weight.data.uniform_(0.5, 1.5)
    return model


def save_model(folder: Path, family: str, settings: dict[str, Any]) -> PreTrainedModel:
    """A model of a family that transformers saves to ``folder``, with a tokenizer of bytes."""
    model = make_model(family, settings)
    model.save_pretrained(folder)
    write_byte_tokenizer(folder)
    return model


@torch.inference_mode()
def generate_greedily(model: PreTrainedModel, prompt: list[int], count: int) -> list[int]:
    """The greedy ids that a model of transformers continues a prompt with, one fresh pass each."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def decode_greedily(target: Target, prompt: list[int], count: int) -> list[int]:
    """Our greedy ids after a prompt."""
    rounds = autoregressive(
        target, prompt, sampling=Sampling(), rng=SeededRandom(0), stop=StopRule(count)
    )
    return [token for finished in rounds for token in finished.tokens]
