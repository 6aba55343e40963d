"""The parts of the adaptation benchmark: replay, the full-parameter baseline, memory counting."""

import pytest
import torch
from torch import Tensor

from helpers.drafts import toy_draft
from helpers.online_learning import EXTREME, TARGET, run, tokens_of
from minispec.learning.learner import OnlineLearner
from minispec.tools.evaluation.full_finetuning import FullFinetuningLearner
from minispec.tools.evaluation.memory import LiveBytes
from minispec.tools.evaluation.recorded_answers import RecordedAnswer
from minispec.types import Learner


@pytest.mark.parametrize("kind", ["frozen", "online", "full"])
def test_replay_takes_as_many_rounds_as_the_target(kind: str) -> None:
    def build_learner() -> Learner | None:
        build = {"frozen": None, "online": OnlineLearner, "full": FullFinetuningLearner}[kind]
        return build(toy_draft(TARGET), EXTREME) if build else None  # the same weights each time

    real = run(build_learner(), temperature=0.0, limit=80)
    answer, prompt = tokens_of(real), (1, 2, 3)
    ids = torch.tensor([*prompt, *answer[:-1]])
    aux_hidden_states = TARGET.step(ids, TARGET.new_cache(len(ids))).aux_hidden_states
    recorded = RecordedAnswer(prompt, answer, aux_hidden_states)
    replayed = run(
        build_learner(), temperature=0.0, limit=80, target=recorded.replay_target(50, 512)
    )
    assert [r.tokens for r in replayed] == [r.tokens for r in real]
    assert [r.proposed for r in replayed] == [r.proposed for r in real]


def test_full_finetuning_trains_every_parameter() -> None:
    learner = FullFinetuningLearner(toy_draft(TARGET), EXTREME)
    before = [parameter.detach().clone() for parameter in learner.draft.parameters()]
    run(learner, temperature=0.0, limit=80)
    after = list(learner.draft.parameters())
    changed = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert len(changed) > 8 and all(changed)
    tensors = learner.tensors()
    assert tensors["gradients"] == tensors["weights"] == []
    num_parameters = sum(parameter.numel() for parameter in after)
    num_steps = len(after)  # Adam has a step counter for each parameter
    num_moments = sum(moment.numel() for moment in tensors["optimiser"])
    assert num_moments == 2 * num_parameters + num_steps


def test_live_bytes_count_until_tensors_are_freed() -> None:
    kept: dict[str, list[Tensor]] = {"buffer": []}
    memory = LiveBytes(lambda: kept)
    with memory:
        kept["buffer"].append(torch.zeros(1000))
        for _ in range(3):
            torch.ones(500) * 2  # two tensors of 2,000 bytes are alive at once, then none
    assert memory.peak_by_kind() == {"buffer": 4000, "activations": 4000, "peak": 8000}
    assert memory.live == 4000
    kept["buffer"].clear()
    assert memory.live == 0
