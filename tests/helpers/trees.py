"""Trees of any shape, and checks of tree attention on real layers: every node as if its path were
alone."""

from collections.abc import Sequence

import hypothesis.strategies as st
import torch
from torch import Tensor

from helpers.drafts import caches_equal, toy_draft
from helpers.toys import GEMMA, TOY, toy_transformer
from minispec.tree import find_depths, find_path

Tree = tuple[Sequence[int], Sequence[int], Sequence[int]]  # cached tokens, tree tokens, parents

TARGETS = {"Llama": toy_transformer(), "Gemma": toy_transformer(**GEMMA)}
DRAFTS = {name: toy_draft(target) for name, target in TARGETS.items()}
ids = st.integers(0, TOY.vocab_size - 1)


@st.composite
def trees(draw: st.DrawFn, most: int = 12) -> list[int]:
    """The parents of up to ``most`` nodes."""
    return [draw(st.integers(-1, node - 1)) for node in range(draw(st.integers(1, most)))]


def draw_ids(count: int, seed: int) -> Tensor:
    """Ids (count,) of the toy vocabulary, the same for the same seed."""
    return torch.randint(0, TOY.vocab_size, (count,), generator=torch.Generator().manual_seed(seed))


@st.composite
def draw_tree(draw: st.DrawFn) -> Tree:
    """Cached tokens, the tokens of a tree of up to 12 nodes, and their parents."""
    past = draw(st.lists(ids, max_size=8))
    parents = draw(trees())
    return past, [draw(ids) for _ in parents], parents


def to_ids(tokens: Sequence[int]) -> Tensor:
    return torch.tensor(tokens, dtype=torch.int64)


def measure_target(tree: Tree, name: str) -> float:
    """The largest difference between the features of a node and those of its path alone."""
    past, tokens, parents = tree
    target = TARGETS[name]
    cache = target.new_cache(32)
    target.step(to_ids(past), cache)
    features = target.step(to_ids(tokens), cache, parents)
    error = 0.0
    for node in range(len(parents)):
        path = list(find_path(parents, node))
        alone = target.step(to_ids([*past, *(tokens[i] for i in path)]), target.new_cache(32))
        for ours, fresh in (
            (features.hidden, alone.hidden),
            (features.aux_hidden_states, alone.aux_hidden_states),
        ):
            error = max(error, float((ours[path] - fresh[len(past) :]).abs().max()))
    return error


def measure_draft(tree: Tree, name: str) -> float:
    """The same for the draft, level by level, each level a pass that finds the earlier ones in the
    cache. A node's state is what the draft returned for its parent."""
    past, tokens, parents = tree
    draft, depths = DRAFTS[name], find_depths(parents)
    root = torch.sin(torch.arange(24, dtype=torch.float64))
    given = torch.cos(torch.arange(24 * len(past), dtype=torch.float64)).reshape(-1, 24)
    cache = draft.new_cache(32)
    draft.step(to_ids(past), given, cache)
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
    error = 0.0
    for node in range(len(parents)):
        alone, state = draft.new_cache(32), root
        draft.step(to_ids(past), given, alone)
        for each in find_path(parents, node):
            state = draft.step(to_ids([tokens[each]]), state[None], alone)[0]
        error = max(error, float((states[node] - state).abs().max()))
    return error


def measure_kept(tree: Tree, name: str) -> float:
    """1 if a cache that keeps a path of a tree differs from that of a pass over the path; every
    path, and each beginning of one."""
    past, tokens, parents = tree
    target = TARGETS[name]
    for node in range(-1, len(parents)):
        path = find_path(parents, node)
        cache, fresh = target.new_cache(32), target.new_cache(32)
        target.step(to_ids(past), cache)
        target.step(to_ids(tokens), cache, parents)
        cache.keep(len(past), path)
        target.step(to_ids([*past, *(tokens[i] for i in path)]), fresh)
        if not caches_equal(cache, fresh):
            return 1.0
    return 0.0
