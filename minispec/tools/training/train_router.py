"""Training of the router to clusters (see ``minispec/shortlists/dynaspec.py``): from text that the target
wrote, as the draft sees it, a light classifier learns in which cluster the next token is. Knows
nothing of how the clusters were made."""

import random
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from minispec.models.eagle_draft import EagleDraft
from minispec.shortlists.dynaspec import Router
from minispec.tools.data.batches import ShardDataset, make_batch

_RATE, _SEQUENCES = 2e-3, 4


def examples(
    draft: EagleDraft, corpus: ShardDataset, clusters: Tensor, order: list[int]
) -> Iterator[tuple[Tensor, Tensor]]:
    """For some sequences at a time, in their order, over and over: the draft's states (n, D)
    at the places of the answers, and the cluster (n,) of what the target said there."""
    while True:
        for start in range(0, len(order), _SEQUENCES):
            states, said = [], []
            for index in order[start : start + _SEQUENCES]:
                batch = make_batch([corpus.sequence(index)])
                learn = batch.learn[0]
                cache = draft.new_cache(len(learn))
                own = draft.step(batch.ids[0], draft.fuse(batch.aux_hidden_states[0]), cache)
                states.append(draft.apply_final_norm(own)[learn])
                said.append(clusters[batch.following[0][learn]])
            yield torch.cat(states).clone(), torch.cat(said)


def train(
    router: Router, draft: EagleDraft, corpus: ShardDataset, clusters: Tensor, tokens: int, seed: int
) -> Iterator[tuple[int, float]]:
    """Has a router learn from ``tokens`` tokens; yields, after each update, the tokens seen and
    the loss (cross entropy, nats a token)."""
    optimizer = torch.optim.AdamW(router.parameters(), lr=_RATE)
    order = list(range(len(corpus.places)))
    random.Random(seed).shuffle(order)
    seen = 0
    for hidden, said in examples(draft, corpus, clusters, order):
        optimizer.param_groups[0]["lr"] = _RATE * max(0.01, 1 - seen / tokens)
        loss = F.cross_entropy(router(hidden), said)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen += len(hidden)
        yield seen, loss.item()
        if seen >= tokens:
            return
