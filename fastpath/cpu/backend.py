"""The CPU backend: ``minispec.models.transformer`` and ``minispec.models.eagle_draft`` on Numba's
kernels.

``fastpath.cpu.weights`` has how weights are stored. bfloat16 weights are multiplied with states
rounded to bfloat16, as in the reference; the reference also rounds every result, while here results
stay float32. A float32 draft loaded from a bfloat16 file is stored in bfloat16 too, half the bytes,
but its states are not rounded. For a draft that is being trained, matrices with LoRA adapters are
stacked again whenever the adapters have changed.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace

import numba
import numpy as np
import torch
from numba import get_num_threads, set_num_threads
from torch import Tensor

from fastpath.cpu.kernels import multiply
from fastpath.cpu.positions import place_tokens
from fastpath.cpu.process import why_unfit
from fastpath.cpu.steps import apply_rms_norm, run_draft, run_target
from fastpath.cpu.weights import (
    build_model_head,
    build_stacks,
    choose_embed,
    concatenate,
    get_norm_weight,
    has_adapters,
    list_layer_norms,
    list_matrices,
)
from minispec.models.eagle_draft import EagleDraft
from minispec.models.kv_cache import KVCache
from minispec.models.lm_head import PackedHead
from minispec.models.model_config import ModelConfig
from minispec.models.quantized_modules import rows_of
from minispec.models.rope import Rope
from minispec.models.transformer import Layer, Transformer
from minispec.types import Features

_threads_taken = False  # whether a target was built, which leaves torch a single thread


def why_unsupported(model: Transformer) -> str | None:
    """The reason why a model cannot run on this backend; None if it can."""
    weight = rows_of(model.embedding)
    if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.bfloat16):
        return f"its weights are {weight.dtype} on {weight.device}, not float32 or bfloat16 on cpu"
    if model.config.mlp_bias:
        return "it needs mlp_bias, which this backend lacks"
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
        self.context_limit = model.config.context_limit
        layers = [layer for layer in model.layers if isinstance(layer, Layer)]
        self._stacks = build_stacks(layers, model.config.int8_rows)
        self._norms = (
            np.stack([get_norm_weight(layer.attention_norm) for layer in layers]),
            tuple(map(np.stack, zip(*map(list_layer_norms, layers), strict=True))),
            get_norm_weight(model.norm),
        )
        self._settings = _layer_settings(model.config)
        count = model.config.num_hidden_layers
        numbers = np.arange(1, count + 1)
        self._local_layers = np.isin(numbers, model.config.local_layers)
        rope_free = np.isin(numbers, model.config.rope_free_layers)
        self._ropes = np.where(rope_free, 2, self._local_layers.astype(np.int64))
        self._aux_layer_ids = np.array(sorted(model.config.aux_hidden_state_layer_ids), np.int64)
        tables = [_rope_tables(rope, model.config) for rope in (model.rope, model.local_rope)]
        if rope_free.any():  # rotated by 0
            tables.append((np.ones_like(tables[0][0]), np.zeros_like(tables[0][1])))
        self._cos, self._sin = (np.stack(kinds) for kinds in zip(*tables, strict=True))
        self.head = build_model_head(model)
        self.rows, self.embedding = model.head.weight, rows_of(model.embedding)  # (V, D) each
        self.embed = choose_embed(self.embedding)
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
            (self.embed(ids) * scale).numpy(), *self._stacks, self._norms,
            self._settings, self._local_layers, self._ropes, self._cos, self._sin,
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
        self._matrices = [*list_matrices(draft.attention, draft.mlp), [draft.fusion]]
        self._projections = [concatenate(matrices) for matrices in self._matrices]
        self._version = draft.version
        self._norms = (
            get_norm_weight(draft.embedding_norm), get_norm_weight(draft.state_norm),
            list_layer_norms(draft), get_norm_weight(draft.output_norm),
        )  # fmt: skip
        self._fusion_norms = [get_norm_weight(norm) for norm in draft.fusion_norms]
        # The draft attends to all positions: its window is the whole context.
        self._settings = _layer_settings(
            replace(draft.config, sliding_window=draft.config.context_limit)
        )
        self._final_norm = get_norm_weight(draft.norm)
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
        states = torch.empty(len(inputs), self._config.hidden_size)
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
        embedded = self._target.embed(ids)
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
                if has_adapters(matrices):
                    self._projections[index] = concatenate(matrices)
            self._version = self.reference.version


def _new_cache(config: ModelConfig, layers: int, capacity: int) -> KVCache:
    return KVCache(layers, 1, capacity, config.num_key_value_heads, config.head_dim, torch.float32)


def _rope_tables(rope: Rope, config: ModelConfig) -> tuple[np.ndarray, np.ndarray]:
    cos, sin = rope.cos_sin(torch.arange(config.context_limit), torch.float32)
    return cos[:, 0].numpy(), sin[:, 0].numpy()  # (context_limit, head_dim)


def _layer_settings(config: ModelConfig) -> tuple[float, np.float32, int, bool, int, int]:
    scale = config.attention_scale or config.head_dim**-0.5
    window, gelu = config.sliding_window or config.context_limit, config.activation == "gelu_tanh"
    heads, inner = config.num_attention_heads, config.intermediate_size
    return config.rms_norm_eps, np.float32(scale), window, gelu, heads, inner
