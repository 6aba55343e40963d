"""What alignment makes small: the chance that verification rejects.

With x drawn from q and accepted with probability min(1, p(x) / q(x)), the acceptance rate is

    alpha = sum_x q(x) min(1, p(x) / q(x)) = sum_x min(p(x), q(x)) = 1 - TV(p, q),

so 1 - alpha is the loss to have. Its gradient by the logits z of q is

    d(1 - alpha) / dz_y = -q(y) ([q(y) < p(y)] - sum_x q(x) [q(x) < p(x)]),

which is of the size of q where p lies: a draft that gives the target's tokens next to nothing
learns next to nothing from it. The cross-entropy -sum_x p(x) log q(x), which is KL(p || q) up
to a constant, pulls with p(y) - q(y) there. So the default is their mixture with the weight
that they need each other at (our formulation):

    loss = (1 - alpha) + (1 - alpha)* KL(p || q),       * : taken as a constant.

Laws come as their largest probabilities, and q over some ids only: all those that any law at
hand names, and some others drawn at random, which stand for all the rest of the vocabulary.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Objective = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def overlap(logs: Tensor, probs: Tensor, places: Tensor) -> Tensor:
    """alpha (N,) of laws whose largest probabilities are ``probs`` (N, m), at ``places`` (N, m)
    of the ids that log q, ``logs`` (N, K), is known of."""
    return torch.minimum(probs, logs.gather(1, places).exp()).sum(dim=1)


def _kl(logs: Tensor, probs: Tensor, places: Tensor) -> Tensor:
    known = logs.gather(1, places)
    return (torch.special.xlogy(probs, probs) - probs * known).sum(dim=1)


def _reverse_kl(logs: Tensor, probs: Tensor, places: Tensor) -> Tensor:
    rest = (1 - probs.sum(dim=1, keepdim=True)).clamp(min=1e-3) / logs.shape[1]
    p = rest.expand_as(logs).scatter_add(1, places, probs)
    return (logs.exp() * (logs - p.log())).sum(dim=1)


def _tv(logs: Tensor, probs: Tensor, places: Tensor) -> Tensor:
    return 1 - overlap(logs, probs, places)


def _mixture(logs: Tensor, probs: Tensor, places: Tensor) -> Tensor:
    rejected = _tv(logs, probs, places)
    return rejected + rejected.detach() * _kl(logs, probs, places)


# By name: (logs (N, K), probs (N, m), places (N, m)) -> losses (N,).
OBJECTIVES = {"kl": _kl, "reverse_kl": _reverse_kl, "tv": _tv, "mixture": _mixture}


def support(
    distributions: Tensor, others: int, vocab_size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Ids (K,), sorted, that q is computed over, and what to add to their logits (K,).

    All of ``distributions``, and ``others`` more at random: these stand for every id that is not here,
    so their logits are raised by the logarithm of how many each stands for.
    """
    named = distributions.unique()
    drawn = torch.randint(vocab_size, (others,), generator=generator)
    drawn = drawn[~torch.isin(drawn, named)].unique()
    ids = torch.cat((named, drawn))
    weight = max(vocab_size - len(named), 1) / max(len(drawn), 1)
    raised = torch.zeros(len(ids))
    raised[len(named) :] = torch.tensor(weight).log()
    order = ids.argsort()
    return ids[order], raised[order]


def log_distribution(hidden: Tensor, rows: Tensor, raised: Tensor) -> Tensor:
    """log q (N, K) of states (N, D) over the head's ``rows`` (K, D), their logits ``raised`` (K,),
    in float32 or better."""
    logits = F.linear(hidden, rows)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return torch.log_softmax(logits + raised, dim=-1)
