"""The loss of online learning: the probability that verification rejects a draft token.

With x drawn from q and accepted with probability min(1, p(x) / q(x)), the acceptance rate
(Leviathan et al., arXiv 2211.17192) is

    alpha = sum_x q(x) min(1, p(x) / q(x)) = sum_x min(p(x), q(x)) = 1 - TV(p, q),

so the loss to minimise is 1 - alpha. Its gradient with respect to the logits z of q is

    d(1 - alpha) / dz_y = -q(y) ([q(y) < p(y)] - sum_x q(x) [q(x) < p(x)]).

It vanishes with q(y): a draft that gives the target's tokens almost no probability learns almost
nothing from it. The gradient of the cross-entropy -sum_x p(x) log q(x), which is KL(p || q) up
to a constant, is q(y) - p(y) and does not vanish there. The default is a mixture in which the
KL term has the weight 1 - alpha (our formulation):

    loss = (1 - alpha) + (1 - alpha)* KL(p || q),       * : detached, a constant.

p is given by its top-k probabilities. q is a sampled softmax (Jean et al., arXiv 1412.2007): it
is computed over the ids in the top-k of any p of the batch, and over some random ids that
represent the rest of the vocabulary.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from minispec.types import Distribution

# (log_q (N, K), probs (N, m), columns (N, m)) -> losses (N,).
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def acceptance_rate(p: Distribution, q: Distribution) -> float:
    """alpha = sum_x min(p(x), q(x)) of two distributions."""
    in_p, in_q = p.common_indices(q)
    return float(torch.minimum(p.probs[in_p], q.probs.to(p.probs)[in_q]).sum())


def acceptance_rates(log_q: Tensor, probs: Tensor, columns: Tensor) -> Tensor:
    """alpha (N,) of N positions, from log q, ``log_q`` (N, K), and the top-k probabilities of p,
    ``probs`` (N, m), whose ids stand in the ``columns`` (N, m) of ``log_q``."""
    return torch.minimum(probs, log_q.gather(1, columns).exp()).sum(dim=1)


def _kl(log_q: Tensor, probs: Tensor, columns: Tensor) -> Tensor:
    log_q_of_p = log_q.gather(1, columns)  # (N, m)
    return (torch.special.xlogy(probs, probs) - probs * log_q_of_p).sum(dim=1)


def _reverse_kl(log_q: Tensor, probs: Tensor, columns: Tensor) -> Tensor:
    # The probability outside the top k is spread evenly over the K ids.
    rest = (1 - probs.sum(dim=1, keepdim=True)).clamp(min=1e-3) / log_q.shape[1]  # (N, 1)
    p = rest.expand_as(log_q).scatter_add(1, columns, probs)  # (N, K)
    return (log_q.exp() * (log_q - p.log())).sum(dim=1)


def _tv(log_q: Tensor, probs: Tensor, columns: Tensor) -> Tensor:
    return 1 - acceptance_rates(log_q, probs, columns)


def _mixture(log_q: Tensor, probs: Tensor, columns: Tensor) -> Tensor:
    rejection = _tv(log_q, probs, columns)
    return rejection + rejection.detach() * _kl(log_q, probs, columns)


LOSSES: dict[str, Loss] = {"kl": _kl, "reverse_kl": _reverse_kl, "tv": _tv, "mixture": _mixture}


def sample_softmax_ids(
    target_ids: Tensor, num_random_ids: int, vocab_size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The ids (K,), sorted, of a sampled softmax, and the offsets of their logits (K,).

    All ``target_ids`` (..., m) are in it, and ``num_random_ids`` drawn at random with
    replacement. These represent every id outside ``target_ids``, so their logits are raised by
    log(n / s), where s distinct random ids represent n.
    """
    targets = target_ids.unique()
    drawn = torch.randint(vocab_size, (num_random_ids,), generator=generator)
    drawn = drawn[~torch.isin(drawn, targets)].unique()
    ids = torch.cat((targets, drawn))  # (K,)
    represented = max(vocab_size - len(targets), 1) / max(len(drawn), 1)
    offsets = torch.zeros(len(ids))
    offsets[len(targets) :] = torch.tensor(represented).log()
    order = ids.argsort()
    return ids[order], offsets[order]


def sampled_log_softmax(hidden: Tensor, head_rows: Tensor, offsets: Tensor) -> Tensor:
    """log q (N, K) of hidden states (N, D) over ``head_rows`` (K, D) of the LM head, whose
    logits are raised by ``offsets`` (K,), in float32 or better."""
    logits = F.linear(hidden, head_rows)  # (N, K)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return torch.log_softmax(logits + offsets, dim=-1)
