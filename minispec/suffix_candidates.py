"""Continuations of the text so far as candidates in a proposal, alone or beside a draft's tokens.

A continuation is picked, not drawn: it is recorded with a point mass. Where it repeats a token
that the draft proposed at the same node, the draft's token stays with its recorded q, and what
follows in the continuation is appended below it.

**Why the merged tree is exact.** At each node the candidates are tested in the order of their
indices, each against the residual left by those rejected before it: r_0 = p, candidate x_i is
accepted with probability min(1, r_i(x_i) / q_i(x_i)), r_(i+1) = (r_i - q_i)+, normalised. If, given
all that was tested before it, x_i is distributed as q_i, the token emitted at the node follows r_i
(the identity in ``verify``), and by induction p. Two things must hold for that:

* A draft's token is tested before every candidate that depends on it: it follows q only while
  nothing is known of it. Whether a continuation is there depends on what the draft drew, so at
  each node the continuations come after the draft's tokens.
* A continuation depends on the past and on the draft's tokens, and those at its own node have been
  tested, so given them it is a point mass. Draws elsewhere in the tree are independent of what
  is tested at this node: they may decide how many continuations there are.

With the continuation first, and left out where the draft draws the same token, the output would be
wrong: while it is there, the draft's token is known to differ from it, and does not follow q.

Knows nothing of models.
"""

import torch

from minispec.logits_processor import History
from minispec.sampling import Sampling
from minispec.suffix_index import Continuations, SuffixIndex
from minispec.tree import find_path
from minispec.types import Distribution, Proposal


def add_continuations(
    proposal: Proposal, index: SuffixIndex, depth: int, sampling: Sampling, history: History
) -> Proposal:
    """A proposal with continuations of the text of ``history``, at most ``depth`` tokens long and
    ``index.config.nodes`` in all. The index is given what it lacks of the text. Where the draft
    proposed nothing, the most frequent continuation alone, a chain of ``depth`` tokens."""
    index.extend(history.tokens[index.text_length :])
    if not len(proposal):
        found = index.find(depth, depth, siblings=1)
        return merge_continuations(proposal, found, depth, sampling, history)
    limit = index.config.nodes
    found = index.find(depth, limit + len(proposal))  # as many may repeat the draft's
    return merge_continuations(proposal, found, limit, sampling, history)


def merge_continuations(
    proposal: Proposal, found: Continuations, limit: int, sampling: Sampling, history: History
) -> Proposal:
    """A proposal with at most ``limit`` tokens of ``found`` appended, the likeliest first, each
    unless its path is proposed already. Tokens that would complete a bad word are left out, and
    what follows them: their p is 0."""
    tokens, distributions = [*proposal.tokens], [*proposal.draft_distributions]
    parents = [*proposal.parents]
    nodes: dict[tuple[int, int], int] = {}  # by parent and token; of equal siblings the first
    for drafted, key in enumerate(zip(parents, tokens, strict=True)):
        nodes.setdefault(key, drafted)
    merged: list[int | None] = []  # the node of each continuation, None if it was left out
    for token, parent in zip(found.tokens, found.parents, strict=True):
        above = -1 if parent < 0 else merged[parent]
        node = None if above is None else nodes.get((above, token))
        if above is not None and node is None and len(tokens) - len(proposal) < limit:
            path = [tokens[node] for node in find_path(parents, above)]
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
