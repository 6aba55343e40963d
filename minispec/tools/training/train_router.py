"""Training the router of DynaSpec (see ``minispec.shortlists.dynaspec``): a small classifier that
predicts the cluster of the next token from the draft's hidden state, on target-generated text.

Knows nothing of how the clusters were made.
"""

import random
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from minispec.models.eagle_draft import EagleDraft
from minispec.shortlists.dynaspec import Router
from minispec.tools.data.batches import ShardDataset, make_batch

_RATE, _SEQUENCES = 2e-3, 4  # peak learning rate, and sequences per update


def iterate_examples(
    draft: EagleDraft, dataset: ShardDataset, clusters: Tensor, order: list[int]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of examples, over and over through the sequences in ``order``: the draft's normed
    states (n, D) at the positions of the answers, and the cluster (n,) of the token that the
    target generated there. ``clusters`` (V,) holds the cluster of each id."""
    while True:
        for start in range(0, len(order), _SEQUENCES):
            states, labels = [], []
            for index in order[start : start + _SEQUENCES]:
                batch = make_batch([dataset.read_sequence(index)])
                mask = batch.loss_mask[0]
                cache = draft.new_cache(len(mask))
                own = draft.step(batch.ids[0], draft.fuse(batch.aux_hidden_states[0]), cache)
                states.append(draft.apply_final_norm(own)[mask])
                labels.append(clusters[batch.labels[0][mask]])
            yield torch.cat(states).clone(), torch.cat(labels)


def train(
    router: Router,
    draft: EagleDraft,
    dataset: ShardDataset,
    clusters: Tensor,
    tokens: int,
    seed: int,
) -> Iterator[tuple[int, float]]:
    """Trains a router in place on ``tokens`` tokens; yields after each update the tokens seen and
    the loss (cross-entropy, nats per token)."""
    optimizer = torch.optim.AdamW(router.parameters(), lr=_RATE)
    order = list(range(len(dataset)))
    random.Random(seed).shuffle(order)
    seen = 0
    for hidden, labels in iterate_examples(draft, dataset, clusters, order):
        optimizer.param_groups[0]["lr"] = _RATE * max(0.01, 1 - seen / tokens)
        loss = F.cross_entropy(router(hidden), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen += len(hidden)
        yield seen, loss.item()
        if seen >= tokens:
            return
