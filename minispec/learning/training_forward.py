"""The draft's forward pass over windows of replay buffer entries, with gradients."""

import torch
from torch import Tensor

from minispec.learning.replay_buffer import Entries
from minispec.models.eagle_draft import EagleDraft


def training_forward(draft: EagleDraft, batch: Entries) -> Tensor:
    """Hidden states (B * W, D), the input of the LM head, at windows (B, W) of positions.

    A position attends to the earlier ones of its own text within its window. Rotary positions are
    relative, so each window counts from 0.
    """
    window_size = batch.ngrams.shape[1]
    positions = torch.arange(window_size)
    cos, sin = draft.rope.cos_sin(positions, draft.embedding.dtype)
    same_text = batch.sequence[:, :, None] == batch.sequence[:, None]  # (B, W, W)
    causal = same_text & (positions[:, None] >= positions)
    mask = causal.repeat_interleave(draft.rope.group, dim=1)[:, None]  # (B, 1, W * group, W)

    def attend(x: Tensor) -> Tensor:
        queries, keys, values = draft.attention.project(x, cos, sin)
        return draft.attention.attend(queries, keys, values, mask)

    states = draft.run_fusion(batch.aux_hidden_states.to(draft.embedding.dtype))  # (B, W, D)
    return draft.norm(draft.run_layer(batch.ngrams[:, :, 0], states, attend)).flatten(0, 1)
