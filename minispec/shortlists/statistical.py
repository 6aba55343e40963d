"""The statistical index: ids that the current text has used, and what followed them there.

*Recency*: text repeats itself, so the ids of its last tokens are likely to occur again. The window
follows a change of topic: new ids enter with the first words, old ones leave with the window. It
is read from the context, prompt included, and keeps no state.

*Successors*: for each id, the last few ids that followed it, the latest first, anywhere in the
text. They are learnt online from emitted tokens and, with lower priority, from rejected drafts.
A new successor pushes out the oldest.

Memory: 4 * V * S bytes for S successors, allocated once and independent of what is observed.

Filling the successors beforehand from the text that the core was counted on gained nothing beside
the semantic index, so they start empty.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from minispec.tree import list_rejected
from minispec.types import Round

Ids = npt.NDArray[np.int64]
_NONE = -1
_WINDOW = 512  # tokens of the context that recency covers


class StatisticalIndex:
    """Successors of each id, learnt online."""

    def __init__(self, vocab_size: int, successors: int = 4) -> None:
        # (V, S) int32, the latest first, filled up with _NONE.
        self._after = np.full((vocab_size, successors), _NONE, np.int32)
        self._last: int | None = None  # the last token observed

    @property
    def bytes(self) -> int:
        """Memory of the table, whatever was observed."""
        return self._after.nbytes

    def successors(self, token: int) -> Ids:
        """The ids (n,) that followed an id, the latest first."""
        row = self._after[token]  # (S,)
        return row[row != _NONE].astype(np.int64)

    def observe(self, finished: Round) -> None:
        """Learn the pairs of neighbouring tokens of a round."""
        before = (self._last, *finished.tokens[:-1])
        # What was rejected after the accepted tokens is below what replaced it, the first above.
        for rejected in reversed(list_rejected(finished)):
            self._learn(before[len(finished.path)], rejected)
        for token, successor in zip(before, finished.tokens, strict=True):
            self._learn(token, successor)
        self._last = finished.tokens[-1]

    def _learn(self, token: int | None, successor: int) -> None:
        """Move the successor to the front of the token's row; a new one pushes out the oldest."""
        if token is None:
            return
        row = self._after[token]  # (S,)
        found = np.flatnonzero(row == successor)
        end = int(found[0]) if len(found) else len(row) - 1
        row[1 : end + 1] = row[:end].copy()
        row[0] = successor

    def reset(self) -> None:
        """Clear the table."""
        self._after.fill(_NONE)
        self._last = None

    def state(self) -> dict[str, Tensor]:
        """Everything learnt, as tensors for ``restore``."""
        last = _NONE if self._last is None else self._last
        return {"after": torch.from_numpy(self._after.copy()), "last": torch.tensor([last])}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Replace what was learnt by the ``state`` of an index of the same shape."""
        self._after[:] = state["after"].numpy()
        last = int(state["last"])
        self._last = None if last == _NONE else last


def recent_ids(tokens: Sequence[int]) -> Ids:
    """The distinct ids (n,) of the last 512 tokens of a text, the latest first."""
    ids = dict.fromkeys(reversed(tokens[-_WINDOW:]))
    return np.fromiter(ids, np.int64, len(ids))
