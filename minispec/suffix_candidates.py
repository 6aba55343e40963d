"""Continuations of the text so far as candidates in a proposal, alone or beside a draft's tokens.

A continuation is picked, not drawn: it is recorded with a point mass. Where it repeats a token
that the draft proposed at the same node, the draft's token stays with its recorded q, and what
follows in the continuation is appended below it.

**Why the merged tree is exact.** At each node the candidates are tested in the order of their
indices, each against the residual left by those rejected before it: r_0 = p, candidate x_i is
accepted with probability min(1, r_i(x_i) / q_i(x_i)), r_(i+1) = (r_i - q_i)+, normalised. If, given
all that was tested before it, x_i is distributed as q_i, the token emitted at the node follows r_i
(the identity in ``verify``), and by induction p. So

* what a continuation depends on is tested before it: given that, it is a point mass. It depends on
  the past, on the tokens on the way to it, and on the draft's tokens at its own node, which come
  before it there. It depends on no draws elsewhere in the tree: how many continuations are looked
  up is known before anything is drawn, and those that repeat drafted tokens are not replaced.
* a draft's token follows its q given what is tested before it, since nothing of that depends on it.

With the continuation first, and left out where the draft drew the same token, the output would be
wrong: while it is there, the draft's token is known to differ from it, and does not follow q.

Knows nothing of models.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from minispec.logits_processor import History
from minispec.sampling import Sampling
from minispec.suffix_index import Continuations, SuffixIndex
from minispec.tree import find_path
from minispec.types import Distribution, Proposal


@dataclass(frozen=True)
class SuffixProposer:
    """Finds continuations in ``index``: at most ``nodes`` tokens, paths of at most ``depth``, and
    at most ``siblings`` after a token, or any number."""

    index: SuffixIndex
    depth: int
    nodes: int
    siblings: int | None = None

    def find(self, tokens: Sequence[int], depth: int) -> Continuations:
        """The continuations of a text, paths of at most ``depth``. The index is given what it lacks
        of the text."""
        self.index.extend(tokens[self.index.text_length :])
        return self.index.find(min(depth, self.depth), self.nodes, self.siblings)


def merge_continuations(
    proposal: Proposal, found: Continuations, sampling: Sampling, history: History
) -> Proposal:
    """A proposal for the position after ``history`` with the tokens of ``found`` appended, each
    unless its path is proposed already.
    Tokens that would complete a bad word are left out, and what follows them: their p is 0."""
    tokens, distributions = [*proposal.tokens], [*proposal.draft_distributions]
    parents = [*proposal.parents]
    nodes: dict[tuple[int, int], int] = {}  # by parent and token; of equal siblings the first
    for drafted, key in enumerate(zip(parents, tokens, strict=True)):
        nodes.setdefault(key, drafted)
    merged: list[int | None] = []  # the node of each continuation, None if it was left out
    for token, parent in zip(found.tokens, found.parents, strict=True):
        above = -1 if parent < 0 else merged[parent]
        node = None if above is None else nodes.get((above, token))
        if above is not None and node is None:
            path = [tokens[each] for each in find_path(parents, above)]
            past = History((*history.tokens, *path), history.prompt_length)
            if not sampling.excludes_all(torch.tensor([token]), past):
                node = nodes[above, token] = len(tokens)
                tokens.append(token)
                parents.append(above)
                distributions.append(_point_mass(token, sampling))
        merged.append(node)
    return Proposal(tuple(tokens), tuple(distributions), tuple(parents))


def _point_mass(token: int, sampling: Sampling) -> Distribution:
    """Probability 1 for a token, in the arithmetic of ``sampling``: of a single id it is 1 whatever
    its logit."""
    return sampling.shape(torch.ones(1), torch.tensor([token]))
