"""LoRA (Hu et al., arXiv 2106.09685) on a draft: a low-rank term beside chosen matrices.

An adapted matrix computes ``W x + U (A x)`` with A (rank, inputs) random and U (outputs, rank)
zero at the start, so that an adapter that has learnt nothing changes no bit. W itself is never
written: taking an adapter off, or putting an older one back, is exact. What another backend
should pack is ``whole``, the two in one, and ``EagleDraft.version`` says when it changed.

Knows nothing of what is learnt, or when.
"""

import copy
import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minispec.errors import ArgumentError
from minispec.models.eagle_draft import EagleDraft

# Matrices that keys and values are made with: a change of these makes a cache stale.
CACHED = ("fusion", "attention.key", "attention.value")
TARGETS = (*CACHED, "attention.query", "attention.output", "mlp.gate", "mlp.up", "mlp.down")


class LoraLinear(nn.Module):
    """A frozen matrix with a low-rank term, in float32 or better."""

    def __init__(self, base: nn.Linear, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.base = base
        dtype = torch.promote_types(base.weight.dtype, torch.float32)
        outputs, inputs = base.weight.shape
        down = torch.randn(rank, inputs, generator=generator, dtype=dtype) / math.sqrt(inputs)
        self.down = nn.Parameter(down)  # A
        self.up = nn.Parameter(torch.zeros(outputs, rank, dtype=dtype))  # U

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        change = F.linear(F.linear(x.to(self.up.dtype), self.down), self.up)
        return self.base(x) + change.to(x.dtype)

    @property
    def whole(self) -> Tensor:
        """W + U A (outputs, inputs), in float32 or better, made anew at each call."""
        return self.base.weight + self.up.detach() @ self.down.detach()

    @property
    def weight(self) -> Tensor:
        """W + U A (outputs, inputs) in W's dtype, which may be too coarse for what was learnt."""
        return self.whole.to(self.base.weight.dtype)


def adapted(draft: EagleDraft, targets: Sequence[str], rank: int, seed: int) -> EagleDraft:
    """A twin of a draft that shares its weights and has an adapter at each target.

    Raises ArgumentError for a target that is none of ``TARGETS`` or named twice, for none at
    all, and for a rank below 1. Draws from a generator of its own.
    """
    if rank < 1:
        raise ArgumentError(f"rank {rank} must be 1 or above")
    if not targets or len(set(targets)) < len(targets) or not set(targets) <= set(TARGETS):
        raise ArgumentError(f"LoRA targets {targets} must be some of {TARGETS}, each once")
    # What is shared is called a copy of itself; modules and the packed head's choice are copied.
    own = draft.with_own_head()
    shared = [*own.parameters(), own.embedding, own.head.weight]
    twin = copy.deepcopy(own, {id(tensor): tensor for tensor in shared})
    generator = torch.Generator().manual_seed(seed)
    for name in targets:
        parent, _, leaf = name.rpartition(".")
        module = twin.get_submodule(parent)
        setattr(module, leaf, LoraLinear(getattr(module, leaf), rank, generator))
    return twin


def adapters(draft: EagleDraft) -> dict[str, LoraLinear]:
    """The adapters of a draft by target."""
    return {name: m for name, m in draft.named_modules() if isinstance(m, LoraLinear)}


def state(draft: EagleDraft) -> dict[str, Tensor]:
    """A copy of all adapters: A and U by name."""
    return {
        f"{name}.{part}": getattr(module, part).detach().clone()
        for name, module in adapters(draft).items()
        for part in ("down", "up")
    }


@torch.no_grad()
def restore(draft: EagleDraft, weights: Mapping[str, Tensor]) -> None:
    """Puts a ``state`` back, exactly; with the first one all that was learnt is gone. Caches
    that the draft has filled are stale after this, if ``CACHED`` matrices are adapted."""
    for name, module in adapters(draft).items():
        module.down.copy_(weights[f"{name}.down"])
        module.up.copy_(weights[f"{name}.up"])
    draft.version += 1
