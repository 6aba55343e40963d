"""The reference on another device than the CPU: the same tokens, with distributions and shortlists
on the CPU."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from helpers.other_device import DEVICE, DeviceTensor, move, other_device
from helpers.toys import toy_transformer
from minispec.commit import StopRule
from minispec.decode import autoregressive, speculative
from minispec.errors import ShortlistError
from minispec.models import eagle_draft
from minispec.models.eagle_draft import EagleDraft
from minispec.models.lm_head import PackedHead
from minispec.models.transformer import Transformer
from minispec.propose import CheckedSelections
from minispec.sampling import Sampling, SeededRandom
from minispec.shortlists.frspec import FRSpecShortlist
from minispec.types import Context, Round


class RecordingShortlist(FRSpecShortlist):
    """A shortlist that keeps the devices of all that it is given."""

    def __init__(self, ids: Tensor, budget: int) -> None:
        super().__init__(ids, budget, ())
        self.devices: set[str] = set()

    def select(self, context: Context) -> Tensor:
        self.devices.add(context.hidden.device.type)
        return super().select(context)

    def observe(self, finished: Round) -> None:
        assert finished.evidence is not None
        for distribution in finished.evidence.target_distributions:
            self.devices |= {distribution.ids.device.type, distribution.probs.device.type}
        self.devices.add(finished.evidence.draft_hidden.device.type)


def build_pair() -> tuple[Transformer, EagleDraft]:
    target = toy_transformer(seed=1).float()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return target, eagle_draft.init_from_target(target).requires_grad_(False)


def decode(target: Transformer, draft: EagleDraft, sampling: Sampling) -> Sequence[int]:
    shortlist = RecordingShortlist(torch.arange(50), 20)
    rounds = [
        *autoregressive(target, [1, 2, 3], sampling=sampling, rng=SeededRandom(0),
                        stop=StopRule(20)),
        *speculative(target, draft, shortlist, [1, 2, 3], gamma=3, sampling=sampling,
                     rng=SeededRandom(0), stop=StopRule(20)),
    ]  # fmt: skip
    assert shortlist.devices == {"cpu"}
    return [token for finished in rounds for token in finished.tokens]


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=8.0), Sampling(temperature=8.0, top_p=0.8)]
)
def test_decoding_on_another_device_emits_the_same_tokens(sampling: Sampling) -> None:
    expected = decode(*build_pair(), sampling)
    target, draft = build_pair()
    with other_device():
        move(target)
        move(draft)
        draft.embedding, draft.head = target.embedding.weight, PackedHead(target.head.weight)
        assert decode(target, draft, sampling) == expected
    assert len(set(expected)) > (1 if sampling.temperature else 0)


def test_build_draft_places_it_on_the_targets_device() -> None:
    draft = eagle_draft.build_draft(toy_transformer().to("meta"))
    assert {weight.device.type for weight in draft.parameters()} == {"meta"}


def test_the_simulated_device_refuses_tensors_of_the_cpu() -> None:
    with other_device():
        there = torch.ones(3).to(DEVICE)
        assert isinstance(there, DeviceTensor) and torch.equal(
            (there + 1).cpu(), torch.full((3,), 2.0)
        )
        with pytest.raises(AssertionError, match="mixes devices"):
            there + torch.ones(3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_distributions_are_on_the_cpu_in_float32_or_better(
    temperature: float, dtype: torch.dtype
) -> None:
    logits = torch.tensor([0.5, 2.0, 1.0], dtype=dtype)
    expected = Sampling(temperature).target_distribution(logits)
    with other_device():
        found = Sampling(temperature).target_distribution(DeviceTensor(logits))
        assert found.ids.device.type == found.probs.device.type == "cpu"
        assert found.probs.dtype == torch.promote_types(dtype, torch.float32)
        assert torch.equal(found.ids, expected.ids) and torch.equal(found.probs, expected.probs)


@pytest.mark.parametrize(("ids", "good"), [([1, 5], True), ([5, 1], False), ([1, 50], False)])
def test_selections_are_checked_on_any_device(ids: list[int], good: bool) -> None:
    with other_device():
        shortlist = RecordingShortlist(torch.arange(50), 20)
        shortlist.select = lambda context: DeviceTensor(torch.tensor(ids))  # type: ignore[method-assign]
        selections = CheckedSelections(shortlist, 50)
        if good:
            assert selections.select(Context((1,), torch.zeros(2), 0)).cpu().tolist() == ids
            return
        with pytest.raises(ShortlistError, match="not"):
            selections.select(Context((1,), torch.zeros(2), 0))
