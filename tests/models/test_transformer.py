"""The target gives the same features however its input is cut, grouped or taken back.

That is the shape of everything speculative decoding asks of it: a verify pass is a chunk, a
rejected draft is a rollback, and prompts of different lengths share a batch. Each property is
also run against models with a planted defect, which it has to find.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers.features import max_error
from helpers.toys import TOY, toy_transformer
from minispec.errors import ArgumentError, ContextError
from minispec.models.kv_cache import KVCache
from minispec.models.rope import AttentionMetadata, Rope
from minispec.models.transformer import ModelConfig, default_aux_layer_ids
from minispec.types import Features

MODEL = toy_transformer()

ids = st.integers(0, TOY.vocab_size - 1)
chunks = st.lists(ids, max_size=7)
# What may happen to a cache: tokens are read, or all but some of them are forgotten.
histories = st.lists(chunks | st.integers(0, 20), min_size=1, max_size=8)
rows = st.lists(st.tuples(st.lists(ids, max_size=9), st.lists(ids, min_size=4, max_size=4)))


def fresh(tokens: Sequence[int]) -> Features:
    """One pass over all tokens with an empty cache: what everything else is measured by."""
    return MODEL.step(torch.tensor(tokens, dtype=torch.int64), MODEL.new_cache(64))


def check_history(history: Sequence[Sequence[int] | int]) -> None:
    """Reads and forgets by turns; every pass gives what a fresh pass over all tokens gives."""
    cache, held = MODEL.new_cache(64), []
    for event in history:
        if isinstance(event, int):
            cache.truncate(event)
            held = held[:event]
        else:
            features = MODEL.step(torch.tensor(event, dtype=torch.int64), cache)
            held = held + event
            expected = fresh(held)
            start = len(held) - len(event)
            expected = Features(expected.hidden[start:], expected.aux_hidden_states[start:])
            assert max_error(features, expected) < 1e-10
        assert cache.length == len(held)


def check_rows(contents: Sequence[tuple[list[int], list[int]]]) -> None:
    """Rows with pasts of different lengths read chunks together, each as if it were alone."""
    if not contents:
        return
    cache = MODEL.new_cache(20, len(contents))
    for row, (past, _) in enumerate(contents):
        alone = cache.sequence(row)
        MODEL(torch.tensor([past], dtype=torch.int64), alone)
        cache.lengths[row] = alone.length
    together = torch.tensor([new for _, new in contents])  # (B, 4)
    parts = [MODEL(part, cache) for part in (together[:, :1], together[:, 1:])]
    for row, (past, new) in enumerate(contents):
        expected = fresh(past + new)
        expected = Features(expected.hidden[len(past) :], expected.aux_hidden_states[len(past) :])
        features = Features(
            torch.cat([part.hidden[row] for part in parts]),
            torch.cat([part.aux_hidden_states[row] for part in parts]),
        )
        assert max_error(features, expected) < 1e-10
    assert cache.lengths == [len(past) + len(new) for past, new in contents]


@settings(max_examples=200, deadline=None)
@given(histories)
def test_any_chunking_and_any_rollback_gives_the_features_of_a_fresh_pass(history):
    check_history(history)


@settings(max_examples=100, deadline=None)
@given(rows.filter(len))
def test_rows_of_different_lengths_equal_each_row_alone(contents):
    check_rows(contents)


# ------------------------------------------------------------------ planted defects

_metadata = Rope.attention_metadata


def looks_ahead(self: Rope, cache: KVCache, new: int) -> AttentionMetadata:
    """Each token of a chunk sees the whole chunk."""
    metadata = _metadata(self, cache, new)
    return replace(metadata, mask=None)


def misses_itself(self: Rope, cache: KVCache, new: int) -> AttentionMetadata:
    """The mask ends one place too early, but for the first position."""
    metadata = _metadata(self, cache, new)
    if metadata.mask is None:
        return replace(metadata, mask=None)
    keys = torch.arange(metadata.key_slice.stop)
    queries = metadata.positions.repeat_interleave(self.group, dim=1)[:, None, :, None]
    return replace(metadata, mask=(keys < queries) | (keys == 0))


def starts_again(self: Rope, cache: KVCache, new: int) -> AttentionMetadata:
    """Each chunk is turned as if it stood at the beginning."""
    metadata = _metadata(self, cache, new)
    cos, sin = self.cos_sin(torch.arange(new)[None], cache.keys.dtype)
    return replace(metadata, cos=cos, sin=sin)


def sees_the_longest_row(self: Rope, cache: KVCache, new: int) -> AttentionMetadata:
    """Short rows look at what the longest row's length lets them see."""
    metadata = _metadata(self, cache, new)
    end = metadata.key_slice.stop
    last = torch.arange(end - new, end).repeat_interleave(self.group)
    mask = torch.arange(end) <= last[:, None]
    return replace(metadata, mask=mask.expand(len(cache.lengths), 1, -1, -1))


def writes_at_the_longest_row(
    self: KVCache, layer: int, positions: Tensor, keys: Tensor, values: Tensor
) -> None:
    """Keys of short rows land behind a gap."""
    longest = max(self.lengths)
    self.keys[layer, :, longest : longest + positions.shape[1]] = keys
    self.values[layer, :, longest : longest + positions.shape[1]] = values


def never_forgets(self: KVCache, length: int) -> None:
    """A rollback without effect."""


DEFECTS: list[tuple[Callable[..., None], st.SearchStrategy, type, str, Callable]] = [
    (check_history, histories, Rope, "attention_metadata", looks_ahead),
    (check_history, histories, Rope, "attention_metadata", misses_itself),
    (check_history, histories, Rope, "attention_metadata", starts_again),
    (check_history, histories, KVCache, "truncate", never_forgets),
    (check_rows, rows, Rope, "attention_metadata", sees_the_longest_row),
    (check_rows, rows, KVCache, "write", writes_at_the_longest_row),
]


@pytest.mark.parametrize(
    "check, inputs, place, name, defect", DEFECTS, ids=[case[-1].__name__ for case in DEFECTS]
)
def test_a_planted_defect_is_found(monkeypatch, check, inputs, place, name, defect):
    @settings(
        max_examples=200, deadline=None, database=None, derandomize=True, phases=[Phase.generate]
    )
    @given(inputs)
    def run(value: object) -> None:
        check(value)

    monkeypatch.setattr(place, name, defect)
    with pytest.raises(AssertionError):
        run()


# ------------------------------------------------------------------ limits


@pytest.mark.parametrize(
    "capacity, lengths, room",
    [
        (10, [4], 6),
        (100, [4], 60),  # the cache has room, but the model's context ends
        (10, [1, 4, 0], 6),
    ],
)
def test_overflow_is_refused_before_anything_changes(capacity, lengths, room):
    cache = MODEL.new_cache(capacity, len(lengths))
    ids = torch.arange(len(lengths) * 4).reshape(-1, 4)
    MODEL(ids, cache)
    cache.lengths = list(lengths)
    keys, values = cache.keys.clone(), cache.values.clone()
    with pytest.raises(ContextError, match=f"cache of 10|context of {TOY.context_limit}"):
        MODEL(ids[:, :1].expand(-1, room + 1), cache)
    assert torch.equal(cache.keys, keys) and torch.equal(cache.values, values)
    assert cache.lengths == lengths
    MODEL(ids[:, :1].expand(-1, room), cache)  # one less is right
    assert cache.lengths == [length + room for length in lengths]


def test_forgetting_more_than_is_held_changes_nothing():
    cache = MODEL.new_cache(10, 2)
    cache.lengths = [2, 5]
    cache.truncate(4)
    assert cache.lengths == [2, 4]


# ------------------------------------------------------------------ taps, head, configuration


def test_taps_are_the_outputs_of_their_layers_side_by_side():
    model = toy_transformer(aux_hidden_state_layer_ids=(1, 3))
    outputs = []
    for layer in model.layers:
        layer.register_forward_hook(lambda _module, _inputs, output: outputs.append(output[0]))
    features = model.step(torch.arange(5), model.new_cache(5))
    assert torch.equal(features.aux_hidden_states, torch.cat([outputs[0], outputs[2]], dim=-1))
    assert torch.equal(features.hidden, model.norm(outputs[2]))
    bare = toy_transformer(aux_hidden_state_layer_ids=()).step(torch.arange(5), MODEL.new_cache(5))
    assert bare.aux_hidden_states.shape == (5, 0) and torch.equal(bare.hidden, features.hidden)


def test_the_head_is_the_embedding_only_where_they_are_tied():
    assert MODEL.head.weight.data_ptr() == MODEL.embedding.weight.data_ptr()
    untied = toy_transformer(tie_word_embeddings=False)
    assert untied.head.weight.data_ptr() == untied.output.weight.data_ptr()
    assert not torch.equal(untied.head.weight, untied.embedding.weight)


def test_default_taps_are_layers_of_the_model_from_low_to_high():
    for layers in range(1, 81):
        aux_hidden_states = default_aux_layer_ids(layers)
        assert aux_hidden_states[0] >= 1 and aux_hidden_states[-1] <= layers, layers
        assert list(aux_hidden_states) == sorted(set(aux_hidden_states)) and len(
            aux_hidden_states
        ) == min(3, layers), layers
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
def test_impossible_shapes_are_refused_by_name(changes, problem):
    values = {name: getattr(TOY, name) for name in ModelConfig.__dataclass_fields__}
    with pytest.raises(ArgumentError, match=problem):
        ModelConfig(**values | changes)
