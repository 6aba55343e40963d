"""Target and draft on a GPU, for the reference's own loop: same signatures, same arithmetic.

The passes are PyTorch's over fixed shapes, the heads are kernels of ours. What the loop looks
at, logits and the draft's hidden state, comes back to the host, so each drafted token waits for
the device; ``cuda_round`` is the loop that waits once in a round.

A GPU comes by PyTorch; Numba's kernels come by ``numba-cuda`` where that is installed, which
takes the place of Numba's own. Knows nothing of decoding.
"""

import copy
from typing import Any

import torch
from torch import Tensor

from fastpath.cuda.device import available, fetched, home
from fastpath.cuda.head import DeviceRows, PackedRows
from fastpath.scores import Scores
from fastpath.static_shapes import (
    StaticCache,
    StaticDraft,
    StaticTarget,
    beyond_llama,
    draft_pass,
    target_pass,
    window,
)
from minispec.errors import ArgumentError
from minispec.models.eagle_draft import EagleDraft
from minispec.models.lm_head import PackedHead
from minispec.models.transformer import Transformer


class DeviceHead:
    """The reference's head, computed on the device: hidden states from wherever they are,
    logits in float32 to the host."""

    def __init__(self, rows: DeviceRows) -> None:
        self.table = rows
        self.packed = PackedRows(rows)
        self._ids: Tensor | None = None

    @property
    def vocab_size(self) -> int:
        return len(self.table)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> logits of every id (..., V)."""
        return _shaped(self.table.scores(_states(hidden)), hidden)

    def logits_of(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """(..., D), ids (K,) sorted and unique -> logits (..., K). A new list moves the rows
        that came; the same tensor means the same list."""
        self.pack(ids)
        return _shaped(self.packed.scores(_states(hidden)), hidden)

    def argmax(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """(T, D) -> the ids (T,) of the largest logits, ties to the lowest, and these logits."""
        scores = self.table.scores(_states(hidden))
        return fetched(scores.places[:, 0]), fetched(scores.best[:, 0])

    def pack(self, ids: Tensor) -> None:
        """Makes ``ids`` the list whose rows lie side by side."""
        if ids is not self._ids:
            self.packed.update(ids)
            self._ids = ids


class DeviceTarget(StaticTarget):
    """A target on the device, features included."""

    head: DeviceHead


class DeviceDraft(StaticDraft):
    """A draft whose hidden state comes back to the host, where lists look at it."""

    head: DeviceHead

    def fuse(self, aux_hidden_states: Tensor) -> Tensor:
        return self._draft.fuse(aux_hidden_states.to(home()))

    def apply_final_norm(self, states: Tensor) -> Tensor:
        return fetched(self.on_device(states))

    def on_device(self, states: Tensor) -> Tensor:
        """What ``hidden`` is before it comes back."""
        return self._draft.apply_final_norm(states)

    def with_own_head(self) -> "DeviceDraft":
        twin = copy.copy(self)
        twin.head = DeviceHead(self.head.table)
        return twin


def unfit(model: Transformer) -> str | None:
    """Why a model cannot run here, None if it can."""
    if not torch.cuda.is_available():
        return "this machine has no CUDA device"
    return beyond_llama(model)


def target(model: Transformer) -> DeviceTarget:
    """The target on the device. Moves the model itself there. Raises ArgumentError without a
    GPU, or for a dtype that has no kernels."""
    _check()
    model.to(home())
    group = model.config.num_attention_heads // model.config.num_key_value_heads

    def run(rows: int, cache: StaticCache, positions: Tensor, ids: Tensor) -> Any:
        at = window(positions, cache.cos, cache.sin, group, _seen(cache, rows))
        return target_pass(model, ids, at, (cache.keys, cache.values))

    return DeviceTarget(model, run, DeviceHead(DeviceRows(model.head.weight)))


def draft(draft: EagleDraft, target: DeviceTarget | None = None) -> DeviceDraft:
    """The draft on the device. Moves the draft itself there, so that what it learns is what it
    drafts with; it shares ``target``'s rows, where that is given, else takes rows of its own.
    Raises as ``target``."""
    _check()
    draft.to(home())
    draft.embedding = draft.embedding.to(home())
    draft.head = PackedHead(draft.head.weight.to(home()))
    table = DeviceRows(draft.head.weight) if target is None else target.head.table
    group = draft.config.num_attention_heads // draft.config.num_key_value_heads

    def run(rows: int, cache: StaticCache, positions: Tensor, ids: Tensor, states: Tensor) -> Any:
        at = window(positions, cache.cos, cache.sin, group, _seen(cache, rows))
        return draft_pass(draft, ids, states, at, (cache.keys, cache.values))

    return DeviceDraft(draft, run, DeviceHead(table))


def _seen(cache: StaticCache, rows: int) -> int:
    """How much of the cache a pass attends to: no more than there is, in steps of 64."""
    return min(cache.span, -(-(cache.length + rows) // 64) * 64)


def _states(hidden: Tensor) -> Tensor:
    return hidden.to(home()).reshape(-1, hidden.shape[-1])


def _shaped(scores: Scores, hidden: Tensor) -> Tensor:
    """Logits (H, K) on the host, shaped as hidden (..., D) is."""
    return fetched(scores.logits).reshape(*hidden.shape[:-1], -1)


def _check() -> None:
    if not available():
        raise ArgumentError(
            "backend cuda needs a GPU that PyTorch and Numba see, and there is none"
        )
