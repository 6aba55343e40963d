"""A causal language model of transformers as a target: its modules, our cache and our masks.

A pass over a chain leaves the mask to the model, as ``generate`` of transformers does. One over a
tree, or over sequences of different lengths, is given a 4-D mask and position ids. The hidden
states are those that the LM head multiplies, times the model's own factor of its logits if it has
one (Granite, Cohere): the same logits, and rows that shortlists can read.

Knows nothing of which models can be wrapped (``wrapped_checks``).
"""

import inspect
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from minispec.checks import check_trees
from minispec.errors import ContextError
from minispec.models.lm_head import LinearHead
from minispec.models.model_config import ModelConfig
from minispec.tools.models.wrapped_cache import LayerShape, WrappedCache
from minispec.tree import find_ancestors, find_depths, is_chain
from minispec.types import Features


@dataclass(frozen=True)
class WrappedParts:
    """What a wrapped model consists of: the model, the configuration of a draft for it, its head,
    the ``factor`` of its hidden states, the shapes of its cached layers, and the sliding window, or
    None, of each kind of layer, "" if there is one kind."""

    model: Any
    config: ModelConfig
    head: LinearHead
    factor: float
    shapes: tuple[LayerShape, ...]
    windows: dict[str, int | None]


class WrappedTarget:
    """See ``minispec.types.Target`` and ``minispec.models.reference.Reference``. ``why_chains``:
    the reason why passes over trees and over sequences of different lengths would be wrong; "" if
    they are right."""

    def __init__(self, parts: WrappedParts, why_chains: str = "") -> None:
        self.parts, self.why_chains = parts, why_chains
        self.model, self.config, self.head = parts.model, parts.config, parts.head
        self.embedding: nn.Embedding = parts.model.get_input_embeddings()
        self._cache_name = find_cache_name(parts.model)
        self._takes_positions = "position_ids" in _list_arguments(parts.model)

    @property
    def context_limit(self) -> int:
        """The most positions that a sequence may have."""
        return self.config.context_limit

    @property
    def runs_batches(self) -> bool:
        """Whether a pass may have several sequences, of different lengths."""
        return not self.why_chains

    @property
    def implementation(self) -> str:
        """The class that runs the model, in words."""
        return f"transformers ({type(self.model).__name__})"

    def to(self, device: str) -> "WrappedTarget":
        """The target on a device, to which the model itself is moved."""
        self.model.to(device)
        rows = self.model.get_output_embeddings()
        bias = None if rows.bias is None else rows.bias.detach()
        self.head = LinearHead(rows.weight, bias, self.head.softcap)
        return self

    def new_cache(self, capacity: int, batch_size: int = 1) -> WrappedCache:
        """An empty cache for ``batch_size`` sequences of at most ``capacity`` positions each."""
        weight = self.embedding.weight
        return WrappedCache(self.parts.shapes, batch_size, capacity, weight.dtype, weight.device)

    def __call__(self, ids: Tensor, cache: WrappedCache) -> Features:
        """ids (B, T), appended to what the cache holds -> hidden (B, T, D), auxiliary hidden states
        (B, T, n_aux * D). Raises ContextError if they exceed the cache or the context."""
        positions = cache.positions(ids.shape[1])  # (B, T)
        if not ids.numel():
            size = self.config.hidden_size
            count = len(self.config.aux_hidden_state_layer_ids)
            empty = self.embedding.weight.new_empty(*ids.shape, size)
            return Features(empty, empty.repeat(1, 1, count))
        if len(set(cache.lengths)) == 1:
            return self._run(ids, cache, positions, None)
        keys = torch.arange(int(positions.max()) + 1)  # (S,)
        distances = positions[:, :, None] - keys  # (B, T, S)
        return self._run(ids, cache, positions, self._build_masks(distances, distances >= 0))

    def step(
        self, ids: Tensor, cache: WrappedCache, parents: Sequence[int] | None = None
    ) -> Features:
        """One sequence: ids (T,) -> hidden (T, D), auxiliary hidden states (T, n_aux * D).
        ``parents``: see ``Target.step``. Raises ContextError as a call, ArgumentError for a tree
        that would be run wrongly."""
        if parents is None or is_chain(parents):
            return _drop_batch(self(ids[None], cache))
        check_trees(self)
        new, start = len(ids), int(cache.positions(len(ids))[0, 0])
        nodes = start + torch.tensor(find_depths(parents))  # (T,)
        keys = torch.cat((torch.arange(start), nodes))  # (S,)
        seen = torch.ones(new, len(keys), dtype=torch.bool)  # what is cached before
        seen[:, start:] = find_ancestors(parents)
        masks = self._build_masks((nodes[:, None] - keys)[None], seen[None])
        return _drop_batch(self._run(ids[None], cache, nodes[None], masks))

    @torch.inference_mode()
    def _run(self, ids: Tensor, cache: WrappedCache, positions: Tensor, masks: Any) -> Features:
        """A pass over ids (B, T) at ``positions`` (B, T) in the text."""
        if (end := int(positions.max()) + 1) > self.context_limit:
            raise ContextError(
                f"position {end} is outside the model's context of {self.context_limit}"
            )
        device = self.embedding.weight.device
        more = {"position_ids": positions.to(device)} if self._takes_positions else {}
        output = self.model.base_model(
            input_ids=ids.to(device), attention_mask=masks, use_cache=True, return_dict=True,
            output_hidden_states=True, **{self._cache_name: cache}, **more,
        )  # fmt: skip
        cache.advance(ids.shape[1])
        states = [output.hidden_states[i] for i in self.config.aux_hidden_state_layer_ids]
        return Features(output.last_hidden_state * self.parts.factor, torch.cat(states, dim=-1))

    def _build_masks(self, distances: Tensor, seen: Tensor) -> Any:
        """Distances (B, T, S) to keys, and which are seen at all -> what is added to the scores of
        attention (B, 1, T, S), by kind of layer if the model has several."""
        weight = self.embedding.weight
        lowest = torch.finfo(weight.dtype).min

        def build(window: int | None) -> Tensor:
            hidden = ~seen if window is None else ~(seen & (distances < window))
            added = torch.zeros(hidden.shape, dtype=weight.dtype).masked_fill(hidden, lowest)
            return added[:, None].to(weight.device)

        masks = {kind: build(window) for kind, window in self.parts.windows.items()}
        return masks[""] if [*masks] == [""] else masks


def find_cache_name(model: Any) -> str:
    """What a model's pass calls its cache: newer versions of transformers renamed it."""
    return "cache" if "cache" in _list_arguments(model) else "past_key_values"


def _list_arguments(model: Any) -> Collection[str]:
    return inspect.signature(model.base_model.forward).parameters


def _drop_batch(features: Features) -> Features:
    return Features(features.hidden[0], features.aux_hidden_states[0])
