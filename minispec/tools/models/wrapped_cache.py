"""A cache for the models of transformers with the rollback of ``minispec.models.kv_cache``.

Theirs grow by concatenation and shrink from the end. This one has a fixed capacity, so that a path
of a tree can be kept, and sequences of a batch may have different lengths.

Knows nothing of masks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from minispec.models.kv_cache import find_positions


@dataclass(frozen=True)
class LayerShape:
    """The sizes of the keys and values that a layer caches: heads, and numbers for each head."""

    num_heads: int
    key_size: int
    value_size: int


class _StoredLayer(CacheLayerMixin):
    """Keys (B, heads, capacity, key size) and values of one layer, as ``Cache`` asks for them."""

    is_sliding = False
    keys: Tensor
    values: Tensor

    def __init__(self, keys: Tensor, values: Tensor, lengths: list[int]) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.lengths = lengths  # of the sequences, the same object in all layers
        self.new = 0  # positions that a pass has stored and that do not count yet in ``lengths``
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing is left to do."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store keys and values (B, heads, T, size) after those of each sequence; returns all that
        any sequence has (B, heads, S, size)."""
        new = key_states.shape[2]
        for row, start in enumerate(self.lengths):
            self.keys[row, :, start : start + new] = key_states[row]
            self.values[row, :, start : start + new] = value_states[row]
        self.new, end = new, max(self.lengths) + new
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return max(self.lengths) + self.new  # some models ask in the middle of a pass

    def get_max_length(self) -> int:
        return self.keys.shape[2]


class WrappedCache(Cache):
    """See ``minispec.models.kv_cache.KVCache``, whose methods these are."""

    layers: list[Any]  # of ``_StoredLayer``

    def __init__(
        self,
        shapes: Sequence[LayerShape],
        batch_size: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.lengths = [0] * batch_size
        self.capacity = capacity

        def allocate(heads: int, size: int) -> Tensor:
            # Zeros, not empty: a masked key has weight 0, and 0 * NaN would be NaN.
            return torch.zeros(batch_size, heads, capacity, size, dtype=dtype, device=device)

        super().__init__(
            [
                _StoredLayer(
                    allocate(shape.num_heads, shape.key_size),
                    allocate(shape.num_heads, shape.value_size),
                    self.lengths,
                )
                for shape in shapes
            ]
        )

    @property
    def length(self) -> int:
        """The length of the only sequence, for a batch of one."""
        (length,) = self.lengths
        return length

    def truncate(self, length: int) -> None:
        """Roll every sequence back to at most ``length`` positions."""
        self.lengths[:] = [min(length, own) for own in self.lengths]

    def keep(self, start: int, path: Sequence[int]) -> None:
        """Of the tree of nodes that is stored from position ``start``, keep those of ``path``, in
        ascending order, at the positions from ``start`` on; for a batch of one."""
        end = start + len(path)
        if path and path[-1] != len(path) - 1:  # not simply the first nodes
            for layer in self.layers:
                nodes = start + torch.tensor(path, device=layer.keys.device)
                layer.keys[:, :, start:end] = layer.keys[:, :, nodes]
                layer.values[:, :, start:end] = layer.values[:, :, nodes]
        self.truncate(end)

    def sequence(self, index: int) -> "WrappedCache":
        """A cache of one empty sequence on the storage of sequence ``index``, to fill it alone."""
        view = WrappedCache([], 1, self.capacity, torch.float32, torch.device("cpu"))
        own = slice(index, index + 1)
        view.layers = [
            _StoredLayer(layer.keys[own], layer.values[own], view.lengths) for layer in self.layers
        ]
        return view

    def copy_prefix(self, other: "WrappedCache", length: int) -> None:
        """Begin with the first ``length`` positions of ``other``, both of one sequence."""
        for own, theirs in zip(self.layers, other.layers, strict=True):
            own.keys[:, :, :length] = theirs.keys[:, :, :length]
            own.values[:, :, :length] = theirs.values[:, :, :length]
        self.lengths[:] = [length]

    def positions(self, new: int) -> Tensor:
        """The positions (B, T) in the storage of the next ``new`` tokens of each sequence. Raises
        ContextError if they exceed the capacity."""
        self._count_new(0)
        return find_positions(self.lengths, new, self.capacity)

    def advance(self, new: int) -> None:
        """Add ``new`` positions to each length, once every layer has stored them."""
        self._count_new(new)

    def _count_new(self, new: int) -> None:
        self.lengths[:] = [length + new for length in self.lengths]
        for layer in self.layers:
            layer.new = 0
