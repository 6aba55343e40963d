"""Small random models of many architectures of transformers, and what wraps them."""

from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from minispec.tools.models.wrapped_checks import wrap
from minispec.tools.models.wrapped_target import WrappedTarget

VOCAB_SIZE, CONTEXT = 97, 64
_SHAPE = dict(
    vocab_size=VOCAB_SIZE, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
    intermediate_size=48, max_position_embeddings=CONTEXT, initializer_range=0.3,
    pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
_ALIBI = dict(alibi=True, num_kv_heads=4, new_decoder_architecture=False)
# By name: the configuration's class, the model's, and what differs from ``_SHAPE``.
ARCHITECTURES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {}),
    "gpt-neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", {}),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", {"sliding_window": 5}),
    "olmo2": ("Olmo2Config", "Olmo2ForCausalLM", {}),
    "granite": (
        "GraniteConfig", "GraniteForCausalLM",
        dict(logits_scaling=8.0, embedding_multiplier=12.0, residual_multiplier=0.22),
    ),
    "stablelm": ("StableLmConfig", "StableLmForCausalLM", dict(num_key_value_heads=2)),
    "falcon": ("FalconConfig", "FalconForCausalLM", dict(alibi=False)),
    "phi, whose head has a bias": ("PhiConfig", "PhiForCausalLM", {}),
    "gemma2, whose logits are capped": (
        "Gemma2Config", "Gemma2ForCausalLM",
        dict(num_key_value_heads=2, head_dim=8, sliding_window=5, final_logit_softcapping=3.0),
    ),
    "cohere, whose logits are scaled": ("CohereConfig", "CohereForCausalLM", {}),
}  # fmt: skip
CHAINS_ONLY = {
    "falcon with ALiBi": ("FalconConfig", "FalconForCausalLM", _ALIBI),
    "bloom": ("BloomConfig", "BloomForCausalLM", dict(seq_length=CONTEXT)),
}


def make_model(name: str, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """A model of an architecture with random weights, none of them a constant."""
    return build_model(*(ARCHITECTURES | CHAINS_ONLY)[name]).to(dtype)


def build_model(config: str, model: str, changes: dict[str, Any]) -> PreTrainedModel:
    """A model from the names of its classes in transformers."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        settings = getattr(transformers, config)(**_SHAPE | changes)
        built: PreTrainedModel = getattr(transformers, model)(settings).eval()
        for name, weight in built.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(weight, std=0.3)
    return built.requires_grad_(False)


def wrap_model(name: str, dtype: torch.dtype = torch.float64) -> WrappedTarget:
    """A model of an architecture as a target."""
    return wrap(make_model(name, dtype))
