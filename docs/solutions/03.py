"""Solutions of the exercises of chapter 3, as ``minispec.exercises`` grades them."""


def residual(p, q):
    """What the next token is drawn from after a rejection: a dict of probabilities by id.

    p, q: dicts of fractions by id. q lists the ids of a shortlist only. Where nothing is left, p.
    """
    rest = {token: max(p[token] - q.get(token, 0), 0) for token in p}
    mass = sum(rest.values())
    return {token: share / mass for token, share in rest.items()} if mass else p


def choose(probs, u):
    """The index that a uniform number u in [0, 1) chooses.

    The first whose cumulative sum exceeds u. Never one of probability 0, rounding or not.
    """
    total = 0.0
    for index, probability in enumerate(probs):
        total += probability
        if u < total:
            return index
    return max(index for index, probability in enumerate(probs) if probability > 0)
