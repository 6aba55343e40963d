"""Where tokens stand: rotary positions, and how far each may look back.

Knows nothing of weights. Shapes: ``B`` rows, ``T`` new positions, ``S`` positions of the cache
that are looked at.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from minispec.errors import ContextError
from minispec.models.kv_cache import KVCache


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3's stretching of rotary frequencies for contexts longer than those trained on:
    wavelengths above ``original_context / low_factor`` are stretched by ``factor``, those
    below ``original_context / high_factor`` are left alone, and between the two the
    frequency is interpolated."""

    factor: float
    low_factor: float
    high_factor: float
    original_context: int


@dataclass(frozen=True, eq=False)
class AttentionMetadata:
    """Where the tokens of one pass stand; computed once, used by every layer of a kind."""

    positions: Tensor  # (B, T)
    cos: Tensor  # (B, T, 1, head_width)
    sin: Tensor  # (B, T, 1, head_width)
    mask: Tensor | None  # (B, 1, T * group, S), true where a query may look; None: everywhere
    seen: slice  # the S positions of the cache that any of them may look at


class Rope:
    """Rotary position embedding (Su et al., arXiv 2104.09864): the pair of coordinates
    (j, j + head_width / 2) of a query or key at position t is turned by t * base^(-2j/width),
    so that a query and a key see only the distance between them.

    ``group`` query heads share a key head; a context has ``limit`` positions. With a ``window``
    a position sees itself and the ``window - 1`` before it.
    """

    def __init__(
        self,
        head_dim: int,
        base: float,
        *,
        group: int,
        limit: int,
        scaling: RopeScaling | None = None,
        window: int | None = None,
    ) -> None:
        self.group, self.window = group, window
        self._limit = limit
        # No weights: made in float64, even where weights are yet without memory.
        half = torch.arange(head_dim // 2, dtype=torch.float64, device="cpu")
        self._frequencies = base ** (-2 * half / head_dim)
        if scaling:
            self._frequencies = _stretched(self._frequencies, scaling)

    def turns(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines (..., 1, head_width) for positions (...); 1 stands for the heads."""
        angles = positions[..., None, None] * self._frequencies.to(positions.device).repeat(2)
        return angles.cos().to(dtype), angles.sin().to(dtype)

    def places(self, cache: KVCache, new: int) -> AttentionMetadata:
        """The places of the next ``new`` positions of each row of the cache.

        Raises ContextError if a row has no room for them, or the model no such positions.
        """
        positions = cache.positions(new)  # (B, T)
        end = max(cache.lengths) + new
        if end > self._limit:
            raise ContextError(f"position {end} is outside the model's context of {self._limit}")
        first = 0 if self.window is None else max(0, min(cache.lengths) + 1 - self.window)
        if new == 1 and len(set(cache.lengths)) == 1:
            mask = None  # a single token looks at everything that is held, or in its window
        else:
            queries = positions.repeat_interleave(self.group, dim=1)  # (B, T * group)
            keys = torch.arange(first, end, device=positions.device)
            behind = queries[:, None, :, None] - keys  # (B, 1, T * group, S)
            mask = behind >= 0
            if self.window is not None:
                mask &= behind < self.window
        cos, sin = self.turns(positions, cache.keys.dtype)
        return AttentionMetadata(positions, cos, sin, mask, slice(first, end))


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Queries or keys x (B, T, heads, head_width) -> the same (B, T, heads, head_width), turned by
    their positions' angles, given as cos and sin (B, T, 1, head_width)."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


def _stretched(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    wavelengths = 2 * torch.pi / frequencies
    turns = scaling.original_context / wavelengths
    blend = (turns - scaling.low_factor) / (scaling.high_factor - scaling.low_factor)
    blend = blend.clip(0, 1)  # 0: long waves, stretched; 1: short waves, left alone
    return (1 - blend) * frequencies / scaling.factor + blend * frequencies
