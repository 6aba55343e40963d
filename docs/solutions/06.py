"""Solutions of the exercises of chapter 6, as ``minispec.exercises`` grades them."""

import torch

from minispec import BaseShortlist


def cut_ranking(counts, budget, eos_ids):
    """The sorted ids of a static shortlist: at most ``budget``, the most frequent ones.

    counts: by id, how often each occurred. Equal counts go to the lower id. The ids that end an
    answer are always among them.
    """
    others = [token for token in range(len(counts)) if token not in eos_ids]
    others.sort(key=lambda token: -counts[token])
    return sorted([*eos_ids, *others[: budget - len(eos_ids)]])


class AlternatingShortlist(BaseShortlist):
    """The even ids at even draft steps, the odd ones at odd steps."""

    name = "alternating"

    def __init__(self, vocab_size):
        self.budget = vocab_size // 2
        self._ids = torch.arange(0, 2 * self.budget, 2)

    def select(self, context):
        return self._ids + context.depth % 2
