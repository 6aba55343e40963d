"""A Llama-style model out of a folder in Hugging Face's layout.

Such a folder holds ``config.json``, the weights in ``model.safetensors`` or in several such
files with an index, and a tokenizer. What its configuration asks for and ``minispec.model``
does not do is refused by name: a model that is nearly right writes nearly the right text.

Knows where a model is in the folder, not where the folder comes from.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from minispec.checkpoint import read_json, read_tensors
from minispec.errors import ArgumentError, FileError
from minispec.model import ModelConfig, RopeScaling, Transformer, assembled, default_taps
from minispec.tokenizer import SentencePieceTokenizer, TiktokenTokenizer
from minispec.types import Tokenizer

_LAYER_NAMES = {
    "input_layernorm": "attention_norm",
    "self_attn.q_proj": "attention.query",
    "self_attn.k_proj": "attention.key",
    "self_attn.v_proj": "attention.value",
    "self_attn.o_proj": "attention.output",
    "post_attention_layernorm": "mlp_norm",
    "mlp.gate_proj": "mlp.gate",
    "mlp.up_proj": "mlp.up",
    "mlp.down_proj": "mlp.down",
}
_NAMES = {"model.embed_tokens": "embedding", "model.norm": "norm", "lm_head": "output"}
# What else a configuration may say, and the one answer that ``minispec.model`` is built on.
_ONLY = dict(hidden_act="silu", attention_bias=False, mlp_bias=False, quantization_config=None)


def load(path: Path) -> tuple[Transformer, Tokenizer]:
    """A float32 Transformer and its tokenizer.

    Raises FileError: a file missing or damaged, or a model of another kind.
    """
    config = _config(path / "config.json")
    tokenizer = _tokenizer(path)
    ids, rows = tokenizer.vocabulary_size, config.vocabulary_size
    if ids > rows:  # fewer is common: rows are padded to a round number
        raise FileError(f"{path}: the tokenizer has {ids} ids, the model only {rows}")
    state: dict[str, Tensor] = {}
    for file, name, value in _weights(path):
        if name.endswith(".inv_freq") or (name == "lm_head.weight" and config.tied_head):
            continue  # what follows from the configuration, and the embedding once more
        if not value.is_floating_point() or value.element_size() == 1:
            raise FileError(f"{file}: {name} is {value.dtype}: quantised weights are not supported")
        state[_name(name, file)] = value.float()
    return assembled(config, state, str(path)), tokenizer


def _config(path: Path) -> ModelConfig:
    data = read_json(path)
    try:
        names = data.get("architectures") or [data.get("model_type")]
        if names not in (["LlamaForCausalLM"], ["llama"]):
            raise FileError(f"architecture {names[0]!a} is not supported, only Llama's is")
        for key, wanted in _ONLY.items():
            if (found := data.get(key) or wanted) != wanted:
                raise FileError(f"{key} {found!a} is not supported, only {wanted!a} is")
        width, heads = data["hidden_size"], data["num_attention_heads"]
        layers = data["num_hidden_layers"]
        base, scaling = _rope(data)
        return ModelConfig(
            vocabulary_size=data["vocab_size"],
            width=width,
            layers=layers,
            heads=heads,
            kv_heads=data.get("num_key_value_heads") or heads,
            head_width=data.get("head_dim") or width // heads,
            mlp_width=data["intermediate_size"],
            context_limit=data["max_position_embeddings"],
            norm_epsilon=float(data.get("rms_norm_eps", 1e-6)),
            rope_base=float(base),
            rope_scaling=scaling,
            tied_head=bool(data.get("tie_word_embeddings")),
            tap_layers=default_taps(layers),
        )
    except (FileError, ArgumentError) as error:
        raise FileError(f"{path}: {error}") from None
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise FileError(f"{path} describes no Llama model: {error!r}") from None


def _rope(data: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """The base of the rotary frequencies and how they are stretched. Newer files say both in
    ``rope_parameters``, older ones in ``rope_theta`` and ``rope_scaling``."""
    rope = data.get("rope_parameters") or data.get("rope_scaling") or {}
    base = rope.get("rope_theta") or data.get("rope_theta") or 10_000.0
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in ("default", "llama3"):
        raise FileError(f"rope type {kind!a} is not supported, only 'default' and 'llama3' are")
    if kind == "default":
        return base, None
    return base, RopeScaling(
        factor=float(rope["factor"]),
        low_factor=float(rope["low_freq_factor"]),
        high_factor=float(rope["high_freq_factor"]),
        original_context=int(rope["original_max_position_embeddings"]),
    )


def _weights(folder: Path) -> Iterator[tuple[Path, str, Tensor]]:
    """Every tensor with the file that it lies in; one file is in memory at a time."""
    index = folder / "model.safetensors.index.json"
    names = {"model.safetensors"}
    if index.is_file() and not (folder / "model.safetensors").is_file():
        try:
            names = {str(name) for name in read_json(index)["weight_map"].values()}
        except (LookupError, TypeError, AttributeError):
            raise FileError(f"{index} is no index of safetensors files") from None
    for name in sorted(names):
        for tensor, value in read_tensors(folder / name).items():
            yield folder / name, tensor, value


def _name(name: str, file: Path) -> str:
    stem = name.removesuffix(".weight")
    if stem in _NAMES:
        return f"{_NAMES[stem]}.weight"
    match stem.split(".", 3):
        case ["model", "layers", index, part] if part in _LAYER_NAMES:
            return f"layers.{index}.{_LAYER_NAMES[part]}.weight"
    raise FileError(f"{file}: tensor {name!a} is none that a Llama model has here")


def _tokenizer(folder: Path) -> Tokenizer:
    """Of a folder's tokenizer files the first that can be read: a Llama 2 folder has a
    ``tokenizer.json`` that no one here reads, and beside it the ``tokenizer.model`` itself."""
    makers: tuple[tuple[str, Callable[[Path], Tokenizer]], ...] = (
        ("tokenizer.json", TiktokenTokenizer.from_tokenizer_json),
        ("tokenizer.model", SentencePieceTokenizer),
        ("tokenizer.model", TiktokenTokenizer.from_llama3_model),
    )
    refusals = []
    for name, make in makers:
        if (folder / name).is_file():
            try:
                return make(folder / name)
            except FileError as error:
                refusals.append(error)
    if refusals:
        raise refusals[0]
    raise FileError(f"{folder} has no tokenizer: neither tokenizer.json nor tokenizer.model")
