"""Tiny targets: with random weights, and one that repeats itself."""

from dataclasses import replace
from typing import Any

import torch

from minispec.certificate.toys import ToyTarget
from minispec.models.model_config import ModelConfig
from minispec.models.transformer import Transformer

TOY = ModelConfig(
    vocab_size=50,
    hidden_size=24,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=6,
    intermediate_size=32,
    context_limit=64,
    aux_hidden_state_layer_ids=(1, 2, 3),
)
# The settings of a Gemma beyond those of a Llama, with a window much shorter than the texts.
GEMMA: dict[str, Any] = dict(
    activation="gelu_tanh",
    embedding_scale=24**0.5,
    attention_scale=0.5,
    query_key_norm=True,
    post_norms=True,
    local_layers=(1, 3),
    sliding_window=5,
)


def toy_transformer(seed: int = 0, **changes: object) -> Transformer:
    """A tiny target with random weights, in float64, so that equal results agree to 1e-10."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Transformer(replace(TOY, **changes)).double().eval().requires_grad_(False)
        for name, weight in model.named_parameters():
            if "norm" in name:  # initially all ones, which would hide an error
                weight.uniform_(0.5, 1.5)
    return model


def make_repeating_target(vocab_size: int, period: int) -> ToyTarget:
    """A target that repeats the token ``period`` positions before the next."""

    def table(tokens: tuple[int, ...]) -> torch.Tensor:
        logits = torch.zeros(vocab_size, dtype=torch.float64)
        logits[tokens[-period] if len(tokens) >= period else 0] = 9.0
        return logits

    return ToyTarget(vocab_size, table)
