"""Solutions of the exercises of chapter 12, as ``minispec.exercises`` grades them."""

from minispec.verify import acceptance_probability, residual


def find_ancestors(parents):
    """The mask of a tree: a row for each node, 1 where it attends to another node, else 0.

    parents: of each node an earlier node, or -1. A node attends to its ancestors and itself.
    """
    mask = []
    for node, parent in enumerate(parents):
        row = list(mask[parent]) if parent >= 0 else [0] * len(parents)
        row[node] = 1
        mask.append(row)
    return mask


def verify_siblings(p, candidates, rng):
    """The next token, where several candidates were drawn for one position.

    candidates: (token, q) in the order in which they were drawn.
    """
    for token, q in candidates:
        if rng.bernoulli(acceptance_probability(p, q, token)):
            return token
        p = residual(p, q)
    return int(p.ids[rng.choose(p.probs)])
