"""What a shortlist selects, checked and as copies.

Distributions record the copy, and heads recognise it by its identity: a shortlist cannot edit it.
One that edits the tensor it returned last is refused by name.
"""

import torch
from torch import Tensor

from minispec.errors import ShortlistError
from minispec.types import Context, Shortlist


class CheckedSelections:
    """The selections of a shortlist over ``vocab_size`` ids."""

    def __init__(self, shortlist: Shortlist, vocab_size: int) -> None:
        self._shortlist, self._vocab_size = shortlist, vocab_size
        # The last tensor that ``select`` returned, and the copy of it.
        self._last: tuple[Tensor, Tensor] | None = None

    def select(self, context: Context) -> Tensor:
        """ids (K,) int64; the same tensor as before if the shortlist returned the same. Raises
        ShortlistError if the shortlist breaks its contract."""
        ids = self._shortlist.select(context)
        if self._last and not torch.equal(*self._last):
            raise ShortlistError(
                f"{self._shortlist.name}: ids were edited in place after they were selected: "
                "return other ids as a new tensor"
            )
        if self._last is None or ids is not self._last[0]:
            self._check_ids(ids)
            self._last = ids, ids.clone()
        return self._last[1]

    def _check_ids(self, ids: Tensor) -> None:
        """Check a selection before its head rows are read. Raises ShortlistError."""
        name, budget = self._shortlist.name, self._shortlist.budget
        if not isinstance(ids, Tensor) or ids.dtype != torch.int64 or ids.dim() != 1:
            tensor = isinstance(ids, Tensor)
            kind = f"{ids.dtype} {tuple(ids.shape)}" if tensor else f"a {type(ids).__name__}"
            raise ShortlistError(f"{name}: ids are {kind}, expected an int64 tensor (K,)")
        if not 1 <= len(ids) <= budget:
            raise ShortlistError(f"{name}: {len(ids)} ids, expected 1 to {budget}")
        values = ids.cpu().numpy()  # reading one element of a tensor is slow
        if values[0] < 0 or values[-1] >= self._vocab_size:
            raise ShortlistError(
                f"{name}: ids {values[0]}..{values[-1]} are not within 0..{self._vocab_size - 1}"
            )
        if not (values[1:] > values[:-1]).all():
            raise ShortlistError(f"{name}: ids are not sorted or not unique")
