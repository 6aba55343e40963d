"""Drafts that learn while they are walked: the production learner over a real draft layer, which
listens to the toy target; and one that is told lies.

Everything happens as in ``+adapt``, but sooner: an update after every token, at a rate that no
one would take, through all matrices, so that a few tokens make another draft of it.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch

from minispec import lora
from minispec.align import AdaptConfig, Aligner
from minispec.draft import EagleDraft
from minispec.head import PackedHead
from minispec.model import ModelConfig
from minispec.types import Law, Round
from workshop.certify import Toys

WIDTH = 16
EAGER = AdaptConfig(
    rank=1, targets=lora.TARGETS, rate=0.5, interval=1, window=1, windows=2, largest=3, others=2
)


def layer(toys: Toys) -> EagleDraft:
    """A draft layer with random weights; the toy target's taps are 64 numbers wide."""
    config = ModelConfig(
        vocabulary_size=toys.case.vocabulary, width=WIDTH, layers=4, heads=2, kv_heads=1,
        head_width=4, mlp_width=8, context_limit=64, tap_layers=(1, 2, 3, 4),
    )  # fmt: skip
    dtype = toys.target.after(tuple(toys.case.prompt)).dtype
    with torch.random.fork_rng():
        torch.manual_seed(toys.case.seed)
        rows = torch.randn(config.vocabulary_size, config.width, dtype=dtype) / 4
        draft = EagleDraft(config, torch.randn_like(rows), PackedHead(rows))
    return draft.to(dtype).requires_grad_(False)


def adapting(toys: Toys) -> Aligner:
    return Aligner(layer(toys), EAGER)


def poisoned(toys: Toys) -> Aligner:
    """Its floors are off, so that no lie is without effect."""
    return Poisoned(layer(toys), replace(EAGER, floor=False))


class Poisoned(Aligner):
    """Is told of laws that are not numbers, that are upside down, or that say what was said."""

    def observe(self, round: Round) -> Mapping[str, int]:
        evidence = round.evidence
        assert evidence is not None
        told = zip(evidence.laws, round.tokens, strict=True)
        laws = tuple(self._lie(law, token) for law, token in told)
        return super().observe(replace(round, evidence=replace(evidence, laws=laws)))

    def _lie(self, law: Law, token: int) -> Law:
        if token % 3 == 0:
            return Law(law.ids, law.probs * torch.nan)
        said = (law.ids == token).to(law.probs.dtype)
        upside_down = (1 - law.probs) / (len(law.ids) - 1) if len(law.ids) > 1 else said
        return Law(law.ids, said if token % 3 == 1 else (upside_down + said) / 2)
