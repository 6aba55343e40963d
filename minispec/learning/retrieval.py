"""Nearest-neighbour retrieval, as in kNN-LM (Khandelwal et al., arXiv 1911.00172).

Text repeats itself, and gradient steps are slow. So the target distributions recorded during
verification are also retrieved directly: the entries nearest to the draft's hidden state are
averaged and interpolated with the draft's distribution,

    q' = (1 - lambda) q + lambda sum_i w_i p_i,    w_i proportional to exp(score_i / T).

The key is the draft's own hidden state. Two choices are ours: the score is the cosine of the
keys, plus a bonus for each of the most recent tokens in common; and lambda grows with the total
weight of the neighbours, so that dissimilar entries change little.

q' depends on the past alone, and tokens are drawn from it, so verification stays exact.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from minispec.learning.replay_buffer import Entries

_NUM_NEIGHBOURS = 8
_TEMPERATURE = 0.05  # of the softmax over scores
_TOKEN_BONUS = 0.1  # added to the cosine for each recent token in common
_MAX_LAMBDA = 0.7
_HALF_WEIGHT = 2.0  # the total weight of neighbours at which lambda is half of its maximum


def interpolate_neighbours(
    logits: Tensor, hidden: Tensor, ids: Tensor, ngram: Tensor, entries: Entries
) -> Tensor:
    """Logits (K,) of q over ``ids`` (K,), sorted -> logits (K,) of q', not normalised.

    ``hidden`` (D,): the draft's hidden state that the logits were computed from; ``ngram``
    (NGRAM_SIZE,): the most recent tokens, newest first; ``entries`` (R, ...): the recorded
    positions, at least one. Probability retrieved for ids outside ``ids`` is dropped.
    """
    key = F.normalize(hidden.to(entries.keys.dtype), dim=0)  # (D,)
    num_common = (entries.ngrams == ngram).cumprod(dim=1).sum(dim=1)  # (R,)
    scores = entries.keys @ key + _TOKEN_BONUS * num_common  # (R,)
    top_scores, neighbours = scores.topk(min(_NUM_NEIGHBOURS, len(scores)))  # (n,)
    weights = ((top_scores - 1) / _TEMPERATURE).exp()  # (n,)
    total = weights.sum()
    retrieved = ((weights / total)[:, None] * entries.probs[neighbours]).flatten()  # (n * m,)
    retrieved_ids = entries.ids[neighbours].flatten()  # (n * m,)
    index = torch.searchsorted(ids, retrieved_ids).clamp_(max=len(ids) - 1)  # (n * m,), into ids
    retrieved = torch.where(ids[index] == retrieved_ids, retrieved, 0)
    # Sum the probability of an id over all neighbours that have it.
    retrieved = retrieved.new_zeros(len(ids)).index_add_(0, index, retrieved)[index]
    # q' / (1 - lambda) = q + lambda / (1 - lambda) * retrieved has the same softmax as q', and in
    # its logarithm only the logits of retrieved ids change.
    lambda_ = _MAX_LAMBDA * total / (total + _HALF_WEIGHT)
    added = (retrieved * lambda_ / (1 - lambda_)).log().to(logits.dtype) + logits.logsumexp(0)
    adjusted = logits.clone()
    adjusted[index] = torch.logaddexp(logits[index], added)
    return adjusted
