"""Readers of models: Hugging Face folders, whole and in shards, and GGUF files, of Llama and
Gemma 3, with all files of their tokenizers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
from safetensors.torch import load_file, save_file

from drill import format_gguf as gguf
from drill.format_gguf import Gguf, Value
from drill.format_json import Json
from drill.format_safetensors import Safetensors
from drill.format_sentencepiece import SentencePiece
from drill.format_template import Template
from drill.reader import Outcome, Part, Reader, describe_model
from drill.rules import (
    CONFIG,
    GGUF,
    SENTENCEPIECE,
    TEMPLATE,
    TOKENIZER_JSON,
    TOKENIZER_SETTINGS,
    WEIGHTS,
    WEIGHTS_INDEX,
)
from helpers import tiny_model
from helpers.small_tokenizers import LOSSLESS, train_sentencepiece

_LLAMA3_ROPE = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}  # fmt: skip
_SIZE, _HEADS, _KV, _HEAD, _MLP, _LAYERS = 24, 2, 1, 12, 32, 2  # of the Gemma


def _load(folder: Path) -> Outcome:
    from minispec.tools.models import pretrained

    return describe_model(pretrained.load(str(folder / "model")))


def _load_file(folder: Path) -> Outcome:
    from minispec.tools.models import pretrained

    return describe_model(pretrained.load(str(folder / "model.gguf")))


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def write_llama(folder: Path) -> None:
    """A folder of a Llama with every file that a tokenizer's settings may be in."""
    model = folder / "model"
    tiny_model.write_model(model)
    _edit(model / "config.json", rope_scaling=_LLAMA3_ROPE, rope_theta=50_000.0,
          model_type="llama", hidden_act="silu", head_dim=8)  # fmt: skip
    tokens = json.loads((model / "tokenizer.json").read_text())["added_tokens"]
    ids = {token["content"]: token["id"] for token in tokens}
    _edit(model / "config.json", eos_token_id=ids["<|im_end|>"], bos_token_id=ids["<|im_start|>"])
    (model / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]], "do_sample": True})
    )
    (model / "special_tokens_map.json").write_text(
        json.dumps({"eos_token": {"content": "<|im_end|>", "special": True},
                    "additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    )  # fmt: skip
    (model / "added_tokens.json").write_text(json.dumps(ids))
    (model / "chat_template.jinja").write_text(tiny_model.TEMPLATE)


def write_shards(folder: Path) -> None:
    """The same model in two files with an index, its template in its tokenizer's settings."""
    write_llama(folder)
    model = folder / "model"
    (model / "chat_template.jinja").unlink()
    whole = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    names = sorted(whole)
    weight_map = {}
    for number, some in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: whole[name] for name in some}, model / file, {"format": "pt"})
        weight_map |= dict.fromkeys(some, file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


def gemma_weights(size: int) -> dict[str, torch.Tensor]:
    """Random weights of a Gemma under Hugging Face's names."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens": (size, _SIZE),
        "model.norm": (_SIZE,),
    }
    for layer in range(_LAYERS):
        parts = {
            "self_attn.q_proj": (_HEADS * _HEAD, _SIZE), "self_attn.k_proj": (_KV * _HEAD, _SIZE),
            "self_attn.v_proj": (_KV * _HEAD, _SIZE), "self_attn.o_proj": (_SIZE, _HEADS * _HEAD),
            "mlp.gate_proj": (_MLP, _SIZE), "mlp.up_proj": (_MLP, _SIZE),
            "mlp.down_proj": (_SIZE, _MLP), "self_attn.q_norm": (_HEAD,),
            "self_attn.k_norm": (_HEAD,), "input_layernorm": (_SIZE,),
            "post_attention_layernorm": (_SIZE,), "pre_feedforward_layernorm": (_SIZE,),
            "post_feedforward_layernorm": (_SIZE,),
        }  # fmt: skip
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in parts.items()}
    generator = torch.Generator().manual_seed(3)
    return {
        f"{name}.weight": torch.randn(shape, generator=generator) / 4
        for name, shape in shapes.items()
    }


def write_gemma(folder: Path) -> None:
    """A folder of a Gemma 3 with a SentencePiece ``tokenizer.model`` and tokens added to it."""
    model = folder / "model"
    model.mkdir()
    path = train_sentencepiece(folder, **LOSSLESS)
    path.rename(model / "tokenizer.model")
    (folder / "small.vocab").unlink()
    (folder / "text.txt").unlink()
    size = 602
    config = {
        "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "vocab_size": size + 6,
        "hidden_size": _SIZE, "num_hidden_layers": _LAYERS, "num_attention_heads": _HEADS,
        "num_key_value_heads": _KV, "head_dim": _HEAD, "intermediate_size": _MLP,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "query_pre_attn_scalar": 20,
        "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"],
        "rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": None, "eos_token_id": [2],
        "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True,
    }  # fmt: skip
    (model / "config.json").write_text(json.dumps(config))
    save_file(gemma_weights(size + 6), model / "model.safetensors", {"format": "pt"})
    added = {"<|im_start|>": 600, "<|im_end|>": 601}
    (model / "added_tokens.json").write_text(json.dumps(added))
    plain = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)
    decoder = {str(i): {"content": c, "special": True, **plain} for c, i in added.items()}
    settings = {"add_bos_token": True, "add_eos_token": False, "eos_token": "<|im_end|>",
                "bos_token": "<s>", "added_tokens_decoder": decoder,
                "chat_template": tiny_model.TEMPLATE}  # fmt: skip
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    (model / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 601]}))


def write_llama_file(folder: Path) -> None:
    """A GGUF file of a Llama with a byte-level BPE."""
    write_llama(folder / "source")
    source = folder / "source" / "model"
    data = json.loads((source / "tokenizer.json").read_text())
    names = [*data["model"]["vocab"], *(token["content"] for token in data["added_tokens"])]
    special = len(data["added_tokens"])
    keys = {
        "general.architecture": Value(8, "llama"), "general.name": Value(8, "tiny"),
        "general.alignment": Value(4, 32), "general.file_type": Value(4, 0),
        **_sizes("llama", 32, 3, 4, 2, 8, 48),
        "llama.rope.dimension_count": Value(4, 8), "llama.rope.freq_base": Value(6, 1e4),
        "tokenizer.ggml.model": Value(8, "gpt2"), "tokenizer.ggml.pre": Value(8, "gpt-2"),
        "tokenizer.ggml.tokens": Value(9, names, 8),
        "tokenizer.ggml.token_type": Value(9, [1] * (len(names) - special) + [3] * special, 5),
        "tokenizer.ggml.merges": Value(9, data["model"]["merges"], 8),
        "tokenizer.ggml.eos_token_id": Value(4, len(names) - 1),
        "tokenizer.ggml.bos_token_id": Value(4, len(names) - 2),
        "tokenizer.ggml.padding_token_id": Value(4, len(names) - 1),
        "tokenizer.ggml.add_bos_token": Value(7, False),
        "tokenizer.chat_template": Value(8, tiny_model.TEMPLATE),
    }  # fmt: skip
    _write_gguf(folder, keys, load_file(source / "model.safetensors"), "llama", 1.0)


def write_gemma_file(folder: Path) -> None:
    """A GGUF file of a Gemma 3 with a SentencePiece vocabulary."""
    model = sentencepiece.SentencePieceProcessor(str(train_sentencepiece(folder, **LOSSLESS)))
    ids = range(model.get_piece_size())
    kinds = [1 + model.is_unknown(i) + 2 * model.is_control(i) + 5 * model.is_byte(i) for i in ids]
    keys = {
        "general.architecture": Value(8, "gemma3"),
        **_sizes("gemma3", _SIZE, _LAYERS, _HEADS, _KV, _HEAD, _MLP),
        "gemma3.attention.value_length": Value(4, _HEAD), "gemma3.rope.freq_base": Value(6, 1e6),
        "gemma3.attention.sliding_window": Value(4, 4),
        "tokenizer.ggml.model": Value(8, "llama"), "tokenizer.ggml.pre": Value(8, "default"),
        "tokenizer.ggml.tokens": Value(9, [model.id_to_piece(i) for i in ids], 8),
        "tokenizer.ggml.scores": Value(9, [model.get_score(i) for i in ids], 6),
        "tokenizer.ggml.token_type": Value(9, kinds, 5),
        "tokenizer.ggml.bos_token_id": Value(4, 1), "tokenizer.ggml.eos_token_id": Value(4, 2),
        "tokenizer.ggml.unknown_token_id": Value(4, 0),
        "tokenizer.ggml.add_bos_token": Value(7, True),
        "tokenizer.ggml.add_eos_token": Value(7, False),
        "tokenizer.ggml.add_space_prefix": Value(7, False),
    }  # fmt: skip
    _write_gguf(folder, keys, gemma_weights(len(ids)), "gemma3", 0.0)


def _sizes(
    at: str, size: int, layers: int, heads: int, kv: int, head: int, mlp: int
) -> dict[str, Value]:
    return {
        f"{at}.block_count": Value(4, layers), f"{at}.context_length": Value(4, 2048),
        f"{at}.embedding_length": Value(4, size), f"{at}.feed_forward_length": Value(4, mlp),
        f"{at}.attention.head_count": Value(4, heads),
        f"{at}.attention.head_count_kv": Value(4, kv), f"{at}.attention.key_length": Value(4, head),
        f"{at}.attention.layer_norm_rms_epsilon": Value(6, 1e-5),
    }  # fmt: skip


def _write_gguf(
    folder: Path, keys: dict[str, Value], weights: dict[str, torch.Tensor], kind: str, norm: float
) -> None:
    from minispec.tools.models import gguf_file, hf_folder

    theirs, names = ({**m._NAMES, **m._LAYER_NAMES} for m in (hf_folder, gguf_file))
    if kind != "llama":
        theirs |= hf_folder._NORM_NAMES | hf_folder._POST_NORM_NAMES
        names |= gguf_file._NORM_NAMES | gguf_file._POST_NORM_NAMES
    ours = {ours: name for name, ours in names.items()}
    tensors, data = [], b""
    for name, weight in weights.items():
        stem = name.removesuffix(".weight")
        if stem.startswith("model.layers."):
            _, _, layer, part = stem.split(".", 3)
            new = f"blk.{layer}.{ours[theirs[part]]}.weight"
        else:
            new = f"{ours[theirs[stem]]}.weight"
        values = weight.numpy().astype(np.float32)
        tensors.append((new, values.shape[::-1], 0, len(data)))
        data += values.tobytes()
        data += b"\0" * (-len(data) % 32)
    parts = gguf.pieces(gguf.File(3, keys, tensors, data))
    (folder / "model.gguf").write_bytes(gguf.join(parts, data))


_SETTINGS = (
    Part("model/generation_config.json", Json(), TOKENIZER_SETTINGS, optional=True),
    Part("model/special_tokens_map.json", Json(), TOKENIZER_SETTINGS, optional=True),
    Part("model/added_tokens.json", Json(), TOKENIZER_SETTINGS, optional=True),
    Part("model/tokenizer_config.json", Json(), TOKENIZER_SETTINGS, 2, optional=True),
)
READERS = (
    Reader("llama folder", write_llama, _load, (
        Part("model/config.json", Json(), CONFIG, 4),
        Part("model/tokenizer.json", Json(), TOKENIZER_JSON, 4),
        Part("model/model.safetensors", Safetensors(), WEIGHTS, 4),
        Part("model/chat_template.jinja", Template(), TEMPLATE, 2, optional=True), *_SETTINGS), 4),
    Reader("sharded folder", write_shards, _load, (
        Part("model/model.safetensors.index.json", Json(), WEIGHTS_INDEX, 3),
        Part("model/model-00001-of-00002.safetensors", Safetensors(), WEIGHTS, 2),
        Part("model/model-00002-of-00002.safetensors", Safetensors(), WEIGHTS),
        *_SETTINGS), 2),
    Reader("gemma folder", write_gemma, _load, (
        Part("model/config.json", Json(), CONFIG, 4),
        Part("model/tokenizer.model", SentencePiece(), SENTENCEPIECE, 4),
        Part("model/model.safetensors", Safetensors(), WEIGHTS, 2), *_SETTINGS), 4),
    Reader("llama gguf", write_llama_file, _load_file, (Part("model.gguf", Gguf(), GGUF),), 5),
    Reader("gemma gguf", write_gemma_file, _load_file, (Part("model.gguf", Gguf(), GGUF),), 4),
)  # fmt: skip
