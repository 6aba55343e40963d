"""Compiled steps are the reference's, compile once for each shape, and see a draft that learns."""

import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo import config as dynamo
from torch._dynamo.utils import counters

from fastpath import static_shapes as static
from fastpath.compiled import backend as compiled
from helpers.toys import toy_transformer
from minispec import decode
from minispec.commit import StopRule
from minispec.errors import ContextError
from minispec.models.eagle_draft import EagleDraft, init_from_target
from minispec.models.transformer import Transformer
from minispec.sampling import Sampling, SeededRandom
from minispec.shortlists.full import FullShortlist
from minispec.types import Context, Round


@pytest.fixture
def traced_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are captured as ever, and run as they were captured: what an inductor would make
    of them takes a minute. Breaks and recompilations are the same."""
    compile = torch.compile

    def without_inductor(run: Any, **rest: Any) -> Any:
        return compile(run, backend="eager", **rest)

    monkeypatch.setattr(torch, "compile", without_inductor)


@pytest.fixture(autouse=True)
def forgetful() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield


def toy_draft(target: Transformer) -> EagleDraft:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return init_from_target(target).requires_grad_(False)


def tokens(count: int, seed: int = 0) -> Tensor:
    return torch.randint(50, (count,), generator=torch.Generator().manual_seed(seed))


def check_steps(target: Transformer, draft: EagleDraft) -> None:
    """Chunks of many lengths, rollbacks included, give the reference's features and states."""
    ours, guesser = compiled.target(target), compiled.draft(draft)
    caches = [model.new_cache(60) for model in (target, ours, draft, guesser)]
    width = target.config.hidden_size
    for new, keep in ((20, 20), (1, 21), (5, 23), (3, 26), (8, 30), (17, 31), (1, 32), (2, 34)):
        ids = tokens(new, keep)
        a, b = target.step(ids, caches[0]), ours.step(ids, caches[1])
        assert torch.allclose(a.hidden, b.hidden, atol=1e-10)
        assert torch.allclose(a.aux_hidden_states, b.aux_hidden_states, atol=1e-10)
        assert b.hidden.shape == (new, width) and b.hidden.dtype == torch.float64
        states = draft.fuse(a.aux_hidden_states)
        assert torch.allclose(states, guesser.fuse(b.aux_hidden_states), atol=1e-10)
        c, d = draft.step(ids, states, caches[2]), guesser.step(ids, states, caches[3])
        assert torch.allclose(c, d, atol=1e-10)
        assert torch.allclose(draft.apply_final_norm(c), guesser.apply_final_norm(d), atol=1e-10)
        for cache in caches:
            cache.truncate(keep)
        assert {cache.length for cache in caches} == {keep}


def test_steps_are_those_of_the_reference(traced_only):
    target = toy_transformer()
    check_steps(target, toy_draft(target))


@pytest.mark.slow
def test_steps_are_those_of_the_reference_compiled():
    target = toy_transformer()
    check_steps(target, toy_draft(target))


def test_padding_that_could_be_seen_would_be_seen(traced_only, monkeypatch):
    """The padding rows stand behind the real ones; a mask that lets them in must fail."""
    window = static.window

    def planted(*arguments: Any) -> static.Window:
        at = window(*arguments)
        everywhere = torch.ones_like(at.mask)
        return static.Window(at.positions, at.cos, at.sin, everywhere, at.span)

    monkeypatch.setattr(compiled, "window", planted)
    target = toy_transformer()
    with pytest.raises(AssertionError):
        check_steps(target, toy_draft(target))


class Restless:
    """Another list at every step: another size, another tensor."""

    name, budget, per_round = "restless", 40, False

    def __init__(self) -> None:
        self.lists = 0

    def select(self, context: Context) -> Tensor:
        self.lists += 1
        size = 1 + len(context.tokens) % 40
        generator = torch.Generator().manual_seed(len(context.tokens))
        return torch.randperm(50, generator=generator)[:size].sort().values

    def observe(self, finished: Round) -> None: ...
    def reset(self) -> None: ...


def long_run(stop: int) -> tuple[int, int]:
    """Decodes a few tokens to warm up, then ``stop`` in a context as long, with another list at
    every step; returns how many lists there were and how many graphs came after the warm-up."""
    target = toy_transformer(num_hidden_layers=1, aux_hidden_state_layer_ids=(1,), hidden_size=8, num_attention_heads=2, num_key_value_heads=1, head_dim=4,
                             context_limit=2200).float()  # fmt: skip
    ours, guesser = compiled.target(target), compiled.draft(toy_draft(target))
    shortlist = Restless()

    def run(count: int) -> int:
        # A cache as large in both runs, since its size is a shape.
        rounds = decode.speculative(
            ours, guesser, shortlist, [1, 2, 3], gamma=4, sampling=Sampling(1.0),
            rng=SeededRandom(0), stop=StopRule(stop),
        )  # fmt: skip
        made = 0
        for finished in rounds:
            made += len(finished.tokens)
            if made >= count:
                break
        return made

    run(20)
    # The end of an answer has shorter chains, down to a single token, which are padded.
    before, shortlist.lists = counters["stats"]["unique_graphs"], 0
    assert before >= 2
    with dynamo.patch(error_on_recompile=True):
        assert run(stop) == stop
    return shortlist.lists, counters["stats"]["unique_graphs"] - before


def test_nothing_compiles_again_over_many_tokens_and_lists(traced_only):
    lists, graphs = long_run(300)
    assert lists >= 200
    # The last token of an answer is read alone, as no other is in this run: one graph.
    assert graphs <= 1
    assert not counters["graph_break"]


@pytest.mark.slow
def test_nothing_compiles_again_over_2000_tokens_and_more_lists():
    lists, graphs = long_run(2000)
    assert lists >= 200
    assert graphs <= 1
    assert not counters["graph_break"]


def test_a_recompilation_would_be_seen():
    step = torch.compile(lambda x, n: x * n, backend="eager", dynamic=False)
    step(torch.ones(2), 3)
    with dynamo.patch(error_on_recompile=True), pytest.raises(Exception, match=r"[Rr]ecompil"):
        step(torch.ones(3), 4)


def check_learning(ours: Any, draft: EagleDraft) -> None:
    """The compiled draft speaks as its weights now say, not as they once did."""
    dtype = draft.fusion.weight.dtype
    states = torch.randn(5, draft.config.hidden_size, dtype=dtype)
    tolerance, said = 1e-10 if dtype == torch.float64 else 1e-4, []
    for _ in range(2):
        cache = ours.new_cache(20)
        reference = draft.step(tokens(5), states, draft.new_cache(20))
        said.append(ours.step(tokens(5), states, cache))
        assert torch.allclose(said[-1], reference, atol=tolerance)
        with torch.no_grad():
            for weight in draft.parameters():
                weight.mul_(1.5)
    assert (said[0] - said[1]).abs().max() > 0.1


def test_a_draft_that_learns_speaks_otherwise(traced_only):
    draft = toy_draft(toy_transformer())
    check_learning(compiled.draft(draft), draft)


@pytest.mark.slow
def test_a_draft_that_learns_speaks_otherwise_compiled():
    draft = toy_draft(toy_transformer().float())
    ours = compiled.draft(draft)
    check_learning(ours, draft)
    assert ours._run._compiled


@pytest.mark.slow
def test_frozen_it_would_go_on_as_before():
    """In float32, whose weights are laid out anew: others stay where they were, and are seen."""
    draft = toy_draft(toy_transformer().float())
    ours = compiled.draft(draft)
    ours._run._frozen = True  # its weights are then constants of the graph
    with pytest.raises(AssertionError):
        check_learning(ours, draft)
    assert ours._run._compiled


def test_without_a_compiler_it_runs_eagerly_and_says_so_once(monkeypatch):
    def failing(*_: Any, **__: Any) -> Any:
        raise torch._dynamo.exc.BackendCompilerFailed(
            lambda: None, RuntimeError("No working C++ compiler found\nand more"), None
        )

    monkeypatch.setattr(compiled, "_alone", lambda run: failing)
    model = toy_transformer()
    ours = compiled.target(model)
    a, b = model.new_cache(30), ours.new_cache(30)
    with pytest.warns(RuntimeWarning, match=r"^the target's .* without torch\.compile: ") as said:
        for new in (1, 5, 3, 1):
            ids = tokens(new)
            hidden = ours.step(ids, b).hidden
            assert torch.allclose(hidden, model.step(ids, a).hidden, atol=1e-10)
    assert len(said) == 1
    assert "\n" not in str(said[0].message) and "C++" in str(said[0].message)


MISSING = """
import warnings, torch
from helpers.toys import toy_transformer
from fastpath.compiled import backend as compiled
model = toy_transformer(layers=1, tap_layers=(1,))
ours = compiled.target(model)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always", RuntimeWarning)
    hidden = ours.step(torch.arange(3), ours.new_cache(5)).hidden
assert torch.allclose(hidden, model.step(torch.arange(3), model.new_cache(5)).hidden)
print(*(str(w.message) for w in said if w.category is RuntimeWarning), sep="\\n")
"""


@pytest.mark.slow
def test_a_missing_compiler_is_such_a_failure(tmp_path):
    root = Path(__file__).parent.parent.parent
    changes = {
        "CXX": str(tmp_path / "none"),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join([str(root), str(root / "tests")]),
    }
    done = subprocess.run(
        [sys.executable, "-c", MISSING], env=os.environ | changes, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert "without torch.compile" in line


def test_an_error_that_is_no_compiler_s_is_not_swallowed(monkeypatch):
    def failing(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(compiled, "_alone", lambda run: failing)
    ours = compiled.target(toy_transformer())
    with pytest.raises(ZeroDivisionError):
        ours.step(tokens(1), ours.new_cache(5))


def test_the_budget_ends_compiling(traced_only):
    ours = compiled.target(toy_transformer(), budget=1e-9)
    cache = ours.new_cache(30)
    ours.step(tokens(1), cache)  # nothing is spent yet: compiled
    assert len(ours._run._compiled) == 1
    with pytest.warns(RuntimeWarning, match=re.escape("for compiling")):
        ours.step(tokens(5), cache)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours.step(tokens(5), cache)  # said once
    assert len(ours._run._compiled) == 1


@pytest.mark.slow
def test_compiling_stays_within_the_budget():
    """A toy of three layers takes seconds with warm caches, a minute without; the budget is for
    thirty layers."""
    target = toy_transformer()
    ours = compiled.target(target)
    cache = ours.new_cache(30)
    for new in (1, 5):
        ours.step(tokens(new), cache)
    assert 0 < ours._run.seconds < compiled.BUDGET


def test_what_does_not_fit_is_refused_before_anything_changes(traced_only):
    ours = compiled.target(toy_transformer())
    cache = ours.new_cache(4)
    ours.step(tokens(3), cache)
    was = [keys.clone() for keys in cache.keys]
    with pytest.raises(ContextError, match="cache of 4"):
        ours.step(tokens(2), cache)
    with pytest.raises(ContextError, match="context of 64"):
        ours.step(tokens(65), ours.new_cache(70))
    assert cache.length == 3
    assert all(torch.equal(a, b) for a, b in zip(was, cache.keys, strict=True))


def test_the_last_positions_of_the_context_can_be_read(traced_only):
    target = toy_transformer()
    ours = compiled.target(target)
    a, b = target.new_cache(64), ours.new_cache(64)
    for new in (60, 2, 2):
        hidden = ours.step(tokens(new), b).hidden
        assert torch.allclose(hidden, target.step(tokens(new), a).hidden, atol=1e-10)


def test_decoding_is_that_of_the_reference(traced_only):
    target = toy_transformer()
    draft = toy_draft(target)
    sides = (target, draft), (compiled.target(target), compiled.draft(draft).with_own_head())

    def run(model: Any, guesser: Any) -> list[tuple[int, ...]]:
        rounds = decode.speculative(
            model, guesser, FullShortlist(50), [1, 2, 3], gamma=4, sampling=Sampling(1.0),
            rng=SeededRandom(3), stop=StopRule(30),
        )  # fmt: skip
        return [finished.tokens for finished in rounds]

    assert run(*sides[0]) == run(*sides[1])
