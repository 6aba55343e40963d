"""Compiled passes equal the reference, compile once for each shape, and follow draft training."""

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo import config as dynamo
from torch._dynamo.utils import counters

from fastpath import static_shapes as static
from fastpath.compiled import backend as compiled
from helpers.drafts import toy_draft
from helpers.toys import toy_transformer
from minispec import decode
from minispec.commit import StopRule
from minispec.errors import ContextError
from minispec.models.eagle_draft import EagleDraft, init_from_target
from minispec.models.transformer import Transformer
from minispec.sampling import Sampling, SeededRandom
from minispec.shortlists.full import FullShortlist
from minispec.types import Context, Round

pytestmark = pytest.mark.usefixtures("reset_compiler")


def build_toy_draft(target: Transformer) -> EagleDraft:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return init_from_target(target).requires_grad_(False)


def draw_tokens(count: int, seed: int = 0) -> Tensor:
    return torch.randint(50, (count,), generator=torch.Generator().manual_seed(seed))


def assert_steps_equal(target: Transformer, draft: EagleDraft) -> None:
    """Chunks of many lengths, with rollbacks, give the reference's features and states."""
    ours, our_draft = compiled.build_target(target), compiled.build_draft(draft)
    caches = [model.new_cache(60) for model in (target, ours, draft, our_draft)]
    width = target.config.hidden_size
    for new, keep in ((20, 20), (1, 21), (5, 23), (3, 26), (8, 30), (17, 31), (1, 32), (2, 34)):
        ids = draw_tokens(new, keep)
        a, b = target.step(ids, caches[0]), ours.step(ids, caches[1])
        assert torch.allclose(a.hidden, b.hidden, atol=1e-10)
        assert torch.allclose(a.aux_hidden_states, b.aux_hidden_states, atol=1e-10)
        assert b.hidden.shape == (new, width) and b.hidden.dtype == torch.float64
        states = draft.fuse(a.aux_hidden_states)
        assert torch.allclose(states, our_draft.fuse(b.aux_hidden_states), atol=1e-10)
        c, d = draft.step(ids, states, caches[2]), our_draft.step(ids, states, caches[3])
        assert torch.allclose(c, d, atol=1e-10)
        assert torch.allclose(draft.apply_final_norm(c), our_draft.apply_final_norm(d), atol=1e-10)
        for cache in caches:
            cache.truncate(keep)
        assert {cache.length for cache in caches} == {keep}


@pytest.mark.parametrize("norms", [False, True])
def test_steps_equal_reference(norms, eager_graphs):
    target = toy_transformer()
    assert_steps_equal(target, toy_draft(target, norms=True) if norms else build_toy_draft(target))


@pytest.mark.slow
def test_compiled_steps_equal_reference():
    target = toy_transformer()
    assert_steps_equal(target, build_toy_draft(target))


def test_assert_steps_equal_detects_visible_padding(eager_graphs, monkeypatch):
    """Padding rows come after the real ones; a mask that includes them must fail."""
    build_window = static.build_window

    def build_open_window(*arguments: Any) -> static.Window:
        at = build_window(*arguments)
        all_true = torch.ones_like(at.mask)
        return static.Window(at.positions, at.cos, at.sin, all_true, at.size)

    monkeypatch.setattr(compiled, "build_window", build_open_window)
    target = toy_transformer()
    with pytest.raises(AssertionError):
        assert_steps_equal(target, build_toy_draft(target))


class ChangingShortlist:
    """Other ids at every step, of another number, as a new tensor."""

    name, budget, per_round = "changing", 40, False

    def __init__(self) -> None:
        self.num_selected = 0

    def select(self, context: Context) -> Tensor:
        self.num_selected += 1
        size = 1 + len(context.tokens) % 40
        generator = torch.Generator().manual_seed(len(context.tokens))
        return torch.randperm(50, generator=generator)[:size].sort().values

    def observe(self, finished: Round) -> None: ...
    def reset(self) -> None: ...


def count_recompilations(max_new_tokens: int) -> tuple[int, int]:
    """Decodes a few tokens to warm up, then ``max_new_tokens`` with other ids at every step.
    Returns the numbers of shortlists and of graphs compiled after the warm-up."""
    target = toy_transformer(
        num_hidden_layers=1, aux_hidden_state_layer_ids=(1,), hidden_size=8,
        num_attention_heads=2, num_key_value_heads=1, head_dim=4, context_limit=2200,
    ).float()  # fmt: skip
    ours, our_draft = compiled.build_target(target), compiled.build_draft(build_toy_draft(target))
    shortlist = ChangingShortlist()

    def run(count: int) -> int:
        # The cache has the same size in both runs, since it is part of the shape.
        rounds = decode.speculative(
            ours, our_draft, shortlist, [1, 2, 3], gamma=4, sampling=Sampling(1.0),
            rng=SeededRandom(0), stop=StopRule(max_new_tokens),
        )  # fmt: skip
        num_tokens = 0
        for finished in rounds:
            num_tokens += len(finished.tokens)
            if num_tokens >= count:
                break
        return num_tokens

    run(20)
    # Near the limit chains get shorter, down to one token; they are padded.
    before, shortlist.num_selected = counters["stats"]["unique_graphs"], 0
    assert before >= 2
    with dynamo.patch(error_on_recompile=True):
        assert run(max_new_tokens) == max_new_tokens
    return shortlist.num_selected, counters["stats"]["unique_graphs"] - before


def test_decoding_does_not_recompile_for_new_positions_and_shortlists(eager_graphs):
    shortlists, graphs = count_recompilations(300)
    assert shortlists >= 200
    # Only the last token is processed alone in this run: one graph.
    assert graphs <= 1
    assert not counters["graph_break"]


@pytest.mark.slow
def test_decoding_2000_tokens_does_not_recompile():
    shortlists, graphs = count_recompilations(2000)
    assert shortlists >= 200
    assert graphs <= 1
    assert not counters["graph_break"]


def test_error_on_recompile_detects_recompilation():
    step = torch.compile(lambda x, n: x * n, backend="eager", dynamic=False)
    step(torch.ones(2), 3)
    with dynamo.patch(error_on_recompile=True), pytest.raises(Exception, match=r"[Rr]ecompil"):
        step(torch.ones(3), 4)


def assert_follows_training(ours: Any, draft: EagleDraft) -> None:
    """The compiled draft uses its current weights, not those of its first pass."""
    dtype = draft.fusion.weight.dtype
    states = torch.randn(5, draft.config.hidden_size, dtype=dtype)
    tolerance, outputs = 1e-10 if dtype == torch.float64 else 1e-4, []
    for _ in range(2):
        cache = ours.new_cache(20)
        reference = draft.step(draw_tokens(5), states, draft.new_cache(20))
        outputs.append(ours.step(draw_tokens(5), states, cache))
        assert torch.allclose(outputs[-1], reference, atol=tolerance)
        with torch.no_grad():
            for weight in draft.parameters():
                weight.mul_(1.5)
    assert (outputs[0] - outputs[1]).abs().max() > 0.1


def test_draft_follows_training(eager_graphs):
    draft = build_toy_draft(toy_transformer())
    assert_follows_training(compiled.build_draft(draft), draft)


@pytest.mark.slow
def test_compiled_draft_follows_training():
    draft = build_toy_draft(toy_transformer().float())
    ours = compiled.build_draft(draft)
    assert_follows_training(ours, draft)
    assert ours._run._compiled


@pytest.mark.slow
def test_assert_follows_training_detects_frozen_weights():
    """In float32, whose frozen weights are copied into another layout; others are not copied."""
    draft = build_toy_draft(toy_transformer().float())
    ours = compiled.build_draft(draft)
    ours._run._frozen = True  # the weights become constants of the graph
    with pytest.raises(AssertionError):
        assert_follows_training(ours, draft)
    assert ours._run._compiled


def test_compiler_failure_falls_back_to_eager_and_warns_once(monkeypatch):
    def fail(*_: Any, **__: Any) -> Any:
        raise torch._dynamo.exc.BackendCompilerFailed(
            lambda: None, RuntimeError("No working C++ compiler found\nand more"), None
        )

    monkeypatch.setattr(compiled, "_compile_separately", lambda run: fail)
    model = toy_transformer()
    ours = compiled.build_target(model)
    a, b = model.new_cache(30), ours.new_cache(30)
    message = r"^new shapes of the target run without torch\.compile: "
    with pytest.warns(RuntimeWarning, match=message) as caught:
        for new in (1, 5, 3, 1):
            ids = draw_tokens(new)
            hidden = ours.step(ids, b).hidden
            assert torch.allclose(hidden, model.step(ids, a).hidden, atol=1e-10)
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message) and "C++" in str(caught[0].message)


MISSING_COMPILER = """
import warnings, torch
from helpers.toys import toy_transformer
from fastpath.compiled import backend as compiled
model = toy_transformer(num_hidden_layers=1, aux_hidden_state_layer_ids=(1,))
ours = compiled.build_target(model)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always", RuntimeWarning)
    hidden = ours.step(torch.arange(3), ours.new_cache(5)).hidden
assert torch.allclose(hidden, model.step(torch.arange(3), model.new_cache(5)).hidden)
print(*(str(w.message) for w in caught if w.category is RuntimeWarning), sep="\\n")
"""


@pytest.mark.slow
def test_missing_compiler_falls_back_to_eager(tmp_path):
    root = Path(__file__).parent.parent.parent
    changes = {
        "CXX": str(tmp_path / "none"),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join([str(root), str(root / "tests")]),
    }
    result = subprocess.run(
        [sys.executable, "-c", MISSING_COMPILER],
        env=os.environ | changes,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    (line,) = result.stdout.splitlines()
    assert "without torch.compile" in line


def test_other_errors_are_raised(monkeypatch):
    def fail(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(compiled, "_compile_separately", lambda run: fail)
    ours = compiled.build_target(toy_transformer())
    with pytest.raises(ZeroDivisionError):
        ours.step(draw_tokens(1), ours.new_cache(5))


def test_graphs_stop_compiling_after_budget(eager_graphs):
    ours = compiled.build_target(toy_transformer(), budget=1e-9)
    cache = ours.new_cache(30)
    ours.step(draw_tokens(1), cache)  # the budget is not used up yet: compiled
    assert len(ours._run._compiled) == 1
    with pytest.warns(RuntimeWarning, match=re.escape("for compiling")):
        ours.step(draw_tokens(5), cache)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours.step(draw_tokens(5), cache)  # warned once
    assert len(ours._run._compiled) == 1


@pytest.mark.slow
def test_compilation_takes_less_than_budget():
    """Three layers take seconds with warm caches and a minute without; the budget is for thirty."""
    target = toy_transformer()
    ours = compiled.build_target(target)
    cache = ours.new_cache(30)
    for new in (1, 5):
        ours.step(draw_tokens(new), cache)
    assert 0 < ours._run.seconds < compiled.BUDGET


def test_step_beyond_capacity_raises_and_changes_nothing(eager_graphs):
    ours = compiled.build_target(toy_transformer())
    cache = ours.new_cache(4)
    ours.step(draw_tokens(3), cache)
    before = [keys.clone() for keys in cache.keys]
    with pytest.raises(ContextError, match="cache of 4"):
        ours.step(draw_tokens(2), cache)
    with pytest.raises(ContextError, match="context of 64"):
        ours.step(draw_tokens(65), ours.new_cache(70))
    assert cache.length == 3
    assert all(torch.equal(a, b) for a, b in zip(before, cache.keys, strict=True))


def test_step_reaches_last_position_of_context(eager_graphs):
    target = toy_transformer()
    ours = compiled.build_target(target)
    a, b = target.new_cache(64), ours.new_cache(64)
    for new in (60, 2, 2):
        hidden = ours.step(draw_tokens(new), b).hidden
        assert torch.allclose(hidden, target.step(draw_tokens(new), a).hidden, atol=1e-10)


def test_decoding_equals_reference(eager_graphs):
    target = toy_transformer()
    draft = build_toy_draft(target)
    sides = (
        (target, draft),
        (compiled.build_target(target), compiled.build_draft(draft).with_own_head()),
    )

    def run(model: Any, draft: Any) -> list[tuple[int, ...]]:
        rounds = decode.speculative(
            model, draft, FullShortlist(50), [1, 2, 3], gamma=4, sampling=Sampling(1.0),
            rng=SeededRandom(3), stop=StopRule(30),
        )  # fmt: skip
        return [finished.tokens for finished in rounds]

    assert run(*sides[0]) == run(*sides[1])
