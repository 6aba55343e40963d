"""The LM head on a GPU: dense, gathered or packed rows of float32, bfloat16 or float16.

Logits are float32 whatever the rows are. The best places and the sum of exponentials come with
them from the same pass, so that a law, or a choice, needs no second look at the rows.

Knows nothing of models and of laws.
"""

import copy

import torch
from torch import Tensor

from fastpath.cuda.device import LOADS, SIMULATED, launch, sent, words
from fastpath.cuda.kernels import Plan, copy_rows, finisher, scorer
from fastpath.scores import Scores
from minispec.errors import ArgumentError, ShortlistError

STATES = 8  # hidden states that one pass over the rows may serve
TOP = 8
_SMALL = Plan(lanes=2, groups=2, each=2)  # the simulator's threads are threads of Python
PLAN = _SMALL if SIMULATED else Plan()


def check_ids(ids: Tensor, size: int) -> None:
    """Raises ShortlistError unless ids (K,) can be rows of a table of ``size``: a kernel would
    read, and copy, whatever lies there."""
    if ids.dtype != torch.int64 or ids.dim() != 1 or len(ids) == 0:
        raise ShortlistError(f"ids are {ids.dtype} {tuple(ids.shape)}, not int64 (K,) with K >= 1")
    if ids[0] < 0 or ids[-1] >= size or not (ids[1:] > ids[:-1]).all():
        raise ShortlistError(f"ids are not sorted, unique and within 0..{size - 1}")


class DeviceRows:
    """Rows (V, D) on the device, and the kernels over them."""

    def __init__(self, weight: Tensor) -> None:
        """``weight`` on the device. Raises ArgumentError for a dtype without kernels."""
        if weight.dtype not in LOADS:
            known = ", ".join(str(dtype).removeprefix("torch.") for dtype in LOADS)
            raise ArgumentError(f"no kernels for {weight.dtype} rows: there are some for {known}")
        self.dtype, self.width = weight.dtype, weight.shape[1]
        self.words = words(weight)

    def __len__(self) -> int:
        return len(self.words)

    def scores(
        self, hidden: Tensor, ids: Tensor | None = None, top: int = 1, temperature: float = 1.0
    ) -> Scores:
        """hidden (H, D) against all rows, or against those of ids (K,), sorted and unique, on
        the host: one pass for up to 8 states. ``top`` is at most 8 and at most K. Raises
        ArgumentError, ShortlistError."""
        if ids is not None:
            check_ids(ids, len(self))
        return self.in_slots(hidden, None if ids is None else sent(ids), top, temperature)

    def in_slots(
        self, hidden: Tensor, slots: Tensor | None, top: int, temperature: float
    ) -> Scores:
        """As ``scores``, the rows named by slots (K,) on the device, in any order."""
        count = len(self) if slots is None else len(slots)
        if hidden.dim() != 2 or hidden.shape[1] != self.width:
            raise ArgumentError(f"hidden {tuple(hidden.shape)} must be (H, {self.width})")
        if not 1 <= top <= min(TOP, count):
            raise ArgumentError(f"top {top} must be 1 to {min(TOP, count)} of {count} rows")
        parts = [
            self._pass(block, slots, count, top, temperature) for block in hidden.split(STATES)
        ]
        if len(parts) == 1:
            return parts[0]
        fields = zip(*((p.logits, p.best, p.places, p.totals) for p in parts), strict=True)
        return Scores(*(torch.cat(values) for values in fields))

    def empty(self, count: int) -> "DeviceRows":
        """Room for ``count`` rows of the same kind, each yet to be copied."""
        room = copy.copy(self)
        room.words = self.words.new_empty((count, self.words.shape[1]))
        return room

    def copy(self, ids: Tensor, target: "DeviceRows", slots: Tensor) -> None:
        """Copies rows ``ids`` (N,) into ``slots`` (N,) of ``target``; both are the host's."""
        blocks = min(_blocks(self.words.device), len(ids))
        launch(copy_rows, blocks, PLAN.threads, self.words, sent(ids), target.words, sent(slots))

    def _pass(
        self, hidden: Tensor, slots: Tensor | None, count: int, top: int, temperature: float
    ) -> Scores:
        states, device = len(hidden), hidden.device
        blocks = min(_blocks(device), -(-count // PLAN.tile))
        padded = self.words.shape[1] * 4 // self.dtype.itemsize
        spread = hidden.new_zeros((states, padded), dtype=torch.float32)
        spread[:, : self.width] = hidden

        def new(dtype: torch.dtype, *shape: int) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        logits = new(torch.float32, states, count)
        found = (
            new(torch.float32, states, blocks, top),
            new(torch.int64, states, blocks, top),
            new(torch.float64, states, blocks),
        )
        best, places = new(torch.float32, states, top), new(torch.int64, states, top)
        totals = new(torch.float64, states)
        none = places[0] if slots is None else slots  # an argument must be some array
        kernel = scorer(self.dtype, states, top, slots is not None, PLAN)
        inputs = self.words, none, spread.view(torch.int32), temperature
        launch(kernel, blocks, PLAN.threads, *inputs, logits, *found)
        finish = finisher(top, PLAN.threads)
        launch(finish, states, PLAN.threads, *found, temperature, best, places, totals)
        return Scores(logits, best, places, totals)


def _blocks(device: torch.device) -> int:
    """Enough blocks to keep every multiprocessor busy while others wait for memory."""
    if SIMULATED:
        return 2
    return 4 * torch.cuda.get_device_properties(device).multi_processor_count


class PackedRows:
    """The rows of a list, side by side; a new list moves only what came.

    Rows stand in *slots*: an id that stays keeps its slot, one that comes takes that of one
    that went. ``slots`` (K,) int64 on the device is, for each id of the sorted list, its slot.
    A list that changes by a few ids costs a few rows, and its unchanged rows are not touched.
    """

    def __init__(self, source: DeviceRows) -> None:
        self._source = source
        self._ids = torch.empty(0, dtype=torch.int64)
        self._slots = torch.empty(0, dtype=torch.int64)  # the host's copy of ``slots``
        self._rows: DeviceRows | None = None
        self.slots = self._slots
        self.moved = 0  # rows copied so far

    def update(self, ids: Tensor) -> None:
        """Makes ``ids`` (K,), sorted and unique, on the host, the list. Never waits for the
        device. Raises ShortlistError, before anything is changed."""
        check_ids(ids, len(self._source))
        stays = torch.isin(ids, self._ids, assume_unique=True)
        kept = torch.isin(self._ids, ids, assume_unique=True)
        room = 0 if self._rows is None else len(self._rows)
        if self._rows is None or len(ids) > room:  # a longer list than ever: all anew
            stays = torch.zeros_like(stays)
            self._rows = self._source.empty(len(ids))
            free = torch.arange(len(ids))
        else:
            taken = torch.zeros(room, dtype=torch.bool)
            taken[self._slots[kept]] = True
            free = (~taken).nonzero().flatten()
        slots = torch.empty_like(ids)
        slots[stays] = self._slots[kept] if stays.any() else 0
        came = ids[~stays]
        slots[~stays] = free[: len(came)]
        if len(came):
            self._source.copy(came, self._rows, slots[~stays])
        self._ids, self._slots, self.slots = ids.clone(), slots, sent(slots)
        self.moved += len(came)

    def scores(self, hidden: Tensor, top: int = 1, temperature: float = 1.0) -> Scores:
        """As ``DeviceRows.scores``, over the list; places are those in the sorted list."""
        if self._rows is None:
            raise ShortlistError("no list is packed yet: update comes first")
        return self._rows.in_slots(hidden, self.slots, top, temperature)
