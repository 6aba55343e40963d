"""Every LM head of the project over the same rows, and the ways in which a shortlist changes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastpath.compiled import backend as compiled
from fastpath.cpu.head import CpuHead
from fastpath.cuda.backend import DeviceHead
from fastpath.cuda.device import get_device
from fastpath.cuda.head import DeviceRows
from helpers.kernel_checks import convert_rows
from helpers.toys import toy_transformer
from minispec.models.eagle_draft import init_from_target
from minispec.models.int8 import round_rows
from minispec.models.lm_head import LinearHead, PackedHead
from minispec.types import BaseShortlist, Context, Head


def _build_cpu_head(rows_format: str) -> Callable[[Tensor], Head]:
    return lambda weight: CpuHead(*convert_rows(weight, rows_format)[:2])


def _build_compiled_head(weight: Tensor) -> Head:
    """The head of a draft with compiled passes, over other rows; nothing is compiled for it."""
    draft = init_from_target(toy_transformer())
    draft.head = PackedHead(weight)
    return compiled.build_draft(draft).with_own_head().head


def _build_device_head(dtype: torch.dtype) -> Callable[[Tensor], Head]:
    return lambda weight: DeviceHead(DeviceRows(weight.to(get_device(), dtype)))


# From a name to what builds the head of float32 rows (V, D).
HEADS: dict[str, Callable[[Tensor], Head]] = {
    "linear": LinearHead,
    "packed": PackedHead,
    "packed, int8": lambda weight: PackedHead(round_rows(weight)),
    "compiled": _build_compiled_head,
    "cpu": _build_cpu_head("float32"),
    "cpu, bfloat16": _build_cpu_head("bfloat16"),
    "cpu, int8": _build_cpu_head("int8"),
    "cuda": _build_device_head(torch.float32),
    "cuda, bfloat16": _build_device_head(torch.bfloat16),
}


def plain_rows(name: str, weight: Tensor) -> Tensor:
    """The rows (V, D) that a head stands for, in float64."""
    if "int8" in name:
        return convert_rows(weight, "int8")[2]
    return convert_rows(weight, "bfloat16" if "bfloat16" in name else "float32")[2]


def _copy(ids: Tensor) -> Tensor:
    return ids.clone()


A, B = torch.tensor([0, 3, 4, 8, 9, 11]), torch.tensor([1, 2, 3, 5, 9, 10])  # of equal length
NEAR = torch.tensor([0, 3, 4, 8, 10, 11])  # one id away from A
SHORT, LONG = torch.tensor([2, 7]), torch.tensor([0, 1, 2, 4, 5, 6, 7, 9, 10])
ALL = torch.arange(12)
SIZE = len(ALL)

# From a kind of change to the shortlists of successive calls; the same object is the same tensor.
CHANGES: dict[str, Sequence[Tensor]] = {
    "the same tensor": [A] * 20,
    "other ids of the same length": [A, B, A, B, NEAR, B],
    "other ids after many calls": [*[A] * 20, B, B, *[NEAR] * 18, A],
    "one id changes at a time": [A, NEAR, A, _copy(NEAR), _copy(A)],
    "the same ids in a new tensor": [A, _copy(A), _copy(A), B, _copy(B)],
    "a shortlist that returns": [A, B, A, *[_copy(B)] * 17, A, B],
    "shorter and longer": [A, SHORT, LONG, A, LONG, SHORT, _copy(LONG)],
    "all ids and back": [A, ALL, A, ALL, B, _copy(ALL), B],
    "other ids at every call": [
        (torch.randperm(SIZE, generator=torch.Generator().manual_seed(i))[:6]).sort().values
        for i in range(40)
    ],
}


class ScriptedShortlist(BaseShortlist):
    """Returns the given shortlists one after the other, at each step or once a round."""

    name, budget = "scripted", SIZE

    def __init__(self, shortlists: Sequence[Tensor], per_round: bool) -> None:
        self.per_round, self._shortlists, self._next = per_round, list(shortlists), 0
        self.selected: list[list[int]] = []  # the ids of each call of ``select``

    def select(self, context: Context) -> Tensor:
        ids = self._shortlists[self._next % len(self._shortlists)]
        self._next += 1
        self.selected.append(ids.tolist())
        return ids


class EditingShortlist(BaseShortlist):
    """Edits the tensor that it returned before, when ``select`` or ``observe`` is called: the ids
    of one object, of a new view of it, or of a numpy array below it."""

    name, budget = "editing", SIZE

    def __init__(self, way: str, when: str, per_round: bool) -> None:
        self.way, self.when, self.per_round = way, when, per_round
        self._ids, self._calls = A.clone(), 0

    def _edit(self) -> None:
        ids = (B, NEAR)[self._calls % 2]
        self._calls += 1
        if self.way == "array":
            self._ids.numpy()[:] = ids.numpy()
        else:
            self._ids.copy_(ids)

    def select(self, context: Context) -> Tensor:
        if self.when == "select" and (context.depth or len(context.tokens) > 2):
            self._edit()
        return self._ids[:] if self.way == "view" else self._ids

    def observe(self, finished: Any) -> None:
        if self.when == "observe":
            self._edit()
