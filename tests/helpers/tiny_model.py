"""A whole model in a folder, so small that it decodes a prompt in a fraction of a second.

A Llama in Hugging Face layout with random weights, a byte-level BPE and ChatML, with a draft
and rankings of its own: all that the command line needs, from files, as people have them. What
it writes is nonsense, but as fixed, as cut into tokens and as uneven as text.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import save_file

from minispec.io import draft_file
from minispec.models import eagle_draft
from minispec.models.eagle_draft import EagleDraft
from minispec.models.transformer import ModelConfig
from minispec.tools.data import ranking
from minispec.tools.models import pretrained
from minispec.tools.models.pretrained import Pretrained

CONTEXT = 2048
NO_TOKEN = 0x04  # the one byte that no token stands for
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
WORDS = "the and in out er ou re on es at en st or is le all ed it ar as ing s a t w b c o f p m"
TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WIDTH, LAYERS, HEADS, KV_HEADS, MLP_WIDTH = 32, 3, 4, 2, 48


@dataclass(frozen=True)
class Tiny:
    """Where the model, its draft and its rankings are, and the model itself, as loaded."""

    folder: Path
    draft_path: Path
    rankings: Path

    @cached_property
    def model(self) -> Pretrained:
        return pretrained.load(str(self.folder))

    @cached_property
    def draft(self) -> EagleDraft:
        return draft_file.load_draft(self.draft_path, self.model.target, self.model.fingerprint)

    def ranking(self, name: str) -> Path:
        return self.rankings / f"{name}.safetensors"


@contextmanager
def rankings_shipped(tiny: Tiny) -> Iterator[Tiny]:
    """Its rankings stand in the place of those that the package keeps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "shipped", lambda model, name: tiny.ranking(name))
        yield tiny


def make(folder: Path) -> Tiny:
    """All of it, the same at every call."""
    tiny = Tiny(folder / "model", folder / "draft.safetensors", folder / "rankings")
    write_model(tiny.folder)
    model = tiny.model
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draft_file.save_draft(
            tiny.draft_path, eagle_draft.init_from_target(model.target), model.fingerprint
        )
    for number, name in enumerate(ranking.NAMES):
        generator = torch.Generator().manual_seed(number)
        ids = torch.randperm(model.tokenizer.vocab_size, generator=generator)
        ranking.write_ranking(tiny.ranking(name), ids, model.tokenizer.fingerprint, {})
    return tiny


def write_model(folder: Path, seed: int = 10, special: tuple[str, ...] = SPECIAL) -> None:
    """The model's folder. Other special tokens make another tokenizer, other seeds weights."""
    folder.mkdir(parents=True)
    size = write_tokenizer(folder, special)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": size,
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "intermediate_size": MLP_WIDTH,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    key_width = WIDTH * KV_HEADS // HEADS
    shapes = {"model.embed_tokens": (size, WIDTH), "lm_head": (size, WIDTH), "model.norm": (WIDTH,)}
    for layer in range(LAYERS):
        parts = {
            "input_layernorm": (WIDTH,),
            "self_attn.q_proj": (WIDTH, WIDTH),
            "self_attn.k_proj": (key_width, WIDTH),
            "self_attn.v_proj": (key_width, WIDTH),
            "self_attn.o_proj": (WIDTH, WIDTH),
            "post_attention_layernorm": (WIDTH,),
            "mlp.gate_proj": (MLP_WIDTH, WIDTH),
            "mlp.up_proj": (MLP_WIDTH, WIDTH),
            "mlp.down_proj": (WIDTH, MLP_WIDTH),
        }
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in parts.items()}
    generator = torch.Generator().manual_seed(seed)
    weights = {
        f"{name}.weight": torch.randn(shape, generator=generator) / shape[-1] ** 0.5
        if len(shape) == 2
        else torch.ones(shape)
        for name, shape in shapes.items()
    }
    # Laws that are sure of some things, as those of real models, and seldom half a character.
    weights["lm_head.weight"] *= 8
    weights["lm_head.weight"][127 - 1 : 255] *= 0.7
    save_file(weights, folder / "model.safetensors")


def write_tokenizer(folder: Path, special: tuple[str, ...] = SPECIAL) -> int:
    """A byte-level BPE with ChatML; returns the size of its vocabulary."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    names = {byte: chr(byte) for byte in shown}
    names |= {byte: chr(256 + place) for place, byte in enumerate(hidden)}
    tokens = [names[byte] for byte in range(256) if byte != NO_TOKEN]
    merges = []
    for word in WORDS.split():
        # Each word grows character by character, and is a token with and without a space.
        for whole in (word, names[ord(" ")] + word):
            for end in range(1, len(whole)):
                if whole[: end + 1] not in tokens:
                    tokens.append(whole[: end + 1])
                    merges.append(f"{whole[:end]} {whole[end]}")
    plain = {"lstrip": False, "rstrip": False, "single_word": False, "special": True}
    extra = [{"id": len(tokens) + i, "content": s, **plain} for i, s in enumerate(special)]
    tokenizer = {
        "model": {"type": "BPE", "vocab": {t: i for i, t in enumerate(tokens)}, "merges": merges},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        "added_tokens": extra,
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = {"eos_token": "<|im_end|>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return len(tokens) + len(extra)


def gguf_writer(
    path: Path, architecture: str, config: ModelConfig, **fields: Any
) -> gguf.GGUFWriter:
    """A writer of a GGUF file that holds a model's settings, named as llama.cpp's converter does;
    further ``fields`` too, or in their place, and those that are None not at all."""
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in {
        "block_count": config.num_hidden_layers,
        "context_length": config.context_limit,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        **fields,
    }.items():
        if isinstance(value, str):
            writer.add_string(f"{architecture}.{name}", value)
        elif value is not None:
            writer.add_uint32(f"{architecture}.{name}", value)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    return writer
