"""How often candidates are accepted, estimated from the rounds before.

The estimates are of the past alone, and keep counts, no text. Later rounds count more. Knows
nothing of costs, nor of what is chosen by these estimates.
"""

import heapq

import numpy as np
import numpy.typing as npt

from minispec.growth import MAX_DEPTH
from minispec.suffix_index import Continuations
from minispec.tree import find_depths, list_children
from minispec.types import Round

RANKS = 6  # candidates of a node whose acceptance is estimated
_MEMORY = 0.99  # what a round counts after the next one
_PRIOR, _RATIO = 0.6, 0.35  # acceptance of the likeliest candidate, and of each next one beside it
_PRIOR_ROUNDS = 8  # rounds that the prior counts as
_PRIOR_FACTOR = 0.6  # of the share that a continuation has, what is right
_PRIOR_SHARED = 0.7  # of the continuations that are right, what the draft proposes too
_MATCHES = 8  # lengths of a match with counts of their own; longer ones count as the longest

Numbers = npt.NDArray[np.float64]


class AcceptanceEstimate:
    """How often the draft's candidates are accepted, by depth and by rank among their siblings."""

    def __init__(self) -> None:
        self._accepted = np.zeros((MAX_DEPTH, RANKS))
        self._tried = np.zeros((MAX_DEPTH, RANKS))

    def observe(self, finished: Round) -> None:
        """Count a round: at each accepted node, and at the last, which candidate came next. Those
        that no draft proposed (continuations of the text) end the count."""
        drafted = len(finished.shortlist_sizes)
        children = list_children(finished.parents or range(-1, len(finished.proposed) - 1))
        if drafted:
            self._accepted *= _MEMORY
            self._tried *= _MEMORY
        nodes = [-1, *finished.path]
        for depth, (node, following) in enumerate(zip(nodes, [*finished.path, None], strict=True)):
            own = [child for child in children[node] if child < drafted][:RANKS]
            if not own or (following is None and finished.stop):
                break  # nothing was drafted, or nothing after the stop was looked at
            self._tried[depth, : len(own)] += 1
            if following not in own:
                break
            self._accepted[depth, own.index(following)] += 1

    def rates(self, optimism: float = 0.0) -> Numbers:
        """h (depth, rank): what was seen at this depth, and where little was, at all depths; with
        ``optimism`` more for ranks that were seldom tried."""
        pooled = np.empty(RANKS)
        accepted, tried = self._accepted.sum(0), self._tried.sum(0)
        before = _PRIOR / _RATIO
        for rank in range(RANKS):
            # Siblings exclude each other, so what is left for one is at most what the others leave.
            prior = max(0.0, min(_RATIO * before, 1 - pooled[:rank].sum()))
            before = pooled[rank] = (accepted[rank] + _PRIOR_ROUNDS * prior) / (
                tried[rank] + _PRIOR_ROUNDS
            )
        rates: Numbers = (self._accepted + _PRIOR_ROUNDS * pooled) / (self._tried + _PRIOR_ROUNDS)
        return np.minimum(rates + optimism / np.sqrt(tried + _PRIOR_ROUNDS), 1.0)


class ContinuationEstimate:
    """How often continuations of the text are right, by the length of the match and by depth, and
    how often the draft proposes the right ones too.

    A continuation's share (``Continuations``) is taken times a factor: the number of those that
    were right over the sum of their shares."""

    def __init__(self) -> None:
        self._right = np.zeros((_MATCHES, MAX_DEPTH))
        self._expected = np.zeros((_MATCHES, MAX_DEPTH))
        self._both = self._right_roots = 0.0  # of first tokens of continuations

    def observe(self, found: Continuations, finished: Round) -> None:
        """Count the continuations that were found before a round, proposed or not, against the
        tokens that it emitted, which follow p whatever was proposed."""
        if not len(found):
            return
        for counts in (self._right, self._expected):
            counts *= _MEMORY
        children, node, followed = list_children(found.parents), -1, 0
        length = min(found.match_length, _MATCHES) - 1
        for depth, token in enumerate(finished.tokens[:MAX_DEPTH]):
            if not (following := children[node]):
                break
            above = found.shares[node] if node >= 0 else 1.0
            self._expected[length, depth] += sum(found.shares[i] for i in following) / above
            right = [i for i in following if found.tokens[i] == token]
            if not right:
                break
            self._right[length, depth] += 1
            node, followed = right[0], depth + 1
        if (drafted := len(finished.shortlist_sizes)) and followed:
            proposed_too = finished.path != () and finished.path[0] < drafted
            self._both = _MEMORY * self._both + proposed_too
            self._right_roots = _MEMORY * self._right_roots + 1

    def expect(self, found: Continuations) -> Numbers:
        """The probability (n,) that each path of ``found`` is accepted if it is proposed."""
        length = min(found.match_length, _MATCHES) - 1
        factors = self._factors()[length]
        depths, expected = find_depths(found.parents), np.zeros(len(found))
        for i, (parent, share) in enumerate(zip(found.parents, found.shares, strict=True)):
            above, outer = (expected[parent], found.shares[parent]) if parent >= 0 else (1.0, 1.0)
            expected[i] = above * min(1.0, share / outer * factors[depths[i]])
        return expected

    @property
    def shared(self) -> float:
        """Of the right continuations, the part that the draft proposes too, for one token."""
        return (self._both + _PRIOR_ROUNDS * _PRIOR_SHARED) / (self._right_roots + _PRIOR_ROUNDS)

    def _factors(self) -> Numbers:
        """(match length, depth): what was seen there; where little was, at this length, and where
        little was at it, at all."""
        right, expected = self._right.sum(), self._expected.sum()
        all_lengths = (right + _PRIOR_ROUNDS * _PRIOR_FACTOR) / (expected + _PRIOR_ROUNDS)
        right, expected = self._right.sum(1, keepdims=True), self._expected.sum(1, keepdims=True)
        pooled = (right + _PRIOR_ROUNDS * all_lengths) / (expected + _PRIOR_ROUNDS)
        factors: Numbers = (self._right + _PRIOR_ROUNDS * pooled) / (self._expected + _PRIOR_ROUNDS)
        return factors


def expect_accepted(rates: Numbers, depth: int, beam: int, nodes: int) -> list[float]:
    """A of trees of 1, 2, ... at most ``nodes`` nodes, by rates (depth, rank): the likeliest ones,
    of at most ``beam`` candidates for a node and ``beam`` nodes with candidates on a level."""
    total, sums, parents_at = 0.0, list[float](), [0] * depth
    # The probability of a node, of its parent, its level and its rank.
    heap = [(-float(rates[0, 0]), 1.0, 0, 0)]
    while heap and len(sums) < nodes:
        value, above, level, rank = heapq.heappop(heap)
        if rank == 0:
            if parents_at[level] == beam:
                continue
            parents_at[level] += 1
        total -= value
        sums.append(total)
        if rank + 1 < min(beam, RANKS):
            heapq.heappush(heap, (-above * float(rates[level, rank + 1]), above, level, rank + 1))
        if level + 1 < depth:
            heapq.heappush(heap, (value * float(rates[level + 1, 0]), -value, level + 1, 0))
    return sums
