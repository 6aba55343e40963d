"""The CPU backend: ``minispec.models.transformer`` and ``minispec.models.eagle_draft`` on Numba's kernels.

Weights are stacked once, so that a whole pass is one call; the reference's own parameters
become views into the stacks, so nothing is held twice. bfloat16 weights meet states that are
rounded to bfloat16 for each product, as in the reference, which also rounds every result; here
these stay float32. A float32 draft whose weights came out of a bfloat16 file is read in bfloat16
too, half the bytes, but nothing is rounded for it. Of a draft that learns, the matrices with
adapters are read anew whenever these have changed.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace

import numba
import numpy as np
import torch
from numba import get_num_threads, set_num_threads
from torch import Tensor, nn

from fastpath.cpu.head import CpuHead
from fastpath.cpu.kernels import product
from fastpath.cpu.rows import home
from fastpath.cpu.steps import draft_pass, normed, target_pass
from minispec.errors import ContextError
from minispec.learning.lora import LoraLinear
from minispec.models.eagle_draft import EagleDraft
from minispec.models.int8 import scales, steps
from minispec.models.kv_cache import KVCache
from minispec.models.lm_head import PackedHead
from minispec.models.rope import Rope
from minispec.models.transformer import MLP, Attention, Layer, ModelConfig, Transformer
from minispec.types import Features

_taken = False  # whether torch has one thread because the others were taken from it
_Stacks = tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]  # weights, and rows' scales


def unfit(model: Transformer) -> str | None:
    """Why a model cannot run here, None if it can."""
    weight = model.embedding.weight
    if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.bfloat16):
        return f"its weights are {weight.dtype} on {weight.device}, not float32 or bfloat16 on cpu"
    return None


def target(model: Transformer) -> "CpuTarget":
    """A target of the reference's, on this backend, with as many threads as torch has. They
    are taken from torch, whose own pool would spin beside ours for the same processors; a second
    target finds them taken."""
    global _taken
    if not _taken or torch.get_num_threads() > 1:
        set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
    placed = CpuTarget(model)  # by torch's threads: memory that no one had yet takes its time
    torch.set_num_threads(1)
    _taken = True
    return placed


def draft(draft: EagleDraft, target: "CpuTarget") -> "CpuDraft":
    """A draft of the reference's, on this backend, which shares the target's embedding and head
    rows."""
    return CpuDraft(draft, target)


class CpuTarget:
    """See ``minispec.types.Target``."""

    def __init__(self, model: Transformer) -> None:
        self._config = model.config
        head = model.embedding if model.config.tie_word_embeddings else model.output
        rows = home(head.weight.shape, head.weight.dtype)
        head.weight.data = rows.copy_(head.weight.detach())
        self.embedding = model.embedding.weight.detach()
        self.context_limit = model.config.context_limit
        layers = [layer for layer in model.layers if isinstance(layer, Layer)]
        stacks = _stacked([layer.attention for layer in layers], [layer.mlp for layer in layers])
        self._stacks = _readable(stacks, model.config.int8_rows)
        self._norms = (
            np.stack([_floats(layer.attention_norm) for layer in layers]),
            tuple(map(np.stack, zip(*map(_inner_norms, layers), strict=True))),
            _floats(model.norm),
        )
        self._settings = _settings(model.config)
        count = model.config.num_hidden_layers
        self._local = np.isin(np.arange(1, count + 1), model.config.local_layers)
        self._aux_hidden_states = np.array(
            sorted(model.config.aux_hidden_state_layer_ids), np.int64
        )
        turns = [_turns(rope, model.config) for rope in (model.rope, model.local_rope)]
        self._cos, self._sin = (np.stack(kinds) for kinds in zip(*turns, strict=True))
        self.rows = model.head.weight  # (V, D)
        self.head = CpuHead(*_rows(self.rows, model.config.int8_rows))
        self.threads = get_num_threads()  # asked once: the answer takes as long as a short product

    def new_cache(self, capacity: int) -> KVCache:
        """An empty cache for one sequence of at most ``capacity`` positions, in float32."""
        return _cache(self._config, self._config.num_hidden_layers, capacity)

    def step(self, ids: Tensor, cache: KVCache) -> Features:
        """ids (T,), read after what the cache holds -> hidden (T, D), taps (T, n * D).

        Raises ContextError, before anything is changed, if they do not fit the cache.
        """
        start, end = _places(cache, len(ids))
        scale = self._config.embedding_scale
        hidden, aux_hidden_states = target_pass(
            (self.embedding[ids].float() * scale).numpy(), *self._stacks, self._norms,
            self._settings, self._local, self._cos[:, start:end], self._sin[:, start:end],
            cache.keys.numpy()[:, 0], cache.values.numpy()[:, 0], start, self._aux_hidden_states,
            self.threads,
        )  # fmt: skip
        cache.advance(len(ids))
        return Features(torch.from_numpy(hidden), torch.from_numpy(aux_hidden_states) / scale)


class CpuDraft:
    """See ``minispec.types.Draft``. ``reference`` is the draft whose weights these are."""

    def __init__(self, draft: EagleDraft, target: CpuTarget) -> None:
        # What it shares with the target it finds there from now on, so that it is held once.
        draft.embedding, draft.head = target.embedding, PackedHead(target.rows)
        self.reference, self._target, self._config = draft, target, draft.config
        self._matrices = [*_matrices(draft.attention, draft.mlp), [draft.fusion]]
        self._products = [_side_by_side(matrices) for matrices in self._matrices]
        self._version = draft.version
        self._norms = (
            _floats(draft.embedding_norm), _floats(draft.state_norm), _inner_norms(draft)
        )  # fmt: skip
        # It sees all that it has read, and so far its window has to reach.
        self._settings = _settings(replace(draft.config, sliding_window=draft.config.context_limit))
        self._norm = _floats(draft.norm)
        self._turns = _turns(draft.rope, draft.config)
        self.head = target.head.twin()

    def new_cache(self, capacity: int) -> KVCache:
        """An empty cache for one sequence of at most ``capacity`` positions, in float32."""
        return _cache(self._config, 1, capacity)

    def fuse(self, aux_hidden_states: Tensor) -> Tensor:
        """The target's taps (T, n_aux * D) -> states (T, D)."""
        self._follow()
        rows, scales = self._products[-1]
        states = torch.empty(len(aux_hidden_states), len(rows))
        product(rows, scales, aux_hidden_states.numpy(), states.numpy(), self._target.threads)
        return states

    def step(self, ids: Tensor, states: Tensor, cache: KVCache) -> Tensor:
        """Token ids (T,), each one place ahead of its state (T, D) -> own states (T, D).

        Raises ContextError, before anything is changed, if they do not fit the cache.
        """
        start, end = _places(cache, len(ids))
        self._follow()
        cos, sin = self._turns
        rows, scales = zip(*self._products[:-1], strict=True)
        embedded = self.reference.embedding[ids].float()
        new = draft_pass(
            embedded.numpy(), states.numpy(), rows, scales, self._norms,
            self._settings, cos[start:end], sin[start:end],
            cache.keys.numpy()[0, 0], cache.values.numpy()[0, 0], start, self._target.threads,
        )  # fmt: skip
        cache.advance(len(ids))
        return torch.from_numpy(new)

    def apply_final_norm(self, states: Tensor) -> Tensor:
        """States (..., D) -> what the LM head's rows are multiplied with (..., D)."""
        flat = states.reshape(-1, states.shape[-1])
        out = torch.empty_like(flat)
        normed(flat.numpy(), self._norm, self._config.rms_norm_eps, out.numpy(), 0)
        return out.view(states.shape)

    def with_own_head(self) -> "CpuDraft":
        """The same weights with a head that packs rows for itself."""
        twin = copy.copy(self)
        twin.head = self.head.twin()
        return twin

    def learning(self, draft: EagleDraft) -> "CpuDraft":
        """The adapted twin of a learner (``minispec.learning.lora``), on this backend as well."""
        return CpuDraft(draft, self._target)

    def _follow(self) -> None:
        """Reads the matrices anew that adapters have changed since."""
        if self._version != self.reference.version:
            for place, matrices in enumerate(self._matrices):
                if _learns(matrices):
                    self._products[place] = _side_by_side(matrices)
            self._version = self.reference.version


def _cache(config: ModelConfig, layers: int, capacity: int) -> KVCache:
    return KVCache(layers, 1, capacity, config.num_key_value_heads, config.head_dim, torch.float32)


def _places(cache: KVCache, new: int) -> tuple[int, int]:
    start, end = cache.length, cache.length + new
    if end > cache.capacity:
        raise ContextError(f"{start} + {new} positions do not fit a cache of {cache.capacity}")
    return start, end


def _turns(rope: Rope, config: ModelConfig) -> tuple[np.ndarray, np.ndarray]:
    cos, sin = rope.turns(torch.arange(config.context_limit), torch.float32)
    return cos[:, 0].numpy(), sin[:, 0].numpy()  # (context_limit, head_width)


def _floats(norm: nn.Module) -> np.ndarray:
    """The weights of a norm, none where it is none."""
    weight = getattr(norm, "weight", torch.empty(0))
    return weight.detach().float().numpy()


def _inner_norms(of: Layer | EagleDraft) -> tuple[np.ndarray, ...]:
    """The norms of a layer as ``steps.layer`` takes them."""
    own = of.mlp_norm, of.attention_post_norm, of.mlp_post_norm
    return tuple(map(_floats, (*own, of.attention.query_norm, of.attention.key_norm)))


def _settings(config: ModelConfig) -> tuple[float, np.float32, int, bool]:
    scale = config.attention_scale or config.head_dim**-0.5
    window = config.sliding_window or config.context_limit
    return config.rms_norm_eps, np.float32(scale), window, config.activation == "gelu_tanh"


def _rows(weight: Tensor, int8: bool) -> tuple[np.ndarray, np.ndarray]:
    """Weights (..., N, D) as the kernels take them, and a scale for each row (..., N)."""
    if int8:
        return steps(weight).numpy(), scales(weight).numpy()
    bits = weight.view(torch.uint16) if weight.dtype == torch.bfloat16 else weight
    return bits.numpy(), np.ones(weight.shape[:-1], np.float32)


def _shortened(weight: Tensor) -> Tensor:
    """float32 weights in bfloat16, if that holds them exactly: as int16, of which the kernels
    know that their states are float32 still. Others as they are."""
    if weight.dtype != torch.float32:
        return weight
    short = home(weight.shape, torch.bfloat16).copy_(weight)
    return short.view(torch.int16) if torch.equal(short.float(), weight) else weight


def _side_by_side(matrices: Sequence[nn.Linear | LoraLinear]) -> tuple[np.ndarray, np.ndarray]:
    """A draft's projections that read the same states, one below the other, as the kernels take
    them. With adapters they are float32: what these have learnt is less than bfloat16 can tell."""
    whole = torch.cat(
        [m.whole if isinstance(m, LoraLinear) else m.weight for m in matrices]
    ).detach()
    rows = home(whole.shape, whole.dtype).copy_(whole)
    return _rows(rows if _learns(matrices) else _shortened(rows), False)


def _learns(matrices: Sequence[nn.Linear | LoraLinear]) -> bool:
    return any(isinstance(matrix, LoraLinear) for matrix in matrices)


def _readable(stacks: Sequence[Tensor], int8: bool) -> _Stacks:
    rows, sizes = zip(*(_rows(stack, int8) for stack in stacks), strict=True)
    return rows, sizes


def _matrices(attention: Attention, mlp: MLP) -> list[list[nn.Linear]]:
    """The projections of a layer, together those that read the same states."""
    return [
        [attention.query, attention.key, attention.value],
        [attention.output],
        [mlp.gate, mlp.up],
        [mlp.down],
    ]


def _stacked(attentions: Sequence[Attention], mlps: Sequence[MLP]) -> list[Tensor]:
    """The four products of a layer, each (L, N, D) over the layers."""
    layers = map(_matrices, attentions, mlps)
    return [_joined(product) for product in zip(*layers, strict=True)]


def _joined(layers: Sequence[Sequence[nn.Linear]]) -> Tensor:
    """Weights (L, N, D) of some projections in each layer, of which they become views."""
    first = [projection.weight for projection in layers[0]]
    shape = len(layers), sum(map(len, first)), first[0].shape[1]
    stack = home(shape, first[0].dtype)
    for rows, layer in zip(stack, layers, strict=True):
        for part, projection in zip(rows.split([len(p.weight) for p in layer]), layer, strict=True):
            part.copy_(projection.weight.detach())
            projection.weight.data = part
    return stack
