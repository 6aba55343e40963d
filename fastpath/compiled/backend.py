"""Target and draft passes through ``torch.compile``, one graph for each shape.

A graph is compiled for each padded number of rows, of a tree's nodes and of cache positions when it
is first needed, and then serves every position: longer sequences and other shortlists never
recompile it. The LM heads are the reference's own, since a shortlist's size varies and a graph's
shapes do not.

The target's weights are *frozen* into its graphs, which lets the compiler change their layout.
The draft's are not: a frozen weight is a constant, so training the draft would have no effect.

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
    CacheTensors,
    Place,
    StaticCache,
    StaticDraft,
    StaticTarget,
    Window,
    build_window,
    run_draft,
    run_target,
    why_not_llama,
)
from minispec.models.eagle_draft import EagleDraft
from minispec.models.transformer import Transformer

BUDGET = 300.0  # seconds of compilation for all graphs of a target or of a draft


def why_unsupported(model: Transformer) -> str | None:
    """The reason why a model cannot run on this backend; None if it can. Without a C++ compiler it
    runs eagerly."""
    return why_not_llama(model)


def build_target(model: Transformer, budget: float = BUDGET) -> StaticTarget:
    """The target with compiled passes. Its weights are frozen: later changes have no effect."""

    def run(ids: Tensor, at: Window, cached: CacheTensors) -> Sequence[Tensor]:
        return run_target(model, ids, at, cached)

    group = model.config.num_attention_heads // model.config.num_key_value_heads
    return StaticTarget(model, Graphs("target", run, group, frozen=True, budget=budget))


def build_draft(
    draft: EagleDraft, target: StaticTarget | None = None, budget: float = BUDGET
) -> StaticDraft:
    """The draft with compiled passes, which use its weights as they are at each call. ``target`` is
    unused: the draft keeps the reference's head."""

    def run(ids: Tensor, states: Tensor, at: Window, cached: CacheTensors) -> Tensor:
        return run_draft(draft, ids, states, at, cached)

    group = draft.config.num_attention_heads // draft.config.num_key_value_heads
    return StaticDraft(draft, Graphs("draft", run, group, frozen=False, budget=budget))


class Graphs:
    """The compiled graphs of a pass, one for each shape, with eager execution as the fallback.

    A pass runs eagerly if it is too long to be padded, if compilation fails, or if its shape is
    new after ``budget`` seconds of compilation. The latter two are reported once, in a one-line
    RuntimeWarning. ``seconds`` is the compilation time so far.
    """

    def __init__(
        self, name: str, run: Callable[..., Any], group: int, *, frozen: bool, budget: float
    ) -> None:
        def run_window(
            place: Place, cos: Tensor, sin: Tensor, cached: CacheTensors, *inputs: Tensor
        ) -> Any:
            return run(*inputs, build_window(place, cos, sin, group), cached)

        self._name, self._run, self._run_window, self._group = name, run, run_window, group
        self._frozen, self._budget = frozen, budget
        self._compiled: dict[tuple[int, int, int], Callable[..., Any]] = {}
        self._disabled = False
        self.seconds = 0.0

    def __call__(self, rows: int, cache: StaticCache, place: Place, *inputs: Tensor) -> Any:
        cached = cache.keys, cache.values
        if rows > ROWS[-1]:
            end = cache.length + rows  # without padding, over the cached positions only
            return self._run(
                *inputs, build_window(place, cache.cos, cache.sin, self._group, end), cached
            )
        shape = rows, cache.size, place.ancestors.shape[1]
        arguments: tuple[Any, ...] = (place, cache.cos, cache.sin, cached, *inputs)
        if shape in self._compiled:
            return self._compiled[shape](*arguments)
        if not self._disabled and self.seconds >= self._budget:
            self._disable(
                f"{self.seconds:.0f} s of the {self._budget:.0f} s for compiling are used up"
            )
        if self._disabled:
            return self._run_window(*arguments)
        start = time.perf_counter()
        compiled = _compile_separately(self._run_window)
        try:
            # Set during graph capture: as an option of torch.compile it takes effect only after
            # the weights have become inputs, and freezes nothing.
            with inductor.patch(freezing=self._frozen):
                outputs = compiled(*arguments)
        except Exception as error:  # raised before the graph runs, so the cache is unchanged
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            cause = getattr(error, "inner_exception", error)
            self._disable(str(cause).strip().partition("\n")[0] or type(cause).__name__)
            return self._run_window(*arguments)
        self.seconds += time.perf_counter() - start
        self._compiled[shape] = compiled
        return outputs

    def _disable(self, reason: str) -> None:
        self._disabled = True
        text = f"new shapes of the {self._name} run without torch.compile: {reason}"
        warnings.warn(text, RuntimeWarning, stacklevel=5)


def _compile_separately(run: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles a function for the one shape that it will be called with."""
    # torch.compile caches graphs by code object, for all shapes and models of the process: it
    # tests them one by one at every call, and silently stops compiling after eight. A code
    # object for each shape keeps them apart.
    own = types.FunctionType(
        run.__code__.replace(), run.__globals__, run.__name__, None, run.__closure__
    )
    return torch.compile(own, fullgraph=True, dynamic=False)
