"""What a shortlist that reads prompts is given, and what is computed for it."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from minispec.certificate.toys import ToyCache, ToyDraft, ToyTarget, random_table
from minispec.commit import StopRule
from minispec.decode import speculative
from minispec.models.lm_head import LinearHead
from minispec.sampling import Sampling, SeededRandom
from minispec.shortlists.full import FullShortlist
from minispec.types import Features, LearnerUpdate, Round

V = 8
TABLE = random_table(V, seed=3)


class CountingHead(LinearHead):
    """Counts the states whose logits are computed."""

    states = 0

    def logits(self, hidden: Tensor) -> Tensor:
        self.states += len(hidden)
        return super().logits(hidden)


class CountingTarget(ToyTarget):
    """Counts the states that it computes."""

    def __init__(self) -> None:
        super().__init__(V, TABLE, 700, CountingHead(torch.eye(V, dtype=torch.float64)))
        self.states = 0

    def step(self, ids: Tensor, cache: ToyCache) -> Features:
        self.states += len(ids)
        return super().step(ids, cache)


class Reader(FullShortlist):
    """All ids; keeps the prompts that it is given."""

    def __init__(self, wanted: int, reads: bool) -> None:
        super().__init__(V)
        self.top_ids_wanted, self.reads_prompt = wanted, reads
        self.prompts: list[tuple[list[int], Tensor]] = []

    def on_prefill(self, tokens: Sequence[int], top_ids: Tensor) -> None:
        self.prompts.append((list(tokens), top_ids))


class WantingLearner:
    """Wants the likeliest ids, and learns nothing."""

    invalidates_cache, top_ids_wanted = False, 5

    def start(self, continued: bool) -> None: ...

    def on_prefill(self, *inputs: Tensor) -> None: ...

    def adjust_logits(self, logits: Tensor, *rest: Any) -> Tensor:
        return logits

    def observe(self, finished: Round) -> LearnerUpdate:
        assert finished.evidence and finished.evidence.top_ids.shape[1] == 5
        return LearnerUpdate()


def decode(reader: Reader, length: int, temperature: float, learns: bool) -> CountingTarget:
    target = CountingTarget()
    prompt = [i * i % V for i in range(length)]
    list(speculative(
        target, ToyDraft(V, random_table(V, 4)), reader, prompt, gamma=2, rng=SeededRandom(0),
        sampling=Sampling(temperature), stop=StopRule(6),
        learner=WantingLearner() if learns else None,
    ))  # fmt: skip
    return target


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("wanted", [0, 3])
@pytest.mark.parametrize("length", [1, 4, 600])
def test_on_prefill_gets_the_prompt_and_the_likeliest_ids(
    length: int, wanted: int, learns: bool
) -> None:
    reader = Reader(wanted, reads=True)
    decode(reader, length, 1.0, learns)
    [(tokens, top_ids)] = reader.prompts
    assert tokens == [i * i % V for i in range(length)]
    expected = [TABLE(tuple(tokens[: i + 1])).topk(wanted).indices for i in range(length - 1)]
    assert top_ids.dtype == torch.int64 and top_ids.dim() == 2
    if wanted:
        assert len(top_ids) == len(expected) and all(map(torch.equal, top_ids, expected))
    else:
        assert top_ids.numel() == 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(("wanted", "reads"), [(0, False), (0, True), (3, False), (3, True)])
def test_each_pass_computes_the_targets_logits_once(
    wanted: int, reads: bool, temperature: float
) -> None:
    """Those of the prompt only for a shortlist that reads its likeliest ids."""
    reader = Reader(wanted, reads)
    target = decode(reader, 4, temperature, learns=False)
    assert len(reader.prompts) == reads
    assert isinstance(target.head, CountingHead)
    assert target.head.states == target.states - (0 if wanted and reads else 3)
