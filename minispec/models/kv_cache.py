"""The key-value cache: what a model remembers, and how it forgets.

A verify pass writes gamma + 1 positions and often keeps fewer, so forgetting is as common here
as remembering, and costs nothing: it is a length. Knows nothing of attention.
"""

import torch
from torch import Tensor

from minispec.errors import ContextError


class KVCache:
    """Keys and values of the positions seen so far, row by row, in storage of fixed size.

    ``lengths[b]`` positions of row ``b`` count; what lies behind them is rubbish that the
    next pass overwrites, so forgetting costs nothing. Rows may have different lengths.
    """

    def __init__(
        self,
        layers: int,
        rows: int,
        capacity: int,
        num_key_value_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        # Zeros, not empty: a masked key has weight 0, and 0 * NaN would be NaN.
        shape = (layers, rows, capacity, num_key_value_heads, head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.lengths = [0] * rows

    @property
    def capacity(self) -> int:
        """How many positions of a row there is room for."""
        return self.keys.shape[2]

    @property
    def length(self) -> int:
        """Positions held, for a cache of one row."""
        (length,) = self.lengths
        return length

    def truncate(self, length: int) -> None:
        """Forgets every position from ``length`` on, in each row."""
        self.lengths = [min(length, held) for held in self.lengths]

    def row(self, row: int) -> "KVCache":
        """A cache of one empty row over the storage of row ``row``: to fill it alone."""
        view = object.__new__(KVCache)
        view.keys, view.values = self.keys[:, row : row + 1], self.values[:, row : row + 1]
        view.lengths = [0]
        return view

    def positions(self, new: int) -> Tensor:
        """Positions (B, T) that the next ``new`` tokens of each row will take.

        Raises ContextError if a row has no room for them.
        """
        if max(self.lengths) + new > self.capacity:
            raise ContextError(
                f"{max(self.lengths)} + {new} positions do not fit a cache of {self.capacity}"
            )
        starts = torch.tensor(self.lengths, device=self.keys.device)
        return starts[:, None] + torch.arange(new, device=self.keys.device)  # (B, T)

    def write(self, layer: int, positions: Tensor, keys: Tensor, values: Tensor) -> None:
        """Stores keys and values (B, T, kv_heads, head_width) at ``positions`` (B, T)."""
        rows = torch.arange(positions.shape[0], device=positions.device)[:, None]  # (B, 1)
        self.keys[layer, rows, positions] = keys
        self.values[layer, rows, positions] = values

    def advance(self, new: int) -> None:
        """Counts ``new`` more positions in each row, once every layer has written them."""
        self.lengths = [length + new for length in self.lengths]
