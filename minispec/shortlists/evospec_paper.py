"""EvoSpec's draft vocabulary as published (arXiv 2605.27390 v1, equation 3 and algorithm 1).

    V_t = V_static | V_dyn        V_static: the K most frequent ids; V_dyn: 256 ids under ARC

The paper's K is 32,000. V_dyn changes only when a token was emitted that V_t lacked, a *failure
event*. The drafted tokens come from V_t, so this token is the one that the target added, and there
is at most one event in a round. It brings, in this order:

1. the target's 10 likeliest ids at that position;
2. the 10 nearest head rows to the draft's hidden state there (``hnsw``);
3. of each of these seeds, the 8 heaviest successors in a graph of bigrams (``bigrams``), by weight.

The first 32 that are not in V_dyn yet are admitted (``arc``); those that are count as used, as does
every emitted id. Algorithm 1 expands the 10 neighbours alone; appendix A.3 and table 5 expand both
kinds of seeds, and are followed here.

The paper leaves open, and is decided here: which 32 enter; that ids of V_static are not candidates;
that an id of V_dyn is used when it is retrieved again or emitted; that an event is a failure event;
the query at a position whose draft has no hidden state of its own (the token after a wholly
accepted path: the draft's state computed from the target's own hidden states); that the end ids are
part of V_static. There, the retrieval runs beside the next pass of the GPU and its ids count from
whenever it is done. Here they count from a stated number of rounds later, so that a seed reproduces
a run; ``run`` may retrieve in the background in the meantime.

The paper drafts trees and measures greedy decoding only; here chains, at any temperature.
"""

from collections import deque
from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from minispec.errors import ArgumentError
from minispec.shortlists.arc import ArcBuffer
from minispec.shortlists.bigrams import BigramGraph
from minispec.shortlists.frspec import truncate_ranking
from minispec.types import BaseShortlist, Context, Round

Ids = npt.NDArray[np.int64]
BUFFER = 256  # the paper's default; it also tries 512 and 1,024
_SEEDS, _SUCCESSORS, _ADMITTED = 10, 8, 32  # the paper's, table 5


class NearestRows(Protocol):
    """An index of the head's rows, as ``hnsw.HnswIndex``."""

    def find_nearest(self, hidden: Tensor, count: int) -> Ids:
        """hidden (D,) -> ids (n,) of large logits, the best first."""


# The candidates of an event, by the part that found them, the first to be admitted first.
Candidates = list[tuple[str, Ids]]
# Starts a retrieval; calling what it returns waits for the result.
Runner = Callable[[Callable[[], Candidates]], Callable[[], Candidates]]


def _run_now(retrieve: Callable[[], Candidates]) -> Callable[[], Candidates]:
    candidates = retrieve()
    return lambda: candidates


class EvoSpecPaperShortlist(BaseShortlist):
    """A static core and a dynamic buffer that failure events fill."""

    name = "evospec-paper"
    per_round = True
    top_ids_wanted = _SEEDS
    part_names = ("core", "target", "hnsw", "bigrams")

    def __init__(
        self,
        ranking: Tensor,
        core: int,
        eos_ids: tuple[int, ...],
        rows: NearestRows,
        graph: BigramGraph,
        *,
        buffer: int = BUFFER,
        delay: int = 1,
        residence: int = 8,
        run: Runner = _run_now,
    ) -> None:
        """``ranking`` (N,) ids, most frequent first; ``core``: the number of static ids. ``delay``:
        rounds after which an event counts, 1 for the next round; ``residence``: rounds for which an
        id stays at least. Raises ArgumentError for a core and a buffer that the vocabulary cannot
        fill, and for a delay below 1."""
        vocab_size = len(graph.degrees)
        if not (core >= 1 and buffer >= 1 and core + buffer <= vocab_size):
            raise ArgumentError(
                f"a core of {core} and a buffer of {buffer} ids do not fit a vocabulary of "
                f"{vocab_size}: both must be at least 1, and together at most {vocab_size}"
            )
        if delay < 1:
            raise ArgumentError(f"delay {delay} must be 1 or above: a round's shortlist is fixed")
        self.budget = core + buffer
        self._core = truncate_ranking(ranking, core, eos_ids).sort().values.numpy()  # (core,)
        self._is_core = np.zeros(vocab_size, bool)  # (V,)
        self._is_core[self._core] = True
        self._rows, self._graph = rows, graph
        self._delay, self._run = delay, run
        self._buffer = ArcBuffer(buffer, residence=residence)
        self.reset()

    def reset(self) -> None:
        self._buffer.clear()
        self._parts: dict[int, str] = {}  # what found each id of the buffer
        # One retrieval for each round of the last ``delay`` rounds, None for a round without event.
        self._waiting: deque[Callable[[], Candidates] | None] = deque()
        self._ids = torch.from_numpy(self._core)  # V_t, a new tensor whenever it changes

    def select(self, context: Context) -> Tensor:
        return self._ids

    def explain(self, context: Context) -> dict[str, Tensor]:
        parts: dict[str, list[int]] = {name: [] for name in self.part_names[1:]}
        for token in self._buffer.ids():
            parts[self._parts[token]].append(token)
        dynamic = {
            name: torch.tensor(sorted(ids), dtype=torch.int64) for name, ids in parts.items()
        }
        return {"core": torch.from_numpy(self._core)} | dynamic

    def observe(self, finished: Round) -> None:
        self._buffer.count_step()
        retrieval = None
        for position, token in enumerate(finished.tokens):
            if token in self._buffer:
                self._buffer.touch(token)
            elif not self._is_core[token]:
                retrieval = self._start_retrieval(finished, position)
        self._waiting.append(retrieval)
        if len(self._waiting) >= self._delay and (due := self._waiting.popleft()):
            self._admit(due())

    def _start_retrieval(self, finished: Round, position: int) -> Callable[[], Candidates] | None:
        """Start the retrieval for the token that V_t lacked."""
        evidence = finished.evidence
        if evidence is None or position >= len(evidence.draft_hidden):
            return None  # the output has stopped there
        top_ids = evidence.top_ids[position, :_SEEDS].numpy()  # (10,)
        hidden = evidence.draft_hidden[position]  # (D,)
        return self._run(lambda: self._retrieve(top_ids, hidden))

    def _retrieve(self, top_ids: Ids, hidden: Tensor) -> Candidates:
        """The candidates of an event. Reads nothing that changes: it may run in the background."""
        nearest = self._rows.find_nearest(hidden, _SEEDS)
        found = [self._graph.successors(int(u), _SUCCESSORS) for u in (*top_ids, *nearest)]
        successors = np.concatenate([ids for ids, _ in found])
        weights = np.concatenate([weights for _, weights in found])
        by_weight = successors[np.argsort(-weights, kind="stable")]
        return [("target", top_ids), ("hnsw", nearest), ("bigrams", by_weight)]

    def _admit(self, candidates: Candidates) -> None:
        """Admit the first 32 new candidates of an event, and note the others' use."""
        self._buffer.count_event()
        seen: set[int] = set()
        admitted = 0
        for part, ids in candidates:
            for token in ids.tolist():
                if self._is_core[token] or token in seen:
                    continue
                seen.add(token)
                if token in self._buffer:
                    self._buffer.touch(token)
                elif admitted < _ADMITTED and self._buffer.admit(token):
                    self._parts[token] = part
                    admitted += 1
        if admitted:
            present = self._buffer.ids()
            self._parts = {token: self._parts[token] for token in present}
            self._ids = torch.from_numpy(np.sort(np.concatenate((self._core, present))))
