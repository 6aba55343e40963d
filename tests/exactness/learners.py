"""Drafts that learn while they are walked: the production learner over a real draft layer, which
listens to the toy target; and one that is told lies.

Everything happens as in ``+adapt``, but sooner: an update after every token, at a rate that no
one would take, through all matrices, so that a few tokens make another draft of it.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch

from minispec.certificate.certify import Toys
from minispec.learning import lora
from minispec.learning.learner import AdaptConfig, Aligner
from minispec.models.eagle_draft import EagleDraft
from minispec.models.lm_head import PackedHead
from minispec.models.transformer import ModelConfig
from minispec.types import Distribution, Round

WIDTH = 16
EAGER = AdaptConfig(
    rank=1, targets=lora.TARGETS, rate=0.5, interval=1, window=1, windows=2, largest=3, others=2
)


def layer(toys: Toys) -> EagleDraft:
    """A draft layer with random weights; the toy target's taps are 64 numbers wide."""
    config = ModelConfig(
        vocab_size=toys.case.vocabulary, hidden_size=WIDTH, num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=1,
        head_dim=4, intermediate_size=8, context_limit=64, aux_hidden_state_layer_ids=(1, 2, 3, 4),
    )  # fmt: skip
    dtype = toys.target.after(tuple(toys.case.prompt)).dtype
    with torch.random.fork_rng():
        torch.manual_seed(toys.case.seed)
        rows = torch.randn(config.vocab_size, config.hidden_size, dtype=dtype) / 4
        draft = EagleDraft(config, torch.randn_like(rows), PackedHead(rows))
    return draft.to(dtype).requires_grad_(False)


def adapting(toys: Toys) -> Aligner:
    return Aligner(layer(toys), EAGER)


def poisoned(toys: Toys) -> Aligner:
    """Its floors are off, so that no lie is without effect."""
    return Poisoned(layer(toys), replace(EAGER, floor=False))


class Poisoned(Aligner):
    """Is told of laws that are not numbers, that are upside down, or that say what was said."""

    def observe(self, finished: Round) -> Mapping[str, int]:
        evidence = finished.evidence
        assert evidence is not None
        told = zip(evidence.target_distributions, finished.tokens, strict=True)
        distributions = tuple(self._lie(distribution, token) for distribution, token in told)
        return super().observe(
            replace(finished, evidence=replace(evidence, target_distributions=distributions))
        )

    def _lie(self, distribution: Distribution, token: int) -> Distribution:
        if token % 3 == 0:
            return Distribution(distribution.ids, distribution.probs * torch.nan)
        said = (distribution.ids == token).to(distribution.probs.dtype)
        upside_down = (
            (1 - distribution.probs) / (len(distribution.ids) - 1)
            if len(distribution.ids) > 1
            else said
        )
        return Distribution(distribution.ids, said if token % 3 == 1 else (upside_down + said) / 2)
