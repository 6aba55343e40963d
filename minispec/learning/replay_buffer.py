"""A replay buffer of emitted positions, in a fixed number of bytes.

An entry is one position: the draft's inputs there (the target's auxiliary hidden states and the
token after it), the draft's hidden state as a unit vector, and the top-k probabilities of the
target's distribution of the next token. Entries are stored in windows of consecutive positions.

Half of the windows form a *ring* of the newest. The other half is a *reservoir*: a uniform
random sample of all older ones (Vitter 1985), so that an old topic is not lost to a new one.
Knows nothing of how entries are used.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minispec.types import Distribution

NGRAM_SIZE = 3  # most recent tokens stored with an entry


@dataclass(frozen=True, eq=False)
class Entries:
    """Entries as tensors; ``...`` is (R,) for the buffer, (B, W) for a batch of windows."""

    aux_hidden_states: Tensor  # (..., n_aux * D) bfloat16
    keys: Tensor  # (..., D) float32, unit vectors
    ngrams: Tensor  # (..., NGRAM_SIZE) int64, newest token first, -1 before the start of a text
    ids: Tensor  # (..., m) int64, the top k of the target's distribution
    probs: Tensor  # (..., m) float32, the rest of the probability is outside the top k
    difficulty: Tensor  # (...) float32
    sequence: Tensor  # (...) int64, the number of the text, -1 for an unused entry

    def select(self, index: Tensor | slice) -> "Entries":
        """The entries at an index into the leading dimensions."""
        return Entries(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


class Ring:
    """Slots for the newest ``capacity`` windows, written in turn, position by position."""

    def __init__(self, capacity: int, window_size: int) -> None:
        self.capacity, self.window_size = capacity, window_size
        self.size = capacity * window_size  # positions
        self.num_written = 0  # positions, since the ring was empty

    def __len__(self) -> int:
        """Positions in the ring."""
        return min(self.num_written, self.size)

    @property
    def next_index(self) -> int:
        """The index of the next position to write."""
        return self.num_written % self.size

    def advance(self) -> None:
        """Mark the position at ``next_index`` as written."""
        self.num_written += 1

    def newest(self) -> Tensor:
        """The indices (window_size,) of the newest positions, oldest first."""
        return torch.arange(self.num_written - self.window_size, self.num_written) % self.size

    def older_slots(self) -> list[int]:
        """The slots of the complete windows between the newest and the one overwritten next."""
        complete = self.num_written // self.window_size
        return [
            n % self.capacity for n in range(max(0, complete - self.capacity + 1), complete - 1)
        ]


class Reservoir:
    """Slots for a uniform sample of ``capacity`` windows of a stream (Vitter 1985, Algorithm R).

    After n windows each of them is in the sample with probability capacity / n.
    """

    def __init__(self, capacity: int, rng: random.Random) -> None:
        self.capacity, self._rng = capacity, rng
        self.num_offered = 0

    def __len__(self) -> int:
        """Windows in the sample."""
        return min(self.num_offered, self.capacity)

    def offer(self) -> int | None:
        """The slot that the next window of the stream takes, None if it is not sampled."""
        slot = self.num_offered
        self.num_offered += 1
        if slot >= self.capacity:  # the sample is full
            slot = self._rng.randrange(self.num_offered)
        return slot if slot < self.capacity else None


class ReplayBuffer:
    """``num_windows`` windows of entries: first the ring, then the reservoir."""

    def __init__(
        self,
        num_windows: int,
        window_size: int,
        aux_size: int,
        key_size: int,
        top_k: int,
        seed: int,
    ) -> None:
        size = num_windows * window_size
        self.window_size = window_size
        self.entries = Entries(
            torch.zeros(size, aux_size, dtype=torch.bfloat16),
            torch.zeros(size, key_size),
            torch.full((size, NGRAM_SIZE), -1),
            torch.zeros(size, top_k, dtype=torch.int64),
            torch.zeros(size, top_k),
            torch.zeros(size),
            torch.full((size,), -1),
        )
        self._num_windows, self._seed = num_windows, seed
        self.clear()

    def clear(self) -> None:
        """Remove all entries and restart the random draws."""
        self.entries.sequence.fill_(-1)
        self._rng = random.Random(self._seed)
        sample = self._num_windows // 2
        self._ring = Ring(self._num_windows - sample, self.window_size)
        self._reservoir = Reservoir(sample, self._rng)

    def __len__(self) -> int:
        """Entries in use: the first ones of ``entries``."""
        return len(self._ring) + len(self._reservoir) * self.window_size

    @property
    def num_recent(self) -> int:
        """Entries in the ring of the newest windows."""
        return len(self._ring)

    @property
    def num_bytes(self) -> int:
        """Allocated memory, however many entries are in use."""
        return sum(tensor.nbytes for tensor in self.tensors())

    def tensors(self) -> list[Tensor]:
        """All tensors of the buffer, (R, ...) each."""
        return [getattr(self.entries, name) for name in self.entries.__dataclass_fields__]

    def add(
        self,
        aux_hidden_states: Tensor,
        keys: Tensor,
        ngrams: Tensor,
        distributions: Sequence[Distribution],
        difficulties: Sequence[float],
        sequence: int,
    ) -> int:
        """Add n consecutive positions of a text: auxiliary hidden states (n, n_aux * D), keys
        (n, D), n-grams (n, NGRAM_SIZE), and n target distributions and difficulties. Returns how
        many were refused because a number was not finite."""
        n, top_k = len(distributions), self.entries.ids.shape[1]
        # A distribution over fewer than top_k ids is padded with id 0 at probability 0.
        ids, probs = torch.zeros(n, top_k, dtype=torch.int64), torch.zeros(n, top_k)
        for i, distribution in enumerate(distributions):
            k = min(top_k, len(distribution.ids))
            probs[i, :k], largest = distribution.probs.topk(k)
            ids[i, :k] = distribution.ids[largest]
        finite = torch.cat((aux_hidden_states, keys, probs), dim=1).isfinite().all(dim=1)  # (n,)
        entries = self.entries
        for i in finite.nonzero()[:, 0].tolist():
            index = self._next_index()
            entries.aux_hidden_states[index], entries.keys[index] = aux_hidden_states[i], keys[i]
            entries.ngrams[index], entries.sequence[index] = ngrams[i], sequence
            entries.difficulty[index] = difficulties[i]
            entries.ids[index], entries.probs[index] = ids[i], probs[i]
        return n - int(finite.sum())

    def _next_index(self) -> int:
        """The index of the next entry. A window of the ring about to be overwritten is first
        offered to the reservoir."""
        ring = self._ring
        index = ring.next_index
        if index % self.window_size == 0 and len(ring) == ring.size:
            slot = self._reservoir.offer()
            if slot is not None:
                self._copy_window(index // self.window_size, ring.capacity + slot)
        ring.advance()
        return index

    def _copy_window(self, source: int, destination: int) -> None:
        for name in self.entries.__dataclass_fields__:
            windows = getattr(self.entries, name).unflatten(0, (-1, self.window_size))
            windows[destination] = windows[source]

    def newest_window(self) -> Tensor:
        """The indices (window_size,) of the newest positions, oldest first; ``num_recent`` must
        be at least ``window_size``."""
        return self._ring.newest()

    def sample_older_window(self) -> Tensor | None:
        """The indices (window_size,) of an older window drawn at random, None if there is none."""
        ring = self._ring
        complete = ring.num_written // self.window_size
        # Windows that left the ring, without the one that is being overwritten now.
        in_reservoir = min(max(complete - ring.capacity, 0), self._reservoir.capacity)
        slots = ring.older_slots() + [ring.capacity + n for n in range(in_reservoir)]
        if not slots:
            return None
        return self._rng.choice(slots) * self.window_size + torch.arange(self.window_size)

    def sample_batch(self, replay: bool) -> Tensor:
        """Indices (B, window_size) for an update: the newest window and, with ``replay``, an
        older one if there is any."""
        older = self.sample_older_window() if replay else None
        newest = self.newest_window()
        return torch.stack([newest] if older is None else [newest, older])
