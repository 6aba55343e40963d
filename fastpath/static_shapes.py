"""Passes of fixed shapes: what a compiler, or a GPU that must not be waited for, wants to see.

The reference attends to exactly the positions held, so every pass has another shape. Here a
cache is attended to as a whole, behind a mask, positions come in a tensor, and a pass is padded
to one of few numbers of rows. Padding rows stand *behind* the real ones, where the causal mask
hides them; what they write is overwritten by the pass that really gets there. The arithmetic is
the reference's own modules.

Knows nothing of compilers and devices.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minispec.errors import ContextError
from minispec.models.eagle_draft import EagleDraft
from minispec.models.lm_head import PackedHead
from minispec.models.rope import Rope
from minispec.models.transformer import Attention, Layer, ModelConfig, Transformer
from minispec.types import Features, Head

# A single token; a verify pass of gamma = 4; the longest verify pass; one between.
ROWS = (1, 5, 8, 17)
_SPANS = tuple(512 << n for n in range(16))


def padded_rows(new: int) -> int | None:
    """How many rows a pass over ``new`` positions has; None: too long to be padded, and long
    enough that arithmetic, not overhead, is its time."""
    return next((rows for rows in ROWS if rows >= new), None)


def beyond_llama(model: Transformer) -> str | None:
    """Why the passes here are not those of a model: they know a Llama's layers alone."""
    extras = ", ".join(model.config.beyond_llama)
    return f"it has more than a Llama: {extras}" if extras else None


class StaticCache:
    """Keys and values of one sequence, a tensor (1, S, kv_heads, head_width) for each layer.

    ``capacity`` positions were asked for; S is the next of few sizes, padding rows included, so
    that prompts of many lengths share their shapes. ``cos`` and ``sin`` are the rotary turns of
    all S positions, (S, 1, head_width).
    """

    def __init__(
        self, config: ModelConfig, rope: Rope, layers: int, capacity: int, like: Tensor
    ) -> None:
        self.capacity, self.length = capacity, 0
        self._limit = config.context_limit
        span = next(span for span in _SPANS if span >= capacity + ROWS[-1])
        shape = (1, span, config.num_key_value_heads, config.head_dim)
        # Made in inference mode whoever asks: a compiled pass takes one kind of tensor only.
        with torch.inference_mode():
            # Zeros, not empty: a masked key has weight 0, and 0 * NaN would be NaN.
            self.keys = [like.new_zeros(shape) for _ in range(layers)]
            self.values = [like.new_zeros(shape) for _ in range(layers)]
            turns = rope.turns(torch.arange(span), like.dtype)
            self.cos, self.sin = (turn.to(like.device) for turn in turns)
            self._places = torch.arange(span, device=like.device)

    @property
    def span(self) -> int:
        """S, which is a shape."""
        return self.keys[0].shape[1]

    def truncate(self, length: int) -> None:
        """Forgets every position from ``length`` on."""
        self.length = min(length, self.length)

    def positions(self, new: int, rows: int) -> Tensor:
        """Positions (rows,) of the next ``new`` tokens and of the padding behind them.

        Raises ContextError, as the reference does, if the ``new`` have no room.
        """
        end = self.length + new
        if end > self.capacity:
            raise ContextError(
                f"{self.length} + {new} positions do not fit a cache of {self.capacity}"
            )
        if end > self._limit:
            raise ContextError(f"position {end} is outside the model's context of {self._limit}")
        # Copied, not a view: a view's offset into its storage may be compiled in.
        return self._places[self.length : self.length + rows].clone()


@dataclass(frozen=True, eq=False)
class Window:
    """Where one pass writes and looks: the counterpart of the reference's ``AttentionMetadata``."""

    positions: Tensor  # (T,)
    cos: Tensor  # (1, T, 1, head_width)
    sin: Tensor  # (1, T, 1, head_width)
    mask: Tensor  # (1, 1, T * group, span), true where a query may look
    span: int  # how much of the cache is looked at


def window(
    positions: Tensor, cos: Tensor, sin: Tensor, group: int, span: int | None = None
) -> Window:
    """The places of a pass at ``positions`` (T,) over the first ``span`` positions, or all."""
    span = cos.shape[0] if span is None else span
    queries = positions.repeat_interleave(group)  # (T * group,)
    mask = torch.arange(span, device=positions.device) <= queries[None, None, :, None]
    return Window(positions, cos[positions][None], sin[positions][None], mask, span)


def attention(module: Attention, x: Tensor, keys: Tensor, values: Tensor, at: Window) -> Tensor:
    """x (1, T, input_width) -> (1, T, D), its keys and values written into the cache's."""
    queries, new_keys, new_values = module.project(x, at.cos, at.sin)
    keys.index_copy_(1, at.positions, new_keys)
    values.index_copy_(1, at.positions, new_values)
    return module.attend(queries, keys[:, : at.span], values[:, : at.span], at.mask)


Stored = tuple[list[Tensor], list[Tensor]]  # a cache's keys and values, layer by layer


def target_pass(model: Transformer, ids: Tensor, at: Window, stored: Stored) -> Sequence[Tensor]:
    """ids (T,) -> hidden (T, D), taps (T, n_aux * D): ``Transformer.forward`` over a window."""
    x = model.embedding(ids[None])  # (1, T, D)
    aux_hidden_states = []
    for index, layer in enumerate(model.layers):
        assert isinstance(layer, Layer)
        keys, values = stored[0][index], stored[1][index]
        x = x + attention(layer.attention, layer.attention_norm(x), keys, values, at)
        x = x + layer.mlp(layer.mlp_norm(x))
        if index + 1 in model.config.aux_hidden_state_layer_ids:
            aux_hidden_states.append(x)
    return model.norm(x)[0], torch.cat(aux_hidden_states, dim=-1)[0] if aux_hidden_states else x[
        0, :, :0
    ]


def draft_pass(
    draft: EagleDraft, ids: Tensor, states: Tensor, at: Window, stored: Stored
) -> Tensor:
    """ids (T,), states (T, D) -> own states (T, D): ``EagleDraft.step`` over a window."""
    (keys,), (values,) = stored
    return draft.layer(
        ids[None], states[None], lambda x: attention(draft.attention, x, keys, values, at)
    )[0]


# A pass over padded inputs: (rows, cache, positions, *inputs) -> outputs, all of ``rows`` rows.
Pass = Callable[..., Any]


class StaticTarget:
    """The reference's target in passes of fixed shapes, each handed to ``run``."""

    def __init__(self, model: Transformer, run: Pass, head: Head | None = None) -> None:
        self._model, self._run = model, run
        self.head: Head = head or model.head

    @property
    def context_limit(self) -> int:
        return self._model.context_limit

    def new_cache(self, capacity: int) -> StaticCache:
        """An empty cache for one sequence of at most ``capacity`` positions."""
        model = self._model
        like = model.embedding.weight
        return StaticCache(model.config, model.rope, model.config.num_hidden_layers, capacity, like)

    @torch.inference_mode()
    def step(self, ids: Tensor, cache: StaticCache) -> Features:
        """ids (T,) -> hidden (T, D), taps (T, n_aux * D).

        Raises ContextError, before anything is changed, if they do not fit the cache.
        """
        new = len(ids)
        hidden, aux_hidden_states = _padded(self._run, cache, ids.to(cache.keys[0].device))
        cache.length += new
        return Features(hidden[:new], aux_hidden_states[:new])


class StaticDraft:
    """The reference's draft in passes of fixed shapes, each handed to ``run``."""

    def __init__(self, draft: EagleDraft, run: Pass, head: Head | None = None) -> None:
        self._draft, self._run = draft, run
        self.head: Head = head or PackedHead(draft.head.weight)

    def new_cache(self, capacity: int) -> StaticCache:
        """An empty cache for one sequence of at most ``capacity`` positions."""
        draft = self._draft
        return StaticCache(draft.config, draft.rope, 1, capacity, draft.fusion.weight)

    def fuse(self, aux_hidden_states: Tensor) -> Tensor:
        """The target's taps (T, n_aux * D) -> states (T, D)."""
        return self._draft.fuse(aux_hidden_states)

    @torch.inference_mode()
    def step(self, ids: Tensor, states: Tensor, cache: StaticCache) -> Tensor:
        """ids (T,), states (T, D) -> own states (T, D). Raises as the target's ``step``."""
        new = len(ids)
        output = _padded(self._run, cache, ids.to(states.device), states)
        cache.length += new
        return output[:new]

    def apply_final_norm(self, states: Tensor) -> Tensor:
        """States (..., D) -> what the LM head's rows are multiplied with (..., D)."""
        return self._draft.apply_final_norm(states)

    def with_own_head(self) -> "StaticDraft":
        """The same weights and passes with a head that packs rows for itself."""
        twin = copy.copy(self)
        twin.head = PackedHead(self._draft.head.weight)
        return twin


def _padded(run: Pass, cache: StaticCache, *inputs: Tensor) -> Any:
    """Runs a pass over inputs (T, ...), padded to one of few numbers of rows with zeros."""
    new = len(inputs[0])
    rows = padded_rows(new) or new
    positions = cache.positions(new, rows)
    return run(rows, cache, positions, *(_grown(value, rows) for value in inputs))


def _grown(value: Tensor, rows: int) -> Tensor:
    """value (T, ...) in the first of ``rows`` rows of a tensor made here, whatever its kind."""
    padded = value.new_zeros((rows, *value.shape[1:]))
    padded[: len(value)] = value
    return padded
