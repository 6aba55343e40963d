"""How much to draft in a round: the shape that promises the most tokens a second.

A round that drafts a tree of n nodes and depth d, b nodes a level, emits 1 + A tokens in the mean
and takes T(1 + n) + D(1) + (d - 1) D(b) + R seconds: a target pass over 1 + n rows, d draft steps,
and the rest. T, D and R are measured (``PassCosts``), A is estimated from the rounds before: with
h_dk the share of rounds in which, at depth d, the candidate of rank k was accepted,

    A = sum over the nodes of the product of h on the way to them,

for the n nodes with the largest products. The shape with the largest (1 + A) / seconds is taken,
plain decoding (n = 0) among them. Ranks that were seldom tried are thought a little better than
they were, as in UCB1 (Auer et al., Machine Learning 47, 2002), so that they are tried. Where plain
decoding is best, a shape is tried now and then all the same, at growing intervals, since only
rounds that draft tell whether that has changed.

**The choice must not anticipate.** It is made before anything is drawn in the round, from finished
rounds alone. A length that depends on the round's own tokens (a chain cut before a token whose
probability is low) changes what q is, and the output with it.

Knows nothing of models and of how costs are measured.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from minispec.errors import ArgumentError
from minispec.growth import MAX_DEPTH, TreeShape
from minispec.tree import list_children
from minispec.types import Round

_BEAMS = (1, 2, 3, 4, 6)
_RANKS = 6  # candidates of a node whose acceptance is estimated
_MEMORY = 0.99  # what a round counts after the next one
_PRIOR, _RATIO = 0.6, 0.35  # acceptance of the likeliest candidate, and of each next one beside it
_PRIOR_ROUNDS = 8  # rounds that the prior counts as
_OPTIMISM = 0.1  # in the choice, over the square root of the rounds in which a rank was tried
_PERIOD = 4  # rounds between two choices
_PATIENCE, _LONGEST_PATIENCE = 4, 64  # plain rounds before a shape is tried

Rates = npt.NDArray[np.float64]  # (depth, rank)


@dataclass(frozen=True)
class AutoShape:
    """Stands for the shapes that a ``ShapeChooser`` chooses: ``chains`` alone, or all."""

    chains: bool = False

    def __str__(self) -> str:
        return "auto:chain" if self.chains else "auto"

    @property
    def is_chain(self) -> bool:
        """Whether no tree is ever chosen."""
        return self.chains

    def build_chooser(self, costs: "PassCosts", candidates: str) -> "ShapeChooser":
        """A chooser for passes of these costs; ``candidates``: of trees, as in ``TreeShape``."""
        beams = (1,) if self.chains else _BEAMS
        return ShapeChooser(costs, beams=beams, candidates=candidates)


Shape = TreeShape | AutoShape


@dataclass(frozen=True)
class PassCosts:
    """Seconds of passes, measured at some numbers of rows, ascending; between them they are
    interpolated. ``target``: pairs of rows and seconds of a target pass with its verification;
    ``draft``: of a draft step with the logits of a shortlist; ``rest``, ``plain_rest``: seconds of
    a round besides, with a draft and without. Raises ArgumentError on construction."""

    target: tuple[tuple[int, float], ...]
    draft: tuple[tuple[int, float], ...]
    rest: float = 0.0
    plain_rest: float = 0.0

    def __post_init__(self) -> None:
        for name, pairs in (("target", self.target), ("draft", self.draft)):
            rows = [row for row, _ in pairs]
            if rows != sorted({*rows}) or not rows or rows[0] != 1:
                raise ArgumentError(f"costs of {name} passes are for {rows} rows: expected 1, ...")
            if not all(0 < seconds < float("inf") for _, seconds in pairs):
                raise ArgumentError(f"costs of {name} passes must be finite numbers above 0")

    def round_seconds(self, depth: int, beam: int, nodes: int) -> float:
        """Seconds of a round with a tree of this shape; of a plain one for depth 0."""
        if depth == 0:
            return _interpolate(self.target, 1) + self.plain_rest
        drafting = _interpolate(self.draft, 1) + (depth - 1) * _interpolate(self.draft, beam)
        return _interpolate(self.target, 1 + nodes) + drafting + self.rest


def _interpolate(pairs: Sequence[tuple[int, float]], rows: int) -> float:
    """Seconds for a number of rows; beyond the last one measured, along the last slope."""
    xs, ys = zip(*pairs, strict=True)
    if rows <= xs[-1] or len(xs) == 1:
        return float(np.interp(rows, xs, ys))
    slope = max(0.0, (ys[-1] - ys[-2]) / (xs[-1] - xs[-2]))
    return float(ys[-1] + slope * (rows - xs[-1]))


class AcceptanceEstimate:
    """How often the draft's candidates are accepted, by depth and by rank among their siblings;
    later rounds count more."""

    def __init__(self) -> None:
        self._accepted = np.zeros((MAX_DEPTH, _RANKS))
        self._tried = np.zeros((MAX_DEPTH, _RANKS))

    def observe(self, finished: Round) -> None:
        """Count a round: at each accepted node, and at the last, which candidate came next. Those
        that no draft proposed (continuations of the text) end the count."""
        drafted = len(finished.shortlist_sizes)
        parents = finished.parents or range(-1, len(finished.proposed) - 1)
        children = list_children(parents)
        if children[-1]:
            self._accepted *= _MEMORY
            self._tried *= _MEMORY
        nodes = [-1, *finished.path]
        for depth, (node, following) in enumerate(zip(nodes, [*finished.path, None], strict=True)):
            own = [child for child in children[node] if child < drafted][:_RANKS]
            if not own or (following is None and finished.stop):
                break  # nothing was drafted, or nothing after the stop was looked at
            self._tried[depth, : len(own)] += 1
            if following not in own:
                break
            self._accepted[depth, own.index(following)] += 1

    def rates(self, optimism: float = 0.0) -> Rates:
        """h (depth, rank): what was seen at this depth, and where little was, at all depths; with
        ``optimism`` more for ranks that were seldom tried."""
        pooled = np.empty(_RANKS)
        accepted, tried = self._accepted.sum(0), self._tried.sum(0)
        before = _PRIOR / _RATIO
        for rank in range(_RANKS):
            prior = min(1.0, _RATIO * before)
            before = pooled[rank] = (accepted[rank] + _PRIOR_ROUNDS * prior) / (
                tried[rank] + _PRIOR_ROUNDS
            )
        rates: Rates = (self._accepted + _PRIOR_ROUNDS * pooled) / (self._tried + _PRIOR_ROUNDS)
        return np.minimum(rates + optimism / np.sqrt(tried + _PRIOR_ROUNDS), 1.0)


def expect_accepted(rates: Rates, depth: int, beam: int, nodes: int) -> list[float]:
    """A of trees of 1, 2, ... at most ``nodes`` nodes: the likeliest ones, of at most ``beam``
    candidates for a node and ``beam`` nodes with candidates on a level."""
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
        if rank + 1 < min(beam, _RANKS):
            heapq.heappush(heap, (-above * float(rates[level, rank + 1]), above, level, rank + 1))
        if level + 1 < depth:
            heapq.heappush(heap, (value * float(rates[level + 1, 0]), -value, level + 1, 0))
    return sums


class ShapeChooser:
    """Chooses the shape of each round, for one prompt or several: it keeps counts, no text.
    ``beams``: (1,) for chains alone. ``candidates``: of trees that branch, as in ``TreeShape``."""

    def __init__(
        self,
        costs: PassCosts,
        *,
        max_depth: int = 8,
        beams: Sequence[int] = _BEAMS,
        max_nodes: int = 24,
        candidates: str = "top",
    ) -> None:
        self._costs, self._max_nodes, self._candidates = costs, max_nodes, candidates
        self._sizes = [(depth, beam) for beam in beams for depth in range(1, max_depth + 1)]
        self._seconds = {  # of a round with ``depth`` or more nodes, by depth and beam
            (depth, beam): [
                costs.round_seconds(depth, beam, nodes)
                for nodes in range(depth, self._count_most(depth, beam) + 1)
            ]
            for depth, beam in self._sizes
        }
        self.reset()

    def reset(self) -> None:
        """Restore the state after construction."""
        self._estimate = AcceptanceEstimate()
        self._rounds = self._plain_rounds = 0
        self._patience = _PATIENCE
        self._best, self._pays = self._find_best()

    @property
    def largest(self) -> TreeShape:
        """A shape with as many nodes and levels as any that is chosen."""
        depth, beam = max(d for d, _ in self._sizes), max(b for _, b in self._sizes)
        return self._build(depth, beam, max(depth, self._count_most(depth, beam)))

    def choose(self) -> TreeShape | None:
        """The shape of the next round, None for plain decoding."""
        if self._pays:
            self._plain_rounds, self._patience = 0, _PATIENCE
            return self._best
        if self._plain_rounds < self._patience:
            self._plain_rounds += 1
            return None
        self._plain_rounds, self._patience = 0, min(2 * self._patience, _LONGEST_PATIENCE)
        return self._best

    def observe(self, finished: Round) -> None:
        """Learn from a finished round."""
        self._estimate.observe(finished)
        self._rounds += 1
        if self._rounds % _PERIOD == 0:
            self._best, self._pays = self._find_best()

    def predict(self, shape: TreeShape | None) -> float:
        """Tokens a second of rounds of a shape, None for plain ones, as far as is known."""
        if shape is None:
            return 1 / self._costs.round_seconds(0, 1, 0)
        accepted = expect_accepted(self._estimate.rates(), shape.depth, shape.beam, shape.nodes)
        seconds = self._costs.round_seconds(shape.depth, shape.beam, shape.nodes)
        return (1 + accepted[-1]) / seconds

    def _find_best(self) -> tuple[TreeShape, bool]:
        """The best shape, and whether it is better than plain decoding."""
        rates, plain = self._estimate.rates(_OPTIMISM), 1 / self._costs.round_seconds(0, 1, 0)
        best, size = 0.0, (1, 1, 1)
        for depth, beam in self._sizes:
            sums = expect_accepted(rates, depth, beam, self._count_most(depth, beam))
            pairs = zip(sums[depth - 1 :], self._seconds[depth, beam], strict=True)
            for nodes, (accepted, seconds) in enumerate(pairs, depth):
                if (1 + accepted) / seconds > best:
                    best, size = (1 + accepted) / seconds, (depth, beam, nodes)
        return self._build(*size), best > plain

    def _count_most(self, depth: int, beam: int) -> int:
        return min(self._max_nodes, beam + (depth - 1) * beam**2)

    def _build(self, depth: int, beam: int, nodes: int) -> TreeShape:
        if beam == 1:
            return TreeShape.chain(depth)
        return TreeShape(depth, beam, nodes, candidates=self._candidates)
