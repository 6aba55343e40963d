"""The key-value cache, and its rollback.

A verify pass writes gamma + 1 positions and often keeps fewer. The rest is rolled back by
shortening a length. Of a chain nothing is copied; of a tree the kept path is moved together first.
Knows nothing of attention.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from minispec.errors import ContextError


class KVCache:
    """Keys and values of the positions processed so far, in storage of fixed capacity.

    ``keys`` and ``values`` are (layers, B, capacity, kv_heads, head_dim). Of sequence ``b`` in the
    batch, the first ``lengths[b]`` positions count; what lies after them is unused, and overwritten
    by the next pass. Sequences may have different lengths.
    """

    def __init__(
        self,
        num_layers: int,
        batch_size: int,
        capacity: int,
        num_key_value_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        # Zeros, not empty: a masked key has weight 0, and 0 * NaN would be NaN.
        shape = (num_layers, batch_size, capacity, num_key_value_heads, head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.lengths = [0] * batch_size

    @property
    def capacity(self) -> int:
        """The most positions that a sequence may have."""
        return self.keys.shape[2]

    @property
    def length(self) -> int:
        """The length of the only sequence, for a batch of one."""
        (length,) = self.lengths
        return length

    def truncate(self, length: int) -> None:
        """Roll every sequence back to at most ``length`` positions."""
        self.lengths = [min(length, own) for own in self.lengths]

    def keep(self, start: int, path: Sequence[int]) -> None:
        """Of the tree of nodes that is stored from position ``start``, keep those of ``path``, in
        ascending order, at the positions from ``start`` on; for a batch of one."""
        end = start + len(path)
        if path and path[-1] != len(path) - 1:  # not simply the first nodes
            nodes = start + torch.tensor(path, device=self.keys.device)
            self.keys[:, :, start:end] = self.keys[:, :, nodes]
            self.values[:, :, start:end] = self.values[:, :, nodes]
        self.truncate(end)

    def sequence(self, index: int) -> "KVCache":
        """A cache of one empty sequence on the storage of sequence ``index``, to fill it alone."""
        view = object.__new__(KVCache)
        view.keys, view.values = self.keys[:, index : index + 1], self.values[:, index : index + 1]
        view.lengths = [0]
        return view

    def copy_prefix(self, other: "KVCache", length: int) -> None:
        """Begin with the first ``length`` positions of ``other``, both of one sequence."""
        self.keys[:, :, :length] = other.keys[:, :, :length]
        self.values[:, :, :length] = other.values[:, :, :length]
        self.lengths = [length]

    def positions(self, new: int) -> Tensor:
        """The positions (B, T) in the storage of the next ``new`` tokens of each sequence.

        Raises ContextError if they exceed the capacity.
        """
        return find_positions(self.lengths, new, self.capacity).to(self.keys.device)

    def write(self, layer: int, positions: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store keys and values (B, T, kv_heads, head_dim) at ``positions`` (B, T)."""
        batch = torch.arange(positions.shape[0], device=positions.device)[:, None]  # (B, 1)
        self.keys[layer, batch, positions] = keys
        self.values[layer, batch, positions] = values

    def advance(self, new: int) -> None:
        """Add ``new`` positions to each length, once every layer has written them."""
        self.lengths = [length + new for length in self.lengths]


def find_positions(lengths: Sequence[int], new: int, capacity: int) -> Tensor:
    """The positions (B, T) of the next ``new`` tokens of sequences that have ``lengths`` (B,).
    Raises ContextError if they exceed the capacity."""
    if max(lengths) + new > capacity:
        raise ContextError(f"{max(lengths)} + {new} positions do not fit a cache of {capacity}")
    return torch.tensor(lengths)[:, None] + torch.arange(new)  # (B, T)
