"""Rotary positions, and the mask of the positions that each token attends to.

Knows nothing of weights. Shapes: ``B`` sequences, ``T`` new positions, ``S`` cached positions
that are attended to.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from minispec.errors import ArgumentError, ContextError
from minispec.models.kv_cache import KVCache
from minispec.tree import find_ancestors, find_depths, is_chain


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3's scaling of rotary frequencies, for contexts longer than those trained on.

    Wavelengths above ``original_max_position_embeddings / low_freq_factor`` are multiplied by
    ``factor``, those below ``original_max_position_embeddings / high_freq_factor`` are kept, and
    between the two the frequency is interpolated. Raises ArgumentError on construction."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def __post_init__(self) -> None:
        for name in ("factor", "low_freq_factor", "original_max_position_embeddings"):
            _check_positive(name, getattr(self, name))
        if not self.low_freq_factor < self.high_freq_factor < math.inf:
            raise ArgumentError(
                f"high_freq_factor {self.high_freq_factor} must be a finite number above "
                f"low_freq_factor {self.low_freq_factor}"
            )

    def scale(self, frequencies: Tensor) -> Tensor:
        """frequencies (head_dim / 2,) -> those of the longer context (head_dim / 2,)."""
        wavelengths = 2 * torch.pi / frequencies
        periods = self.original_max_position_embeddings / wavelengths  # within the old context
        blend = (periods - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        blend = blend.clip(0, 1)  # 0: low frequencies, scaled; 1: high frequencies, kept
        return (1 - blend) * frequencies / self.factor + blend * frequencies


@dataclass(frozen=True)
class FrequencyFactors:
    """Rotary frequencies that are divided by factors, for longer contexts: all by one (linear
    interpolation of positions, Chen et al., arXiv 2306.15595), or each of the head_dim / 2 by one
    of its own, as GGUF files store Llama 3's scaling. Raises ArgumentError on construction."""

    factors: tuple[float, ...]

    def __post_init__(self) -> None:
        for factor in self.factors:
            _check_positive("rope factor", factor)

    def scale(self, frequencies: Tensor) -> Tensor:
        """frequencies (head_dim / 2,) -> those of the longer context (head_dim / 2,)."""
        return frequencies / torch.tensor(self.factors, dtype=frequencies.dtype, device="cpu")


Scaling = RopeScaling | FrequencyFactors


@dataclass(frozen=True, eq=False)
class AttentionMetadata:
    """Positions and mask of one pass: computed once, used by all layers with the same window."""

    positions: Tensor  # (B, T), in the cache: a tree's nodes are stored one after another
    cos: Tensor  # (B, T, 1, head_dim)
    sin: Tensor  # (B, T, 1, head_dim)
    mask: Tensor | None  # (B, 1, T * group, S), true where a query attends; None: everywhere
    key_slice: slice  # the S cached positions that any query attends to

    def without_rope(self) -> "AttentionMetadata":
        """The same for a layer without rotary positions (NoPE, arXiv 2305.19466): rotated by 0."""
        cos, sin = torch.ones_like(self.cos), torch.zeros_like(self.sin)
        return replace(self, cos=cos, sin=sin)


class Rope:
    """Rotary position embedding (Su et al., arXiv 2104.09864): the pair of coordinates
    (j, j + head_dim / 2) of a query or key at position t is rotated by t * theta^(-2j/head_dim),
    so that their product depends on their distance alone.

    ``group`` query heads share a key head. A position attends to itself and all before it, or with
    a ``window`` to itself and the ``window - 1`` before it; a node of a tree to its ancestors there
    instead (SpecInfer, arXiv 2305.09781).
    """

    def __init__(
        self,
        head_dim: int,
        theta: float,
        *,
        group: int,
        context_limit: int,
        scaling: Scaling | None = None,
        window: int | None = None,
    ) -> None:
        self.group, self.window = group, window
        self._context_limit = context_limit
        # Not weights: computed in float64 on the CPU, even while the weights are on "meta".
        half = torch.arange(head_dim // 2, dtype=torch.float64, device="cpu")
        self._frequencies = theta ** (-2 * half / head_dim)  # (head_dim / 2,)
        if scaling:
            self._frequencies = scaling.scale(self._frequencies)

    def cos_sin(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines (..., 1, head_dim) of positions (...); the 1 broadcasts over heads."""
        device = positions.device
        if device.type == "mps":  # which has no float64
            positions = positions.cpu()
        angles = positions[..., None, None] * self._frequencies.to(positions.device).repeat(2)
        return angles.cos().to(device, dtype), angles.sin().to(device, dtype)

    def attention_metadata(
        self, cache: KVCache, new: int, parents: Sequence[int] | None = None
    ) -> AttentionMetadata:
        """The metadata of the next ``new`` positions of each sequence of the cache; or of the last
        ``new`` nodes of a tree (``Draft.step``), whose other nodes the cache of one sequence holds.

        Raises ContextError if they exceed the cache's capacity or the model's context.
        """
        stored = cache.positions(new)  # (B, T)
        end = max(cache.lengths) + new
        if parents is not None and not is_chain(parents):
            return self._tree_metadata(cache, stored, end - len(parents), parents)
        self._check_context(end)
        first = 0 if self.window is None else max(0, min(cache.lengths) + 1 - self.window)
        if new == 1 and len(set(cache.lengths)) == 1:
            mask = None  # a single token attends to everything cached, or to all of its window
        else:
            keys = torch.arange(first, end, device=stored.device)  # (S,)
            distances = stored[:, :, None] - keys  # (B, T, S)
            mask = self._build_mask(distances, distances >= 0)
        cos, sin = self.cos_sin(stored, cache.keys.dtype)
        return AttentionMetadata(stored, cos, sin, mask, slice(first, end))

    def _tree_metadata(
        self, cache: KVCache, stored: Tensor, start: int, parents: Sequence[int]
    ) -> AttentionMetadata:
        """The metadata of nodes that are ``stored`` (1, T) last, of a tree that begins at the
        position ``start``. A node of depth d is rotated as position ``start`` + d."""
        device, new = stored.device, stored.shape[1]
        nodes = start + torch.tensor(find_depths(parents), device=device)  # (N,)
        positions = nodes[None, -new:]  # (1, T)
        self._check_context(int(positions.max()) + 1)
        lowest = int(positions.min())
        first = 0 if self.window is None else max(0, lowest + 1 - self.window)
        keys = torch.cat((torch.arange(first, start, device=device), nodes))  # (S,)
        seen = torch.ones(new, len(keys), dtype=torch.bool, device=device)  # what is cached before
        seen[:, start - first :] = find_ancestors(parents)[-new:].to(device)
        mask = self._build_mask(positions[:, :, None] - keys, seen)
        cos, sin = self.cos_sin(positions, cache.keys.dtype)
        return AttentionMetadata(stored, cos, sin, mask, slice(first, start + len(parents)))

    def _build_mask(self, distances: Tensor, seen: Tensor) -> Tensor:
        """Distances (B, T, S) to keys, and which are seen at all -> (B, 1, T * group, S) bool."""
        if self.window is not None:
            seen = seen & (distances < self.window)
        return seen.expand_as(distances).repeat_interleave(self.group, dim=1)[:, None]

    def _check_context(self, end: int) -> None:
        if end > self._context_limit:
            raise ContextError(
                f"position {end} is outside the model's context of {self._context_limit}"
            )


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate queries or keys x (B, T, heads, head_dim) by the angles of their positions, given as
    ``cos`` and ``sin`` (B, T, 1, head_dim) -> (B, T, heads, head_dim)."""
    left, right = x.chunk(2, dim=-1)  # (B, T, heads, head_dim / 2) each
    return x * cos + torch.cat((-right, left), dim=-1) * sin


def check_rope(head_dim: int, theta: float, scaling: Scaling | None) -> None:
    """Raises ArgumentError for a base or a number of factors that no rotary positions have."""
    _check_positive("rope_theta", theta)
    if isinstance(scaling, FrequencyFactors) and len(scaling.factors) not in (1, head_dim // 2):
        raise ArgumentError(
            f"{len(scaling.factors)} rope factors must be 1 or {head_dim // 2}, one for each pair"
        )


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ArgumentError(f"{name} {value} must be a finite number above 0")
