"""Tree passes of fixed shapes, those of the compiled backend and of the GPU: the reference's."""

import itertools
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fastpath import static_shapes as static
from fastpath.compiled import backend as compiled
from helpers.toys import TOY, toy_transformer
from helpers.trees import draw_ids, trees
from minispec.commit import StopRule
from minispec.decode import autoregressive, speculative
from minispec.errors import ContextError
from minispec.growth import TreeShape
from minispec.models.eagle_draft import init_from_target
from minispec.sampling import Sampling, SeededRandom
from minispec.shortlists.full import FullShortlist
from minispec.suffix_index import SuffixConfig, SuffixIndex
from minispec.tree import find_depths, find_path


def run_eagerly(run: Callable[..., Any], group: int) -> Callable[..., Any]:
    """A pass without a compiler."""

    def run_padded(
        rows: int, cache: static.StaticCache, place: static.Place, *inputs: Tensor
    ) -> Any:
        at = static.build_window(place, cache.cos, cache.sin, group)
        return run(*inputs, at, (cache.keys, cache.values))

    return run_padded


@cache
def build_pairs() -> tuple[Any, ...]:
    """The reference's target and draft, and both over fixed shapes, in float64."""
    target = toy_transformer().requires_grad_(False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draft = init_from_target(target).requires_grad_(False)
    group = TOY.num_attention_heads // TOY.num_key_value_heads
    ours = static.StaticTarget(
        target, run_eagerly(lambda *rest: static.run_target(target, *rest), group)
    )
    drafting = static.StaticDraft(
        draft, run_eagerly(lambda *rest: static.run_draft(draft, *rest), group)
    )
    return target, draft, ours, drafting


@given(parents=trees(20), cached=st.integers(0, 12), seed=st.integers(0, 99))
def test_step_over_a_tree_equals_reference(parents: list[int], cached: int, seed: int) -> None:
    """And so does what follows it, after ``keep``."""
    target, draft, ours, drafting = build_pairs()
    past, ids = draw_ids(cached, seed), draw_ids(len(parents), seed + 1)
    path = find_path(parents, seed % len(parents))
    last = draw_ids(2, seed + 2)
    found = []
    for model, its_draft in ((target, draft), (ours, drafting)):
        own, draft_cache = model.new_cache(40), its_draft.new_cache(40)
        if cached:
            model.step(past, own)
        features = model.step(ids, own, parents)
        assert own.length == cached + len(parents)
        own.keep(cached, path)
        assert own.length == cached + len(path)
        after = model.step(last, own)
        states = its_draft.fuse(features.aux_hidden_states)
        states = its_draft.step(ids, states, draft_cache, parents)
        found.append((features.hidden, features.aux_hidden_states, after.hidden, states))
    for theirs, own_values in zip(*found, strict=True):
        assert torch.allclose(theirs, own_values, atol=1e-10)


@given(parents=trees(), cached=st.integers(1, 12), seed=st.integers(0, 99))
def test_draft_runs_a_tree_level_by_level(parents: list[int], cached: int, seed: int) -> None:
    _, draft, _, drafting = build_pairs()
    rng = torch.Generator().manual_seed(seed)
    root = torch.randn(TOY.hidden_size, generator=rng, dtype=torch.float64)
    past, ids = draw_ids(cached, seed), draw_ids(len(parents), seed + 1)
    depths, found = find_depths(parents), []
    for model in (draft, drafting):
        own = model.new_cache(40)
        model.step(past, root.expand(cached, -1).contiguous(), own)
        states, rows = {-1: root}, list[int]()
        for depth in range(max(depths) + 1):
            level = [node for node, each in enumerate(depths) if each == depth]
            rows += level
            inputs = torch.stack([states[parents[node]] for node in level])
            above = [rows.index(parents[node]) if parents[node] >= 0 else -1 for node in rows]
            states |= dict(zip(level, model.step(ids[level], inputs, own, above), strict=True))
        found.append(torch.stack([states[node] for node in range(len(parents))]))
    assert torch.allclose(*found, atol=1e-10)


def test_nodes_count_against_the_cache_and_depths_against_the_context() -> None:
    _, _, ours, _ = build_pairs()
    limit = ours.context_limit
    siblings = [-1] * 6
    own = ours.new_cache(limit + 10)
    ours.step(draw_ids(limit - 1, 0), own)
    assert ours.step(draw_ids(6, 1), own, siblings).hidden.shape[0] == 6  # all at one position
    own.keep(limit - 1, ())
    with pytest.raises(ContextError, match=f"position {limit + 1} is outside"):
        ours.step(draw_ids(3, 1), own, [-1, -1, 0])
    assert own.length == limit - 1
    short = ours.new_cache(4)
    with pytest.raises(ContextError, match=r"0 \+ 6 positions do not fit a cache of 4"):
        ours.step(draw_ids(6, 1), short, siblings)


def test_decoding_with_trees_on_the_compiled_backend_equals_the_reference(
    eager_graphs: None, reset_compiler: None
) -> None:
    target, draft, _, _ = build_pairs()
    graphs = compiled.build_target(target)
    drafts = compiled.build_draft(draft).with_own_head()
    options: dict[str, Any] = {"sampling": Sampling(), "stop": StopRule(24)}
    plain = [
        token
        for finished in autoregressive(target, [1, 2, 3], rng=SeededRandom(0), **options)
        for token in finished.tokens
    ]
    for tree, suffix in itertools.product(("3x2x6", "2x3x5:drawn"), (False, True)):
        index = SuffixIndex(SuffixConfig(min_match=1)) if suffix else None
        rounds = [
            *speculative(
                graphs, drafts, FullShortlist(TOY.vocab_size), [1, 2, 3], gamma=1,
                rng=SeededRandom(0), tree=TreeShape.parse(tree), index=index, **options,
            )
        ]  # fmt: skip
        assert [token for finished in rounds for token in finished.tokens] == plain
        assert any(len(finished.path) > 1 for finished in rounds)
    # A graph for each number of rows and of nodes, not for each tree.
    assert len(graphs._run._compiled) <= 4
