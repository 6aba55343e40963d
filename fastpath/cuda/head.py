"""The LM head on a GPU: dense, gathered or packed rows in float32, bfloat16 or float16.

Logits are float32 for every dtype of the rows. Their top-k and sum of exponentials come from the
same pass, so that an argmax or a distribution does not read the rows again.

Knows nothing of models and of distributions.
"""

import copy

import torch
from torch import Tensor

from fastpath.cuda.device import LOADS, SIMULATED, launch, to_device, view_as_words
from fastpath.cuda.kernels import Plan, copy_rows, make_merger, make_scorer
from fastpath.scores import Scores
from minispec.errors import ArgumentError, ShortlistError

MAX_STATES = 8  # hidden states in one pass over the rows
MAX_TOP = 8  # entries of a top-k
# For the simulator, which runs each GPU thread as a Python thread.
_SMALL = Plan(lanes=2, groups=2, rows_per_group=2)
PLAN = _SMALL if SIMULATED else Plan()


def check_ids(ids: Tensor, size: int) -> None:
    """Raises ShortlistError unless ids (K,) are valid rows of a table of ``size``: a kernel would
    read out of bounds."""
    if ids.dtype != torch.int64 or ids.dim() != 1 or len(ids) == 0:
        raise ShortlistError(
            f"ids must be int64 (K,) with K >= 1, but are {ids.dtype} {tuple(ids.shape)}"
        )
    if ids[0] < 0 or ids[-1] >= size or not (ids[1:] > ids[:-1]).all():
        raise ShortlistError(f"ids must be sorted, unique and within 0..{size - 1}")


class DeviceRows:
    """Head rows (V, D) on the device, and the kernels that read them."""

    def __init__(self, weight: Tensor) -> None:
        """``weight`` (V, D) is on the device. Raises ArgumentError for a dtype without kernels."""
        if weight.dtype not in LOADS:
            supported = ", ".join(str(dtype).removeprefix("torch.") for dtype in LOADS)
            raise ArgumentError(
                f"backend cuda has no kernels for {weight.dtype} rows, only for {supported}"
            )
        self.dtype, self.width = weight.dtype, weight.shape[1]
        self.words = view_as_words(weight)

    def __len__(self) -> int:
        return len(self.words)

    def scores(
        self, hidden: Tensor, ids: Tensor | None = None, top: int = 1, temperature: float = 1.0
    ) -> Scores:
        """Logits, top-k and sum of exponentials of hidden (H, D) over all rows, or over those of
        ids (K,), sorted and unique, on the host. One pass over the rows for up to 8 states.

        Raises ArgumentError unless ``top`` is 1 to 8 and at most K, and ShortlistError for ids
        that are not valid.
        """
        if ids is not None:
            check_ids(ids, len(self))
        return self.score_slots(hidden, None if ids is None else to_device(ids), top, temperature)

    def score_slots(
        self, hidden: Tensor, slots: Tensor | None, top: int, temperature: float
    ) -> Scores:
        """As ``scores``, over the rows ``slots`` (K,), on the device and in any order."""
        count = len(self) if slots is None else len(slots)
        if hidden.dim() != 2 or hidden.shape[1] != self.width:
            raise ArgumentError(f"hidden must be (H, {self.width}), but is {tuple(hidden.shape)}")
        if not 1 <= top <= min(MAX_TOP, count):
            raise ArgumentError(
                f"top must be 1 to {min(MAX_TOP, count)} for {count} rows, but is {top}"
            )
        parts = [
            self._pass(block, slots, count, top, temperature) for block in hidden.split(MAX_STATES)
        ]
        if len(parts) == 1:
            return parts[0]
        fields = zip(
            *((p.logits, p.top_logits, p.top_indices, p.exp_sums) for p in parts), strict=True
        )
        return Scores(*(torch.cat(values) for values in fields))

    def allocate(self, count: int) -> "DeviceRows":
        """An uninitialised table of ``count`` rows of the same width and dtype."""
        table = copy.copy(self)
        table.words = self.words.new_empty((count, self.words.shape[1]))
        return table

    def copy(self, ids: Tensor, target: "DeviceRows", slots: Tensor) -> None:
        """Copies rows ``ids`` (N,) into ``slots`` (N,) of ``target``; ids and slots are on the
        host."""
        blocks = min(_count_blocks(self.words.device), len(ids))
        arguments = self.words, to_device(ids), target.words, to_device(slots)
        launch(copy_rows, blocks, PLAN.threads, *arguments)

    def _pass(
        self, hidden: Tensor, slots: Tensor | None, count: int, top: int, temperature: float
    ) -> Scores:
        states, device = len(hidden), hidden.device
        blocks = min(_count_blocks(device), -(-count // PLAN.tile))
        padded = self.words.shape[1] * 4 // self.dtype.itemsize
        inputs = hidden.new_zeros((states, padded), dtype=torch.float32)  # padded as the rows are
        inputs[:, : self.width] = hidden

        def new(dtype: torch.dtype, *shape: int) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        logits = new(torch.float32, states, count)
        by_block = (
            new(torch.float32, states, blocks, top),
            new(torch.int64, states, blocks, top),
            new(torch.float64, states, blocks),
        )
        top_logits, top_indices = new(torch.float32, states, top), new(torch.int64, states, top)
        exp_sums = new(torch.float64, states)
        row_ids = top_indices[0] if slots is None else slots  # unused if None, but must be an array
        kernel = make_scorer(self.dtype, states, top, slots is not None, PLAN)
        arguments = self.words, row_ids, inputs.view(torch.int32), temperature
        launch(kernel, blocks, PLAN.threads, *arguments, logits, *by_block)
        merge = make_merger(top, PLAN.threads)
        merged = top_logits, top_indices, exp_sums
        launch(merge, states, PLAN.threads, *by_block, temperature, *merged)
        return Scores(logits, *merged)


def _count_blocks(device: torch.device) -> int:
    """Four blocks for each multiprocessor, so that some compute while others wait for memory."""
    if SIMULATED:
        return 2
    return 4 * torch.cuda.get_device_properties(device).multi_processor_count


class PackedRows:
    """A contiguous copy of a shortlist's rows; a new shortlist copies only its added rows.

    Rows are stored in *slots*: an id that stays keeps its slot, and an added id gets a free one.
    ``slots`` (K,) int64, on the device, are the slots of the sorted ids. Rows that stay are
    not touched. ``num_copied`` counts the rows copied so far.
    """

    def __init__(self, source: DeviceRows) -> None:
        self._source = source
        self._ids = torch.empty(0, dtype=torch.int64)
        self._slots = torch.empty(0, dtype=torch.int64)  # ``slots`` on the host
        self._rows: DeviceRows | None = None
        self.slots = self._slots
        self.num_copied = 0

    def update(self, ids: Tensor) -> None:
        """Makes ``ids`` (K,), sorted and unique, on the host, the packed shortlist. Never waits for
        the device. Raises ShortlistError, before anything is changed."""
        check_ids(ids, len(self._source))
        kept = torch.isin(ids, self._ids, assume_unique=True)  # (K,)
        kept_before = torch.isin(self._ids, ids, assume_unique=True)  # (previous K,)
        capacity = 0 if self._rows is None else len(self._rows)
        if self._rows is None or len(ids) > capacity:  # too long for the slots: copy all rows
            kept = torch.zeros_like(kept)
            self._rows = self._source.allocate(len(ids))
            free = torch.arange(len(ids))
        else:
            used = torch.zeros(capacity, dtype=torch.bool)
            used[self._slots[kept_before]] = True
            free = (~used).nonzero().flatten()
        slots = torch.empty_like(ids)
        slots[kept] = self._slots[kept_before] if kept.any() else 0
        added = ids[~kept]
        slots[~kept] = free[: len(added)]
        if len(added):
            self._source.copy(added, self._rows, slots[~kept])
        self._ids, self._slots, self.slots = ids.clone(), slots, to_device(slots)
        self.num_copied += len(added)

    def scores(self, hidden: Tensor, top: int = 1, temperature: float = 1.0) -> Scores:
        """As ``DeviceRows.scores``, over the packed shortlist; indices are those of its ids."""
        if self._rows is None:
            raise ShortlistError("no shortlist is packed yet: call update first")
        return self._rows.score_slots(hidden, self.slots, top, temperature)
