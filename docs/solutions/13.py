"""Solutions of the exercises of chapter 13, as ``minispec.exercises`` grades them."""

import torch

from minispec import BaseShortlist
from minispec.types import Distribution
from minispec.verify import Verdict, acceptance_probability, positive_part


class RecentShortlist(BaseShortlist):
    """The distinct ids that the text used last: at most half of the vocabulary, sorted."""

    name = "recent"

    def __init__(self, vocab_size):
        self.budget = max(1, vocab_size // 2)

    def select(self, context):
        ids = list(dict.fromkeys(reversed(context.tokens)))
        return torch.tensor(sorted(ids[: self.budget]))


def verify_on_shortlist(proposal, target_distributions, rng):
    """Verifies a chain that was drafted from a shortlist."""
    accepted, p = 0, target_distributions[0]
    for token, q in zip(proposal.tokens, proposal.draft_distributions):
        if not rng.bernoulli(acceptance_probability(p, q, token)):
            rest = positive_part(p, q)
            if rest.sum() > 0:
                p = Distribution(p.ids, rest / rest.sum())
            break
        accepted += 1
        p = target_distributions[accepted]
    token = int(p.ids[rng.choose(p.probs)])
    return Verdict(tuple(range(accepted)), token, p, ())
