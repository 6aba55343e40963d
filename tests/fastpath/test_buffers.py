"""What was recorded stays as it was: no law is a view of memory that is used again.

Verification never recomputes a draft's law, so a recorded one that changes under it makes the
output's law wrong, in silence. Here every law and every logit is copied when it is made, while
lists change at every step, slots are reused and caches are cut back; in the end all must be
what they were.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fastpath.compiled import backend as compiled
from fastpath.cuda import backend as cuda
from fastpath.cuda import device
from fastpath.cuda import device_round as cuda_round
from helpers.toys import toy_transformer
from minispec import decode, sampling
from minispec.commit import StopRule
from minispec.models.eagle_draft import EagleDraft, init_from_target
from minispec.models.transformer import Transformer
from minispec.sampling import Sampling, SeededRandom
from minispec.types import Context, Distribution, Round

V = 23


class Restless:
    """Another list at every step, of another size, as a new tensor."""

    name, budget = "restless", 12

    def __init__(self, per_round: bool) -> None:
        self.per_round = per_round

    def select(self, context: Context) -> Tensor:
        generator = torch.Generator().manual_seed(len(context.tokens))
        size = 3 + len(context.tokens) % 10
        return torch.randperm(V, generator=generator)[:size].sort().values

    def observe(self, finished: Round) -> None: ...
    def reset(self) -> None: ...


class Memory:
    """Tensors, each with a copy of what it was when it was recorded."""

    def __init__(self) -> None:
        self.records: list[tuple[Any, Any]] = []

    def record(self, value: Tensor) -> None:
        self.records.append((value, value.clone()))

    def distribution(self, distribution: Distribution) -> None:
        self.record(distribution.ids)
        self.record(distribution.probs)

    def check(self) -> None:
        assert len(self.records) > 8
        changed = sum(not torch.equal(value, was) for value, was in self.records)
        assert not changed, f"{changed} of {len(self.records)} records are not what they were"


class Watched:
    """A head that has its logits recorded."""

    def __init__(self, head: Any, memory: Memory) -> None:
        self._head, self._memory = head, memory
        self.vocab_size = head.vocab_size

    def _kept(self, logits: Tensor) -> Tensor:
        self._memory.record(logits)
        return logits

    def logits(self, hidden: Tensor) -> Tensor:
        return self._kept(self._head.logits(hidden))

    def logits_of(self, hidden: Tensor, ids: Tensor) -> Tensor:
        return self._kept(self._head.logits_of(hidden, ids))

    def argmax(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        ids, logits = self._head.argmax(hidden)
        return self._kept(ids), self._kept(logits)


class Reusing:
    """The planted defect: a head that writes all its logits into one buffer."""

    def __init__(self, head: Any) -> None:
        self._head, self._buffer = head, torch.zeros(8 * V)
        self.vocab_size = head.vocab_size

    def _written(self, logits: Tensor) -> Tensor:
        buffer = self._buffer[: logits.numel()].view(logits.shape)
        return buffer.copy_(logits)

    def logits(self, hidden: Tensor) -> Tensor:
        return self._written(self._head.logits(hidden))

    def logits_of(self, hidden: Tensor, ids: Tensor) -> Tensor:
        return self._written(self._head.logits_of(hidden, ids))

    def argmax(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        ids, logits = self._head.argmax(hidden)
        return ids, self._written(logits)


Pair = tuple[Any, Any]


def toy() -> tuple[Transformer, EagleDraft]:
    target = toy_transformer(
        num_hidden_layers=1, aux_hidden_state_layer_ids=(1,), vocab_size=V
    ).float()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return target, init_from_target(target).requires_grad_(False)


def on_device() -> Pair:
    target, draft = toy()
    there = cuda.target(target)
    return there, cuda.draft(draft, there)


def compiled_pair() -> Pair:
    target, draft = toy()
    return compiled.target(target), compiled.draft(draft)


BACKENDS: dict[str, Callable[[], Pair]] = {"reference": toy, "cuda": on_device}
slow = pytest.param("compiled", marks=pytest.mark.slow)


def run(pair: Pair, memory: Memory, loop: Any = decode, per_round: bool = False) -> None:
    rounds = loop.speculative(
        *pair, Restless(per_round), [1, 2, 3], gamma=3, sampling=Sampling(1.0),
        rng=SeededRandom(0), stop=StopRule(16), trace=loop is decode,
    )  # fmt: skip
    for finished in rounds:
        if finished.evidence:
            for distribution in (
                *finished.evidence.proposal.draft_distributions,
                *finished.evidence.target_distributions,
            ):
                memory.distribution(distribution)


@pytest.mark.parametrize("backend", ["reference", "cuda", slow])
def test_laws_and_logits_stay_what_they_were(backend):
    memory = Memory()
    target, draft = BACKENDS.get(backend, compiled_pair)()
    target, draft = Shared(target), Shared(draft)
    target.head, draft.head = Watched(target.head, memory), Watched(draft.head, memory)
    run((target, draft), memory)
    memory.check()


class Shared:
    """A target or draft with a head of its own choice."""

    def __init__(self, model: Any) -> None:
        self._model, self.head = model, model.head

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


@pytest.mark.parametrize("backend", ["reference", "cuda"])
def test_a_head_that_reuses_its_buffer_is_caught(backend):
    memory = Memory()
    target, draft = map(Shared, BACKENDS[backend]())
    draft.head = Watched(Reusing(draft.head), memory)
    run((target, draft), memory)
    with pytest.raises(AssertionError, match="are not what they were"):
        memory.check()


def test_laws_on_the_device_stay_what_they_were(monkeypatch):
    memory = Memory()
    remember(monkeypatch, memory, cuda_round.distributions)
    run(on_device(), memory, cuda_round, per_round=True)
    memory.check()


def test_laws_on_the_device_that_share_memory_are_caught(monkeypatch):
    memory, buffer = Memory(), torch.zeros(8, V, device=device.home())
    distributions = cuda_round.distributions

    def planted(scores: Any, temperature: float) -> Tensor:
        fresh = distributions(scores, temperature)
        return buffer.flatten()[: fresh.numel()].view(fresh.shape).copy_(fresh)

    remember(monkeypatch, memory, planted)
    run(on_device(), memory, cuda_round, per_round=True)
    with pytest.raises(AssertionError, match="are not what they were"):
        memory.check()


def remember(monkeypatch: Any, memory: Memory, distributions: Callable[..., Tensor]) -> None:
    def recorded(scores: Any, temperature: float) -> Tensor:
        probs = distributions(scores, temperature)
        memory.record(probs)
        return probs

    monkeypatch.setattr(cuda_round, "distributions", recorded)


def test_a_law_in_a_buffer_is_caught(monkeypatch):
    buffer, distribution = torch.zeros(V), Sampling.distribution

    def planted(self: Sampling, logits: Tensor, ids: Tensor) -> Distribution:
        fresh = distribution(self, logits, ids)
        return replace(fresh, probs=buffer[: len(ids)].copy_(fresh.probs))

    monkeypatch.setattr(sampling.Sampling, "distribution", planted)
    memory = Memory()
    with pytest.raises(Exception, match=r"are not what they were|probability 0"):
        run(toy(), memory)
        memory.check()


def test_a_packed_row_is_not_what_a_logit_was_made_of(monkeypatch):
    """Slots are taken over by other ids while logits of the list before are still in use."""
    target, _ = on_device()
    packed, memory = cuda.PackedRows(target.head.table), Memory()
    hidden = torch.randn(2, 24, generator=torch.Generator().manual_seed(0)).to(device.home())
    for seed in range(8):
        ids = torch.randperm(V, generator=torch.Generator().manual_seed(seed))[:6].sort().values
        packed.update(ids)
        scores = packed.scores(hidden)
        for value in (scores.logits, scores.best, scores.places, scores.totals, packed.slots):
            memory.record(value)
    memory.check()
