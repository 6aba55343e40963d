"""ARC (Megiddo and Modha, FAST 2003): a buffer that balances recent and frequent ids.

T1 holds ids that were seen once, T2 ids that were seen again, each ordered by last use. Ids that
were evicted are remembered for a while, without a place in the buffer, as the ghosts B1 and B2. A
ghost that returns shows that its part was too short, so ``p``, the size that T1 should have, moves.

EvoSpec (arXiv 2605.27390 v1, appendix A.3 and table 5) keeps the 256 dynamic ids of its draft
vocabulary this way, with three rules of its own: p starts at 128 and is fixed for the first 50
events; an id stays for at least 8 decoding steps; B1 and B2 hold 256 ids each.

The paper leaves open, and is decided here: p moves by ARC's own rule; for other capacities p starts
at half, and B1 and B2 hold as many ids as the buffer; a step is a round; if all ids of the part
that is to shrink are too young to leave, one of the other part leaves; if these are as well, the
new id is refused.

Knows nothing of where ids come from.
"""

from collections import OrderedDict


class ArcBuffer:
    """At most ``capacity`` ids, replaced by ARC."""

    def __init__(self, capacity: int, *, residence: int = 8, warm_up: int = 50) -> None:
        """``residence``: steps for which a new id stays at least; ``warm_up``: events before p
        moves."""
        self.capacity, self._residence, self._warm_up = capacity, residence, warm_up
        self.clear()

    def clear(self) -> None:
        """Restore the state after construction."""
        # Each part maps an id to the step of its admission, the least recently used first.
        self._recent: OrderedDict[int, int] = OrderedDict()  # T1
        self._frequent: OrderedDict[int, int] = OrderedDict()  # T2
        self._recent_ghosts: OrderedDict[int, int] = OrderedDict()  # B1
        self._frequent_ghosts: OrderedDict[int, int] = OrderedDict()  # B2
        self.recent_target = self.capacity / 2  # p, the size that T1 should have
        self._step = self._events = 0

    def __contains__(self, token: int) -> bool:
        return token in self._recent or token in self._frequent

    def __len__(self) -> int:
        return len(self._recent) + len(self._frequent)

    def ids(self) -> list[int]:
        """The ids in the buffer, in no particular order."""
        return [*self._recent, *self._frequent]

    def count_step(self) -> None:
        """Count one decoding step: every id in the buffer is one step older."""
        self._step += 1

    def count_event(self) -> None:
        """Count one event: after ``warm_up`` of them, returning ghosts move p."""
        self._events += 1

    def touch(self, token: int) -> None:
        """Note the use of an id in the buffer: it becomes the latest of T2."""
        admitted = self._recent.pop(token, None)
        if admitted is None:
            admitted = self._frequent.pop(token)
        self._frequent[token] = admitted

    def admit(self, token: int) -> bool:
        """Put in an id that is not in the buffer, in place of another if the buffer is full. False
        if every other id is too young to leave."""
        if token in self._recent_ghosts:
            self._move_target(max(1.0, len(self._frequent_ghosts) / len(self._recent_ghosts)))
        elif token in self._frequent_ghosts:
            self._move_target(-max(1.0, len(self._recent_ghosts) / len(self._frequent_ghosts)))
        if len(self) >= self.capacity and not self._evict():
            return False
        # One of the two at most had the id.
        returned = self._recent_ghosts.pop(token, self._frequent_ghosts.pop(token, None))
        (self._recent if returned is None else self._frequent)[token] = self._step
        return True

    def _move_target(self, by: float) -> None:
        if self._events > self._warm_up:
            self.recent_target = min(max(self.recent_target + by, 0.0), float(self.capacity))

    def _evict(self) -> bool:
        """Evict the least recently used id of T1 if T1 is longer than p, else of T2, that is old
        enough; of the other part if this one has none. False if there is none in either."""
        recent = (self._recent, self._recent_ghosts)
        frequent = (self._frequent, self._frequent_ghosts)
        longer = len(self._recent) > self.recent_target
        for ids, ghosts in (recent, frequent) if longer else (frequent, recent):
            for token, admitted in ids.items():
                if self._step - admitted >= self._residence:
                    del ids[token]
                    ghosts[token] = admitted
                    if len(ghosts) > self.capacity:
                        ghosts.popitem(last=False)
                    return True
        return False
