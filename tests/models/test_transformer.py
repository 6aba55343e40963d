"""The target gives the same features however its input is chunked, batched or rolled back.

Speculative decoding needs exactly that: a verify pass is a chunk, a rejected draft is a rollback,
and prompts of different lengths share a batch. Each property is also checked on models with a
planted defect, which it must find.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers.features import drop_positions, max_error
from helpers.toys import TOY, toy_transformer
from minispec.errors import ArgumentError, ContextError
from minispec.models.kv_cache import KVCache
from minispec.models.model_config import ModelConfig, default_aux_layer_ids
from minispec.models.rope import AttentionMetadata, Rope
from minispec.types import Features

MODEL = toy_transformer()

ids = st.integers(0, TOY.vocab_size - 1)
chunks = st.lists(ids, max_size=7)
# What happens to a cache: a list of tokens is processed; a number is a rollback to that length.
histories = st.lists(chunks | st.integers(0, 20), min_size=1, max_size=8)
batches = st.lists(st.tuples(st.lists(ids, max_size=9), st.lists(ids, min_size=4, max_size=4)))


def run_fresh(tokens: Sequence[int]) -> Features:
    """One pass over all tokens with an empty cache: the reference for all checks."""
    return MODEL.step(torch.tensor(tokens, dtype=torch.int64), MODEL.new_cache(64))


def check_history(history: Sequence[Sequence[int] | int]) -> None:
    """After any chunks and rollbacks, a pass gives the features of a fresh pass over all tokens."""
    cache, tokens = MODEL.new_cache(64), []
    for event in history:
        if isinstance(event, int):
            cache.truncate(event)
            tokens = tokens[:event]
        else:
            features = MODEL.step(torch.tensor(event, dtype=torch.int64), cache)
            expected = drop_positions(run_fresh(tokens + event), len(tokens))
            tokens = tokens + event
            assert max_error(features, expected) < 1e-10
        assert cache.length == len(tokens)


def check_batch(contents: Sequence[tuple[list[int], list[int]]]) -> None:
    """Sequences of different lengths process chunks in a batch, each as if it were alone."""
    if not contents:
        return
    cache = MODEL.new_cache(20, len(contents))
    for index, (past, _) in enumerate(contents):
        alone = cache.sequence(index)
        MODEL(torch.tensor([past], dtype=torch.int64), alone)
        cache.lengths[index] = alone.length
    batch = torch.tensor([new for _, new in contents])  # (B, 4)
    parts = [MODEL(part, cache) for part in (batch[:, :1], batch[:, 1:])]
    for index, (past, new) in enumerate(contents):
        features = Features(
            torch.cat([part.hidden[index] for part in parts]),
            torch.cat([part.aux_hidden_states[index] for part in parts]),
        )
        expected = drop_positions(run_fresh(past + new), len(past))
        assert max_error(features, expected) < 1e-10
    assert cache.lengths == [len(past) + len(new) for past, new in contents]


@settings(max_examples=200, deadline=None)
@given(histories)
def test_step_gives_the_features_of_a_fresh_pass_for_any_chunks_and_rollbacks(history):
    check_history(history)


@settings(max_examples=100, deadline=None)
@given(batches.filter(len))
def test_forward_treats_each_sequence_of_a_batch_as_if_alone(contents):
    check_batch(contents)


# ------------------------------------------------------------------ planted defects

_metadata = Rope.attention_metadata


def attend_ahead(self: Rope, cache: KVCache, new: int, *tree: Any) -> AttentionMetadata:
    """Each token of a chunk attends to the whole chunk."""
    metadata = _metadata(self, cache, new, *tree)
    return replace(metadata, mask=None)


def attend_to_others_only(self: Rope, cache: KVCache, new: int, *tree: Any) -> AttentionMetadata:
    """The mask ends one position too early, except for the first position."""
    metadata = _metadata(self, cache, new, *tree)
    if metadata.mask is None:
        return replace(metadata, mask=None)
    keys = torch.arange(metadata.key_slice.stop)
    queries = metadata.positions.repeat_interleave(self.group, dim=1)[:, None, :, None]
    return replace(metadata, mask=(keys < queries) | (keys == 0))


def rotate_from_zero(self: Rope, cache: KVCache, new: int, *tree: Any) -> AttentionMetadata:
    """Each chunk is rotated as if it were the first."""
    metadata = _metadata(self, cache, new, *tree)
    cos, sin = self.cos_sin(torch.arange(new)[None], cache.keys.dtype)
    return replace(metadata, cos=cos, sin=sin)


def mask_by_longest(self: Rope, cache: KVCache, new: int, *tree: Any) -> AttentionMetadata:
    """Short sequences have the mask of the longest one."""
    metadata = _metadata(self, cache, new, *tree)
    end = metadata.key_slice.stop
    last = torch.arange(end - new, end).repeat_interleave(self.group)
    mask = torch.arange(end) <= last[:, None]
    return replace(metadata, mask=mask.expand(len(cache.lengths), 1, -1, -1))


def write_after_longest(
    self: KVCache, layer: int, positions: Tensor, keys: Tensor, values: Tensor
) -> None:
    """Keys of short sequences are written after a gap."""
    longest = max(self.lengths)
    self.keys[layer, :, longest : longest + positions.shape[1]] = keys
    self.values[layer, :, longest : longest + positions.shape[1]] = values


def ignore_rollback(self: KVCache, length: int) -> None:
    """Truncation has no effect."""


DEFECTS: list[tuple[Callable[..., None], st.SearchStrategy, type, str, Callable]] = [
    (check_history, histories, Rope, "attention_metadata", attend_ahead),
    (check_history, histories, Rope, "attention_metadata", attend_to_others_only),
    (check_history, histories, Rope, "attention_metadata", rotate_from_zero),
    (check_history, histories, KVCache, "truncate", ignore_rollback),
    (check_batch, batches, Rope, "attention_metadata", mask_by_longest),
    (check_batch, batches, KVCache, "write", write_after_longest),
]


@pytest.mark.parametrize(
    "check, inputs, owner, name, defect", DEFECTS, ids=[case[-1].__name__ for case in DEFECTS]
)
def test_checks_find_planted_defects(monkeypatch, check, inputs, owner, name, defect):
    @settings(
        max_examples=200, deadline=None, database=None, derandomize=True, phases=[Phase.generate]
    )
    @given(inputs)
    def run(value: object) -> None:
        check(value)

    monkeypatch.setattr(owner, name, defect)
    with pytest.raises(AssertionError):
        run()


# ------------------------------------------------------------------ limits


@pytest.mark.parametrize(
    "capacity, lengths, left",
    [
        (10, [4], 6),
        (100, [4], 60),  # the cache could take more, but the model's context ends
        (10, [1, 4, 0], 6),
    ],
)
def test_forward_refuses_overflow_before_anything_changes(capacity, lengths, left):
    cache = MODEL.new_cache(capacity, len(lengths))
    ids = torch.arange(len(lengths) * 4).reshape(-1, 4)
    MODEL(ids, cache)
    cache.lengths = list(lengths)
    keys, values = cache.keys.clone(), cache.values.clone()
    with pytest.raises(ContextError, match=f"cache of 10|context of {TOY.context_limit}"):
        MODEL(ids[:, :1].expand(-1, left + 1), cache)
    assert torch.equal(cache.keys, keys) and torch.equal(cache.values, values)
    assert cache.lengths == lengths
    MODEL(ids[:, :1].expand(-1, left), cache)  # one less fits
    assert cache.lengths == [length + left for length in lengths]


def test_truncate_keeps_sequences_that_are_shorter():
    cache = MODEL.new_cache(10, 2)
    cache.lengths = [2, 5]
    cache.truncate(4)
    assert cache.lengths == [2, 4]


# ------------------------------------------------------------------ outputs, head, configuration


def test_step_concatenates_the_outputs_of_the_auxiliary_layers():
    model = toy_transformer(aux_hidden_state_layer_ids=(1, 3))
    outputs = []
    for layer in model.layers:
        layer.register_forward_hook(lambda _module, _inputs, output: outputs.append(output[0]))
    features = model.step(torch.arange(5), model.new_cache(5))
    assert torch.equal(features.aux_hidden_states, torch.cat([outputs[0], outputs[2]], dim=-1))
    assert torch.equal(features.hidden, model.norm(outputs[2]))
    bare = toy_transformer(aux_hidden_state_layer_ids=()).step(torch.arange(5), MODEL.new_cache(5))
    assert bare.aux_hidden_states.shape == (5, 0) and torch.equal(bare.hidden, features.hidden)


def test_head_is_the_embedding_only_if_they_are_tied():
    assert MODEL.head.weight.data_ptr() == MODEL.embedding.weight.data_ptr()
    untied = toy_transformer(tie_word_embeddings=False)
    assert untied.head.weight.data_ptr() == untied.output.weight.data_ptr()
    assert not torch.equal(untied.head.weight, untied.embedding.weight)


def test_default_aux_layer_ids_are_ascending_layers_of_the_model():
    for layers in range(1, 81):
        layer_ids = default_aux_layer_ids(layers)
        assert layer_ids[0] >= 1 and layer_ids[-1] <= layers, layers
        assert list(layer_ids) == sorted(set(layer_ids)), layers
        assert len(layer_ids) == min(3, layers), layers
    assert default_aux_layer_ids(30) == (2, 14, 26)
    assert default_aux_layer_ids(16) == (2, 7, 12)


@pytest.mark.parametrize(
    "changes, problem",
    [
        (
            {"num_attention_heads": 5},
            "num_attention_heads 5 must be a multiple of num_key_value_heads 2",
        ),
        ({"head_dim": 7}, "head_dim 7 must be even"),
        ({"aux_hidden_state_layer_ids": (0,)}, "must lie in 1..3"),
        ({"aux_hidden_state_layer_ids": (4,)}, "must lie in 1..3"),
        ({"num_key_value_heads": 0}, "num_key_value_heads 0 must be"),
        ({"num_hidden_layers": -1}, "num_hidden_layers -1 must be"),
        ({"hidden_size": 24.0}, "hidden_size 24.0 must be a whole number"),
        ({"context_limit": "64"}, "context_limit '64' must be"),
    ],
)
def test_model_config_refuses_impossible_shapes_by_name(changes, problem):
    values = {name: getattr(TOY, name) for name in ModelConfig.__dataclass_fields__}
    with pytest.raises(ArgumentError, match=problem):
        ModelConfig(**values | changes)
