"""Norms are added to a draft without losing what it has learnt."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from helpers.drafts import toy_draft
from helpers.toys import GEMMA, toy_transformer
from minispec.models.transformer import Transformer
from minispec.tools.data.batches import Batch
from minispec.tools.training import train_draft
from minispec.tools.training.draft_norms import add_norms


def make_text(target: Transformer, length: int = 40) -> Batch:
    """A text of which all but the first ten tokens are the answer."""
    ids = torch.arange(length + 2) * 7 % 50
    features = target.step(ids, target.new_cache(length + 2))
    return Batch(
        ids=ids[None, 1:-1],
        aux_hidden_states=features.aux_hidden_states[None, :-2].clone(),
        hidden=features.hidden[None, 1:-1].clone(),
        labels=ids[None, 2:],
        loss_mask=torch.arange(length)[None] >= 10,
    )


@pytest.mark.parametrize("changes", [{}, GEMMA], ids=["llama", "gemma"])
def test_add_norms_keeps_what_the_draft_computes(changes: dict[str, Any]) -> None:
    target = toy_transformer(**changes)
    draft, batch = toy_draft(target), make_text(target)
    normed = add_norms(draft, batch)
    assert normed.norms and not draft.norms
    with torch.inference_mode():
        steps = [list(train_draft.unroll(each, batch, 3)) for each in (draft, normed)]
    for (before, _), (after, _) in zip(*steps, strict=True):
        before, after = before[batch.loss_mask], after[batch.loss_mask]  # (n, D)
        assert F.cosine_similarity(before, after, dim=-1).mean() > 0.97
        assert torch.isclose(before.norm(), after.norm(), rtol=0.1)


def test_a_draft_with_norms_trains() -> None:
    target = toy_transformer()
    batch = make_text(target)
    draft = add_norms(toy_draft(target), batch).requires_grad_(True)
    config = train_draft.TrainConfig(tokens=1, steps=3, feature_weight=0.0, norms=True)
    optimizer = torch.optim.AdamW(draft.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss, cross_entropies = train_draft.compute_loss(draft, batch, draft.head, config)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(cross_entropies)
    assert all(last < first - 0.1 for first, last in zip(losses[0], losses[-1], strict=True))
