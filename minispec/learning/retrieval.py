"""Recall: what the target said where the draft stood in much the same place.

LoRA learns slowly; text repeats itself at once. So the laws that verification revealed are
also looked up: the rows whose direction is like the draft's own now, and whose last tokens are
the same, vote on what follows, and their vote is mixed into the draft's law,

    q' = (1 - t) q + t sum_i w_i p_i,    w_i ~ exp(score_i / warmth),

where the trust t grows with the votes' weight, so that an unlike past changes little. This is
the nearest-neighbour language model of Khandelwal et al. (arXiv 1911.00172) with the draft's
own state as key; scores and trust are our formulation. q' is a function of the past alone and
is what a token is drawn from, so verification stays exact.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from minispec.learning.replay_buffer import Rows

_NEIGHBOURS = 8
_WARMTH = 0.05  # of cosines
_TOKEN = 0.1  # what each further token in common adds to the cosine
_DOUBT = 2.0  # the weight of votes at which half of the most trust is given
_MOST = 0.7


def interpolate_neighbours(
    logits: Tensor, hidden: Tensor, ids: Tensor, trail: Tensor, rows: Rows
) -> Tensor:
    """Logits (K,) of the law that recall makes of logits (K,) over ids (K,), sorted.

    ``hidden`` (D,): the draft's state that the logits come from; ``trail`` (TRAIL,): the last
    tokens, newest first; ``rows`` (R, ...): what may be remembered, at least one. Votes for ids
    that are not on the list are void.
    """
    direction = F.normalize(hidden.to(rows.directions.dtype), dim=0)
    same = (rows.trails == trail).cumprod(dim=1).sum(dim=1)  # (R,) tokens in common
    scores = rows.directions @ direction + _TOKEN * same
    best, places = scores.topk(min(_NEIGHBOURS, len(scores)))
    weights = ((best - 1) / _WARMTH).exp()  # (n,)
    total = weights.sum()
    votes = ((weights / total)[:, None] * rows.probs[places]).flatten()  # (n * m,)
    voted = rows.ids[places].flatten()
    at = torch.searchsorted(ids, voted).clamp_(max=len(ids) - 1)
    votes = torch.where(ids[at] == voted, votes, 0)
    votes = votes.new_zeros(len(ids)).index_add_(0, at, votes)[at]  # those for one id together
    # In logits, where a constant does not matter, only the ids voted for change:
    # log(q + t / (1 - t) v) of them, with q as it stands.
    trust = _MOST * total / (total + _DOUBT)
    added = (votes * trust / (1 - trust)).log().to(logits.dtype) + logits.logsumexp(0)
    mixed = logits.clone()
    mixed[at] = torch.logaddexp(logits[at], added)
    return mixed
