"""How much to propose in a round: what promises the most tokens a second.

A round that drafts a tree of n nodes and depth d, b nodes a level, emits 1 + A tokens in the mean
and takes T(1 + n) + D(1) + (d - 1) D(b) + R seconds: a target pass over 1 + n rows, d draft steps,
and the rest. T, D and R are measured (``PassCosts``), A is estimated from the rounds before: with
h_dk the share of rounds in which, at depth d, the candidate of rank k was accepted,

    A = sum over the nodes of the product of h on the way to them,

for the n nodes with the largest products. Continuations of the text, the m with the largest shares,
add to A the sum of s_i (1 - o^(d_i)), with s_i the probability that the path of the i-th is
accepted, d_i its depth, and o the part of the right tokens that the draft proposes too; where the
draft reaches less deep, or drafts nothing, they add s_i. Each adds a row to the target's pass
unless the draft proposes it, and no draft step.

What has the largest (1 + A) / seconds is taken, plain decoding (n = m = 0) and continuations alone
(n = 0) among them. Ranks that were seldom tried are thought a little better than they were, as in
UCB1 (Auer et al., Machine Learning 47, 2002), so that they are tried. Where plain decoding is best,
a shape is tried now and then all the same, at growing intervals, since only rounds that draft tell
whether that has changed.

**The choice must not anticipate.** It is made before anything is drawn in the round, from finished
rounds and from the continuations of the text that they emitted. A length that depends on the
round's own tokens (a chain cut before a token whose probability is low) changes what q is, and the
output with it.

Knows nothing of models and of how costs are measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minispec.acceptance import AcceptanceEstimate, ContinuationEstimate, expect_accepted
from minispec.growth import TreeShape
from minispec.round_costs import Numbers, PassCosts
from minispec.suffix_index import Continuations
from minispec.tree import find_depths
from minispec.types import Round

_BEAMS = (1, 2, 3, 4, 6)
_OPTIMISM = 0.1  # in the choice, over the square root of the rounds in which a rank was tried
_PERIOD = 4  # rounds between two choices
_PATIENCE, _LONGEST_PATIENCE = 4, 64  # plain rounds before a shape is tried


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


class ShapeChooser:
    """Chooses what each round proposes, for one prompt or several: it keeps counts, no text.
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
        self._max_depth, self._max_beam = max_depth, max(beams)
        depths = range(1, max_depth + 1) if costs.draft else ()
        self._sizes = [(depth, beam) for beam in beams for depth in depths]
        # What may be drafted: depth, beam and nodes; first of all nothing.
        self._options = [(0, 1, 0)]
        for depth, beam in self._sizes:
            nodes = range(depth, self._count_most(depth, beam) + 1)
            self._options += [(depth, beam, count) for count in nodes]
        self._depths, _, self._nodes = np.array(self._options).T
        self._drafting = np.array([costs.drafting_seconds(d, b) for d, b, _ in self._options])
        self._seconds = self._drafting + costs.target_seconds(1 + self._nodes)
        self.reset()

    def reset(self) -> None:
        """Restore the state after construction."""
        self._estimate, self._continuations = AcceptanceEstimate(), ContinuationEstimate()
        self._found = Continuations()
        self._rounds = self._plain_rounds = 0
        self._patience = _PATIENCE
        self._find_best()

    @property
    def largest(self) -> TreeShape:
        """A shape with as many nodes and levels as any that is chosen."""
        depth, beam = self._max_depth, self._max_beam
        return self._build(depth, beam, max(depth, self._count_most(depth, beam)))

    def choose(self, found: Continuations) -> tuple[TreeShape | None, int]:
        """The shape of the next round's tree, None for no draft, and how many of the continuations
        ``found`` are proposed, from the first on."""
        self._found = found
        if len(found):
            option, count = self._weigh(found)
            if option or count:
                return self._build_option(option), count
        if self._pays:
            self._plain_rounds, self._patience = 0, _PATIENCE
            return self._build_option(self._best), 0
        if self._plain_rounds < self._patience:
            self._plain_rounds += 1
            return None, 0
        self._plain_rounds, self._patience = 0, min(2 * self._patience, _LONGEST_PATIENCE)
        return self._build_option(self._best), 0

    def observe(self, finished: Round) -> None:
        """Learn from a finished round."""
        self._estimate.observe(finished)
        self._continuations.observe(self._found, finished)
        self._rounds += 1
        if self._rounds % _PERIOD == 0:
            self._find_best()

    def predict(self, shape: TreeShape | None) -> float:
        """Tokens a second of rounds of a shape, None for plain ones, as far as is known."""
        if shape is None:
            return 1 / self._costs.round_seconds(0, 1, 0)
        accepted = expect_accepted(self._estimate.rates(), shape.depth, shape.beam, shape.nodes)
        seconds = self._costs.round_seconds(shape.depth, shape.beam, shape.nodes)
        return (1 + accepted[-1]) / seconds

    def _find_best(self) -> None:
        """Find the best option without continuations, and whether it is better than plain
        decoding."""
        rates, accepted = self._estimate.rates(_OPTIMISM), [0.0]
        for depth, beam in self._sizes:
            sums = expect_accepted(rates, depth, beam, self._count_most(depth, beam))
            accepted += sums[depth - 1 :]
        self._accepted = np.array(accepted)
        speeds = (1 + self._accepted) / self._seconds
        self._best = 1 + int(speeds[1:].argmax()) if len(speeds) > 1 else 0
        self._pays = bool(speeds[self._best] > speeds[0])

    def _weigh(self, found: Continuations) -> tuple[int, int]:
        """The best option beside continuations, and how many of these are best beside it."""
        expected = self._continuations.expect(found)  # (m,)
        depths = 1 + np.array(find_depths(found.parents))
        drafted = np.arange(1 + self._max_depth)[:, None] >= depths  # (draft's depth, m)
        both = np.where(drafted, expected * self._continuations.shared**depths, 0.0)
        gains, rows = _sum_first(expected - both), _sum_first(1 - both)  # (draft's depth, 1 + m)
        rows = 1 + self._nodes[:, None] + rows[self._depths]  # (options, 1 + m)
        seconds = self._drafting[:, None] + self._costs.target_seconds(rows)
        speeds = (1 + self._accepted[:, None] + gains[self._depths]) / seconds
        option, count = np.unravel_index(speeds.argmax(), speeds.shape)
        return int(option), int(count)

    def _count_most(self, depth: int, beam: int) -> int:
        return min(self._max_nodes, beam + (depth - 1) * beam**2)

    def _build_option(self, option: int) -> TreeShape | None:
        return self._build(*self._options[option]) if option else None

    def _build(self, depth: int, beam: int, nodes: int) -> TreeShape:
        if beam == 1:
            return TreeShape.chain(depth)
        return TreeShape(depth, beam, nodes, candidates=self._candidates)


def _sum_first(values: Numbers) -> Numbers:
    """The sums of the first 0, 1, ... numbers of each row: (N, m) -> (N, 1 + m)."""
    return np.cumsum(np.pad(values, ((0, 0), (1, 0))), axis=1)
