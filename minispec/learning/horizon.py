"""EvoSpec's horizon curriculum (arXiv 2605.27390 v1, equations 4 and 5).

A sample is a run of G successive tokens. Draft step k = 1..G is trained on its k-th token with
the weight

    w_k = exp(-beta * L * (k - 1))                                               (4)

where L is the cross-entropy of the sample's first step: while the draft fails at the next token,
it learns little else; once it succeeds, later steps count too. The loss is the sum over samples of

    J = sum_k w_k T^2 KL(p_k || q_k)                                             (5)

with p_k the softmax of the target's top-k logits at temperature T, and q_k the draft's distribution
at the same temperature. The paper leaves open, and is decided here: q_k is normalised over the same
top-k ids, as is the draft's distribution in L; L is computed for each sample, with the emitted
token as the label, or the target's likeliest if the top k lack it; w_k is a constant in the
gradient. Pure functions.
"""

import torch
from torch import Tensor


def step_weights(first_losses: Tensor, steps: int, beta: float) -> Tensor:
    """Cross-entropies of the first step (B,) -> weights (B, G) for ``steps`` = G, equation 4."""
    return torch.exp(-beta * first_losses[:, None] * torch.arange(steps))


def horizon_loss(
    target_logits: Tensor,
    draft_logits: Tensor,
    labels: Tensor,
    known: Tensor,
    beta: float,
    temperature: float = 1.0,
) -> Tensor:
    """J (scalar), equation 5, summed over B samples.

    ``target_logits`` and ``draft_logits`` (B, G, k): over the target's k likeliest ids at each
    step. ``labels`` (B,): the column of the emitted token at the first step. ``known`` (B, G):
    False for steps beyond the end of a text.
    """
    log_p = torch.log_softmax(target_logits / temperature, dim=-1)  # (B, G, k)
    log_q = torch.log_softmax(draft_logits / temperature, dim=-1)  # (B, G, k)
    divergences = (log_p.exp() * (log_p - log_q)).sum(-1)  # (B, G)
    first = torch.log_softmax(draft_logits[:, 0], dim=-1).gather(1, labels[:, None])[:, 0]  # (B,)
    weights = step_weights(-first.detach(), divergences.shape[1], beta) * known  # (B, G)
    return temperature**2 * (weights * divergences).sum()
