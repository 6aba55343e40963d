"""The CUDA kernels of sampling and verification make the reference's decisions."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastpath.cuda import device
from fastpath.cuda.head import DeviceRows
from fastpath.cuda.verify import Outcome, choose, compute_distributions, verify
from helpers.cuda_inputs import FEW_EXAMPLES, LAST_UNIFORM, UNIFORMS, draw_ids, draw_numbers
from minispec.sampling import Sampling, SeededRandom
from minispec.types import Distribution, Proposal
from minispec.verify import verify as reference_verify

pytestmark = pytest.mark.usefixtures("check_barriers")


@FEW_EXAMPLES
@given(st.integers(1, 30), st.sampled_from([0.0, 0.5, 1.0, 1.7]), st.integers(0, 10**6))
def test_compute_distributions_equals_reference(size, temperature, seed):
    table, hidden = DeviceRows(3 * draw_numbers(seed, size, 6)), draw_numbers(seed + 1, 2, 6)
    scores = table.scores(hidden, temperature=temperature or 1.0)
    probs = compute_distributions(scores, temperature)
    for logits, ours in zip(scores.logits.cpu(), probs.cpu(), strict=True):
        theirs = Sampling(temperature).distribution(logits, torch.arange(size)).probs
        assert torch.allclose(ours, theirs, rtol=2**-18, atol=1e-30)
        assert abs(float(ours.double().sum()) - 1) < 1e-6


class GivenRandom(SeededRandom):
    """A source of given uniforms that records the smallest distance of a uniform to a boundary
    between two decisions."""

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


WEIGHTS = st.lists(st.sampled_from([0, 0, 1, 1, 2, 5]) | st.floats(0, 1), min_size=1, max_size=30)


@FEW_EXAMPLES
@given(WEIGHTS, UNIFORMS)
@example([0, 0, 1, 0, 2, 0], 0.0)
@example([0, 0, 1, 0, 2, 0], LAST_UNIFORM)
@example([1e-30, 1.0, 1e-30, 0], LAST_UNIFORM)
def test_choose_equals_reference(weights, u):
    probs = torch.tensor(weights, dtype=torch.float32)
    assume(probs.sum() > 0)
    probs = probs / probs.sum()
    ids = torch.arange(len(probs)) * 3
    uniforms = torch.tensor([0.5, u], dtype=torch.float64)
    index, token = choose(*(x.to(device.get_device()) for x in (probs[None], uniforms)), 1,
                          ids.to(device.get_device()))  # fmt: skip
    source = GivenRandom([u])
    expected = source.choose(probs)
    assert probs[int(index)] > 0
    assert int(token) == 3 * int(index)
    if source.margin > len(probs) * 2**-52 or source.margin == 0:
        assert int(index) == expected


@st.composite
def draw_chains(draw: Any, dtype: torch.dtype) -> tuple[Proposal, list[Distribution], list[float]]:
    """A proposal drawn from draft distributions over random shortlists, target distributions, and
    uniforms."""
    size, length = draw(st.integers(1, 12)), draw(st.integers(0, 4))
    vocabulary = torch.arange(size)
    masses = st.lists(st.sampled_from([0, 0, 1, 2, 3, 7]), min_size=size, max_size=size)

    def draw_distribution(ids: Tensor) -> Distribution:
        mass = torch.tensor(draw(masses), dtype=dtype)[: len(ids)]
        if mass.sum() == 0:
            mass[draw(st.integers(0, len(ids) - 1))] = 1
        return Distribution(ids, mass / mass.sum())

    p = [draw_distribution(vocabulary) for _ in range(length + 1)]
    tokens, q = [], []
    for node in range(length):
        ids = draw_ids(draw(st.integers(0, 99)), size, draw(st.integers(1, size)))
        # Often q is the target's own distribution.
        q.append(p[node] if draw(st.booleans()) else draw_distribution(ids))
        possible = q[-1].ids[q[-1].probs > 0].tolist()
        tokens.append(draw(st.sampled_from(possible)))
    uniforms = draw(st.lists(UNIFORMS, min_size=length + 1, max_size=length + 1))
    return Proposal(tuple(tokens), tuple(q)), p, uniforms


def run_verify(proposal: Proposal, p: list[Distribution], uniforms: list[float]) -> Outcome:
    """``verify`` on the device, with the shortlists padded to the longest."""
    longest = max([len(q.ids) for q in proposal.draft_distributions], default=1)
    ids = torch.zeros(len(proposal), longest, dtype=torch.int64)
    q = torch.zeros(len(proposal), longest, dtype=p[0].probs.dtype)
    sizes, indices = [], []
    for node, distribution in enumerate(proposal.draft_distributions):
        count = len(distribution.ids)
        ids[node, :count], q[node, :count] = distribution.ids, distribution.probs
        sizes.append(count)
        indices.append(distribution.ids.tolist().index(proposal.tokens[node]))
    inputs = (
        torch.tensor(proposal.tokens, dtype=torch.int64),
        torch.tensor(indices, dtype=torch.int64), ids, torch.tensor(sizes, dtype=torch.int64),
        q, torch.stack([distribution.probs for distribution in p]),
        torch.tensor(uniforms, dtype=torch.float64),
    )  # fmt: skip
    return verify(*(value.to(device.get_device()) for value in inputs))


def assert_outcome(
    proposal: Proposal, p: list[Distribution], uniforms: list[float], outcome: Outcome
) -> None:
    """The outcome is the reference's verdict for the same uniforms, except where one is so near a
    boundary that rounding decides."""
    source = GivenRandom(uniforms)
    verdict = reference_verify(proposal, p, source)
    accepted, token, fault = outcome.decision.tolist()
    epsilon = torch.finfo(p[0].probs.dtype).eps
    assert not fault
    if 0 < source.margin < 4 * epsilon:
        return
    assert accepted == len(verdict.path)
    acceptance = outcome.acceptance.tolist()
    assert acceptance[: len(verdict.acceptance)] == pytest.approx(
        [float(a) for a in verdict.acceptance], rel=2 * epsilon
    )
    assert all(a == -1 for a in acceptance[len(verdict.acceptance) :])
    distribution = outcome.distribution.cpu()
    assert torch.allclose(distribution, verdict.next_distribution.probs, rtol=8 * epsilon, atol=0)
    assert distribution[token] > 0 and p[accepted].probs[token] > 0
    assert token == verdict.next_token or source.margin == 0


@settings(FEW_EXAMPLES, max_examples=40)
@given(st.data(), st.sampled_from([torch.float32, torch.float64]))
def test_verify_equals_reference(data, dtype):
    proposal, p, uniforms = data.draw(draw_chains(dtype))
    assert_outcome(proposal, p, uniforms, run_verify(proposal, p, uniforms))


def test_assert_outcome_detects_other_uniforms_and_distributions():
    vocabulary = torch.arange(4)
    p = [Distribution(vocabulary, torch.tensor([0.1, 0.2, 0.3, 0.4])) for _ in range(3)]
    q = Distribution(torch.tensor([1, 3]), torch.tensor([0.5, 0.5]))
    proposal, uniforms = Proposal((3, 1), (q, q)), [0.3, 0.9, 0.4]
    assert_outcome(proposal, p, uniforms, run_verify(proposal, p, uniforms))
    other_q = Distribution(q.ids, torch.tensor([0.2, 0.8]))
    for other in (
        run_verify(proposal, p, [0.9, 0.9, 0.4]),
        run_verify(Proposal((3, 1), (other_q, other_q)), p, uniforms),
    ):
        with pytest.raises(AssertionError):
            assert_outcome(proposal, p, uniforms, other)


def test_verify_rejects_probability_zero_and_falls_back_to_p_for_empty_residual():
    vocabulary = torch.arange(3)
    p = Distribution(vocabulary, torch.tensor([0.5, 0.5, 0.0]))
    outside = Distribution(torch.tensor([2]), torch.tensor([1.0]))
    outcome = run_verify(Proposal((2,), (outside,)), [p, p], [0.0, 0.0])
    assert outcome.decision.tolist()[:2] == [0, 0]
    # p is below q by rounding alone: rejected at the last uniform, and p - q has no positive part.
    q = Distribution(vocabulary, torch.tensor([0.5, 0.5000001, 0.0]))
    outcome = run_verify(Proposal((1,), (q,)), [p, p], [LAST_UNIFORM, LAST_UNIFORM])
    assert outcome.decision.tolist() == [0, 1, 0]
    assert (outcome.distribution.cpu() == p.probs).all()


def test_verify_reports_token_of_draft_probability_zero():
    vocabulary = torch.arange(2)
    p = Distribution(vocabulary, torch.tensor([0.5, 0.5]))
    wrong = Distribution(vocabulary, torch.tensor([1.0, 0.0]))
    outcome = run_verify(Proposal((1,), (wrong,)), [p, p], [0.0, 0.0])
    assert outcome.decision.tolist()[2] == 1
