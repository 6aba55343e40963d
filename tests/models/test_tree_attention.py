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

from helpers.trees import (
    DRAFTS,
    TARGETS,
    Tree,
    draw_tree,
    measure_draft,
    measure_kept,
    measure_target,
)
from minispec.errors import ContextError
from minispec.models import rope
from minispec.models.kv_cache import KVCache
from minispec.models.rope import AttentionMetadata, Rope
from minispec.tree import find_depths


@settings(max_examples=100, deadline=None)
@given(tree=draw_tree(), name=st.sampled_from(list(TARGETS)))
def test_step_gives_each_node_the_features_of_its_own_path(tree: Tree, name: str) -> None:
    assert measure_target(tree, name) < 1e-10


@settings(max_examples=60, deadline=None)
@given(tree=draw_tree(), name=st.sampled_from(list(DRAFTS)))
def test_draft_step_by_levels_gives_each_node_the_state_of_its_own_path(
    tree: Tree, name: str
) -> None:
    assert measure_draft(tree, name) < 1e-10


@settings(max_examples=40, deadline=None)
@given(tree=draw_tree())
def test_keep_leaves_the_cache_of_a_pass_over_the_path(tree: Tree) -> None:
    assert measure_kept(tree, "Llama") == 0


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


Measure = Callable[[Tree, str], float]
DEFECTS: list[tuple[Measure, str, Any, str, Any]] = [
    (measure_target, "Llama", rope, "find_ancestors", see_cousins),
    (measure_target, "Llama", rope, "find_depths", count_nodes_as_positions),
    (measure_target, "Llama", rope, "find_depths", share_position),
    (measure_target, "Gemma", Rope, "_tree_metadata", window_by_node),
    (measure_draft, "Llama", rope, "find_ancestors", see_cousins),
    (measure_draft, "Llama", rope, "find_depths", share_position),
    (measure_kept, "Llama", KVCache, "keep", keep_from_the_next),
    (measure_kept, "Llama", KVCache, "keep", keep_length_only),
]


@pytest.mark.parametrize(
    "measure, model, owner, name, defect", DEFECTS,
    ids=[f"{case[0].__name__}-{case[-1].__name__}" for case in DEFECTS],
)  # fmt: skip
def test_checks_find_planted_defects(
    monkeypatch: pytest.MonkeyPatch,
    measure: Measure,
    model: str,
    owner: Any,
    name: str,
    defect: Any,
) -> None:
    @settings(
        max_examples=100, deadline=None, database=None, derandomize=True, phases=[Phase.generate]
    )
    @given(draw_tree())
    def run(tree: Tree) -> None:
        assert measure(tree, model) < 1e-10

    monkeypatch.setattr(owner, name, defect)
    with pytest.raises(AssertionError):
        run()
