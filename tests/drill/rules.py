"""Which new values of a field no reader can tell from intended ones, by kind of file.

Tight on purpose: a field that is not named here must not change what is read, whatever is put into
it. A value that a rule allows is counted as unnoticed, with the name of its field.
"""

from typing import Any

import numpy as np

from drill.values import (
    MISSING,
    Rule,
    any_of,
    is_absent,
    is_anything,
    is_flag,
    is_index,
    is_number,
    is_positive,
    is_size,
    is_text,
    list_of,
    one_of,
)


def is_finite_data(value: Any) -> bool:
    """Floats without NaN and infinity."""
    floats = isinstance(value, np.ndarray) and value.dtype.kind == "f"
    return floats and bool(np.isfinite(value).all())


def are_ids(size: int, unique: bool = True, lowest: int = 0) -> Rule:
    """Integers of a vocabulary of ``size`` ids."""

    def rule(value: Any) -> bool:
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu" or not len(value):
            return False
        fits = lowest <= int(value.min()) and int(value.max()) < size
        return fits and (not unique or len(np.unique(value)) == len(value))

    return rule


def is_mapping(value: Any) -> bool:
    """An object."""
    return isinstance(value, dict)


_LAYERS = one_of("sliding_attention", "full_attention")
_IDS = any_of(is_index, list_of(is_index), is_absent)
_TOKEN = any_of(is_text, is_absent, is_mapping)
# A field that was renamed, or that the intact file does not have, is one that nobody reads.
_UNKNOWN = {"*_": is_anything, "+*": is_anything}

CONFIG: dict[str, Rule] = {
    **dict.fromkeys(
        ("rope_theta", "rope_local_base_freq", "query_pre_attn_scalar"),
        any_of(is_positive, is_absent),
    ),
    "rms_norm_eps": any_of(is_positive, is_absent, one_of(0, 0.0)),
    **dict.fromkeys(
        ("max_position_embeddings", "vocab_size", "num_attention_heads", "num_hidden_layers"),
        is_size,
    ),
    **dict.fromkeys(
        ("num_key_value_heads", "head_dim", "sliding_window"), any_of(is_size, is_absent)
    ),
    **dict.fromkeys(("eos_token_id", "bos_token_id", "pad_token_id"), _IDS),
    "eos_token_id.[]": is_index,
    "rope_scaling": is_absent,
    "rope_scaling.factor": is_positive,
    "rope_scaling.low_freq_factor": is_positive,
    "rope_scaling.high_freq_factor": is_positive,
    "rope_scaling.original_max_position_embeddings": is_size,
    "rope_scaling.rope_type": one_of("default", "llama3"),
    "layer_types": any_of(list_of(_LAYERS), is_absent),
    "layer_types.[]": _LAYERS,
    "tie_word_embeddings": any_of(is_flag, is_absent),
    "architectures": any_of(is_absent, list_of(is_text)),
    **_UNKNOWN,
}

TOKENIZER_SETTINGS: dict[str, Rule] = {
    "document": is_mapping,
    **dict.fromkeys(("eos_token_id", "bos_token_id", "pad_token_id"), _IDS),
    "eos_token_id.[]": is_index,
    **dict.fromkeys(("eos_token", "bos_token", "unk_token", "pad_token"), _TOKEN),
    "eos_token.content": is_text,
    "additional_special_tokens": any_of(list_of(_TOKEN), is_absent),
    "additional_special_tokens.[]": _TOKEN,
    **dict.fromkeys(("add_bos_token", "add_eos_token"), any_of(is_flag, is_absent)),
    "chat_template": any_of(is_text, is_absent),
    "<|*|>": any_of(is_index, is_absent),
    "added_tokens_decoder": any_of(is_absent, is_mapping),
    "added_tokens_decoder.*": any_of(is_absent, is_mapping),
    "added_tokens_decoder.*.content": is_text,
    "added_tokens_decoder.*.*": any_of(is_flag, is_absent),
    **_UNKNOWN,
}

TOKENIZER_JSON: dict[str, Rule] = {
    "model.vocab.*": any_of(is_index, is_absent),  # absent where its text was changed
    "model.merges": list_of(any_of(is_text, list_of(is_text))),
    "model.merges.[]": any_of(is_text, list_of(is_text)),
    "model.merges.[].[]": is_text,
    "added_tokens": any_of(list_of(is_mapping), is_absent),
    "added_tokens.[].content": is_text,
    "added_tokens.[].id": is_index,
    "added_tokens.[].special": is_flag,
    "pre_tokenizer.add_prefix_space": is_flag,
    "pre_tokenizer.use_regex": is_flag,
    **_UNKNOWN,
}

TEMPLATE: dict[str, Rule] = {"template": is_text}

WEIGHTS: dict[str, Rule] = {
    "*.data": is_finite_data,
    "*.dtype": one_of("F64", "F32", "F16", "BF16"),
    "metadata.*": any_of(is_text, is_absent),
}
WEIGHTS_INDEX: dict[str, Rule] = {}

_STRINGS = list_of(is_text)
GGUF: dict[str, Rule] = {
    "*:type": is_anything,  # the rule of the value itself decides
    "version": one_of(2, 3),
    "general.alignment": one_of(8, 16, 64, 128, MISSING),
    "*.rope.freq_base": any_of(is_positive, is_absent),
    "*.attention.layer_norm_rms_epsilon": any_of(is_positive, one_of(0, 0.0)),
    "*.context_length": is_size,
    "*.attention.head_count": is_size,
    "*.attention.head_count_kv": any_of(is_size, is_absent),
    "*.attention.key_length": any_of(is_size, is_absent),
    "*.attention.sliding_window": is_size,
    "*.rope.dimension_count": any_of(is_size, is_absent),
    "tokenizer.ggml.pre": is_text,
    "tokenizer.ggml.tokens[[]]": _STRINGS,
    "tokenizer.ggml.scores[[]]": list_of(is_number),
    "tokenizer.ggml.token_type[[]]": list_of(one_of(1, 2, 3, 4, 5, 6)),
    "tokenizer.ggml.token_type": is_absent,
    "tokenizer.ggml.merges[[]]": _STRINGS,
    "tokenizer.ggml.merges:count": _STRINGS,
    "tokenizer.ggml.merges": list_of(is_text),
    "tokenizer.ggml.*_token_id": any_of(is_index, is_absent),
    "tokenizer.ggml.add_*": any_of(is_flag, is_absent),
    "tokenizer.chat_template": any_of(is_text, is_absent),
    "TENSOR:type": one_of(0, 1, 30),
    "TENSOR:data": is_anything,
}

SENTENCEPIECE: dict[str, Rule] = {
    "pieces": is_anything,  # a vocabulary may have any number of them
    "pieces.1": lambda value: isinstance(value, bytes),
    "pieces.2": is_number,
    "pieces.3": lambda value: value in range(1, 7),
    "pieces.0": is_anything,  # a score or a type that is left out has a default
    "?.*": is_anything,  # a field with another number is one that nobody reads
    "trainer_spec*": is_anything,  # fields of the library, which checks them
    "normalizer_spec*": is_anything,
}


def own_tensors(**rules: Rule) -> dict[str, Rule]:
    """The rules of a tensor file of minispec's own: names, dtypes and shapes are given."""
    return {f"{name}.data": rule for name, rule in rules.items()}
