"""A complete model in a folder, small enough to decode a prompt in a fraction of a second.

A Llama in Hugging Face layout with random weights, a byte-level BPE tokenizer and the ChatML
template, with a draft and rankings: all files that the command line needs. Its output is
nonsense, but deterministic, and its distributions are as uneven as those of real text.
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
from minispec.models.model_config import ModelConfig
from minispec.tools.data import ranking
from minispec.tools.models import pretrained
from minispec.tools.models.pretrained import Pretrained

CONTEXT = 2048
NO_TOKEN = 0x04  # the one byte without a token
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
WORDS = "the and in out er ou re on es at en st or is le all ed it ar as ing s a t w b c o f p m"
TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HIDDEN_SIZE, NUM_LAYERS, NUM_HEADS, NUM_KV_HEADS, INTERMEDIATE_SIZE = 32, 3, 4, 2, 48


@dataclass(frozen=True)
class Tiny:
    """The paths of the model, its draft and its rankings, and the loaded model and draft."""

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
def replace_shipped_rankings(tiny: Tiny) -> Iterator[Tiny]:
    """Use its rankings instead of those that the package ships."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "find_shipped_ranking", lambda model, name: tiny.ranking(name))
        yield tiny


def make(folder: Path) -> Tiny:
    """Write model, draft and rankings, the same at every call."""
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
    """Write the model's folder; ``seed`` is of the weights, ``special`` of the tokenizer."""
    folder.mkdir(parents=True)
    size = write_tokenizer(folder, special)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": size,
        "hidden_size": HIDDEN_SIZE,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": NUM_HEADS,
        "num_key_value_heads": NUM_KV_HEADS,
        "intermediate_size": INTERMEDIATE_SIZE,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    key_size = HIDDEN_SIZE * NUM_KV_HEADS // NUM_HEADS
    shapes = {
        "model.embed_tokens": (size, HIDDEN_SIZE),
        "lm_head": (size, HIDDEN_SIZE),
        "model.norm": (HIDDEN_SIZE,),
    }
    for layer in range(NUM_LAYERS):
        parts = {
            "input_layernorm": (HIDDEN_SIZE,),
            "self_attn.q_proj": (HIDDEN_SIZE, HIDDEN_SIZE),
            "self_attn.k_proj": (key_size, HIDDEN_SIZE),
            "self_attn.v_proj": (key_size, HIDDEN_SIZE),
            "self_attn.o_proj": (HIDDEN_SIZE, HIDDEN_SIZE),
            "post_attention_layernorm": (HIDDEN_SIZE,),
            "mlp.gate_proj": (INTERMEDIATE_SIZE, HIDDEN_SIZE),
            "mlp.up_proj": (INTERMEDIATE_SIZE, HIDDEN_SIZE),
            "mlp.down_proj": (HIDDEN_SIZE, INTERMEDIATE_SIZE),
        }
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in parts.items()}
    generator = torch.Generator().manual_seed(seed)
    weights = {
        f"{name}.weight": torch.randn(shape, generator=generator) / shape[-1] ** 0.5
        if len(shape) == 2
        else torch.ones(shape)
        for name, shape in shapes.items()
    }
    # Peaked distributions, as those of real models, and few tokens that are half a character.
    weights["lm_head.weight"] *= 8
    weights["lm_head.weight"][127 - 1 : 255] *= 0.7
    save_file(weights, folder / "model.safetensors")


def write_tokenizer(folder: Path, special: tuple[str, ...] = SPECIAL) -> int:
    """Write a byte-level BPE tokenizer with ChatML; returns the size of its vocabulary."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    names = {byte: chr(byte) for byte in printable}
    names |= {byte: chr(256 + i) for i, byte in enumerate(others)}
    tokens = [names[byte] for byte in range(256) if byte != NO_TOKEN]
    merges = []
    for word in WORDS.split():
        # Merged character by character; each word is a token with and without a leading space.
        for token in (word, names[ord(" ")] + word):
            for end in range(1, len(token)):
                if token[: end + 1] not in tokens:
                    tokens.append(token[: end + 1])
                    merges.append(f"{token[:end]} {token[end]}")
    plain = {
        "lstrip": False,
        "rstrip": False,
        "single_word": False,
        "normalized": False,
        "special": True,
    }
    extra = [{"id": len(tokens) + i, "content": s, **plain} for i, s in enumerate(special)]
    tokenizer = {
        "model": {"type": "BPE", "vocab": {t: i for i, t in enumerate(tokens)}, "merges": merges},
        "pre_tokenizer": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "use_regex": True,
            "trim_offsets": True,
        },
        "added_tokens": extra,
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = {"eos_token": "<|im_end|>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return len(tokens) + len(extra)


def gguf_writer(
    path: Path, architecture: str, config: ModelConfig, tensors_in_a_part: int = 0, **fields: Any
) -> gguf.GGUFWriter:
    """A writer of a GGUF file with a model's settings under llama.cpp's names. ``fields`` adds
    settings or replaces them; None removes one."""
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=tensors_in_a_part)
    for name, value in {
        "block_count": config.num_hidden_layers,
        "context_length": config.context_limit,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.freq_base": float(config.rope_theta),
        **fields,
    }.items():
        add = {
            bool: writer.add_bool,
            int: writer.add_uint32,
            float: writer.add_float32,
            str: writer.add_string,
            list: writer.add_array,
        }
        if value is not None:
            add[type(value)](f"{architecture}.{name}", value)
    return writer
