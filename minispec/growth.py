"""Growing a tree of drafts: where candidates go, how many, and how each is chosen.

A tree grows level by level, so that the draft makes one pass for each level.

- Which nodes get candidates: with ``growth`` "confidence" the likeliest by the product of the
  draft's probabilities on the way to them (EAGLE-2, arXiv 2406.16858), with "static" always the
  same places, the likelier candidates having more and deeper descendants (EAGLE, arXiv 2401.15077).
- How candidates are chosen: the "top" ones are picked, and recorded as point masses; "drawn" ones
  are drawn from q with replacement (SpecInfer, arXiv 2305.09781), "distinct" ones without, from q
  renormalised after each (Sequoia, arXiv 2402.12374).

What was drawn stays in the tree: whether a token is verified must not depend on its own
probability, so the nodes are counted before anything is drawn. Picked tokens have no such
restriction, and a tree of them may be cut to its most confident nodes, as EAGLE-2 does.

Knows nothing of models and shortlists.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from minispec.checks import convert_fields, to_int, to_text
from minispec.errors import ArgumentError
from minispec.tree import find_path, select
from minispec.types import Distribution, Proposal, RandomSource

MAX_DEPTH = 16
MAX_BEAM = 16
MAX_NODES = 64
GROWTHS = ("confidence", "static")
CANDIDATES = ("top", "drawn", "distinct")


@dataclass(frozen=True)
class TreeShape:
    """The shape of the trees that are drafted.

    ``depth``: the most tokens on a path. ``beam``: the most nodes of a level that get candidates,
    and the most candidates of a node. ``nodes``: the most tokens of a tree, those of one target
    pass. ``growth`` and ``candidates``: see this module; at temperature 0 all candidates are
    certain, so the "drawn" and "distinct" ones after a node's first are the top ones too. Raises
    ArgumentError on construction.
    """

    depth: int
    beam: int
    nodes: int
    growth: str = "confidence"
    candidates: str = "top"

    def __post_init__(self) -> None:
        convert_fields(self, depth=to_int, beam=to_int, nodes=to_int)
        convert_fields(self, growth=to_text, candidates=to_text)
        limits = {"depth": MAX_DEPTH, "beam": MAX_BEAM, "nodes": MAX_NODES}
        for name, limit in limits.items():
            if not 1 <= (number := getattr(self, name)) <= limit:
                raise ArgumentError(f"{name} {number} of a tree must lie in 1..{limit}")
        most = self.beam + (self.depth - 1) * self.beam**2
        if not self.depth <= self.nodes <= most:
            raise ArgumentError(
                f"a tree of depth {self.depth} and beam {self.beam} has {self.depth} to {most} "
                f"nodes, not {self.nodes}"
            )
        for name, known in (("growth", GROWTHS), ("candidates", CANDIDATES)):
            if (given := getattr(self, name)) not in known:
                raise ArgumentError(f"{name} {given!r} of a tree is none of {', '.join(known)}")

    @staticmethod
    def chain(length: int) -> "TreeShape":
        """A chain of drawn tokens: the tree without branches."""
        return TreeShape(length, 1, length, "static", "drawn")

    @staticmethod
    def parse(text: str) -> "TreeShape":
        """A shape as it is spelled: "4x3x8" for depth, beam and nodes, then ":static", ":drawn" or
        ":distinct" for what differs from the defaults. Raises ArgumentError."""
        numbers, *words = text.split(":")
        sizes = numbers.split("x")
        options = {"growth": [w for w in words if w in GROWTHS]}
        options["candidates"] = [w for w in words if w in CANDIDATES]
        known = sum(map(len, options.values())) == len(words)
        if len(sizes) != 3 or not all(map(str.isdecimal, sizes)) or not known:
            raise ArgumentError(
                f"tree {text!r} is not chain or DEPTHxBEAMxNODES, such as 4x3x8, with :static, "
                ":drawn or :distinct after it"
            )
        if any(len(given) > 1 for given in options.values()):
            raise ArgumentError(f"tree {text!r} names two ways of the same choice: give one")
        depth, beam, nodes = map(int, sizes)
        chosen = {name: given[0] for name, given in options.items() if given}
        return TreeShape(depth, beam, nodes, **chosen)

    def __str__(self) -> str:
        """As ``parse`` reads it; a chain by its length."""
        if self.is_chain:
            return f"chain of {self.depth}"
        changed = [] if self.growth == GROWTHS[0] else [self.growth]
        changed += [] if self.candidates == CANDIDATES[0] else [self.candidates]
        return ":".join((f"{self.depth}x{self.beam}x{self.nodes}", *changed))

    @property
    def is_chain(self) -> bool:
        """Whether no node has more than one drawn candidate."""
        return self.beam == 1 and self.candidates != "top"

    @property
    def extra_rows(self) -> int:
        """How many positions of a cache a tree may take beyond its depth."""
        return max(self.nodes, self.beam * self.depth) - self.depth

    @cached_property
    def places(self) -> dict[tuple[int, ...], int]:
        """For "static" growth, the number of candidates of each node that has any. A node is named
        by the ranks of the candidates on the way to it, () before the first. The places are those
        of the least sum of ranks, counted from 1."""
        counts: dict[tuple[int, ...], int] = {}
        parents_at = [0] * self.depth  # nodes with candidates, by level
        heap: list[tuple[int, tuple[int, ...]]] = [(1, (0,))]
        while heap and sum(counts.values()) < self.nodes:
            cost, (*before, rank) = heapq.heappop(heap)
            parent, level = tuple(before), len(before)
            if rank == 0 and parents_at[level] == self.beam:
                continue
            parents_at[level] += rank == 0
            counts[parent] = rank + 1
            if rank + 1 < self.beam:
                heapq.heappush(heap, (cost + 1, (*parent, rank + 1)))
            if level + 1 < self.depth:
                heapq.heappush(heap, (cost + 1, (*parent, rank, 0)))
        return counts


@dataclass(frozen=True, eq=False)
class Candidate:
    """A token, the distribution that it was drawn from or its point mass, and the probability that
    the draft gives it."""

    token: int
    distribution: Distribution
    confidence: float


class Growth:
    """A tree that grows. Nodes are numbered in the order in which they are added."""

    def __init__(self, shape: TreeShape, depth: int) -> None:
        """``depth``: the most levels of this tree, at most those of the shape."""
        self._shape, self._depth = shape, min(depth, shape.depth)
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self._distributions: list[Distribution] = []
        self._confidences: list[float] = []  # products over the path
        self._ranks: list[tuple[int, ...]] = []  # of the candidates on the path
        self._level = [-1]  # the nodes of the last level

    def plan_level(self) -> list[tuple[int, int]]:
        """The nodes that get candidates next, each with the number of them; none at the end."""
        if self._count_levels() == self._depth:
            return []
        if self._shape.growth == "static":
            places = (
                (node, self._shape.places.get(self._ranks_of(node), 0)) for node in self._level
            )
            return [(node, count) for node, count in places if count]
        best = sorted(self._level, key=lambda node: -self._confidence(node))[: self._shape.beam]
        if self._shape.candidates == "top":
            return [(node, self._shape.beam) for node in best]
        return self._share_out(best)

    def _share_out(self, best: Sequence[int]) -> list[tuple[int, int]]:
        """The nodes that are left, divided by the levels that are left, as candidates for the nodes
        ``best``: the j-th of a node counts as its confidence over j."""
        left = self._shape.nodes - len(self.tokens)
        levels = self._depth - self._count_levels()
        slots = [
            (-self._confidence(node) / (1 + j), index)
            for index, node in enumerate(best)
            for j in range(self._shape.beam)
        ]
        chosen = [index for _, index in sorted(slots)[: -(-left // levels)]]
        return [(node, n) for i, node in enumerate(best) if (n := chosen.count(i))]

    def path(self, node: int) -> tuple[int, ...]:
        """The nodes from the root to ``node``; none for -1."""
        return find_path(self.parents, node)

    def read(self, node: int) -> list[int]:
        """The tokens on the way to a node, its own included."""
        return [self.tokens[each] for each in self.path(node)]

    def start_level(self) -> None:
        """Begin the next level: what is added from now on belongs to it."""
        self._level = []

    def add(self, parent: int, candidates: Sequence[Candidate]) -> None:
        """Add candidates for the position after ``parent``, in the order in which they are to be
        verified. A token that is there already may be drawn again, but gets no candidates: after
        its rejection it has no probability left."""
        confidence, ranks = self._confidence(parent), self._ranks_of(parent)
        seen: set[int] = set()
        for rank, candidate in enumerate(candidates):
            if candidate.token not in seen:
                self._level.append(len(self.tokens))
            seen.add(candidate.token)
            self.tokens.append(candidate.token)
            self.parents.append(parent)
            self._distributions.append(candidate.distribution)
            self._confidences.append(confidence * candidate.confidence)
            self._ranks.append((*ranks, rank))

    def finish(self) -> tuple[Proposal, list[int]]:
        """The proposal, and which of the nodes that were added it consists of."""
        proposal = Proposal(tuple(self.tokens), tuple(self._distributions), tuple(self.parents))
        nodes = sorted(range(len(self.tokens)), key=lambda node: -self._confidences[node])
        nodes = sorted(nodes[: self._shape.nodes])  # only picked tokens can be too many
        return select(proposal, nodes), nodes

    def _count_levels(self) -> int:
        return len(self._ranks[-1]) if self._ranks else 0

    def _confidence(self, node: int) -> float:
        return 1.0 if node < 0 else self._confidences[node]

    def _ranks_of(self, node: int) -> tuple[int, ...]:
        return () if node < 0 else self._ranks[node]


def choose_candidates(
    kind: str, q: Distribution, confidence: Distribution, count: int, rng: RandomSource
) -> list[Candidate]:
    """At most ``count`` candidates for one position, of a ``kind`` of ``CANDIDATES``.

    ``q``: the draft's distribution. ``confidence``: over the same ids, what it would be above
    temperature 0; the same as q there. Fewer candidates come where fewer have a probability above
    0. Spends one choice for each drawn token.
    """
    if kind == "top":
        return pick_candidates(confidence, count)
    index = rng.choose(q.probs)
    chosen = [_record(index, q, confidence)]
    if confidence is not q:  # temperature 0: the first one was certain
        others = _without(confidence, index)
        return chosen + (pick_candidates(others, count - 1) if others else [])
    left: Distribution | None = q
    while len(chosen) < count:
        left = _without(left, index) if kind == "distinct" else q
        if left is None:
            break
        index = rng.choose(left.probs)
        chosen.append(_record(index, left, confidence))
    return chosen


def pick_candidates(confidence: Distribution, count: int) -> list[Candidate]:
    """The ``count`` likeliest ids, ties to the lower id, each recorded as a point mass; none of
    probability 0."""
    probs = np.asarray(confidence.probs)
    order = np.argsort(-probs, kind="stable")[:count].tolist()
    points = [(i, confidence.probs * 0) for i in order if probs[i] > 0]
    for i, point in points:
        point[i] = point[i] + 1  # a fraction stays one
    return [_record(i, Distribution(confidence.ids, point), confidence) for i, point in points]


def _record(index: int, drawn_from: Distribution, confidence: Distribution) -> Candidate:
    share = min(1.0, float(confidence.probs[index]))  # a sum of rounded shares may exceed 1
    return Candidate(int(confidence.ids[index]), drawn_from, share)


def _without(q: Distribution | None, index: int) -> Distribution | None:
    """q without one of its ids, renormalised; None if nothing is left."""
    assert q is not None
    probs: Any = q.probs * 1  # a copy
    probs[index] = 0
    mass = probs.sum()
    return Distribution(q.ids, probs / mass) if mass > 0 else None
