"""The reference implementation of a target: one whose weights are at hand.

A draft shares its embedding and head rows, and training data are decoded in batches with it. Knows
nothing of how it is computed.
"""

from typing import Any, Protocol

from torch import Tensor, nn

from minispec.models.lm_head import LinearHead
from minispec.models.model_config import ModelConfig
from minispec.types import Features, Target


class Reference(Target, Protocol):
    """A target with weights."""

    config: ModelConfig  # its hyperparameters, as far as a draft and its training need them

    @property
    def runs_batches(self) -> bool:
        """Whether a pass may have several sequences, of different lengths."""

    @property
    def embedding(self) -> nn.Embedding:
        """The embedding, with a row (D,) for each id."""

    @property
    def head(self) -> LinearHead:
        """The LM head."""

    def new_cache(self, capacity: int, batch_size: int = 1) -> Any:
        """An empty cache for ``batch_size`` sequences of at most ``capacity`` positions each."""

    def __call__(self, ids: Tensor, cache: Any) -> Features:
        """ids (B, T), appended to what the cache holds -> hidden (B, T, D), auxiliary hidden states
        (B, T, n_aux * D)."""
