"""Continuations of the text so far: draft tokens that cost no draft model.

The last n tokens are looked up in the text before them, and what followed there is proposed to
follow again. This is SuffixDecoding (Oliaro et al., arXiv 2411.04975): *every* earlier place
counts, and what followed there is a tree with frequencies. Prompt lookup (transformers, vLLM's
ngram) proposes the chain that followed one place.

From the paper: the share of a continuation, an estimate that it is accepted,

    D(node) = D(parent) * C(node) / (sum of C over the node and its siblings),    D(root) = 1,

where C counts places, and the greedy growth of the tree by the largest D. Ours: of all match
lengths the longest alone is used, where the paper takes the one whose tree has the largest sum of
D; ties go to the latest place; and in place of a suffix tree, places with the same last
``min_match`` tokens are linked, the latest first, as in the hash chains of deflate. That needs
three arrays of fixed length and constant time for a token.

What is found depends on the tokens added alone. Knows nothing of models and distributions.
"""

import heapq
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from minispec.checks import convert_fields, to_int
from minispec.errors import ArgumentError

_BOUNDARY = -1  # stands between texts, and equals no token


@dataclass(frozen=True)
class SuffixConfig:
    """The lengths of a suffix index. Raises ArgumentError on construction.

    ``min_match``, ``max_match``: the least and the most tokens that are compared. ``places``: how
    many places with the last ``min_match`` tokens are considered, the latest. ``capacity``: tokens
    that the index remembers, the latest; 24 bytes each, allocated at once. ``nodes``: the most
    tokens that continuations add to a proposal."""

    min_match: int = 2
    max_match: int = 5
    places: int = 64
    capacity: int = 65_536
    nodes: int = 8

    def __post_init__(self) -> None:
        convert_fields(self, **dict.fromkeys(self.__dataclass_fields__, to_int))
        for name in ("min_match", "places", "nodes"):
            if getattr(self, name) < 1:
                shown = name.replace("_", "-")
                raise ArgumentError(f"suffix {shown} {getattr(self, name)} must be at least 1")
        if self.max_match < self.min_match:
            raise ArgumentError(
                f"suffix max-match {self.max_match} must be at least min-match {self.min_match}"
            )
        if self.capacity <= self.max_match:
            raise ArgumentError(
                f"suffix capacity {self.capacity} must be above max-match {self.max_match}"
            )


@dataclass(frozen=True)
class Continuations:
    """A tree of what followed the last ``match_length`` tokens earlier; 0 if they are new.

    ``parents[i]``: the index of the token before ``tokens[i]``, always lower than i, or -1 for the
    last token of the text. Evidence: ``counts[i]``, C, the number of places where the path was
    read; ``shares[i]``, D, never above its parent's; by this the nodes are sorted, siblings too."""

    tokens: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()
    shares: tuple[float, ...] = ()
    match_length: int = 0

    def __len__(self) -> int:
        return len(self.tokens)

    def first(self, count: int) -> "Continuations":
        """The first ``count`` of them, which are a tree too."""
        return Continuations(
            self.tokens[:count], self.parents[:count], self.counts[:count], self.shares[:count],
            self.match_length,
        )  # fmt: skip


class SuffixIndex:
    """The latest tokens of a text that grows, and of texts before it."""

    def __init__(
        self, config: SuffixConfig | None = None, earlier_texts: Iterable[Sequence[int]] = ()
    ) -> None:
        """``earlier_texts``: token ids of texts that may be continued too, the latest last."""
        self.config, self._earlier_texts = config or SuffixConfig(), tuple(earlier_texts)
        self.reset()

    def reset(self) -> None:
        """Restore the state after construction."""
        size = self.config.capacity
        # A position counts from the first token added; what belongs to it is at its remainder.
        self._tokens = array("q", [_BOUNDARY]) * size
        self._previous = array("q", [-1]) * size  # the position before of the same bucket
        self._heads = array("q", [-1]) * size  # the last position of each bucket
        self._count = self._start = 0  # positions added; the first of the current text
        for text in self._earlier_texts:
            self.extend(text)
            self.end_text()

    @property
    def text_length(self) -> int:
        """Tokens added since the last text ended."""
        return self._count - self._start

    @property
    def bytes(self) -> int:
        """Memory of the index, whatever was added."""
        return sum(a.itemsize * len(a) for a in (self._tokens, self._previous, self._heads))

    def extend(self, tokens: Iterable[int]) -> None:
        """Append tokens (ids from 0) to the text."""
        for token in tokens:
            self._append(token)

    def end_text(self) -> None:
        """End a text: nothing matches or continues across its end."""
        self._append(_BOUNDARY)
        self._start = self._count

    def _append(self, token: int) -> None:
        position, size = self._count, self.config.capacity
        self._tokens[position % size] = token
        self._previous[position % size] = -1
        self._count += 1
        if position + 1 >= self.config.min_match:
            ending = range(position - self.config.min_match + 1, position + 1)
            bucket = hash(tuple(self._tokens[i % size] for i in ending)) % size
            self._previous[position % size] = self._heads[bucket]
            self._heads[bucket] = position

    def find(self, depth: int, nodes: int, siblings: int | None = None) -> Continuations:
        """At most ``nodes`` continuations of the text, up to ``depth`` tokens long, and at most
        ``siblings`` for each place; with 1, the chain of the most frequent."""
        ends, match_length = self._find_places()
        tokens, parents, counts, shares = list[int](), list[int](), list[int](), list[float]()
        # Sorted by share, then the shorter path, then the later place: no two are equal.
        queue = self._continue(ends, 1, -1, 1.0, siblings) if depth else []
        heapq.heapify(queue)
        while queue and len(tokens) < nodes:
            share, level, _, token, parent, ends = heapq.heappop(queue)
            tokens.append(token)
            parents.append(parent)
            counts.append(len(ends))
            shares.append(-share)
            if level < depth:
                for entry in self._continue(ends, level + 1, len(tokens) - 1, -share, siblings):
                    heapq.heappush(queue, entry)
        found = tuple(tokens), tuple(parents), tuple(counts), tuple(shares)
        return Continuations(*found, match_length=match_length)

    def _find_places(self) -> tuple[list[int], int]:
        """The positions where the longest match ends, the latest first, and its length."""
        config, last = self.config, self._count - 1
        longest, ends, matches = 0, list[int](), 0
        first = max(0, self._count - config.capacity) + config.min_match - 1
        position = self._previous[last % config.capacity]
        while position >= first and matches < config.places:
            length = self._match_length(position, last)
            if length >= config.min_match:  # else another ending in the same bucket
                matches += 1
                if length > longest:
                    longest, ends = length, []
                if length == longest:
                    ends.append(position)
            position = self._previous[position % config.capacity]
        return ends, longest

    def _match_length(self, position: int, last: int) -> int:
        """How many tokens before and at two positions are equal, at most ``max_match``."""
        size, tokens = self.config.capacity, self._tokens
        limit = min(self.config.max_match, position + 1, size - last + position)
        for length in range(limit):
            token = tokens[(position - length) % size]
            if token != tokens[(last - length) % size] or token == _BOUNDARY:
                return length
        return limit

    def _continue(
        self, ends: Sequence[int], level: int, parent: int, share: float, siblings: int | None
    ) -> list[tuple[float, int, int, int, int, list[int]]]:
        """The tokens ``level`` positions after some places, the most frequent first, as entries of
        the queue in ``find``."""
        size, places = self.config.capacity, dict[int, list[int]]()
        for end in ends:
            if end + level < self._count:
                token = self._tokens[(end + level) % size]
                if token != _BOUNDARY:
                    places.setdefault(token, []).append(end)
        total = sum(map(len, places.values()))
        by_count = sorted(places.items(), key=lambda item: -len(item[1]))
        return [
            (-share * len(here) / total, level, -here[0], token, parent, here)
            for token, here in by_count[:siblings]
        ]
