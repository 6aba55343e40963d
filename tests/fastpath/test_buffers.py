"""Recorded distributions and logits never change: none is a view of memory that is used again.

Verification does not recompute draft distributions, so one that changes after it was recorded
would silently make the output distribution wrong. Here each distribution and each logit tensor is
copied when it is made, while shortlists change at every step, slots are reused and caches are
truncated; at the end all must equal their copies.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fastpath.compiled import backend as compiled
from fastpath.cuda import backend as cuda
from fastpath.cuda import device, device_round
from helpers.toys import toy_transformer
from minispec import decode, sampling
from minispec.commit import StopRule
from minispec.models.eagle_draft import EagleDraft, init_from_target
from minispec.models.transformer import Transformer
from minispec.sampling import Sampling, SeededRandom
from minispec.types import Context, Distribution, Round

VOCAB_SIZE = 23


class ChangingShortlist:
    """Other ids at every step, of another number, as a new tensor."""

    name, budget = "changing", 12

    def __init__(self, per_round: bool) -> None:
        self.per_round = per_round

    def select(self, context: Context) -> Tensor:
        generator = torch.Generator().manual_seed(len(context.tokens))
        size = 3 + len(context.tokens) % 10
        return torch.randperm(VOCAB_SIZE, generator=generator)[:size].sort().values

    def observe(self, finished: Round) -> None: ...
    def reset(self) -> None: ...


class Records:
    """Recorded tensors, each with a copy made at that time."""

    def __init__(self) -> None:
        self._pairs: list[tuple[Any, Any]] = []

    def record(self, value: Tensor) -> None:
        self._pairs.append((value, value.clone()))

    def record_distribution(self, distribution: Distribution) -> None:
        self.record(distribution.ids)
        self.record(distribution.probs)

    def check(self) -> None:
        assert len(self._pairs) > 8
        changed = sum(not torch.equal(value, copied) for value, copied in self._pairs)
        assert not changed, f"{changed} of {len(self._pairs)} records changed after they were made"


class RecordingHead:
    """A head whose logits are recorded."""

    def __init__(self, head: Any, records: Records) -> None:
        self._head, self._records = head, records
        self.vocab_size = head.vocab_size

    def _record(self, logits: Tensor) -> Tensor:
        self._records.record(logits)
        return logits

    def logits(self, hidden: Tensor) -> Tensor:
        return self._record(self._head.logits(hidden))

    def logits_of(self, hidden: Tensor, ids: Tensor) -> Tensor:
        return self._record(self._head.logits_of(hidden, ids))

    def argmax(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        ids, logits = self._head.argmax(hidden)
        return self._record(ids), self._record(logits)


class ReusingHead:
    """A planted defect: a head that writes all its logits into one buffer."""

    def __init__(self, head: Any) -> None:
        self._head, self._buffer = head, torch.zeros(8 * VOCAB_SIZE)
        self.vocab_size = head.vocab_size

    def _write(self, logits: Tensor) -> Tensor:
        buffer = self._buffer[: logits.numel()].view(logits.shape)
        return buffer.copy_(logits)

    def logits(self, hidden: Tensor) -> Tensor:
        return self._write(self._head.logits(hidden))

    def logits_of(self, hidden: Tensor, ids: Tensor) -> Tensor:
        return self._write(self._head.logits_of(hidden, ids))

    def argmax(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        ids, logits = self._head.argmax(hidden)
        return ids, self._write(logits)


TargetAndDraft = tuple[Any, Any]


def reference_pair() -> tuple[Transformer, EagleDraft]:
    target = toy_transformer(
        num_hidden_layers=1, aux_hidden_state_layer_ids=(1,), vocab_size=VOCAB_SIZE
    ).float()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return target, init_from_target(target).requires_grad_(False)


def cuda_pair() -> TargetAndDraft:
    target, draft = reference_pair()
    cuda_target = cuda.build_target(target)
    return cuda_target, cuda.build_draft(draft, cuda_target)


def compiled_pair() -> TargetAndDraft:
    target, draft = reference_pair()
    return compiled.build_target(target), compiled.build_draft(draft)


BACKENDS: dict[str, Callable[[], TargetAndDraft]] = {"reference": reference_pair, "cuda": cuda_pair}
SLOW = pytest.param("compiled", marks=pytest.mark.slow)


def run(
    pair: TargetAndDraft, records: Records, loop: Any = decode, per_round: bool = False
) -> None:
    rounds = loop.speculative(
        *pair, ChangingShortlist(per_round), [1, 2, 3], gamma=3, sampling=Sampling(1.0),
        rng=SeededRandom(0), stop=StopRule(16), trace=loop is decode,
    )  # fmt: skip
    for finished in rounds:
        if finished.evidence:
            for distribution in (
                *finished.evidence.proposal.draft_distributions,
                *finished.evidence.target_distributions,
            ):
                records.record_distribution(distribution)


@pytest.mark.parametrize("backend", ["reference", "cuda", SLOW])
def test_distributions_and_logits_stay_unchanged(backend):
    records = Records()
    target, draft = BACKENDS.get(backend, compiled_pair)()
    target, draft = WithOwnHead(target), WithOwnHead(draft)
    target.head, draft.head = (
        RecordingHead(target.head, records),
        RecordingHead(draft.head, records),
    )
    run((target, draft), records)
    records.check()


class WithOwnHead:
    """A target or draft whose head can be replaced without changing the original."""

    def __init__(self, model: Any) -> None:
        self._model, self.head = model, model.head

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


@pytest.mark.parametrize("backend", ["reference", "cuda"])
def test_records_check_detects_head_that_reuses_buffer(backend):
    records = Records()
    target, draft = map(WithOwnHead, BACKENDS[backend]())
    draft.head = RecordingHead(ReusingHead(draft.head), records)
    run((target, draft), records)
    with pytest.raises(AssertionError, match="changed after they were made"):
        records.check()


def test_device_distributions_stay_unchanged(monkeypatch):
    records = Records()
    record_distributions(monkeypatch, records, device_round.compute_distributions)
    run(cuda_pair(), records, device_round, per_round=True)
    records.check()


def test_records_check_detects_device_distributions_in_buffer(monkeypatch):
    records, buffer = Records(), torch.zeros(8, VOCAB_SIZE, device=device.get_device())
    distributions = device_round.compute_distributions

    def compute_into_buffer(scores: Any, temperature: float) -> Tensor:
        fresh = distributions(scores, temperature)
        return buffer.flatten()[: fresh.numel()].view(fresh.shape).copy_(fresh)

    record_distributions(monkeypatch, records, compute_into_buffer)
    run(cuda_pair(), records, device_round, per_round=True)
    with pytest.raises(AssertionError, match="changed after they were made"):
        records.check()


def record_distributions(
    monkeypatch: Any, records: Records, distributions: Callable[..., Tensor]
) -> None:
    def compute_and_record(scores: Any, temperature: float) -> Tensor:
        probs = distributions(scores, temperature)
        records.record(probs)
        return probs

    monkeypatch.setattr(device_round, "compute_distributions", compute_and_record)


def test_records_check_detects_distributions_in_buffer(monkeypatch):
    buffer, shape = torch.zeros(VOCAB_SIZE), Sampling.shape

    def compute_into_buffer(self: Sampling, logits: Tensor, ids: Tensor) -> Distribution:
        fresh = shape(self, logits, ids)
        return replace(fresh, probs=buffer[: len(ids)].copy_(fresh.probs))

    monkeypatch.setattr(sampling.Sampling, "shape", compute_into_buffer)
    records = Records()
    with pytest.raises(Exception, match=r"changed after they were made|probability 0"):
        run(reference_pair(), records)
        records.check()


def test_packed_scores_stay_unchanged_by_updates(monkeypatch):
    """Slots get other ids while scores of the previous shortlist are still in use."""
    target, _ = cuda_pair()
    packed, records = cuda.PackedRows(target.head.table), Records()
    hidden = torch.randn(2, 24, generator=torch.Generator().manual_seed(0)).to(device.get_device())
    for seed in range(8):
        ids = (
            torch.randperm(VOCAB_SIZE, generator=torch.Generator().manual_seed(seed))[:6]
            .sort()
            .values
        )
        packed.update(ids)
        scores = packed.scores(hidden)
        for value in (
            scores.logits,
            scores.top_logits,
            scores.top_indices,
            scores.exp_sums,
            packed.slots,
        ):
            records.record(value)
    records.check()
