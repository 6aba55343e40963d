"""The CPU backend against the reference, which is its oracle.

A sum of D products in float32, in whatever order, is off by at most about sqrt(D) roundings of
its largest term; the bound used here is 2^-24 * 4 * sqrt(D) * |x| |w|, row by row. Rows in
bfloat16 meet states that were rounded to bfloat16 once, in the oracle too; where the processor
multiplies them in pairs, what is below 2^-126 counts as 0, far below this bound.
"""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from llvmlite.binding import get_host_cpu_name
from numba import get_num_threads, set_num_threads
from numba.core.codegen import get_host_cpu_features
from numba.core.config import NUMBA_NUM_THREADS

from fastpath.cpu import backend as cpu
from fastpath.cpu.attention import attention
from fastpath.cpu.dots import PAIRED
from fastpath.cpu.head import CpuHead
from fastpath.cpu.kernels import fitting, product
from fastpath.cpu.packed import PackedRows
from fastpath.cpu.ranks import scored
from fastpath.cpu.rows import gathered
from helpers.toys import GEMMA, toy_transformer
from minispec.commit import StopRule
from minispec.decode import autoregressive, speculative
from minispec.errors import ArgumentError, ContextError
from minispec.io import draft_file
from minispec.learning import lora
from minispec.models.eagle_draft import init_from_target
from minispec.models.int8 import rounded, scales, steps
from minispec.sampling import Sampling, SeededRandom
from minispec.shortlists.frspec import FRSpecShortlist
from minispec.shortlists.full import FullShortlist
from minispec.tools.data.corpus import prompts
from minispec.tools.evaluation.audit import NEAR_TIE, audit
from minispec.tools.models import pretrained

KINDS = ("float32", "bfloat16", "int8")


def rows_of(weight, kind):
    """A matrix as the kernels take it, its scales, and the same in float64."""
    ones = np.ones(len(weight), np.float32)
    if kind == "float32":
        return weight.numpy(), ones, weight.double()
    if kind == "bfloat16":
        half = weight.bfloat16()
        return half.view(torch.uint16).numpy(), ones, half.double()
    size = scales(weight)
    whole = steps(weight)
    return whole.numpy(), size.numpy(), whole.double() * size.double()[:, None]


def assert_products(out, states, weight, kind="float32"):
    """``out`` (T, N) equals states @ weight.T within the bound of float32 sums."""
    if kind == "bfloat16":
        states = states.bfloat16()
    exact = states.double() @ weight.T
    norms = states.double().norm(dim=1)[:, None] * weight.norm(dim=1)[None, :]
    bound = 2**-24 * (4 * weight.shape[1] ** 0.5 + 4) * norms + 1e-30
    excess = ((torch.from_numpy(out).double() - exact).abs() / bound).max()
    assert excess <= 1, f"off by {float(excess):.1f} times the bound"


shapes = {
    "kind": st.sampled_from(KINDS),
    "size": st.integers(1, 40),
    "width": st.sampled_from([1, 3, 15, 16, 17, 64, 100, 577]),
    "new": st.integers(1, 19),
    "threads": st.integers(1, 3),
    "seed": st.integers(0, 2**31),
}


@given(**shapes)
def test_dense_products_equal_the_reference(kind, size, width, new, threads, seed):
    rng = torch.Generator().manual_seed(seed)
    weight = torch.randn(size, width, generator=rng)
    states = torch.randn(new, width, generator=rng)
    rows, sizes, exact = rows_of(weight, kind)
    around = np.full((new + 2, size), 7, np.float32)
    product(rows, sizes, states.numpy(), around[1:-1], threads)
    assert_products(around[1:-1], states, exact, kind)
    assert (around[0] == 7).all() and (around[-1] == 7).all(), "wrote beside the result"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [577, 1536, 2048, 5000])
def test_wide_rows_equal_the_reference(kind, width):
    """As many states as meet four rows at once, two, or one, and more than meet any."""
    for new in (1, 5, 8, 9):
        weight, states = torch.randn(70, width), torch.randn(new, width)
        rows, sizes, exact = rows_of(weight, kind)
        out = np.empty((new, 70), np.float32)
        product(rows, sizes, states.numpy(), out, 2)
        assert_products(out, states, exact, kind)


@given(new=st.integers(1, 8), width=st.integers(1, 600), seed=st.integers(0, 2**31))
def test_several_states_get_the_very_numbers_that_each_gets_alone(new, width, seed):
    """So plain decoding and verification in bfloat16 differ by no rounding of states."""
    rng = torch.Generator().manual_seed(seed)
    weight, states = (torch.randn(n, width, generator=rng) for n in (40, new))
    rows, sizes, _ = rows_of(weight, "bfloat16")
    together, alone = np.empty((new, 40), np.float32), np.empty((new, 40), np.float32)
    product(rows, sizes, states.numpy(), together, 2)
    for place in range(new):
        product(rows, sizes, states[place : place + 1].numpy(), alone[place : place + 1], 1)
    assert np.array_equal(together, alone)


floats = st.floats(width=32, allow_nan=True, allow_infinity=True)


@given(numbers=st.lists(floats, min_size=1, max_size=70))
def test_states_are_rounded_as_torch_rounds_them(numbers):
    states = torch.tensor([numbers])
    fit = fitting(np.empty((1, len(numbers)), np.uint16), states.numpy())
    ours = torch.from_numpy(fit)
    ours = ours.view(torch.bfloat16).float() if PAIRED else ours
    assert torch.equal(ours.isnan(), states.isnan())
    assert torch.equal(ours.nan_to_num(0), states.bfloat16().float().nan_to_num(0))
    assert (
        fitting(np.empty((1, 1), np.float32), states.numpy()).tobytes() == states.numpy().tobytes()
    )


def test_without_pairs_products_are_the_same():
    """The tests of bfloat16 rows again, on a processor that is said to have no such instruction."""
    if not PAIRED:
        pytest.skip("this processor multiplies no pairs, so the other tests have seen this path")
    features = ",".join(f for f in get_host_cpu_features().split(",") if f != "+avx512bf16")
    script = """
import pytest, sys
from fastpath.cpu.dots import PAIRED
assert not PAIRED
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", sys.argv[1], "-k", sys.argv[2]]))
"""
    tests = "dense or gathered or wide_rows or rounded or very_numbers or best_products_are"
    result = subprocess.run(
        [sys.executable, "-c", script, __file__, tests],
        env=os.environ | {"NUMBA_CPU_FEATURES": features, "NUMBA_CPU_NAME": get_host_cpu_name()},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert result.returncode == 0, result.stdout + result.stderr


@given(
    new=st.integers(1, 6),
    num_key_value_heads=st.integers(1, 3),
    group=st.integers(1, 5),
    width=st.integers(1, 40).map(lambda half: 2 * half),
    start=st.integers(0, 30),
    window=st.integers(1, 40),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
def test_attention_equals_the_reference(
    new, num_key_value_heads, group, width, start, window, threads, seed
):
    rng = torch.Generator().manual_seed(seed)
    heads, size = num_key_value_heads * group, start + new
    queries = torch.randn(
        new, heads + 2 * num_key_value_heads, width, generator=rng
    )  # keys behind them
    keys, values = torch.randn(
        2, size + 3, num_key_value_heads, width, generator=rng
    )  # room to grow
    out = np.full((new + 1, heads, width), 7, np.float32)
    scale = np.float32(width**-0.5)
    attention(
        queries.numpy(), keys.numpy(), values.numpy(), start, window, scale, out[:new], threads
    )
    ages = torch.arange(start, size)[:, None] - torch.arange(size)
    expected = F.scaled_dot_product_attention(
        queries[:, :heads].transpose(0, 1),
        keys[:size].repeat_interleave(group, 1).transpose(0, 1),
        values[:size].repeat_interleave(group, 1).transpose(0, 1),
        attn_mask=(ages >= 0) & (ages < window),
    )
    assert torch.allclose(torch.from_numpy(out[:new]), expected.transpose(0, 1), atol=1e-5)
    assert (out[new:] == 7).all(), "wrote beside the result"


@given(**shapes)
def test_gathered_rows_equal_the_reference(kind, size, width, new, threads, seed):
    rng = torch.Generator().manual_seed(seed)
    weight = torch.randn(60, width, generator=rng)
    states = torch.randn(new, width, generator=rng)
    ids = torch.randperm(60, generator=rng)[:size].sort().values
    rows, sizes, exact = rows_of(weight, kind)
    out = np.empty((new, size), np.float32)
    gathered(rows, sizes, ids.numpy(), states.numpy(), out, threads)
    assert_products(out, states, exact[ids], kind)


def assert_scores(found, logits, top, heat):
    """Best, places and totals agree with the logits themselves, of which none is NaN."""
    best, places, totals = (np.asarray(part) for part in found)
    order = [sorted(range(len(row)), key=lambda i: (-row[i], i))[:top] for row in logits.tolist()]
    assert places.tolist() == order
    assert np.array_equal(best, np.take_along_axis(logits, places, 1))
    exact = np.exp((logits - logits.max(1, keepdims=True)).astype(np.float64) / heat).sum(1)
    assert np.allclose(totals, exact, rtol=3e-6)


heats = st.sampled_from([1.0, 0.3, 2.0])


@given(**shapes, top=st.integers(1, 9), heat=heats)
def test_the_best_products_are_those_of_the_reference(
    kind, size, width, new, threads, seed, top, heat
):
    """Rows twice over, so that every largest one is tied, the second time in another share."""
    rng = torch.Generator().manual_seed(seed)
    weight = torch.randn(size, width, generator=rng).repeat(12, 1)
    states = torch.randn(new, width, generator=rng)
    rows, sizes, _ = rows_of(weight, kind)
    out, kept = np.empty((2, new, len(weight)), np.float32)
    product(rows, sizes, states.numpy(), out, threads)
    assert_scores(scored(rows, sizes, states.numpy(), kept, top, heat, threads), out, top, heat)
    assert np.array_equal(kept, out)
    nothing = np.empty((new, 0), np.float32)
    again = scored(rows, sizes, states.numpy(), nothing, top, heat, threads)
    assert_scores(again, out, top, heat)


@given(top=st.integers(1, 8), heat=heats, data=st.data())
def test_scores_of_a_list_are_those_of_its_logits(top, heat, data):
    head = CpuHead(*rows_of(torch.randn(40, 20), "float32")[:2])
    ids = data.draw(st.sets(st.integers(0, 39), min_size=top).map(sorted))
    hidden = torch.randn(3, 20)
    found = head.scores(hidden, torch.tensor(ids), top, heat)
    assert torch.equal(found.logits, head.logits_of(hidden, torch.tensor(ids)))
    assert_scores((found.best, found.places, found.totals), found.logits.numpy(), top, heat)
    exact = head.scores(hidden).logits.double().logsumexp(1)
    assert (head.scores(hidden).log_sum_exp() - exact).abs().max() < 2e-6


@pytest.mark.parametrize("infinite", [math.inf, -math.inf, math.nan])
def test_scores_without_a_finite_best_have_no_sum(infinite):
    weight = torch.full((700, 1), infinite)
    found = CpuHead(*rows_of(weight, "float32")[:2]).scores(torch.ones(2, 1), top=3)
    assert found.places.tolist() == [[0, 1, 2]] * 2
    assert found.totals.isnan().all()


@pytest.mark.parametrize(
    ("top", "temperature", "message"),
    [
        (0, 1.0, "top 0 must be 1 to 5"),
        (6, 1.0, "top 6 must be 1 to 5"),
        (1, 0.0, "temperature 0.0 must be above 0"),
        (1, math.nan, "temperature nan must be above 0"),
    ],
)
def test_scores_that_cannot_be_are_refused(top, temperature, message):
    head = CpuHead(*rows_of(torch.randn(9, 4), "float32")[:2])
    with pytest.raises(ArgumentError, match=message):
        head.scores(torch.ones(1, 4), torch.arange(5), top, temperature)


@pytest.mark.parametrize("place", [0, 299, 699])
def test_a_largest_product_that_is_no_number_shows(place):
    weight = torch.randn(700, 8)
    weight[place, 3] = float("nan")
    head = CpuHead(*rows_of(weight, "float32")[:2])
    ids, logits = head.argmax(torch.randn(2, 8))
    assert ids.tolist() == [place, place] and logits.isnan().all()
    with pytest.raises(ArgumentError, match="nan, not finite"):
        Sampling().target_distributions(head, torch.randn(2, 8))


lists = st.lists(st.sets(st.integers(0, 39), min_size=1).map(sorted), min_size=1, max_size=8)


@given(lists=lists, kind=st.sampled_from(KINDS))
def test_packed_rows_follow_any_lists(lists, kind):
    weight, states = torch.randn(40, 20), torch.randn(3, 20)
    rows, sizes, exact = rows_of(weight, kind)
    packed = PackedRows(rows, sizes)
    for ids in lists:
        out, again = np.empty((2, 3, len(ids)), np.float32)
        assert packed.follow(np.array(ids), states.numpy(), out)
        packed.product(states.numpy(), again)
        assert_products(out, states, exact[ids], kind)
        assert np.array_equal(again, out)


@given(lists=lists)
def test_a_head_answers_any_sequence_of_lists_and_keeps_what_it_answered(lists):
    weight, hidden = torch.randn(40, 20), torch.randn(20)
    head = CpuHead(*rows_of(weight, "float32")[:2])
    answers = []
    for ids in (torch.tensor(ids) for ids in (*lists, *lists[::-1])):
        answers += [(ids, head.logits_of(hidden, ids)), (ids, head.logits_of(hidden, ids))]
        answers.append((torch.arange(40), head.logits(hidden)))
    # Looked at only now: no answer may be a view of rows or room that was used again.
    for ids, answer in answers:
        assert answer.shape == (len(ids),)
        assert_products(answer[None].numpy(), hidden[None], weight[ids].double())


@pytest.mark.parametrize(("came", "follows"), [(4, True), (20, False)])
def test_lists_that_change_little_are_packed_in_the_end(came, follows, monkeypatch):
    head, packed = CpuHead(*rows_of(torch.randn(400, 20), "float32")[:2]), []
    read = PackedRows.follow

    def followed(self, *arguments):
        packed.append(read(self, *arguments))
        return packed[-1]

    monkeypatch.setattr(PackedRows, "follow", followed)
    for first in range(0, 50 * came, came):  # lists of 40, of which so many come and go
        head.logits_of(
            torch.randn(20), torch.arange(first, first + 40).remainder(400).sort().values
        )
    assert sum(packed) == (50 - 16 if follows else 50 // 17)


def test_a_result_that_is_a_view_of_reused_room_is_noticed():
    """The negative control of the test above."""
    weight, hidden, room = torch.randn(40, 20), torch.randn(20), torch.empty(1, 40)

    class Reusing(CpuHead):
        @staticmethod
        def _room(hidden, size):
            return hidden.reshape(1, -1).numpy(), room[:, :size]

    head = Reusing(*rows_of(weight, "float32")[:2])
    ids = torch.tensor([1, 2])
    kept = head.logits_of(hidden, ids)
    head.logits_of(2 * hidden, ids)
    with pytest.raises(AssertionError):
        assert_products(kept[None].numpy(), hidden[None], weight[ids].double())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 16, 19])  # in the first vector, in the second, in the tail
@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_what_is_not_finite_shows(bad, place, kind):
    weight, states = torch.ones(3, 20), torch.ones(2, 20)
    weight[1, place] = bad
    out = np.empty((2, 3), np.float32)
    product(*rows_of(weight, kind)[:2], states.numpy(), out, 1)
    assert np.isfinite(out[:, [0, 2]]).all() and not np.isfinite(out[:, 1]).any()


def toy_pair(**changes):
    target = toy_transformer(**changes).float()
    guesser = init_from_target(target.requires_grad_(False)).requires_grad_(False)
    return target, guesser


@pytest.mark.parametrize("changes", [{}, GEMMA], ids=["llama", "gemma"])
@given(cuts=st.lists(st.integers(1, 12), min_size=1, max_size=5), seed=st.integers(0, 20))
def test_target_and_draft_equal_the_reference_in_any_chunks(changes, cuts, seed):
    model, guesser = toy_pair(seed=seed, **changes)
    ids = torch.randint(0, 50, (sum(cuts),))
    expected = model.step(ids, model.new_cache(len(ids)))
    states = guesser.fuse(expected.aux_hidden_states)
    guessed = guesser.step(ids, states, guesser.new_cache(len(ids)))
    logits = guesser.head.logits(guesser.apply_final_norm(guessed))

    fast = cpu.target(model)
    runner = cpu.draft(guesser, fast)
    cache, own = fast.new_cache(64), runner.new_cache(64)
    start = 0
    for cut in cuts:
        part = slice(start, start + cut)
        features = fast.step(ids[part], cache)
        assert torch.allclose(features.hidden, expected.hidden[part], rtol=1e-4, atol=1e-5)
        assert torch.allclose(
            features.aux_hidden_states, expected.aux_hidden_states[part], rtol=1e-4, atol=1e-5
        )
        output = runner.step(ids[part], runner.fuse(features.aux_hidden_states), own)
        assert torch.allclose(output, guessed[part], rtol=1e-4, atol=1e-4)
        ours = runner.head.logits(runner.apply_final_norm(output))
        assert torch.allclose(ours, logits[part], rtol=1e-4, atol=1e-4)
        # Some of it is forgotten and read again, as after a rejection.
        cache.truncate(start + cut - 1)
        again = fast.step(ids[start + cut - 1 : start + cut], cache)
        assert torch.allclose(again.hidden[0], features.hidden[-1], rtol=1e-4, atol=1e-5)
        start += cut


def test_a_second_target_has_as_many_threads_as_the_first():
    before, threads = get_num_threads(), min(2, NUMBA_NUM_THREADS)
    torch.set_num_threads(threads)
    for _ in range(2):  # torch has a single one from the first time on
        cpu.target(toy_pair()[0])
        assert (get_num_threads(), torch.get_num_threads()) == (threads, 1)
    set_num_threads(before)


def test_a_draft_that_learns_is_followed():
    """Each change of an adapter is in the next law, and the frozen draft knows nothing of it."""
    model, guesser = toy_pair()
    frozen = cpu.draft(guesser, cpu.target(model))
    twin = lora.adapted(guesser, lora.TARGETS, 2, seed=0)
    runner = frozen.learning(twin)
    ids, aux_hidden_states = torch.tensor([3, 4]), torch.randn(2, 72)

    def states(draft):
        return draft.step(ids, draft.fuse(aux_hidden_states), draft.new_cache(8))

    before, seen = states(frozen), [states(runner)]
    assert torch.equal(seen[0], before)  # an adapter that has learnt nothing changes no bit
    for _ in range(2):
        changed = {name: torch.randn_like(value) / 4 for name, value in lora.state(twin).items()}
        lora.restore(twin, changed)
        seen.append(states(runner))
        assert torch.allclose(seen[-1], states(twin), rtol=1e-4, atol=1e-4)
        assert (seen[-1] - seen[-2]).abs().max() > 1e-2
    assert torch.equal(states(frozen), before)


def test_a_full_cache_is_refused_before_anything_changes():
    model, guesser = toy_pair()
    fast = cpu.target(model)
    runner = cpu.draft(guesser, fast)
    cache, own = fast.new_cache(3), runner.new_cache(1)
    fast.step(torch.tensor([1, 2]), cache)
    with pytest.raises(ContextError, match="2 \\+ 2 positions do not fit a cache of 3"):
        fast.step(torch.tensor([1, 2]), cache)
    with pytest.raises(ContextError, match="do not fit"):
        runner.step(torch.tensor([1, 2]), torch.zeros(2, 24), own)
    assert (cache.length, own.length) == (2, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_output_is_that_of_the_reference(smollm2, kind):
    """On the real model: ids equal, or the first difference is a near tie of the reference."""
    model = pretrained.load("smollm2", kind)
    guesser = draft_file.load_draft(
        draft_file.find_draft("smollm2"), model.reference, model.fingerprint
    )
    stop, sampling = StopRule(16), Sampling()

    def decoded(target, ids, guess=None, shortlist=None):
        source = SeededRandom(0)
        if guess is None:
            rounds = autoregressive(target, ids, sampling=sampling, rng=source, stop=stop)
        else:
            rounds = speculative(
                target, guess, shortlist, ids, gamma=4, sampling=sampling, rng=source, stop=stop
            )
        return [token for finished in rounds for token in finished.tokens]

    texts = [prompts("general")[0], prompts("code")[0]]
    inputs = [model.tokenizer.chat(text) for text in texts]
    plain = [decoded(model.reference, ids) for ids in inputs]
    fast = cpu.target(model.reference)
    runner = cpu.draft(guesser, fast)
    assert fast.step(torch.tensor([1]), fast.new_cache(1)).hidden.dtype == torch.float32
    size = fast.head.vocab_size
    half = FRSpecShortlist(torch.arange(size), size // 2, model.tokenizer.eos_ids)
    gap = NEAR_TIE[model.reference.embedding.weight.dtype]
    for ids, expected in zip(inputs, plain, strict=True):
        for lists in (None, FullShortlist(size), half):
            output = decoded(fast, ids, runner if lists else None, lists)
            assert audit(model.reference, ids, expected, output, gap) != "violation"


def test_the_reference_in_int8_is_the_same_model():
    weight = torch.randn(9, 30)
    weight[4] = 0
    rows, _, exact = rows_of(weight, "int8")
    grid = rounded(weight)
    assert (grid - weight).abs().max() <= scales(weight).max() / 2 * 1.001
    assert torch.equal(steps(grid), torch.from_numpy(rows))
    assert torch.allclose(grid.double(), exact, rtol=1e-6)
