"""What verification revealed, kept within a fixed number of bytes.

A row is one position of emitted text: what the draft read there (the target's taps and the
token after), what it made of it (its own state before the LM head, as a direction), and the
target's law of the next token, of which the ``m`` largest probabilities are kept: what is
missing from one is the rest's mass. Rows come in windows of consecutive positions.

Half of the windows are the newest ones. The other half is a sample of all that went before,
each window with the same chance to be in it (reservoir sampling: Vitter 1985), so that an old
topic is not forgotten for a new one. Knows nothing of how rows are used.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minispec.types import Distribution

TRAIL = 3  # tokens that a row knows of its past, the one that it reads included


@dataclass(frozen=True, eq=False)
class Rows:
    """Positions side by side; ``...`` is (R,) for the whole store, (B, W) for windows of it."""

    aux_hidden_states: Tensor  # (..., n_aux * D)
    directions: Tensor  # (..., D), of length 1
    trails: Tensor  # (..., TRAIL) int64, the newest token first, -1 where the text began
    ids: Tensor  # (..., m) int64
    probs: Tensor  # (..., m) float32
    difficulty: Tensor  # (...) float32
    sequence: Tensor  # (...) int64: which text, -1 for a row that was never written

    def at(self, index: Tensor | slice) -> "Rows":
        """The rows that an index of the leading dimensions picks."""
        return Rows(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


class ReplayBuffer:
    """The store. ``filled`` counts the rows in use, which are the first ones of ``rows``."""

    def __init__(
        self, windows: int, window: int, aux_size: int, width: int, largest: int, seed: int
    ) -> None:
        size = windows * window
        self.window = window
        self.rows = Rows(
            torch.zeros(size, aux_size, dtype=torch.bfloat16),
            torch.zeros(size, width),
            torch.full((size, TRAIL), -1),
            torch.zeros(size, largest, dtype=torch.int64),
            torch.zeros(size, largest),
            torch.zeros(size),
            torch.full((size,), -1),
        )
        self._windows, self._seed = windows, seed
        self._ring = windows - windows // 2  # of the newest; the others are the sample
        self.clear()

    def clear(self) -> None:
        """Forgets all rows."""
        self.filled = self._written = 0
        self.rows.sequence.fill_(-1)
        self._random = random.Random(self._seed)

    @property
    def bytes(self) -> int:
        """Memory held, however many rows are in use."""
        parts = (getattr(self.rows, name) for name in self.rows.__dataclass_fields__)
        return sum(part.nbytes for part in parts)

    def add(
        self,
        aux_hidden_states: Tensor,
        directions: Tensor,
        trails: Tensor,
        distributions: Sequence[Distribution],
        difficulties: Sequence[float],
        text: int,
    ) -> int:
        """Keeps n positions: taps (n, n_aux * D), directions (n, D), trails (n, TRAIL), and a
        law and a difficulty for each. Returns how many were refused, not being finite."""
        most = self.rows.ids.shape[1]
        ids = torch.zeros(len(distributions), most, dtype=torch.int64)
        probs = torch.zeros(len(distributions), most)  # a law of fewer ids gives nothing to id 0
        for place, distribution in enumerate(distributions):
            width = min(most, len(distribution.ids))
            probs[place, :width], largest = distribution.probs.topk(width)
            ids[place, :width] = distribution.ids[largest]
        sound = (
            torch.cat((aux_hidden_states, directions, probs), dim=1).isfinite().all(dim=1)
        )  # (n,)
        rows = self.rows
        for place in sound.nonzero()[:, 0].tolist():
            row = self._next_row()
            rows.aux_hidden_states[row], rows.directions[row] = (
                aux_hidden_states[place],
                directions[place],
            )
            rows.trails[row], rows.sequence[row] = trails[place], text
            rows.difficulty[row] = difficulties[place]
            rows.ids[row], rows.probs[row] = ids[place], probs[place]
        return len(distributions) - int(sound.sum())

    def _next_row(self) -> int:
        """Where the next row goes. Before a window of the ring is written over, it may take a
        place in the sample: with n windows gone by, each of them is there with chance s / n."""
        number, offset = divmod(self._written, self.window)
        slot = number % self._ring
        sample, gone = self._windows - self._ring, number - self._ring
        if offset == 0 and gone >= 0 and sample:
            place = gone if gone < sample else self._random.randrange(gone + 1)
            if place < sample:
                self._copy(slot, self._ring + place)
        self._written += 1
        kept = min(number, self._ring) + min(max(number - self._ring + 1, 0), sample)
        row = slot * self.window + offset
        self.filled = max(self.filled, row + 1, kept * self.window if gone >= 0 else 0)
        return row

    def _copy(self, source: int, destination: int) -> None:
        for name in self.rows.__dataclass_fields__:
            part = getattr(self.rows, name).unflatten(0, (self._windows, self.window))
            part[destination] = part[source]

    @property
    def held(self) -> int:
        """Rows of the ring of newest windows that are in use."""
        return min(self._written, self._ring * self.window)

    def newest(self) -> Tensor:
        """Rows (window,) of the newest whole window's length of positions, oldest first;
        there must be as many."""
        places = torch.arange(self._written - self.window, self._written)
        return places % (self._ring * self.window)

    def sampled(self) -> Tensor | None:
        """Rows (window,) of a window drawn from all older ones kept, None if there is none."""
        number = self._written // self.window
        ring = [n % self._ring for n in range(max(0, number - self._ring + 1), number - 1)]
        sample = min(max(number - self._ring, 0), self._windows - self._ring)
        slots = ring + [self._ring + n for n in range(sample)]
        if not slots:
            return None
        return self._random.choice(slots) * self.window + torch.arange(self.window)
