"""The statistical index: ids that this text has used, and what has followed them.

*Recency*: text repeats itself, so the ids of its last tokens are likely to return; a new topic
moves in with its first words, and an old one fades as its tokens leave the window. It is read
off the context itself, the prompt included, and needs no memory.

*Successors*: for each id the last few that came after it, the latest first, wherever in the
text that was: learnt online, from verified tokens and, behind them, from rejected drafts. A
follower that is not seen again is pushed out by newer ones.

Memory: 4 * V * S bytes for S successors, allocated once; nothing grows with what is observed.

Seeding the successors from the text that the core was counted on brought nothing beside the
semantic index, so they begin empty.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from minispec.types import Round

Ids = npt.NDArray[np.int64]
_NONE = -1
_WINDOW = 512  # tokens that recency looks back on


class StatisticalIndex:
    """Successors of each id, learnt online."""

    def __init__(self, vocab_size: int, successors: int = 4) -> None:
        # (V, S) int32, the latest first, _NONE where there are fewer.
        self._after = np.full((vocab_size, successors), _NONE, np.int32)
        self._last: int | None = None

    @property
    def bytes(self) -> int:
        """Memory held, whatever was observed."""
        return self._after.nbytes

    def successors(self, token: int) -> Ids:
        """The ids (n,) that followed an id, the latest first."""
        row = self._after[token]
        return row[row != _NONE].astype(np.int64)

    def observe(self, finished: Round) -> None:
        """Learns a round's pairs."""
        before = (self._last, *finished.tokens[:-1])
        kept = len(finished.path)
        if kept < len(finished.proposed):  # what the draft said first where it was wrong
            self._learn(before[kept], finished.proposed[kept])
        for token, follower in zip(before, finished.tokens, strict=True):
            self._learn(token, follower)
        self._last = finished.tokens[-1]

    def _learn(self, token: int | None, follower: int) -> None:
        if token is None:
            return
        row = self._after[token]
        # Moves to the front what is there already, else pushes out the oldest.
        places = np.flatnonzero(row == follower)
        end = int(places[0]) if len(places) else len(row) - 1
        row[1 : end + 1] = row[:end].copy()
        row[0] = follower

    def reset(self) -> None:
        """Forgets everything."""
        self._after.fill(_NONE)
        self._last = None

    def state(self) -> dict[str, Tensor]:
        """What was learnt, to be restored later."""
        last = _NONE if self._last is None else self._last
        return {"after": torch.from_numpy(self._after.copy()), "last": torch.tensor([last])}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes up a ``state`` of an index of the same shape."""
        self._after[:] = state["after"].numpy()
        last = int(state["last"])
        self._last = None if last == _NONE else last


def recent(tokens: Sequence[int]) -> Ids:
    """The distinct ids (n,) of a text's last tokens, the latest first."""
    ids = dict.fromkeys(reversed(tokens[-_WINDOW:]))
    return np.fromiter(ids, np.int64, len(ids))
