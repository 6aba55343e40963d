"""Solutions of the exercises of chapter 8, as ``minispec.exercises`` grades them."""


def recent_ids(tokens, count):
    """The distinct ids of a text, those used last first, at most ``count``."""
    found = list(dict.fromkeys(reversed(tokens)))
    return found[:count]


def learn_pairs(before, emitted, proposed, accepted):
    """The pairs (token, successor) that a round teaches, as a set.

    before: the last token before the round. emitted: the round's tokens, of which the first
    ``accepted`` were proposed. Pairs of the text are learnt, and that of the rejected token.
    """
    past = [before, *emitted[:-1]]
    pairs = set(zip(past, emitted))
    if accepted < len(proposed):
        pairs.add((past[accepted], proposed[accepted]))
    return pairs
