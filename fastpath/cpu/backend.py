"""The CPU backend: ``minispec.models.transformer`` and ``minispec.models.eagle_draft`` on Numba's
kernels.

Weights are stacked once, so that a whole pass is one call. The reference's own parameters become
views of the stacks, so nothing is stored twice. bfloat16 weights are multiplied with states rounded
to bfloat16, as in the reference; the reference also rounds every result, while here results stay
float32. A float32 draft loaded from a bfloat16 file is stored in bfloat16 too, half the bytes, but
its states are not rounded. For a draft that is being trained, matrices with LoRA adapters are
stacked again whenever the adapters have changed.
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
from fastpath.cpu.kernels import multiply
from fastpath.cpu.positions import place_tokens
from fastpath.cpu.process import why_unfit
from fastpath.cpu.rows import allocate_rows
from fastpath.cpu.steps import apply_rms_norm, run_draft, run_target
from minispec.learning.lora import LoraLinear
from minispec.models.eagle_draft import EagleDraft
from minispec.models.int8 import quantize_rows, row_scales
from minispec.models.kv_cache import KVCache
from minispec.models.lm_head import PackedHead
from minispec.models.rope import Rope
from minispec.models.transformer import MLP, Attention, Layer, ModelConfig, Transformer
from minispec.types import Features

_threads_taken = False  # whether a target was built, which leaves torch a single thread
_Stacks = tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]  # weights; scales of their rows


def why_unsupported(model: Transformer) -> str | None:
    """The reason why a model cannot run on this backend; None if it can."""
    weight = model.embedding.weight
    if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.bfloat16):
        return f"its weights are {weight.dtype} on {weight.device}, not float32 or bfloat16 on cpu"
    return why_unfit()


def build_target(model: Transformer) -> "CpuTarget":
    """A reference target on this backend, with as many threads as torch has.

    torch is left with one thread: its pool would otherwise spin on the processors that Numba's
    threads use. A second target uses as many threads as the first.
    """
    global _threads_taken
    if not _threads_taken or torch.get_num_threads() > 1:
        set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
    target = CpuTarget(model)  # before torch loses its threads: it copies all weights
    torch.set_num_threads(1)
    _threads_taken = True
    return target


def build_draft(draft: EagleDraft, target: "CpuTarget") -> "CpuDraft":
    """A reference draft on this backend; it shares the target's embedding and head rows."""
    return CpuDraft(draft, target)


class CpuTarget:
    """See ``minispec.types.Target``."""

    def __init__(self, model: Transformer) -> None:
        self._config = model.config
        head = model.embedding if model.config.tie_word_embeddings else model.output
        rows = allocate_rows(head.weight.shape, head.weight.dtype)
        head.weight.data = rows.copy_(head.weight.detach())
        self.embedding = model.embedding.weight.detach()
        self.context_limit = model.config.context_limit
        layers = [layer for layer in model.layers if isinstance(layer, Layer)]
        stacks = _stack_layers(
            [layer.attention for layer in layers], [layer.mlp for layer in layers]
        )
        self._stacks = _to_kernel_stacks(stacks, model.config.int8_rows)
        self._norms = (
            np.stack([_norm_weight(layer.attention_norm) for layer in layers]),
            tuple(map(np.stack, zip(*map(_layer_norms, layers), strict=True))),
            _norm_weight(model.norm),
        )
        self._settings = _layer_settings(model.config)
        count = model.config.num_hidden_layers
        self._local_layers = np.isin(np.arange(1, count + 1), model.config.local_layers)
        self._aux_layer_ids = np.array(sorted(model.config.aux_hidden_state_layer_ids), np.int64)
        tables = [_rope_tables(rope, model.config) for rope in (model.rope, model.local_rope)]
        self._cos, self._sin = (np.stack(kinds) for kinds in zip(*tables, strict=True))
        self.rows = model.head.weight  # (V, D)
        self.head = CpuHead(*_to_kernel_rows(self.rows, model.config.int8_rows))
        self.threads = get_num_threads()  # read once: the call takes as long as a short product

    def new_cache(self, capacity: int) -> KVCache:
        """An empty cache for one sequence of at most ``capacity`` positions, in float32."""
        return _new_cache(self._config, self._config.num_hidden_layers, capacity)

    def step(self, ids: Tensor, cache: KVCache, parents: Sequence[int] | None = None) -> Features:
        """Token ids (T,) at the next positions of the cache -> hidden states (T, D) and auxiliary
        hidden states (T, n_aux * D). ``parents``: see ``Target.step``. Raises ContextError as
        ``place_tokens``."""
        place = place_tokens(cache, len(ids), parents, self.context_limit)
        scale = self._config.embedding_scale
        hidden, aux_hidden_states = run_target(
            (self.embedding[ids].float() * scale).numpy(), *self._stacks, self._norms,
            self._settings, self._local_layers, self._cos, self._sin,
            cache.keys.numpy()[:, 0], cache.values.numpy()[:, 0], place, self._aux_layer_ids,
            self.threads,
        )  # fmt: skip
        cache.advance(len(ids))
        return Features(torch.from_numpy(hidden), torch.from_numpy(aux_hidden_states) / scale)


class CpuDraft:
    """See ``minispec.types.Draft``. ``reference`` is the draft whose weights these are."""

    def __init__(self, draft: EagleDraft, target: CpuTarget) -> None:
        # The draft refers to the embedding and head of the target, so that they are stored once.
        draft.embedding, draft.head = target.embedding, PackedHead(target.rows)
        self.reference, self._target, self._config = draft, target, draft.config
        self._matrices = [*_matrices(draft.attention, draft.mlp), [draft.fusion]]
        self._projections = [_concatenate(matrices) for matrices in self._matrices]
        self._version = draft.version
        self._norms = (
            _norm_weight(draft.embedding_norm), _norm_weight(draft.state_norm), _layer_norms(draft),
            _norm_weight(draft.output_norm),
        )  # fmt: skip
        self._fusion_norms = [_norm_weight(norm) for norm in draft.fusion_norms]
        # The draft attends to all positions: its window is the whole context.
        self._settings = _layer_settings(
            replace(draft.config, sliding_window=draft.config.context_limit)
        )
        self._final_norm = _norm_weight(draft.norm)
        self._rope = _rope_tables(draft.rope, draft.config)
        self.head = target.head.with_own_packing()

    def new_cache(self, capacity: int) -> KVCache:
        """An empty cache for one sequence of at most ``capacity`` positions, in float32."""
        return _new_cache(self._config, 1, capacity)

    def fuse(self, aux_hidden_states: Tensor) -> Tensor:
        """The target's auxiliary hidden states (T, n_aux * D) -> states (T, D)."""
        self._refresh_adapted()
        rows, scales = self._projections[-1]
        inputs = aux_hidden_states.numpy()  # (T, n_aux * D)
        if self._fusion_norms:
            normed, epsilon = np.empty_like(inputs), self._config.rms_norm_eps
            for index, weight in enumerate(self._fusion_norms):
                first, last = index * len(weight), (index + 1) * len(weight)
                apply_rms_norm(inputs[:, first:last], weight, epsilon, normed, first)
            inputs = normed
        states = torch.empty(len(inputs), len(rows))
        multiply(rows, scales, inputs, states.numpy(), self._target.threads)
        return states

    def step(
        self, ids: Tensor, states: Tensor, cache: KVCache, parents: Sequence[int] | None = None
    ) -> Tensor:
        """Token ids (T,), each one position after its state (T, D) -> the draft's states (T, D).
        ``parents``: see ``Draft.step``. Raises ContextError as ``place_tokens``."""
        place = place_tokens(cache, len(ids), parents, self._config.context_limit)
        self._refresh_adapted()
        cos, sin = self._rope
        rows, scales = zip(*self._projections[:-1], strict=True)
        embedded = self.reference.embedding[ids].float()
        new = run_draft(
            embedded.numpy(), states.numpy(), rows, scales, self._norms,
            self._settings, cos, sin,
            cache.keys.numpy()[0, 0], cache.values.numpy()[0, 0], place, self._target.threads,
        )  # fmt: skip
        cache.advance(len(ids))
        return torch.from_numpy(new)

    def apply_final_norm(self, states: Tensor) -> Tensor:
        """Pre-norm states (..., D) -> hidden states for the LM head (..., D)."""
        if not len(self._final_norm):  # it is part of the step
            return states
        flat = states.reshape(-1, states.shape[-1])
        out = torch.empty_like(flat)
        apply_rms_norm(flat.numpy(), self._final_norm, self._config.rms_norm_eps, out.numpy(), 0)
        return out.view(states.shape)

    def with_own_head(self) -> "CpuDraft":
        """The same weights with a head that packs its own shortlist."""
        clone = copy.copy(self)
        clone.head = self.head.with_own_packing()
        return clone

    def with_weights_of(self, draft: EagleDraft) -> "CpuDraft":
        """Another reference draft on this backend, with the same target: a learner's adapted draft
        (``minispec.learning.lora``)."""
        return CpuDraft(draft, self._target)

    def _refresh_adapted(self) -> None:
        """Stacks again the matrices whose adapters have changed."""
        if self._version != self.reference.version:
            for index, matrices in enumerate(self._matrices):
                if _has_adapters(matrices):
                    self._projections[index] = _concatenate(matrices)
            self._version = self.reference.version


def _new_cache(config: ModelConfig, layers: int, capacity: int) -> KVCache:
    return KVCache(layers, 1, capacity, config.num_key_value_heads, config.head_dim, torch.float32)


def _rope_tables(rope: Rope, config: ModelConfig) -> tuple[np.ndarray, np.ndarray]:
    cos, sin = rope.cos_sin(torch.arange(config.context_limit), torch.float32)
    return cos[:, 0].numpy(), sin[:, 0].numpy()  # (context_limit, head_dim)


def _norm_weight(norm: nn.Module) -> np.ndarray:
    """The weight of a norm in float32; empty for an identity."""
    weight = getattr(norm, "weight", torch.empty(0))
    return weight.detach().float().numpy()


def _layer_norms(layer: Layer | EagleDraft) -> tuple[np.ndarray, ...]:
    """The norms of a layer in the order that ``steps.run_layer`` takes."""
    outer = layer.mlp_norm, layer.attention_post_norm, layer.mlp_post_norm
    inner = layer.attention.query_norm, layer.attention.key_norm
    return tuple(map(_norm_weight, (*outer, *inner)))


def _layer_settings(config: ModelConfig) -> tuple[float, np.float32, int, bool]:
    scale = config.attention_scale or config.head_dim**-0.5
    window = config.sliding_window or config.context_limit
    return config.rms_norm_eps, np.float32(scale), window, config.activation == "gelu_tanh"


def build_head(rows: Tensor) -> CpuHead:
    """A head over a copy of rows (V, D), float32 or bfloat16."""
    copy = allocate_rows(rows.shape, rows.dtype).copy_(rows)
    return CpuHead(*_to_kernel_rows(copy, False))


def _to_kernel_rows(weight: Tensor, int8: bool) -> tuple[np.ndarray, np.ndarray]:
    """Weights (..., N, D) in the form that the kernels read, and a scale for each row (..., N)."""
    if int8:
        return quantize_rows(weight).numpy(), row_scales(weight).numpy()
    bits = weight.view(torch.uint16) if weight.dtype == torch.bfloat16 else weight
    return bits.numpy(), np.ones(weight.shape[:-1], np.float32)


def _to_exact_bfloat16(weight: Tensor) -> Tensor:
    """float32 weights in bfloat16 where that is lossless: as int16, which tells the kernels to
    keep states in float32. Other weights unchanged."""
    if weight.dtype != torch.float32:
        return weight
    short = allocate_rows(weight.shape, torch.bfloat16).copy_(weight)
    return short.view(torch.int16) if torch.equal(short.float(), weight) else weight


def _concatenate(matrices: Sequence[nn.Linear | LoraLinear]) -> tuple[np.ndarray, np.ndarray]:
    """A draft's projections that read the same states, concatenated, in the form that the kernels
    read. With adapters they stay float32: updates are smaller than bfloat16 resolves."""
    stacked = torch.cat(
        [m.merged_weight if isinstance(m, LoraLinear) else m.weight for m in matrices]
    ).detach()
    rows = allocate_rows(stacked.shape, stacked.dtype).copy_(stacked)
    return _to_kernel_rows(rows if _has_adapters(matrices) else _to_exact_bfloat16(rows), False)


def _has_adapters(matrices: Sequence[nn.Linear | LoraLinear]) -> bool:
    return any(isinstance(matrix, LoraLinear) for matrix in matrices)


def _to_kernel_stacks(stacks: Sequence[Tensor], int8: bool) -> _Stacks:
    rows, sizes = zip(*(_to_kernel_rows(stack, int8) for stack in stacks), strict=True)
    return rows, sizes


def _matrices(attention: Attention, mlp: MLP) -> list[list[nn.Linear]]:
    """The projections of a layer, together those that read the same states."""
    return [
        [attention.query, attention.key, attention.value],
        [attention.output],
        [mlp.gate, mlp.up],
        [mlp.down],
    ]


def _stack_layers(attentions: Sequence[Attention], mlps: Sequence[MLP]) -> list[Tensor]:
    """The four stacks of a target: QKV, output, gate and up, down, each (L, N, D)."""
    layers = map(_matrices, attentions, mlps)
    return [_stack_projections(projections) for projections in zip(*layers, strict=True)]


def _stack_projections(layers: Sequence[Sequence[nn.Linear]]) -> Tensor:
    """Stacks the weights of some projections of each layer into (L, N, D); the projections become
    views of the stack."""
    first = [projection.weight for projection in layers[0]]
    shape = len(layers), sum(map(len, first)), first[0].shape[1]
    stack = allocate_rows(shape, first[0].dtype)
    for rows, layer in zip(stack, layers, strict=True):
        for part, projection in zip(rows.split([len(p.weight) for p in layer]), layer, strict=True):
            part.copy_(projection.weight.detach())
            projection.weight.data = part
    return stack
