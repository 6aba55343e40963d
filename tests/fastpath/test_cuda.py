"""The CUDA kernels are the reference: logits, laws, choices and verdicts, on small shapes.

Without a GPU they run in Numba's simulator, in which each thread is a thread of Python.
"""

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from numba import cuda
from torch import Tensor

from fastpath.cuda import device
from fastpath.cuda.head import PLAN, DeviceRows, PackedRows
from fastpath.cuda.verify import choose, distributions, verify
from fastpath.scores import Scores
from minispec.errors import ArgumentError, ShortlistError
from minispec.sampling import Sampling, SeededRandom
from minispec.types import Distribution, Proposal
from minispec.verify import verify as reference_verify

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LAST = 1 - 2**-53  # the largest uniform there is
uniform = st.sampled_from([0.0, 0.25, 0.5, LAST]) | st.floats(0, LAST)
few = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def barriers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The simulator lets a barrier pass that only some threads reach, where a GPU hangs or goes
    wrong: here all threads of a block must pass the same barriers in the same order."""
    if not device.SIMULATED:
        yield
        return
    from numba.cuda.simulator import kernel

    passed: dict[int, dict[int, list[int]]] = {}
    run, wait = kernel.BlockManager.run, kernel.BlockThread.syncthreads

    def recorded(thread: Any) -> None:
        lines = passed[id(thread._manager)].setdefault(thread.thread_id, [])
        lines.append(sys._getframe(2).f_lineno)  # the kernel's own line
        wait(thread)

    def checked(manager: Any, *arguments: Any) -> None:
        count = math.prod(manager._block_dim)
        passed[id(manager)] = {}
        run(manager, *arguments)
        lines = passed.pop(id(manager))
        paths = [lines.get(thread, []) for thread in range(count)]
        assert all(path == paths[0] for path in paths), f"a barrier diverges: {paths}"

    monkeypatch.setattr(kernel.BlockManager, "run", checked)
    monkeypatch.setattr(kernel.BlockThread, "syncthreads", recorded)
    yield


@pytest.mark.skipif(not device.SIMULATED, reason="on a GPU this would hang")
@pytest.mark.parametrize("kind", ["skipped", "early", "other"])
def test_a_barrier_that_diverges_is_caught(kind):
    @cuda.jit
    def planted(out):
        thread = cuda.threadIdx.x
        if kind == "early" and thread == 1:
            return
        if kind == "other" and thread == 1:
            cuda.syncthreads()
            out[thread] = 2
        elif kind != "skipped" or thread != 1:
            cuda.syncthreads()
            out[thread] = 1

    with pytest.raises(AssertionError, match="diverges"):
        device.launch(planted, 1, 3, torch.zeros(3))


def numbers(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype).to(device.home())


def some_ids(seed: int, size: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(size, generator=generator)[:count].sort().values


# ------------------------------------------------------------------ the head


def check_scores(found: Scores, rows: Tensor, hidden: Tensor, top: int, heat: float) -> None:
    """Logits within the kernel's own bound of exact ones; the rest agrees with the logits."""
    rows, hidden = rows.cpu().double(), hidden.cpu().double()
    exact, size = hidden @ rows.T, hidden.abs() @ rows.abs().T
    logits = found.logits.cpu()
    terms = rows.shape[1] / PLAN.lanes + PLAN.lanes + 8
    assert logits.dtype == torch.float32
    assert ((logits.double() - exact).abs() <= terms * 2**-24 * size).all()
    order = torch.tensor(
        [sorted(range(len(row)), key=lambda i: (-row[i], i))[:top] for row in logits.tolist()]
    )
    assert (found.places.cpu() == order).all()
    assert (found.best.cpu() == logits.gather(1, order)).all()
    scaled = (logits - logits.amax(1, keepdim=True)).double() / heat
    assert torch.allclose(found.totals.cpu(), scaled.exp().sum(1), rtol=1e-5)


shapes = given(
    st.sampled_from(DTYPES), st.integers(1, 40), st.integers(1, 40), st.integers(1, 9),
    st.integers(1, 8), st.sampled_from([1.0, 0.3, 2.0]), st.data(),
)  # fmt: skip


def check_a_shape(dtype, size, width, states, top, heat, data):
    weight, hidden = numbers(1, size, width, dtype=dtype), numbers(2, states, width)
    rows = DeviceRows(weight)
    top = min(top, size)
    check_scores(rows.scores(hidden, top=top, temperature=heat), weight, hidden, top, heat)
    ids = some_ids(3, size, data.draw(st.integers(1, size)))
    top = min(top, len(ids))
    found = rows.scores(hidden, ids, top, heat)
    check_scores(found, weight.cpu()[ids], hidden, top, heat)


@settings(few, max_examples=8)
@shapes
def test_logits_best_and_sums_are_those_of_the_rows(dtype, size, width, states, top, heat, data):
    check_a_shape(dtype, size, width, states, top, heat, data)


@pytest.mark.slow
@settings(few, max_examples=150)
@shapes
def test_many_shapes(dtype, size, width, states, top, heat, data):
    check_a_shape(dtype, size, width, states, top, heat, data)


def test_log_sum_exp():
    weight, hidden = numbers(1, 20, 7), numbers(2, 3, 7)
    found = DeviceRows(weight).scores(hidden)
    exact = found.logits.double().logsumexp(1)
    assert (found.log_sum_exp().double() - exact).abs().max() < 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_wrong_logit_would_be_seen(dtype):
    weight, hidden = numbers(1, 9, 6, dtype=dtype), numbers(2, 2, 6)
    found = DeviceRows(weight).scores(hidden)
    weight[4, 5] *= 1 + 2.0**-7
    with pytest.raises(AssertionError):
        check_scores(found, weight, hidden, 1, 1.0)


def test_ties_go_to_the_lower_place():
    weight = torch.tensor([[1.0], [3.0], [2.0], [3.0], [2.0], [3.0], [0.0]], device=device.home())
    found = DeviceRows(weight).scores(weight.new_ones(1, 1), top=6)
    assert found.places.tolist() == [[1, 3, 5, 2, 4, 0]]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_propagates(bad, dtype):
    weight = numbers(1, 11, 5, dtype=dtype)
    weight[7, 3] = bad
    hidden = numbers(2, 2, 5).abs()
    found = DeviceRows(weight).scores(hidden, top=3)
    exact = hidden.cpu() @ weight.cpu().float().T
    assert torch.allclose(found.logits.cpu(), exact, atol=1e-5, equal_nan=True)
    if bad == -math.inf:  # a logit of probability 0
        assert torch.allclose(found.log_sum_exp().cpu(), exact.logsumexp(1))
    else:  # as torch has it, NaN is the largest of all
        assert (found.places[:, 0].cpu() == exact.argmax(1)).all()
        assert not found.log_sum_exp().isfinite().any()


def test_nothing_finite_at_all():
    found = DeviceRows(torch.full((5, 4), -math.inf, device=device.home()))
    scores = found.scores(torch.ones(1, 4, device=device.home()), top=2)
    assert scores.places.tolist() == [[0, 1]]
    assert scores.log_sum_exp().tolist() == [-math.inf]


@pytest.mark.parametrize("step", range(3))
@settings(max_examples=2, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(DTYPES), st.integers(1, 12), st.integers(0, 1000))
def test_a_packed_list_is_its_rows_however_it_came_about(step, dtype, width, seed):
    weight, hidden = numbers(seed, 20, width, dtype=dtype), numbers(seed + 1, 2, width)
    table = DeviceRows(weight)
    packed, before = PackedRows(table), set[int]()
    for change in range(4):
        size = [(7, 7, 5, 7), (3, 9, 2, 9), (20, 1, 20, 4)][step][change]
        ids = some_ids(seed + change, 20, size)
        moved = packed.moved
        packed.update(ids)
        found = packed.scores(hidden, top=1)
        assert (found.logits == table.scores(hidden, ids).logits).all()  # bit by bit
        came = set(ids.tolist()) - before
        larger = step == 1 and change == 1  # a list longer than ever is packed anew
        assert packed.moved - moved == (size if larger else len(came))
        before = set(ids.tolist())


@pytest.mark.parametrize(
    "ids", [[], [2, 1], [1, 1], [-1, 2], [1, 9], [[1]], [1.0]], ids=lambda ids: str(ids)
)
def test_lists_that_are_none_are_refused(ids):
    table = DeviceRows(numbers(1, 9, 4))
    kind = torch.float32 if 1.0 in ids and isinstance(ids[0], float) else torch.int64
    wrong, hidden = torch.tensor(ids, dtype=kind), numbers(2, 1, 4)
    packed = PackedRows(table)
    packed.update(torch.tensor([0, 3]))
    for use in (packed.update, lambda ids: table.scores(hidden, ids)):
        with pytest.raises(ShortlistError, match="ids are"):
            use(wrong)
    exact = table.scores(hidden, torch.tensor([0, 3])).logits
    assert (packed.scores(hidden).logits == exact).all()  # as it was


def test_other_things_that_are_refused():
    table = DeviceRows(numbers(1, 9, 4))
    with pytest.raises(ArgumentError, match="float64"):
        DeviceRows(numbers(1, 9, 4).double())
    with pytest.raises(ArgumentError, match="top 9"):
        table.scores(numbers(2, 1, 4), top=9)
    with pytest.raises(ArgumentError, match="hidden"):
        table.scores(numbers(2, 1, 5))
    with pytest.raises(ShortlistError, match="update"):
        PackedRows(table).scores(numbers(2, 1, 4))


# ------------------------------------------------------------------ laws and choices


@few
@given(st.integers(1, 30), st.sampled_from([0.0, 0.5, 1.0, 1.7]), st.integers(0, 10**6))
def test_laws_are_those_of_the_reference(size, temperature, seed):
    table, hidden = DeviceRows(3 * numbers(seed, size, 6)), numbers(seed + 1, 2, 6)
    scores = table.scores(hidden, temperature=temperature or 1.0)
    probs = distributions(scores, temperature)
    for logits, ours in zip(scores.logits.cpu(), probs.cpu(), strict=True):
        theirs = Sampling(temperature).distribution(logits, torch.arange(size)).probs
        assert torch.allclose(ours, theirs, rtol=2**-18, atol=1e-30)
        assert abs(float(ours.double().sum()) - 1) < 1e-6


class Given(SeededRandom):
    """A source of given uniforms that remembers how close each decision was."""

    def __init__(self, uniforms: list[float]) -> None:
        self._left, self.margin = list(uniforms), math.inf

    def uniform(self) -> float:
        return self._left.pop(0)

    @property
    def spent(self) -> int:
        return -len(self._left)

    def bernoulli(self, probability: float) -> bool:
        if probability not in (0, 1):
            self.margin = min(self.margin, abs(self._left[0] - float(probability)))
        return super().bernoulli(probability)

    def choose(self, probs: Any) -> int:
        sums = np.cumsum(np.asarray(probs), dtype=np.float64)
        inner = sums[(sums > 0) & (sums < sums[-1])] / sums[-1]
        if len(inner):
            self.margin = min(self.margin, float(abs(inner - self._left[0]).min()))
        return super().choose(probs)


weights = st.lists(st.sampled_from([0, 0, 1, 1, 2, 5]) | st.floats(0, 1), min_size=1, max_size=30)


@few
@given(weights, uniform)
@example([0, 0, 1, 0, 2, 0], 0.0)
@example([0, 0, 1, 0, 2, 0], LAST)
@example([1e-30, 1.0, 1e-30, 0], LAST)
def test_choices_are_those_of_the_reference(weights, u):
    probs = torch.tensor(weights, dtype=torch.float32)
    assume(probs.sum() > 0)
    probs = probs / probs.sum()
    ids = torch.arange(len(probs)) * 3
    uniforms = torch.tensor([0.5, u], dtype=torch.float64)
    on = device.home()
    place, token = choose(probs[None].to(on), uniforms.to(on), 1, ids.to(on))
    source = Given([u])
    expected = source.choose(probs)
    assert probs[int(place)] > 0
    assert int(token) == 3 * int(place)
    if source.margin > len(probs) * 2**-52 or source.margin == 0:
        assert int(place) == expected


# ------------------------------------------------------------------ verification


@st.composite
def chains(draw: Any, dtype: torch.dtype) -> tuple[Proposal, list[Distribution], list[float]]:
    """A proposal drawn from its own laws over lists of its own, target laws, and uniforms."""
    size, length = draw(st.integers(1, 12)), draw(st.integers(0, 4))
    full = torch.arange(size)
    some = st.lists(st.sampled_from([0, 0, 1, 2, 3, 7]), min_size=size, max_size=size)

    def distribution(ids: Tensor) -> Distribution:
        mass = torch.tensor(draw(some), dtype=dtype)[: len(ids)]
        if mass.sum() == 0:
            mass[draw(st.integers(0, len(ids) - 1))] = 1
        return Distribution(ids, mass / mass.sum())

    p = [distribution(full) for _ in range(length + 1)]
    tokens, q = [], []
    for node in range(length):
        ids = some_ids(draw(st.integers(0, 99)), size, draw(st.integers(1, size)))
        q.append(
            p[node] if draw(st.booleans()) else distribution(ids)
        )  # often just the target's law
        possible = q[-1].ids[q[-1].probs > 0].tolist()
        tokens.append(draw(st.sampled_from(possible)))
    uniforms = draw(st.lists(uniform, min_size=length + 1, max_size=length + 1))
    return Proposal(tuple(tokens), tuple(q)), p, uniforms


def verified(proposal: Proposal, p: list[Distribution], uniforms: list[float]) -> Any:
    """The device's verdict about the same: lists padded to one size."""
    longest = max([len(q.ids) for q in proposal.draft_distributions], default=1)
    ids = torch.zeros(len(proposal), longest, dtype=torch.int64)
    q = torch.zeros(len(proposal), longest, dtype=p[0].probs.dtype)
    sizes = torch.tensor(
        [len(distribution.ids) for distribution in proposal.draft_distributions], dtype=torch.int64
    )
    places = []
    for node, distribution in enumerate(proposal.draft_distributions):
        ids[node, : len(distribution.ids)], q[node, : len(distribution.ids)] = (
            distribution.ids,
            distribution.probs,
        )
        places.append(distribution.ids.tolist().index(proposal.tokens[node]))
    inputs = (
        torch.tensor(proposal.tokens, dtype=torch.int64), torch.tensor(places, dtype=torch.int64),
        ids, sizes, q, torch.stack([distribution.probs for distribution in p]),
        torch.tensor(uniforms, dtype=torch.float64),
    )  # fmt: skip
    return verify(*(value.to(device.home()) for value in inputs))


def check_verdict(
    proposal: Proposal, p: list[Distribution], uniforms: list[float], outcome: Any
) -> None:
    source = Given(uniforms)
    verdict = reference_verify(proposal, p, source)
    passed, token, fault = outcome.found.tolist()
    epsilon = torch.finfo(p[0].probs.dtype).eps
    assert not fault
    if 0 < source.margin < 4 * epsilon:
        return  # so near a border that rounding decides, on either side
    assert passed == len(verdict.path)
    acceptance = outcome.acceptance.tolist()
    assert acceptance[: len(verdict.acceptance)] == pytest.approx(
        [float(a) for a in verdict.acceptance], rel=2 * epsilon
    )
    assert all(a == -1 for a in acceptance[len(verdict.acceptance) :])
    distribution = outcome.distribution.cpu()
    assert torch.allclose(distribution, verdict.next_distribution.probs, rtol=8 * epsilon, atol=0)
    assert distribution[token] > 0 and p[passed].probs[token] > 0
    assert token == verdict.next_token or source.margin == 0


@settings(few, max_examples=40)
@given(st.data(), st.sampled_from([torch.float32, torch.float64]))
def test_verdicts_are_those_of_the_reference(data, dtype):
    proposal, p, uniforms = data.draw(chains(dtype))
    check_verdict(proposal, p, uniforms, verified(proposal, p, uniforms))


def test_other_uniforms_or_laws_would_be_seen():
    full = torch.arange(4)
    p = [Distribution(full, torch.tensor([0.1, 0.2, 0.3, 0.4])) for _ in range(3)]
    q = Distribution(torch.tensor([1, 3]), torch.tensor([0.5, 0.5]))
    proposal, uniforms = Proposal((3, 1), (q, q)), [0.3, 0.9, 0.4]
    check_verdict(proposal, p, uniforms, verified(proposal, p, uniforms))
    apply_rope = Distribution(q.ids, torch.tensor([0.2, 0.8]))
    for other in (
        verified(proposal, p, [0.9, 0.9, 0.4]),
        verified(Proposal((3, 1), (apply_rope, apply_rope)), p, uniforms),
    ):
        with pytest.raises(AssertionError):
            check_verdict(proposal, p, uniforms, other)


def test_a_token_of_probability_zero_is_never_accepted_and_a_residual_of_nothing_is_p():
    full = torch.arange(3)
    p = Distribution(full, torch.tensor([0.5, 0.5, 0.0]))
    elsewhere = Distribution(torch.tensor([2]), torch.tensor([1.0]))
    found = verified(Proposal((2,), (elsewhere,)), [p, p], [0.0, 0.0])
    assert found.found.tolist()[:2] == [0, 0]
    # p below q by rounding alone: rejected at the last uniform, and nothing is left of p - q.
    q = Distribution(full, torch.tensor([0.5, 0.5000001, 0.0]))
    found = verified(Proposal((1,), (q,)), [p, p], [LAST, LAST])
    assert found.found.tolist() == [0, 1, 0]
    assert (found.distribution.cpu() == p.probs).all()


def test_a_law_that_excludes_its_token_is_reported():
    full = torch.arange(2)
    p = Distribution(full, torch.tensor([0.5, 0.5]))
    wrong = Distribution(full, torch.tensor([1.0, 0.0]))
    assert verified(Proposal((1,), (wrong,)), [p, p], [0.0, 0.0]).found.tolist()[2] == 1


# ------------------------------------------------------------------ real compilation

COMPILES = """
import sys, types
import torch
from numba import cuda, types as T
from numba.cuda import dispatcher
from numba.cuda.cudadrv import nvvm

try:
    if not nvvm.is_available():
        raise OSError
except Exception:
    sys.exit(77)
dispatcher.get_current_device = lambda: types.SimpleNamespace(compute_capability=(8, 0))
from fastpath.cuda import kernels, verify as cuda_verify

def ptx(kernel, *arguments):
    text, _ = cuda.compile_ptx(kernel.py_func, T.void(*arguments), cc=(8, 0))
    return text

i1, i2, i3 = T.int64[::1], T.int64[:, ::1], T.int64[:, :, ::1]
f1, f2, f3 = T.float32[::1], T.float32[:, ::1], T.float32[:, :, ::1]
d1, d2, words = T.float64[::1], T.float64[:, ::1], T.int32[:, ::1]
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    kernel = kernels.scorer(dtype, 8, 8, True, kernels.Plan())
    text = ptx(kernel, words, i1, words, T.float64, f2, f3, i3, d2)
    assert "ld.global.v4" in text or "ld.global.nc.v4" in text, dtype
    assert ".local " not in text, dtype  # sums and rows are in registers
ptx(kernels.finisher(8, 256), f3, i3, d2, T.float64, f2, i2, d1)
ptx(kernels.copy_rows, words, i1, words, i1)
ptx(cuda_verify._laws, f2, f2, i2, d1, T.float64, f2)
ptx(cuda_verify._choose, f2, d1, T.int64, i1, i1, i1)
ptx(cuda_verify._verify, T.int64, i1, i1, i2, i1, f2, f2, d1, i1, d1, f1)
"""


def test_kernels_compile_for_a_real_gpu_with_sixteen_byte_loads():
    """Needs NVIDIA's compiler, not a GPU: `pip install numba-cuda[cu12]` brings it."""
    done = subprocess.run(
        [sys.executable, "-c", COMPILES],
        env=os.environ | {"NUMBA_ENABLE_CUDASIM": "0"},
        cwd=Path(__file__).parent.parent.parent,
        stderr=subprocess.PIPE,
        text=True,
    )
    if done.returncode == 77:
        pytest.skip("no compiler for CUDA here")
    assert done.returncode == 0, done.stderr
