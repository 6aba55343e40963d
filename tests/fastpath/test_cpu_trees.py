"""Tree passes of the CPU backend: the reference's, and bit by bit those over each path alone."""

import copy
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from fastpath import places
from fastpath.cpu import backend as cpu
from fastpath.cpu import positions
from fastpath.cpu.attention import attend
from fastpath.cpu.positions import place_tokens
from helpers.toys import GEMMA, TOY, toy_transformer
from helpers.trees import draw_ids, trees
from minispec.commit import StopRule
from minispec.decode import autoregressive, speculative
from minispec.errors import ContextError
from minispec.growth import TreeShape
from minispec.models.eagle_draft import init_from_target
from minispec.models.kv_cache import KVCache
from minispec.sampling import Sampling, SeededRandom
from minispec.shortlists.full import FullShortlist
from minispec.suffix_index import SuffixConfig, SuffixIndex
from minispec.tree import find_ancestors, find_depths, find_path

MODELS = {"llama": {}, "gemma": GEMMA}
FORMATS = {
    "float32": (torch.float32, {}), "bfloat16": (torch.bfloat16, {}),
    "int8": (torch.float32, {"int8_rows": True}),
}  # fmt: skip


@cache
def build_pair(model: str, kind: str) -> tuple[Any, ...]:
    """The reference's target and draft, and both on the backend."""
    dtype, changes = FORMATS[kind]
    target = toy_transformer(**MODELS[model], **changes).to(dtype).requires_grad_(False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draft = init_from_target(target).requires_grad_(False)
    cpu_target = cpu.build_target(target)
    return target, draft, cpu_target, cpu.build_draft(draft, cpu_target)


@given(
    parents=trees(),
    num_key_value_heads=st.integers(1, 2),
    group=st.integers(1, 4),
    head_dim=st.integers(1, 40).map(lambda half: 2 * half),
    start=st.integers(0, 20),
    window=st.integers(1, 30),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
def test_attend_to_a_tree_equals_reference(
    parents, num_key_value_heads, group, head_dim, start, window, threads, seed
):
    rng = torch.Generator().manual_seed(seed)
    new, heads = len(parents), num_key_value_heads * group
    queries = torch.randn(new, heads + 2 * num_key_value_heads, head_dim, generator=rng)
    keys, values = torch.randn(2, start + new + 3, num_key_value_heads, head_dim, generator=rng)
    out = np.full((new + 1, heads, head_dim), 7, np.float32)
    cached = KVCache(1, 1, start + new, 1, 2, torch.float32)
    cached.advance(start)
    place = place_tokens(cached, new, parents, 99)
    scale = np.float32(head_dim**-0.5)
    attend(queries.numpy(), keys.numpy(), values.numpy(), place, window, scale, out[:new], threads)
    depths = start + torch.tensor(find_depths(parents))
    distances = depths[:, None] - torch.cat((torch.arange(start), depths))
    seen = torch.cat((torch.ones(new, start, dtype=torch.bool), find_ancestors(parents)), 1)
    size = start + new
    expected = F.scaled_dot_product_attention(
        queries[:, :heads].transpose(0, 1),
        keys[:size].repeat_interleave(group, 1).transpose(0, 1),
        values[:size].repeat_interleave(group, 1).transpose(0, 1),
        attn_mask=seen & (distances < window),
    )
    assert torch.allclose(torch.from_numpy(out[:new]), expected.transpose(0, 1), atol=1e-5)
    assert (out[new:] == 7).all(), "wrote outside the result"


@pytest.mark.parametrize("model", MODELS)
@given(parents=trees(), cached=st.integers(0, 12), seed=st.integers(0, 99))
def test_step_over_a_tree_equals_reference(model, parents, cached, seed):
    target, draft, cpu_target, cpu_draft = build_pair(model, "float32")
    past, ids = draw_ids(cached, seed), draw_ids(len(parents), seed + 1)
    caches = [each.new_cache(40) for each in (target, draft, cpu_target, cpu_draft)]
    if cached:
        for step, own in zip((target, cpu_target), caches[::2], strict=True):
            step.step(past, own)
    expected = target.step(ids, caches[0], parents)
    features = cpu_target.step(ids, caches[2], parents)
    assert caches[2].length == cached + len(parents)
    for ours, theirs in (
        (features.hidden, expected.hidden),
        (features.aux_hidden_states, expected.aux_hidden_states),
    ):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    states = draft.step(ids, draft.fuse(expected.aux_hidden_states), caches[1], parents)
    ours = cpu_draft.step(ids, cpu_draft.fuse(features.aux_hidden_states), caches[3], parents)
    assert torch.allclose(ours, states, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("model", MODELS)
@settings(max_examples=25)
@given(parents=trees(), cached=st.integers(1, 12), seed=st.integers(0, 99))
def test_each_node_has_the_bits_of_a_pass_over_its_path(model, kind, parents, cached, seed):
    """So greedy decoding with trees emits the tokens of plain decoding, whatever the rows of a
    pass; and the cache that ``keep`` leaves has the bits of a chain's."""
    _, _, target, _ = build_pair(model, kind)
    past, ids = draw_ids(cached, seed), draw_ids(len(parents), seed + 1)
    tree = target.new_cache(40)
    target.step(past, tree)
    features = target.step(ids, tree, parents)
    for node in {len(parents) - 1, seed % len(parents)}:
        path = [*find_path(parents, node)]
        chain, kept = target.new_cache(40), copy.deepcopy(tree)
        target.step(past, chain)
        alone = [target.step(ids[each : each + 1], chain) for each in path]
        for name in ("hidden", "aux_hidden_states"):
            one_by_one = torch.cat([getattr(each, name) for each in alone])
            assert torch.equal(getattr(features, name)[path], one_by_one)
        kept.keep(cached, path)
        assert kept.length == chain.length == cached + len(path)
        assert torch.equal(kept.keys[:, :, : kept.length], chain.keys[:, :, : kept.length])
        assert torch.equal(kept.values[:, :, : kept.length], chain.values[:, :, : kept.length])


@pytest.mark.parametrize("model", MODELS)
@given(parents=trees(), cached=st.integers(1, 12), seed=st.integers(0, 99))
def test_draft_runs_a_tree_level_by_level(model, parents, cached, seed):
    """Each level a pass that finds the earlier ones in the cache: the bits of the path alone."""
    _, _, _, draft = build_pair(model, "float32")
    rng = torch.Generator().manual_seed(seed)
    past, given_states, root = draw_ids(cached, seed), *torch.randn(2, 1, 24, generator=rng)
    given_states = given_states.expand(cached, 24).contiguous()
    ids, depths = draw_ids(len(parents), seed + 1), find_depths(parents)
    tree = draft.new_cache(40)
    draft.step(past, given_states, tree)
    states, rows = {-1: root[0]}, []
    for depth in range(max(depths) + 1):
        level = [node for node, d in enumerate(depths) if d == depth]
        rows += level
        inputs = torch.stack([states[parents[node]] for node in level])
        above = [rows.index(parents[n]) if parents[n] >= 0 else -1 for n in rows]
        outputs = draft.step(ids[level], inputs, tree, above)
        states |= dict(zip(level, outputs, strict=True))
    for node in range(len(parents)):
        chain, state = draft.new_cache(40), root[0]
        draft.step(past, given_states, chain)
        for each in find_path(parents, node):
            state = draft.step(ids[each : each + 1], state[None], chain)[0]
        assert torch.equal(states[node], state)


def test_step_counts_nodes_against_the_cache_and_depth_against_the_context():
    _, _, target, draft = build_pair("llama", "float32")
    cache = target.new_cache(67)
    target.step(draw_ids(60, 0), cache)
    with pytest.raises(ContextError, match="60 \\+ 8 positions do not fit a cache of 67"):
        target.step(draw_ids(8, 0), cache, [-1] * 8)
    with pytest.raises(ContextError, match="position 65 is outside the model's context of 64"):
        target.step(draw_ids(6, 0), cache, [-1, 0, 1, 2, 3, 0])
    with pytest.raises(ContextError, match="position 66 is outside"):
        target.step(draw_ids(6, 0), cache)
    assert cache.length == 60
    target.step(draw_ids(6, 0), cache, [-1, 0, 1, 2, 0, 0])
    assert cache.length == 66
    short = draft.new_cache(2)
    with pytest.raises(ContextError, match="0 \\+ 3 positions do not fit"):
        draft.step(draw_ids(3, 0), torch.zeros(3, 24), short, [-1, -1, 0])
    assert short.length == 0


# ------------------------------------------------------------------ planted defects


def see_the_node_before(parents, node):
    """A path that leads over a cousin."""
    path = find_path(parents, node)
    return (*path[:-2], path[-1] - 1, path[-1]) if len(path) > 1 else path


def count_nodes(parents):
    """Each node at a position of its own."""
    return list(range(len(parents)))


def share_position(parents):
    """One position for two depths."""
    return [depth - (depth > 1) for depth in find_depths(parents)]


@pytest.mark.parametrize(
    ("module", "name", "defect"),
    [(positions, "find_path", see_the_node_before), (places, "find_depths", count_nodes),
     (places, "find_depths", share_position)],
    ids=["cousin", "nodes", "shared"],
)  # fmt: skip
def test_comparison_with_the_reference_finds_planted_defects(monkeypatch, module, name, defect):
    @settings(max_examples=100, database=None, derandomize=True, phases=[Phase.generate])
    @given(parents=trees())
    def compare(parents):
        target, _, cpu_target, _ = build_pair("llama", "float32")
        ids = draw_ids(len(parents), 1)
        features = cpu_target.step(ids, cpu_target.new_cache(40), parents)
        expected = target.step(ids, target.new_cache(40), parents)
        assert torch.allclose(features.hidden, expected.hidden, rtol=1e-4, atol=1e-5)

    monkeypatch.setattr(module, name, defect)
    with pytest.raises((AssertionError, ValueError)):
        compare()


@pytest.mark.parametrize("tree", [None, "3x2x6", "3x2x6:drawn", "2x3x9:static:distinct"])
@pytest.mark.parametrize("kind", FORMATS)
def test_greedy_decoding_of_trees_and_continuations_equals_plain_decoding(kind, tree):
    """Token by token, without near ties: each row of a pass has the bits of plain decoding."""
    _, _, target, draft = build_pair("gemma", kind)
    prompt, rng = draw_ids(6, 3).tolist() * 2, SeededRandom(0)
    options = {"sampling": Sampling(), "rng": rng, "stop": StopRule(40)}
    plain = [t for each in autoregressive(target, prompt, **options) for t in each.tokens]
    shape = tree and TreeShape.parse(tree)
    rounds = [
        *speculative(
            target, draft, FullShortlist(TOY.vocab_size), prompt, gamma=4, tree=shape,
            index=SuffixIndex(SuffixConfig(min_match=1)), **options,
        )
    ]  # fmt: skip
    assert [token for each in rounds for token in each.tokens] == plain
    assert any(each.path != tuple(range(len(each.path))) for each in rounds), "nothing to compact"
