"""Solutions of the exercises of chapter 4, as ``minispec.exercises`` grades them."""


def resync(draft, cache, start, ids, states):
    """Rebuild the draft's cache after a round; returns the state that the next round begins with.

    start: the cache's length at the start of the round. ids (n,): the emitted tokens. states
    (n, D): of the target, one beside each. ``cache.truncate(length)`` cuts the cache, and
    ``draft.step(ids, states, cache)`` appends to it and returns the draft's own states (n, D).
    """
    cache.truncate(start)
    return draft.step(ids, states, cache)[-1]


def roll_back(cache, before, accepted):
    """Cuts the target's cache back after a round.

    before: the cache's length before the round's pass, which has read the last emitted token and
    the drafted ones. accepted: how many of these were accepted.
    """
    cache.truncate(before + 1 + accepted)
