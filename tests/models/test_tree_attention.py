"""A pass over a tree gives every node the features of a pass over its own path alone.

So does a draft that processes the tree level by level, and what a cache keeps of a tree equals the
cache of a pass over the kept path. Each property is also checked with planted defects.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers.drafts import caches_equal, toy_draft
from helpers.toys import GEMMA, TOY, toy_transformer
from minispec.errors import ContextError
from minispec.models import rope
from minispec.models.kv_cache import KVCache
from minispec.models.rope import AttentionMetadata, Rope
from minispec.models.transformer import Transformer
from minispec.tree import find_depths, find_path

TARGETS = {"Llama": toy_transformer(), "Gemma": toy_transformer(**GEMMA)}
DRAFTS = {name: toy_draft(target) for name, target in TARGETS.items()}
ids = st.integers(0, TOY.vocab_size - 1)


@st.composite
def trees(draw: st.DrawFn) -> tuple[list[int], list[int], list[int]]:
    """Cached tokens, the tokens of a tree of up to 12 nodes, and their parents."""
    past = draw(st.lists(ids, max_size=8))
    parents = [draw(st.integers(-1, node - 1)) for node in range(draw(st.integers(1, 12)))]
    return past, [draw(ids) for _ in parents], parents


def to_ids(tokens: Sequence[int]) -> Tensor:
    return torch.tensor(tokens, dtype=torch.int64)


def check_target(tree: tuple[list[int], list[int], list[int]], target: Transformer) -> None:
    past, tokens, parents = tree
    cache = target.new_cache(32)
    target.step(to_ids(past), cache)
    features = target.step(to_ids(tokens), cache, parents)
    for node in range(len(parents)):
        path = find_path(parents, node)
        alone = target.step(to_ids([*past, *(tokens[i] for i in path)]), target.new_cache(32))
        for ours, fresh in (
            (features.hidden, alone.hidden),
            (features.aux_hidden_states, alone.aux_hidden_states),
        ):
            assert float((ours[list(path)] - fresh[len(past) :]).abs().max()) < 1e-10


def check_keep(tree: tuple[list[int], list[int], list[int]], target: Transformer) -> None:
    """Every path is kept, and so is each beginning of one."""
    past, tokens, parents = tree
    for node in range(-1, len(parents)):
        path = find_path(parents, node)
        cache, fresh = target.new_cache(32), target.new_cache(32)
        target.step(to_ids(past), cache)
        target.step(to_ids(tokens), cache, parents)
        cache.keep(len(past), path)
        target.step(to_ids([*past, *(tokens[i] for i in path)]), fresh)
        assert caches_equal(cache, fresh)


def check_draft(tree: tuple[list[int], list[int], list[int]], name: str) -> None:
    """Level by level, each level a pass that finds the earlier ones in the cache. A node's state is
    what the draft returned for its parent."""
    past, tokens, parents = tree
    draft, depths = DRAFTS[name], find_depths(parents)
    root = torch.sin(torch.arange(24, dtype=torch.float64))
    given_states = torch.cos(torch.arange(24 * len(past), dtype=torch.float64)).reshape(-1, 24)
    cache = draft.new_cache(32)
    draft.step(to_ids(past), given_states, cache)
    states: dict[int, Tensor] = {-1: root}
    rows: list[int] = []  # the nodes in the order in which they are processed
    for depth in range(max(depths) + 1):
        level = [node for node, d in enumerate(depths) if d == depth]
        rows += level
        inputs = torch.stack([states[parents[node]] for node in level])
        row_parents = [rows.index(parents[n]) if parents[n] >= 0 else -1 for n in rows]
        level_ids = to_ids([tokens[node] for node in level])
        outputs = draft.step(level_ids, inputs, cache, row_parents)
        states |= dict(zip(level, outputs, strict=True))
    for node in range(len(parents)):
        alone, state = draft.new_cache(32), root
        draft.step(to_ids(past), given_states, alone)
        for each in find_path(parents, node):
            state = draft.step(to_ids([tokens[each]]), state[None], alone)[0]
        assert float((states[node] - state).abs().max()) < 1e-10


@settings(max_examples=100, deadline=None)
@given(tree=trees(), name=st.sampled_from(list(TARGETS)))
def test_step_gives_each_node_the_features_of_its_own_path(tree: Any, name: str) -> None:
    check_target(tree, TARGETS[name])


@settings(max_examples=60, deadline=None)
@given(tree=trees(), name=st.sampled_from(list(DRAFTS)))
def test_draft_step_by_levels_gives_each_node_the_state_of_its_own_path(
    tree: Any, name: str
) -> None:
    check_draft(tree, name)


@settings(max_examples=40, deadline=None)
@given(tree=trees())
def test_keep_leaves_the_cache_of_a_pass_over_the_path(tree: Any) -> None:
    check_keep(tree, TARGETS["Llama"])


def test_step_counts_depth_not_nodes_against_the_context() -> None:
    """64 positions: 60 cached ones and a tree of 6 nodes of depth 4, but not of depth 5."""
    target = TARGETS["Llama"]
    cache = target.new_cache(80)
    target.step(torch.arange(50), cache)
    target.step(torch.arange(10), cache)
    target.step(torch.arange(6), cache, [-1, 0, 1, 2, 0, 0])
    cache.truncate(60)
    with pytest.raises(ContextError, match="position 65"):
        target.step(torch.arange(6), cache, [-1, 0, 1, 2, 3, 0])
    assert cache.length == 60


# ------------------------------------------------------------------ planted defects

_tree = Rope._tree_metadata
_ancestors = rope.find_ancestors


def see_cousins(parents: Sequence[int]) -> Tensor:
    """Nodes attend to all nodes before them, cousins included."""
    return torch.ones(len(parents), len(parents), dtype=torch.bool).tril()


def count_nodes_as_positions(parents: Sequence[int]) -> list[int]:
    """Each node has a position of its own."""
    return list(range(len(parents)))


def share_position(parents: Sequence[int]) -> list[int]:
    """Depth 1 and depth 2 have the same position."""
    return [depth - (depth > 1) for depth in find_depths(parents)]


def window_by_node(self: Rope, cache: KVCache, *arguments: Any) -> AttentionMetadata:
    """A sliding window counts stored nodes, not positions."""
    metadata = _tree(self, cache, *arguments)
    if self.window is None:
        return metadata
    assert metadata.mask is not None
    keys = torch.arange(metadata.key_slice.start, metadata.key_slice.stop)
    near = metadata.positions[0, :, None] - keys < self.window
    return replace(metadata, mask=metadata.mask & near.repeat_interleave(self.group, 0))


def keep_from_the_next(self: KVCache, start: int, path: Sequence[int]) -> None:
    """Off by one after a first candidate that was rejected."""
    shift = int(bool(path) and path[0] > 0)
    nodes = start + torch.tensor(path, dtype=torch.int64) - shift
    self.keys[:, :, start : start + len(path)] = self.keys[:, :, nodes]
    self.values[:, :, start : start + len(path)] = self.values[:, :, nodes]
    self.truncate(start + len(path))


def keep_length_only(self: KVCache, start: int, path: Sequence[int]) -> None:
    """The path is not moved together."""
    self.truncate(start + len(path))


Check = Callable[[Any, Any], None]
DEFECTS: list[tuple[Check, Any, Any, str, Any]] = [
    (check_target, TARGETS["Llama"], rope, "find_ancestors", see_cousins),
    (check_target, TARGETS["Llama"], rope, "find_depths", count_nodes_as_positions),
    (check_target, TARGETS["Llama"], rope, "find_depths", share_position),
    (check_target, TARGETS["Gemma"], Rope, "_tree_metadata", window_by_node),
    (check_draft, "Llama", rope, "find_ancestors", see_cousins),
    (check_draft, "Llama", rope, "find_depths", share_position),
    (check_keep, TARGETS["Llama"], KVCache, "keep", keep_from_the_next),
    (check_keep, TARGETS["Llama"], KVCache, "keep", keep_length_only),
]


@pytest.mark.parametrize(
    "check, model, owner, name, defect", DEFECTS,
    ids=[f"{case[0].__name__}-{case[-1].__name__}" for case in DEFECTS],
)  # fmt: skip
def test_checks_find_planted_defects(
    monkeypatch: pytest.MonkeyPatch, check: Check, model: Any, owner: Any, name: str, defect: Any
) -> None:
    @settings(
        max_examples=100, deadline=None, database=None, derandomize=True, phases=[Phase.generate]
    )
    @given(trees())
    def run(tree: Any) -> None:
        check(tree, model)

    monkeypatch.setattr(owner, name, defect)
    with pytest.raises(AssertionError):
        run()
