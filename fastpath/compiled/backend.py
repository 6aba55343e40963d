"""Whole steps through ``torch.compile``: the target's pass and the draft's, one graph each.

A graph is compiled for each padded number of rows and each size of cache, at its first use,
and then serves every position: sequences and lists that grow never compile again. The heads are
the reference's own, since a list of ids has no place in a graph of fixed shapes.

The target's weights are *frozen* into its graphs, which may then lay them out as they like.
The draft's are not: a frozen weight is a constant, and a draft that learns would go on
speaking as it did before.

Knows nothing of decoding.
"""

import time
import types
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._inductor import config as inductor

from fastpath.static_shapes import (
    ROWS,
    StaticCache,
    StaticDraft,
    StaticTarget,
    Stored,
    Window,
    beyond_llama,
    draft_pass,
    target_pass,
    window,
)
from minispec.models.eagle_draft import EagleDraft
from minispec.models.transformer import Transformer

BUDGET = 300.0  # seconds of compiling that a target, or a draft, may cost in all


def unfit(model: Transformer) -> str | None:
    """Why a model cannot run here, None if it can: without a compiler it runs eagerly."""
    return beyond_llama(model)


def target(model: Transformer, budget: float = BUDGET) -> StaticTarget:
    """The target in compiled passes. Its weights are frozen: a later change is not seen."""

    def run(ids: Tensor, at: Window, stored: Stored) -> Sequence[Tensor]:
        return target_pass(model, ids, at, stored)

    group = model.config.num_attention_heads // model.config.num_key_value_heads
    return StaticTarget(model, Graphs("target", run, group, frozen=True, budget=budget))


def draft(
    draft: EagleDraft, target: StaticTarget | None = None, budget: float = BUDGET
) -> StaticDraft:
    """The draft in compiled passes, over its weights as they are at each pass. Of ``target``
    it needs nothing: its head is the reference's."""

    def run(ids: Tensor, states: Tensor, at: Window, stored: Stored) -> Tensor:
        return draft_pass(draft, ids, states, at, stored)

    group = draft.config.num_attention_heads // draft.config.num_key_value_heads
    return StaticDraft(draft, Graphs("draft", run, group, frozen=False, budget=budget))


class Graphs:
    """A pass, compiled for each shape that it is asked for; eager where that is no help.

    Eager are passes too long for padding, all passes without a compiler, and shapes that come
    when ``budget`` seconds were spent compiling: each of the last two is said once, as a
    RuntimeWarning of one line. ``seconds`` is what compiling has cost so far.
    """

    def __init__(
        self, name: str, run: Callable[..., Any], group: int, *, frozen: bool, budget: float
    ) -> None:
        def whole(
            positions: Tensor, cos: Tensor, sin: Tensor, stored: Stored, *inputs: Tensor
        ) -> Any:
            return run(*inputs, window(positions, cos, sin, group), stored)

        self._name, self._run, self._whole, self._group = name, run, whole, group
        self._frozen, self._budget = frozen, budget
        self._compiled: dict[tuple[int, int], Callable[..., Any]] = {}
        self._given_up = False
        self.seconds = 0.0

    def __call__(self, rows: int, cache: StaticCache, positions: Tensor, *inputs: Tensor) -> Any:
        stored = cache.keys, cache.values
        if rows > ROWS[-1]:
            end = cache.length + rows  # nothing is padded, and nothing beyond is looked at
            return self._run(
                *inputs, window(positions, cache.cos, cache.sin, self._group, end), stored
            )
        shape = rows, cache.span
        arguments: tuple[Any, ...] = (positions, cache.cos, cache.sin, stored, *inputs)
        if shape in self._compiled:
            return self._compiled[shape](*arguments)
        if not self._given_up and self.seconds >= self._budget:
            self._give_up(f"of {self._budget:.0f} s for compiling {self.seconds:.0f} are spent")
        if self._given_up:
            return self._whole(*arguments)
        start = time.perf_counter()
        compiled = _alone(self._whole)
        try:
            # Set while the graph is captured: as an option of one compilation it comes too late,
            # when weights have become inputs, and freezes nothing.
            with inductor.patch(freezing=self._frozen):
                outputs = compiled(*arguments)
        except Exception as error:  # before anything ran: a graph is whole or not at all
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            cause = getattr(error, "inner_exception", error)
            self._give_up(str(cause).strip().partition("\n")[0] or type(cause).__name__)
            return self._whole(*arguments)
        self.seconds += time.perf_counter() - start
        self._compiled[shape] = compiled
        return outputs

    def _give_up(self, reason: str) -> None:
        self._given_up = True
        text = f"the {self._name}'s new shapes run without torch.compile: {reason}"
        warnings.warn(text, RuntimeWarning, stacklevel=5)


def _alone(run: Callable[..., Any]) -> Callable[..., Any]:
    """A function compiled for the one shape that it will be called with."""
    # The compiler keeps what it made under the code object: all shapes and all models of a
    # process together, tried one by one at every call, and after eight it gives up in silence.
    # A code object of its own for each shape keeps them apart.
    own = types.FunctionType(
        run.__code__.replace(), run.__globals__, run.__name__, None, run.__closure__
    )
    return torch.compile(own, fullgraph=True, dynamic=False)
