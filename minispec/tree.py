"""Trees of drafted tokens: several candidates for a position, each with its own continuation.

A tree is a sequence of parents (see ``types.Proposal``): -1 for a root, otherwise the index of an
earlier node. A chain, (-1, 0, 1, ...), is the tree without branches.

Knows nothing of models, of drafting or of verification.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from minispec.types import Proposal, Round


def is_chain(parents: Sequence[int]) -> bool:
    """Whether each node is the parent of the next."""
    return all(parent == node - 1 for node, parent in enumerate(parents))


def find_depths(parents: Sequence[int]) -> list[int]:
    """The depth of each of N nodes, 0 for the roots."""
    depths: list[int] = []
    for parent in parents:
        depths.append(0 if parent < 0 else depths[parent] + 1)
    return depths


def find_path(parents: Sequence[int], node: int) -> tuple[int, ...]:
    """The nodes from the root to ``node``, which is among them; none for -1."""
    path: list[int] = []
    while node >= 0:
        path.append(node)
        node = parents[node]
    return tuple(reversed(path))


def list_children(parents: Sequence[int]) -> list[list[int]]:
    """The children of each node in order, N + 1 lists; the last one, of index -1: the roots."""
    children: list[list[int]] = [[] for _ in range(len(parents) + 1)]
    for node, parent in enumerate(parents):
        children[parent].append(node)
    return children


def find_ancestors(parents: Sequence[int]) -> Tensor:
    """Which nodes each of N nodes attends to: itself and its ancestors. (N, N) bool, a row for
    each node."""
    related = torch.eye(len(parents), dtype=torch.bool)
    for node, parent in enumerate(parents):
        if parent >= 0:
            related[node] |= related[parent]
    return related


def list_arguments(proposal: Proposal) -> tuple[list[int], ...]:
    """The last argument of ``Target.step`` for a pass over the last emitted token and the drafted
    ones: its parents. None for a chain, which runs on targets that have no trees."""
    if is_chain(proposal.parents):
        return ()
    return ([-1, *(1 + parent for parent in proposal.parents)],)


def select(proposal: Proposal, nodes: Sequence[int]) -> Proposal:
    """Some nodes of a proposal, in order, the parents of each among them."""
    if len(nodes) == len(proposal):
        return proposal
    indices = {-1: -1} | {node: index for index, node in enumerate(nodes)}
    return Proposal(
        tuple(proposal.tokens[node] for node in nodes),
        tuple(proposal.draft_distributions[node] for node in nodes),
        tuple(indices[proposal.parents[node]] for node in nodes),
    )


def follow(proposal: Proposal, path: Sequence[int]) -> Proposal:
    """The chain of the nodes of a path, root to leaf, and the first candidate for the position
    after it, if there is one: what was rejected there first. A chain of n drafted tokens of which
    k were accepted becomes its first min(k + 1, n)."""
    last = path[-1] if path else -1
    nodes = [*path, *[node for node, parent in enumerate(proposal.parents) if parent == last][:1]]
    return Proposal(
        tuple(proposal.tokens[node] for node in nodes),
        tuple(proposal.draft_distributions[node] for node in nodes),
    )


def list_rejected(finished: Round) -> tuple[int, ...]:
    """The tokens that were candidates for the position after the accepted ones, in the order in
    which they were rejected: one at most in a chain, none after a stop."""
    last = finished.path[-1] if finished.path else -1
    parents = finished.parents or range(-1, len(finished.proposed) - 1)
    nodes = zip(finished.proposed, parents, strict=True)
    return tuple(token for token, parent in nodes if parent == last)
