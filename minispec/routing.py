"""Training of the router to clusters (see ``shortlist/routed.py``): from text that the target
wrote, as the draft sees it, a light classifier learns the mass that the target gives to each
cluster there. Knows nothing of how the clusters were made."""

import random
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from minispec.batches import Corpus, batch_of
from minispec.draft import EagleDraft
from minispec.shortlist.routed import Router

_RATE, _SEQUENCES = 2e-3, 4


def examples(
    draft: EagleDraft, corpus: Corpus, clusters: Tensor, order: list[int]
) -> Iterator[tuple[Tensor, Tensor]]:
    """For some sequences at a time, in their order, over and over: the draft's states (n, D)
    at the places of the answers, and the target's law over clusters there (n, C)."""
    count = int(clusters.max()) + 1
    while True:
        for start in range(0, len(order), _SEQUENCES):
            sequences = [corpus.sequence(i) for i in order[start : start + _SEQUENCES]]
            states, masses = [], []
            for batch in (batch_of([sequence]) for sequence in sequences):
                learn = batch.learn[0]
                cache = draft.new_cache(len(learn))
                own = draft.step(batch.ids[0], draft.fuse(batch.taps[0]), cache)
                law = F.softmax(draft.head.full(batch.hidden[0][learn]), dim=-1)  # (n, V)
                states.append(draft.hidden(own)[learn])
                masses.append(torch.zeros(len(law), count).index_add_(1, clusters, law))
            yield torch.cat(states).clone(), torch.cat(masses)


def train(
    router: Router, draft: EagleDraft, corpus: Corpus, clusters: Tensor, tokens: int, seed: int
) -> Iterator[tuple[int, float]]:
    """Has a router learn from ``tokens`` tokens; yields, after each update, the tokens seen and
    the loss (cross entropy, nats a token)."""
    optimizer = torch.optim.AdamW(router.parameters(), lr=_RATE)
    order = list(range(len(corpus.places)))
    random.Random(seed).shuffle(order)
    seen = 0
    for hidden, mass in examples(draft, corpus, clusters, order):
        optimizer.param_groups[0]["lr"] = _RATE * max(0.01, 1 - seen / tokens)
        loss = F.cross_entropy(router(hidden), mass)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen += len(hidden)
        yield seen, loss.item()
        if seen >= tokens:
            return
