"""SpecVocab's speculated vocabulary (arXiv 2602.13836): score every id cheaply, then some exactly.

The hidden state h (D,) is projected down to r numbers, from which an approximate logit of every
id is computed:

    W h  is about  (W A) (B' h)        A, B: (D, r), with r far below D

The ids of the highest approximate logits are the shortlist of a draft step, and the draft's logits
over them are exact. An id that no text has used is found as easily as a frequent one. The paper
keeps 2,048 ids, has r = D / 8, and trains both factors by distillation.

Ours: the factors of least mean squared error of the logits over hidden states, which have a closed
form (reduced-rank regression: Izenman, J. Multivariate Analysis 1975). The singular vectors of W
alone serve far worse: hidden states lie in few directions, which are not those of W. The end ids
are always on the shortlist.

Cost, in numbers read from memory: (V + D) * r to choose, and K * D for the head rows, at each step.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from minispec.errors import ArgumentError
from minispec.models.lm_head import LinearHead
from minispec.types import BaseShortlist, Context, Head


def fit_factors(rows: Tensor, moment: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The factors A (D, r) and B (D, r), float32, for rows W (V, D) of the LM head that minimise
    the mean of \\|W h - W A B' h\\|^2 over hidden states h of second moment E[h h'] (D, D). The
    identity as ``moment`` gives the truncated singular value decomposition of W.

    Raises ArgumentError for a rank outside 1..D.
    """
    size = rows.shape[1]
    if not 1 <= rank <= size:
        raise ArgumentError(f"rank {rank} must lie in 1..{size}, the hidden size")
    # With h = L z and E[z z'] = 1, the best projection of z is on the leading right singular
    # vectors of W L: the eigenvectors of a small matrix, the largest last.
    ridge = 1e-6 * moment.diagonal().mean() * torch.eye(size, dtype=torch.float64)
    root = torch.linalg.cholesky(moment + ridge)  # (D, D) float64, L
    product = rows.float() @ root.float()  # (V, D), W L
    vectors = torch.linalg.eigh((product.T @ product).double()).eigenvectors[:, -rank:]  # (D, r)
    projection = torch.linalg.solve_triangular(root.T, vectors, upper=True)  # L'^-1 z-vectors
    return (root @ vectors).float(), projection.float()


class LowRankShortlist(BaseShortlist):
    """The ids of the highest logits under a low-rank head, chosen anew at each step."""

    name = "lowrank"

    def __init__(
        self,
        rows: Tensor,
        budget: int,
        eos_ids: tuple[int, ...],
        factors: tuple[Tensor, Tensor],
        build_head: Callable[[Tensor], Head] = LinearHead,
    ) -> None:
        """``rows`` (V, D) of the LM head; 1 <= budget <= V; ``factors`` A and B (D, r), see
        ``fit_factors``. ``build_head``: makes the head of the low-rank rows (V, r), bfloat16."""
        expand, self._projection = factors[0].float(), factors[1].float()
        # (V, r) in half the bytes: rounding moves ids only near the end of the shortlist.
        self._head = build_head((rows.float() @ expand).bfloat16())
        self.budget, self._eos_ids = budget, torch.tensor(eos_ids[:budget], dtype=torch.int64)
        (vocab_size, hidden_size), rank = rows.shape, expand.shape[1]
        self.rows_probed = -(-(vocab_size + hidden_size) * rank // hidden_size)

    def select(self, context: Context) -> Tensor:
        query = context.hidden.float() @ self._projection  # (r,)
        scores = self._head.logits(query.bfloat16()[None])[0]  # (V,)
        scores[self._eos_ids] = torch.inf
        ids = np.asarray(scores.topk(self.budget, sorted=False).indices)  # (K,)
        return torch.from_numpy(np.sort(ids))
