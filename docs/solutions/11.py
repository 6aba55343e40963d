"""Solutions of the exercises of chapter 11, as ``minispec.exercises`` grades them."""


def break_even_tau(target, draft, row, ids, gamma):
    """The tau below which speculation is slower than plain decoding, if reading is the only cost.

    target, draft, row: megabytes of the target, of the draft without a head, of one head row.
    ids: on the shortlist. gamma: tokens drafted in a round.
    """
    return (target + gamma * (draft + ids * row)) / target


class PackedRows:
    """Logits of a shortlist's ids, from a packed copy of their head rows.

    The rows are copied again when the shortlist changes, and only then. ``copies`` counts it.
    """

    def __init__(self, weight):
        self._weight, self._ids, self._packed = weight, None, None
        self.copies = 0

    def logits_of(self, hidden, ids):
        if ids is not self._ids:
            self._ids, self._packed = ids, self._weight[ids]
            self.copies += 1
        return hidden @ self._packed.T
