"""Target and draft on a GPU for the reference's decoding loop: same signatures, same arithmetic.

The passes are PyTorch's, over fixed shapes; the heads are our kernels. What the loop reads, logits
and the draft's hidden state, is copied to the host, so each drafted token waits for the
device; the loop in ``device_round`` waits once in a round.

PyTorch provides the GPU, and Numba its kernels, through ``numba-cuda`` where that is installed,
which replaces Numba's own CUDA target. Knows nothing of decoding.
"""

import copy
from typing import Any

import torch
from torch import Tensor

from fastpath.cuda.device import get_device, is_available, to_host
from fastpath.cuda.head import DeviceRows, PackedRows
from fastpath.scores import Scores
from fastpath.static_shapes import (
    Place,
    StaticCache,
    StaticDraft,
    StaticTarget,
    build_window,
    run_draft,
    run_target,
    why_not_llama,
)
from minispec.errors import ArgumentError
from minispec.models.eagle_draft import EagleDraft
from minispec.models.lm_head import PackedHead
from minispec.models.transformer import Transformer


class DeviceHead:
    """The LM head on the device. Hidden states may be on either side; logits are returned in
    float32 on the host."""

    def __init__(self, rows: DeviceRows) -> None:
        self.table = rows
        self.packed = PackedRows(rows)
        self._packed_ids: Tensor | None = None

    @property
    def vocab_size(self) -> int:
        return len(self.table)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (..., D) -> logits of the whole vocabulary (..., V)."""
        return _reshape_logits(self.table.scores(_flatten_states(hidden)), hidden)

    def logits_of(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """hidden (..., D), ids (K,) sorted and unique -> their logits (..., K). A new shortlist
        copies its added rows; the same tensor means the same shortlist."""
        self.pack(ids)
        return _reshape_logits(self.packed.scores(_flatten_states(hidden)), hidden)

    def argmax(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """hidden (T, D) -> the ids (T,) of the largest logits, ties to the lowest id, and these
        logits (T,)."""
        scores = self.table.scores(_flatten_states(hidden))
        return to_host(scores.top_indices[:, 0]), to_host(scores.top_logits[:, 0])

    def pack(self, ids: Tensor) -> None:
        """Makes ``ids`` (K,) the packed shortlist."""
        if ids is not self._packed_ids:
            self.packed.update(ids)
            self._packed_ids = ids


class DeviceTarget(StaticTarget):
    """A target whose features stay on the device."""

    head: DeviceHead


class DeviceDraft(StaticDraft):
    """A draft whose hidden states are returned to the host, where shortlists read them."""

    head: DeviceHead

    def fuse(self, aux_hidden_states: Tensor) -> Tensor:
        return self._draft.fuse(aux_hidden_states.to(get_device()))

    def apply_final_norm(self, states: Tensor) -> Tensor:
        return to_host(self.normalize_on_device(states))

    def normalize_on_device(self, states: Tensor) -> Tensor:
        """``apply_final_norm`` without the copy to the host."""
        return self._draft.apply_final_norm(states)

    def with_own_head(self) -> "DeviceDraft":
        clone = copy.copy(self)
        clone.head = DeviceHead(self.head.table)
        return clone


def why_unsupported(model: Transformer) -> str | None:
    """The reason why a model cannot run on this backend; None if it can."""
    if not torch.cuda.is_available():
        return "this machine has no CUDA device"
    return why_not_llama(model)


def build_target(model: Transformer) -> DeviceTarget:
    """The target on the device, to which ``model`` itself is moved. Raises ArgumentError without a
    GPU and for a dtype without kernels."""
    _require_device()
    model.to(get_device())
    group = model.config.num_attention_heads // model.config.num_key_value_heads

    def run(rows: int, cache: StaticCache, place: Place, ids: Tensor) -> Any:
        at = build_window(place, cache.cos, cache.sin, group, _attended_size(cache, rows))
        return run_target(model, ids, at, (cache.keys, cache.values))

    return DeviceTarget(model, run, DeviceHead(DeviceRows(model.head.tensor)))


def build_draft(draft: EagleDraft, target: DeviceTarget | None = None) -> DeviceDraft:
    """The draft on the device, to which ``draft`` itself is moved, so that training takes effect.
    It shares the head rows of ``target`` if given, and otherwise has its own. Raises as
    ``build_target``."""
    _require_device()
    draft.to(get_device())
    assert isinstance(draft.embedding, Tensor)
    draft.embedding = draft.embedding.to(get_device())
    draft.head = PackedHead(draft.head.tensor.to(get_device()))
    table = DeviceRows(draft.head.tensor) if target is None else target.head.table
    group = draft.config.num_attention_heads // draft.config.num_key_value_heads

    def run(rows: int, cache: StaticCache, place: Place, ids: Tensor, states: Tensor) -> Any:
        at = build_window(place, cache.cos, cache.sin, group, _attended_size(cache, rows))
        return run_draft(draft, ids, states, at, (cache.keys, cache.values))

    return DeviceDraft(draft, run, DeviceHead(table))


def _attended_size(cache: StaticCache, rows: int) -> int:
    """The number of cache positions that a pass attends to: the filled ones, rounded up to 64."""
    return min(cache.size, -(-(cache.length + rows) // 64) * 64)


def _flatten_states(hidden: Tensor) -> Tensor:
    """hidden (..., D) -> (H, D) on the device."""
    return hidden.to(get_device()).reshape(-1, hidden.shape[-1])


def _reshape_logits(scores: Scores, hidden: Tensor) -> Tensor:
    """The logits (H, K) on the host, as (..., K) for hidden (..., D)."""
    return to_host(scores.logits).reshape(*hidden.shape[:-1], -1)


def _require_device() -> None:
    if not is_available():
        raise ArgumentError(
            "backend cuda needs a GPU that PyTorch and Numba can use, but found none"
        )
