"""Passes of fixed shapes, for compilers and for a GPU that the host must not wait for.

The reference attends to exactly the cached positions, so each of its passes has another shape.
Here attention covers the whole cache under a mask, positions are a tensor, and a pass is padded
to one of a few numbers of rows, as is the number of a tree's nodes. Padding rows come *after* the
real ones, where the mask hides them; the keys and values that they write are overwritten by the
pass that reaches these positions. The arithmetic is that of the reference's own modules.

Knows nothing of compilers and devices.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastpath.places import find_places
from minispec.models.eagle_draft import EagleDraft
from minispec.models.lm_head import PackedHead
from minispec.models.model_config import ModelConfig
from minispec.models.rope import Rope
from minispec.models.transformer import Attention, Layer, Transformer
from minispec.tree import find_ancestors, is_chain
from minispec.types import Features, Head

# Rows of a padded pass: one token; a verify pass of gamma = 4; one between; the longest one.
ROWS = (1, 5, 8, 17)
_COLUMNS = (32, 96, 288)  # nodes of a tree that its last ones may attend to, padding included
_IN_MODULES = ("attention_bias", "output_bias", "mlp_bias", "query_key_norm")
_CACHE_SIZES = tuple(512 << n for n in range(16))


def count_padded_rows(new: int) -> int | None:
    """The rows of a pass over ``new`` positions, padding included; None for a pass so long that
    its time is arithmetic, not overhead, which is not padded."""
    return next((rows for rows in ROWS if rows >= new), None)


def why_not_llama(model: Transformer) -> str | None:
    """The reason why a model has more than the layers implemented here, a Llama's with biases and
    norms of queries and keys, which the reference's modules compute; None if not."""
    extras = ", ".join(name for name in model.config.beyond_llama if name not in _IN_MODULES)
    return f"it needs {extras}, which this backend lacks" if extras else None


class Place(NamedTuple):
    """Where the T rows of a pass are, padding included: in the cache, in the text, and which
    positions they attend to: all before ``root``, and of those from there on their ``ancestors``.
    """

    positions: Tensor  # (T,), in the cache: a tree's nodes are stored one after another
    turns: Tensor  # (T,), in the text: by depth in a tree
    root: Tensor  # (), the first position of the tree; for a chain that of the pass
    ancestors: Tensor  # (T, columns) bool


class StaticCache:
    """Keys and values of one sequence, (1, S, num_key_value_heads, head_dim) for each layer.

    ``capacity`` is the number of positions asked for; S is the next of a few sizes, with padding
    rows included, so that prompts of different lengths share their shapes. ``cos`` and ``sin``
    (S, 1, head_dim) are the rotary embeddings of all S positions.
    """

    def __init__(
        self, config: ModelConfig, rope: Rope, layers: int, capacity: int, like: Tensor
    ) -> None:
        self.capacity, self.length = capacity, 0
        self._limit = config.context_limit
        size = next(size for size in _CACHE_SIZES if size >= capacity + ROWS[-1])
        shape = (1, size, config.num_key_value_heads, config.head_dim)
        # In inference mode for every caller: a compiled pass accepts one kind of tensor only.
        with torch.inference_mode():
            # Zeros, not uninitialised: a masked key has weight 0, and 0 * NaN would be NaN.
            self.keys = [like.new_zeros(shape) for _ in range(layers)]
            self.values = [like.new_zeros(shape) for _ in range(layers)]
            turns = rope.cos_sin(torch.arange(size), like.dtype)
            self.cos, self.sin = (turn.to(like.device) for turn in turns)
            self._positions = torch.arange(size, device=like.device)

    @property
    def size(self) -> int:
        """S, the number of positions that attention covers."""
        return self.keys[0].shape[1]

    def truncate(self, length: int) -> None:
        """Drops every position from ``length`` on."""
        self.length = min(length, self.length)

    @torch.inference_mode()
    def keep(self, start: int, path: Sequence[int]) -> None:
        """Of the tree of nodes that is stored from position ``start``, keeps those of ``path``, in
        ascending order, at the positions from ``start`` on."""
        end = start + len(path)
        if path and path[-1] != len(path) - 1:  # not simply the first nodes
            nodes = self._positions[start : start + path[-1] + 1][list(path)]
            for stored in (*self.keys, *self.values):
                stored[:, start:end] = stored[:, nodes]
        self.truncate(end)

    def place(self, new: int, rows: int, parents: Sequence[int] | None = None) -> Place:
        """The place of the next ``new`` tokens and of the padding after them, ``rows`` in all.
        ``parents`` (N,): of a tree whose last ``new`` nodes they are, as in ``Draft.step``.

        Raises ContextError, as the reference does, if the ``new`` tokens do not fit.
        """
        start, device = self.length, self._positions.device
        root, turns = find_places(self, new, parents, self._limit)
        # Copies, not views: a compiler may treat a view's storage offset as a constant.
        positions = self._positions[start : start + rows].clone()
        if parents is None or is_chain(parents):  # nothing is sent to the device
            ancestors = torch.ones(rows, rows, dtype=torch.bool, device=device).tril()
            return Place(positions, positions.clone(), self._positions[start].clone(), ancestors)
        columns = next(size for size in _COLUMNS if size >= len(parents))
        ancestors = torch.zeros(rows, columns, dtype=torch.bool)
        ancestors[:, 0] = True  # a padding row attends to something
        ancestors[:new, : len(parents)] = find_ancestors(parents)[-new:]
        padded = torch.tensor(turns + [0] * (rows - new))
        first = self._positions[root].clone()
        return Place(positions, padded.to(device), first, ancestors.to(device))


@dataclass(frozen=True, eq=False)
class Window:
    """The positions that a pass writes and attends to: the reference's ``AttentionMetadata``."""

    positions: Tensor  # (T,)
    cos: Tensor  # (1, T, 1, head_dim)
    sin: Tensor  # (1, T, 1, head_dim)
    mask: Tensor  # (1, 1, T * group, size), true where a query attends to a key
    size: int  # the number of cache positions in the mask


def build_window(
    place: Place, cos: Tensor, sin: Tensor, group: int, size: int | None = None
) -> Window:
    """The window of a pass over the first ``size`` cache positions, or all. ``group`` is the number
    of query heads for each key-value head."""
    positions, turns, root, ancestors = place
    size = cos.shape[0] if size is None else size
    columns = torch.arange(size, device=positions.device) - root  # (size,)
    count = ancestors.shape[1]
    related = ancestors[:, columns.clamp(0, count - 1)] & (columns < count)  # (T, size)
    mask = ((columns < 0) | related).repeat_interleave(group, 0)[None, None]
    return Window(positions, cos[turns][None], sin[turns][None], mask, size)


def attend(module: Attention, x: Tensor, keys: Tensor, values: Tensor, at: Window) -> Tensor:
    """x (1, T, input size) -> (1, T, D). Writes the new keys and values into the cache's."""
    queries, new_keys, new_values = module.project(x, at.cos, at.sin)
    keys.index_copy_(1, at.positions, new_keys)
    values.index_copy_(1, at.positions, new_values)
    return module.attend(queries, keys[:, : at.size], values[:, : at.size], at.mask)


CacheTensors = tuple[list[Tensor], list[Tensor]]  # keys and values of a cache, by layer


def run_target(
    model: Transformer, ids: Tensor, at: Window, cached: CacheTensors
) -> Sequence[Tensor]:
    """``Transformer.forward`` over a window: ids (T,) -> hidden states (T, D) and auxiliary hidden
    states (T, n_aux * D)."""
    x = model.embedding(ids[None])  # (1, T, D)
    aux_hidden_states = []
    for index, layer in enumerate(model.layers):
        assert isinstance(layer, Layer)
        keys, values = cached[0][index], cached[1][index]
        x = x + attend(layer.attention, layer.attention_norm(x), keys, values, at)
        x = x + layer.mlp(layer.mlp_norm(x))
        if index + 1 in model.config.aux_hidden_state_layer_ids:
            aux_hidden_states.append(x)
    return model.norm(x)[0], torch.cat(aux_hidden_states, dim=-1)[0] if aux_hidden_states else x[
        0, :, :0
    ]


def run_draft(
    draft: EagleDraft, ids: Tensor, states: Tensor, at: Window, cached: CacheTensors
) -> Tensor:
    """``EagleDraft.step`` over a window: ids (T,), states (T, D) -> the draft's states (T, D)."""
    (keys,), (values,) = cached
    return draft.run_layer(
        ids[None], states[None], lambda x: attend(draft.attention, x, keys, values, at)
    )[0]


# A pass over padded inputs: (rows, cache, place, *inputs) -> outputs, all of ``rows`` rows.
Pass = Callable[..., Any]


class StaticTarget:
    """A reference target whose padded passes are executed by ``run``."""

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
    def step(
        self, ids: Tensor, cache: StaticCache, parents: Sequence[int] | None = None
    ) -> Features:
        """ids (T,) -> hidden states (T, D) and auxiliary hidden states (T, n_aux * D).
        ``parents``: see ``Target.step``.

        Raises ContextError, before anything is changed, if they do not fit the cache.
        """
        new, device = len(ids), cache.keys[0].device
        hidden, aux_hidden_states = _run_padded(self._run, cache, parents, ids.to(device))
        cache.length += new
        return Features(hidden[:new], aux_hidden_states[:new])


class StaticDraft:
    """A reference draft whose padded passes are executed by ``run``."""

    def __init__(self, draft: EagleDraft, run: Pass, head: Head | None = None) -> None:
        self._draft, self._run = draft, run
        self.head: Head = head or PackedHead(draft.head.weight)

    def new_cache(self, capacity: int) -> StaticCache:
        """An empty cache for one sequence of at most ``capacity`` positions."""
        draft = self._draft
        return StaticCache(draft.config, draft.rope, 1, capacity, draft.fusion.weight)

    def fuse(self, aux_hidden_states: Tensor) -> Tensor:
        """The target's auxiliary hidden states (T, n_aux * D) -> states (T, D)."""
        return self._draft.fuse(aux_hidden_states)

    @torch.inference_mode()
    def step(
        self, ids: Tensor, states: Tensor, cache: StaticCache, parents: Sequence[int] | None = None
    ) -> Tensor:
        """ids (T,), states (T, D) -> the draft's states (T, D). ``parents``: see ``Draft.step``.
        Raises as ``StaticTarget.step``."""
        new = len(ids)
        output = _run_padded(self._run, cache, parents, ids.to(states.device), states)
        cache.length += new
        return output[:new]

    def apply_final_norm(self, states: Tensor) -> Tensor:
        """Pre-norm states (..., D) -> hidden states for the LM head (..., D)."""
        return self._draft.apply_final_norm(states)

    def with_own_head(self) -> "StaticDraft":
        """The same weights and passes with a head that packs its own shortlist."""
        clone = copy.copy(self)
        clone.head = PackedHead(self._draft.head.weight)
        return clone


def _run_padded(
    run: Pass, cache: StaticCache, parents: Sequence[int] | None, *inputs: Tensor
) -> Any:
    """Runs a pass over inputs (T, ...), padded with zeros to one of the numbers in ``ROWS``."""
    new = len(inputs[0])
    rows = count_padded_rows(new) or new
    place = cache.place(new, rows, parents)
    return run(rows, cache, place, *(_pad_rows(value, rows) for value in inputs))


def _pad_rows(value: Tensor, rows: int) -> Tensor:
    """A new tensor of ``rows`` rows: value (T, ...), then zeros."""
    padded = value.new_zeros((rows, *value.shape[1:]))
    padded[: len(value)] = value
    return padded
