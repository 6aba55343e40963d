"""LoRA (Hu et al., arXiv 2106.09685) for a draft: trainable low-rank terms on frozen matrices.

An adapted matrix computes ``W x + B A x``, with A (rank, inputs) random and B (outputs, rank)
zero at the start: an untrained adapter does not change a single bit of the output. LoRA's factor
alpha / r is 1. W is never written, so removing an adapter, or restoring an earlier one, is exact.
Other backends pack ``merged_weight``, W + B A, again whenever ``EagleDraft.version`` has changed.

Knows nothing of training.
"""

import copy
import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minispec.errors import ArgumentError
from minispec.models.eagle_draft import EagleDraft

# Keys and values depend on these matrices: a change of them makes the KV cache stale.
CACHE_TARGETS = ("fusion", "attention.key", "attention.value")
TARGETS = (
    *CACHE_TARGETS, "attention.query", "attention.output", "mlp.gate", "mlp.up", "mlp.down",
)  # fmt: skip


class LoraLinear(nn.Module):
    """A frozen linear layer with a low-rank term in float32 or better: ``W x + B A x``."""

    def __init__(self, base: nn.Linear, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.base = base  # W
        dtype = torch.promote_types(base.weight.dtype, torch.float32)
        outputs, inputs = base.weight.shape
        a = torch.randn(rank, inputs, generator=generator, dtype=dtype) / math.sqrt(inputs)
        self.lora_a = nn.Parameter(a)  # (rank, inputs)
        self.lora_b = nn.Parameter(torch.zeros(outputs, rank, dtype=dtype))  # (outputs, rank)

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        delta = F.linear(F.linear(x.to(self.lora_b.dtype), self.lora_a), self.lora_b)
        return self.base(x) + delta.to(x.dtype)

    @property
    def merged_weight(self) -> Tensor:
        """W + B A (outputs, inputs), in float32 or better, computed at each call."""
        return self.base.weight + self.lora_b.detach() @ self.lora_a.detach()

    @property
    def weight(self) -> Tensor:
        """W + B A (outputs, inputs), rounded to the dtype of W, which may lose small changes."""
        return self.merged_weight.to(self.base.weight.dtype)


def add_adapters(draft: EagleDraft, targets: Sequence[str], rank: int, seed: int) -> EagleDraft:
    """A copy of the draft that shares its weights and has an adapter on each target matrix.

    Raises ArgumentError for an unknown or repeated target, for no target, and for a rank below
    1. Random numbers come from a generator of its own, seeded with ``seed``.
    """
    if rank < 1:
        raise ArgumentError(f"rank {rank} must be 1 or above")
    if not targets or len(set(targets)) < len(targets) or not set(targets) <= set(TARGETS):
        raise ArgumentError(f"LoRA targets {targets} must be some of {TARGETS}, each at most once")
    # The tensors in the memo of deepcopy are shared; modules and the packed head are copied.
    own = draft.with_own_head()
    shared = [*own.parameters(), own.embedding, own.head.weight]
    adapted = copy.deepcopy(own, {id(tensor): tensor for tensor in shared})
    generator = torch.Generator().manual_seed(seed)
    for name in targets:
        parent, _, leaf = name.rpartition(".")
        module = adapted.get_submodule(parent)
        setattr(module, leaf, LoraLinear(getattr(module, leaf), rank, generator))
    return adapted


def find_adapters(draft: EagleDraft) -> dict[str, LoraLinear]:
    """The adapters of a draft, by target."""
    return {name: m for name, m in draft.named_modules() if isinstance(m, LoraLinear)}


def get_adapter_state(draft: EagleDraft) -> dict[str, Tensor]:
    """A copy of the adapters' matrices: A as ``TARGET.down``, B as ``TARGET.up``."""
    state: dict[str, Tensor] = {}
    for name, module in find_adapters(draft).items():
        state[f"{name}.down"] = module.lora_a.detach().clone()
        state[f"{name}.up"] = module.lora_b.detach().clone()
    return state


@torch.no_grad()
def set_adapter_state(draft: EagleDraft, state: Mapping[str, Tensor]) -> None:
    """Restore a state of ``get_adapter_state`` exactly; the initial state undoes all training.

    KV caches that the draft has filled are stale afterwards if ``CACHE_TARGETS`` are adapted.
    """
    for name, module in find_adapters(draft).items():
        module.lora_a.copy_(state[f"{name}.down"])
        module.lora_b.copy_(state[f"{name}.up"])
    draft.version += 1
