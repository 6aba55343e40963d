"""Drafts that learn during an enumeration: the production learner over a real draft layer.

The layer reads the toy target's auxiliary hidden states. The settings are those of ``+adapt``, but
with an update after every token, at an extreme rate and on all matrices, so that the draft changes
within a few tokens. One learner is given wrong target distributions.
"""

from dataclasses import replace

import torch

from minispec.certificate.decodings import ToyModels
from minispec.learning import lora
from minispec.learning.config import LearnerConfig
from minispec.learning.learner import OnlineLearner
from minispec.learning.paper_learner import PaperConfig, PaperLearner
from minispec.models.eagle_draft import EagleDraft
from minispec.models.lm_head import PackedHead
from minispec.models.model_config import ModelConfig
from minispec.types import Distribution, LearnerUpdate, Round

HIDDEN_SIZE = 16
EXTREME = LearnerConfig(
    rank=1, targets=lora.TARGETS, learning_rate=0.5, update_interval=1, window_size=1,
    num_windows=2, top_k=3, num_random_ids=2,
)  # fmt: skip


def build_layer(models: ToyModels) -> EagleDraft:
    """A draft layer with random weights; four auxiliary hidden states of 16 numbers each."""
    config = ModelConfig(
        vocab_size=models.case.vocab_size, hidden_size=HIDDEN_SIZE, num_hidden_layers=4,
        num_attention_heads=2, num_key_value_heads=1, head_dim=4, intermediate_size=8,
        context_limit=64, aux_hidden_state_layer_ids=(1, 2, 3, 4),
    )  # fmt: skip
    dtype = models.target.logits_after(tuple(models.case.prompt)).dtype
    with torch.random.fork_rng():
        torch.manual_seed(models.case.seed)
        rows = torch.randn(config.vocab_size, config.hidden_size, dtype=dtype) / 4  # (V, D)
        draft = EagleDraft(config, torch.randn_like(rows), PackedHead(rows))
    return draft.to(dtype).requires_grad_(False)


def build_learner(models: ToyModels) -> OnlineLearner:
    return OnlineLearner(build_layer(models), EXTREME)


def build_paper_learner(models: ToyModels) -> PaperLearner:
    """One trajectory of one step is enough for an update: outputs are too short for more."""
    config = PaperConfig(rank=1, learning_rate=0.5, steps=1, top_k=3, samples=1)
    return PaperLearner(build_layer(models), config)


def build_poisoned(models: ToyModels) -> OnlineLearner:
    """Without guards, so that every wrong distribution has an effect."""
    return Poisoned(build_layer(models), replace(EXTREME, guard=False))


class Poisoned(OnlineLearner):
    """Observes target distributions that are NaN, one-hot or inverted instead of the true ones."""

    def observe(self, finished: Round) -> LearnerUpdate:
        evidence = finished.evidence
        assert evidence is not None
        pairs = zip(evidence.target_distributions, finished.tokens, strict=True)
        distributions = tuple(self._poison(distribution, token) for distribution, token in pairs)
        return super().observe(
            replace(finished, evidence=replace(evidence, target_distributions=distributions))
        )

    def _poison(self, distribution: Distribution, token: int) -> Distribution:
        if token % 3 == 0:
            return Distribution(distribution.ids, distribution.probs * torch.nan)
        one_hot = (distribution.ids == token).to(distribution.probs.dtype)
        inverted = (
            (1 - distribution.probs) / (len(distribution.ids) - 1)
            if len(distribution.ids) > 1
            else one_hot
        )
        probs = one_hot if token % 3 == 1 else (inverted + one_hot) / 2
        return Distribution(distribution.ids, probs)
