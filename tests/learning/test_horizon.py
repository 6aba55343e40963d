"""EvoSpec's horizon curriculum: equations 4 and 5, and the trajectories it is computed on."""

import math

import pytest
import torch

from helpers.drafts import toy_draft
from helpers.toys import toy_transformer
from minispec.learning.horizon import horizon_loss, step_weights
from minispec.learning.trajectories import CONTEXT, TextHistory, stack_trajectories, unroll
from minispec.types import Evidence, Proposal, Round

STEPS, TOP_K = 3, 4


def test_step_weights_are_equation_4():
    weights = step_weights(torch.tensor([0.5, 1.0, 3.0]), 6, 0.3)
    # The paper's beta for a small, a middle and a large loss of the first step.
    assert weights[0].tolist() == pytest.approx([1, 0.861, 0.741, 0.638, 0.549, 0.472], abs=1e-3)
    assert weights[1, 5] == pytest.approx(math.exp(-1.5))
    assert weights[2].tolist() == pytest.approx([math.exp(-0.9 * k) for k in range(6)])
    assert (step_weights(torch.tensor([9.0]), 4, 0.0) == 1).all()


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_horizon_loss_is_equation_5(temperature):
    generator = torch.Generator().manual_seed(0)
    z, y = torch.randn(2, 2, STEPS, TOP_K, generator=generator, dtype=torch.float64).unbind()
    known = torch.tensor([[True, True, True], [True, False, False]])
    labels = torch.tensor([2, 0])
    expected = 0.0
    for b in range(2):
        q1 = torch.softmax(y[b, 0], -1)
        first = -math.log(q1[labels[b]])
        for k in range(STEPS):
            p, q = (
                torch.softmax(z[b, k] / temperature, -1),
                torch.softmax(y[b, k] / temperature, -1),
            )
            divergence = float((p * (p / q).log()).sum())
            weight = math.exp(-0.3 * first * k)
            expected += float(known[b, k]) * weight * temperature**2 * divergence
    assert float(horizon_loss(z, y, labels, known, 0.3, temperature)) == pytest.approx(expected)


def test_horizon_loss_does_not_change_its_own_weights():
    """The gradient is that of weighted divergences, the weights being constants."""
    y = torch.zeros(1, 2, 3, dtype=torch.float64, requires_grad=True)
    z = torch.tensor([[[0.0, 0, 0], [0, 0, 2]]], dtype=torch.float64)
    # The first step is perfect: only its weight on the second could move its logits.
    loss = horizon_loss(z, y, torch.tensor([0]), torch.ones(1, 2, dtype=torch.bool), 0.3)
    loss.backward()
    assert y.grad is not None
    assert torch.equal(y.grad[0, 0], torch.zeros(3, dtype=torch.float64))
    assert y.grad[0, 1].abs().sum() > 0


def _record(length: int, failed: dict[int, list[int]], rounds: list[int], *, stop: bool):
    """A text of ``length`` tokens, the last ones emitted in rounds of given sizes; the
    trajectories, the tokens and the auxiliary hidden states."""
    tokens = torch.randint(50, (length,), generator=torch.Generator().manual_seed(3))
    aux = torch.randn(length, 6, generator=torch.Generator().manual_seed(4))
    history, taken = TextHistory(STEPS), []
    position = length - sum(rounds)
    history.add_positions(tokens[1:position], aux[: position - 1])
    for number, size in enumerate(rounds):
        end = position + size
        last = stop and end == length
        if not last:
            history.add_positions(tokens[position:end], aux[position - 1 : end - 1])
        # The target's likeliest ids at a token: the token itself, and its neighbours.
        top_ids = (tokens[position:end, None] + torch.arange(TOP_K)) % 50
        evidence = Evidence(
            Proposal((), ()), (), (), None, top_ids=top_ids, top_logits=top_ids.float()
        )
        emitted = tuple(tokens[position:end].tolist())
        finished = Round(emitted, "", (), (), (), {}, "length" if last else None, evidence)
        history.add_round(finished, failed.get(number, []))
        taken += history.take_complete(ended=last)
        position = end
    return taken, tokens, aux, history


@pytest.mark.parametrize("stop", [False, True])
@pytest.mark.parametrize("length", [12, 90])
def test_text_history_builds_trajectories_from_the_failed_token_on(length, stop):
    taken, tokens, aux, _ = _record(
        length, {0: [1], 2: [0], 4: [0]}, [2, 1, 3, 1, 2], stop=stop
    )  # fmt: skip
    first = length - 9
    starts = [first + 1, first + 3] + ([first + 7] if stop else [])
    assert len(taken) == len(starts)
    for sample, failed in zip(taken, starts, strict=True):
        predicted_by = failed - 2
        steps = min(STEPS, length - failed)
        assert sample.known[0].tolist() == [k < steps for k in range(STEPS)]
        expected = (tokens[failed : failed + steps, None] + torch.arange(TOP_K)) % 50
        assert torch.equal(sample.top_ids[0, :steps], expected)
        assert int(sample.top_ids[0, 0, sample.labels[0]]) == tokens[failed]
        begin = predicted_by - CONTEXT + 1
        assert sample.valid[0].tolist() == [begin + i >= 0 for i in range(CONTEXT)]
        for i in range(CONTEXT):
            if begin + i >= 0:
                assert torch.equal(sample.aux_hidden_states[0, i], aux[begin + i])
        for i in range(CONTEXT + steps - 1):
            if begin + i >= 0:
                assert sample.ids[0, i] == tokens[begin + i + 1]


def test_text_history_keeps_no_more_than_it_can_need():
    _, _, _, history = _record(5000, {}, [1] * 4000, stop=False)
    assert max(len(history._ids), len(history._aux)) <= CONTEXT + STEPS
    assert len(history._top) <= STEPS


@pytest.mark.parametrize("length", [8, 60])
def test_unroll_equals_drafting_along_the_text(length):
    """Each step's hidden state is the one that the draft computes when it drafts these tokens, if
    it attends to no more than a trajectory holds."""
    target = toy_transformer(context_limit=512)
    draft = toy_draft(target)
    tokens = torch.randint(50, (length + STEPS,), generator=torch.Generator().manual_seed(5))
    features = target.step(tokens, target.new_cache(length + STEPS)).aux_hidden_states
    start = length - 1  # the position that predicts the failed token
    history = TextHistory(STEPS)
    history.add_positions(tokens[1 : length + 1], features[:length])
    top = torch.arange(TOP_K).expand(STEPS, TOP_K)
    history._end = length + STEPS  # as if the next tokens had been processed too
    history._ids |= {p: int(tokens[p + 1]) for p in range(length + STEPS - 1)}
    history._top = {start + k: (top[k], top[k].double()) for k in range(STEPS)}
    history._starts = [start]
    batch = stack_trajectories(history.take_complete() * 2)

    begin = max(0, start - CONTEXT + 1)
    cache = draft.new_cache(length + STEPS)
    seen = slice(begin, start + 1)
    state = draft.step(tokens[1:][seen], draft.fuse(features[seen]), cache)[-1]
    expected = [draft.apply_final_norm(state)]
    for k in range(1, STEPS):
        state = draft.step(tokens[start + k + 1][None], state[None], cache)[0]
        expected.append(draft.apply_final_norm(state))
    hidden = unroll(draft, batch)
    assert hidden.shape[:2] == (2, STEPS)
    for row in hidden:
        assert torch.allclose(row, torch.stack(expected), rtol=0, atol=1e-10)
