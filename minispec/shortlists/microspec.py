"""MicroSpec's in-context draft vocabulary (arXiv 2605.26444 v1, equations 2 to 4): the ids that the
text at hand has used, and those that the target nearly used.

A stream of ids begins with the prompt's (equation 2), followed by the distinct ids among the
target's three likeliest after every prompt token. Each round appends the distinct drafted ids,
accepted or not, and the target's three likeliest at every verified position (equation 3). The
shortlist is the distinct ids of the last 3,072 elements of the stream, one for a whole round
(equation 4). Nothing is trained, and no list of frequent ids is needed.

The paper leaves open the order within a step, here that of positions, then of likelihood; and
whether one verified position counts or several, here that of every emitted token. At the last
prompt token the target is asked by the first round here, so its ids join after that round. How the
paper gathers head rows on a GPU is left to a backend. It drafts trees; here chains.
"""

import itertools
from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from minispec.types import BaseShortlist, Context, Round

WINDOW = 3072  # the paper's W_max


class MicroSpecShortlist(BaseShortlist):
    """The distinct ids among the last of a stream."""

    name = "microspec"
    per_round = reads_prompt = True
    top_ids_wanted = 3  # the paper's K_pre and K_ver

    def __init__(self, vocab_size: int, window: int = WINDOW) -> None:
        """``window``: elements of the stream that count, 1 or above."""
        self.budget = min(window, vocab_size)
        self._window, self._vocab_size = window, vocab_size
        self.reset()

    def reset(self) -> None:
        self._stream: deque[int] = deque()
        self._counts = np.zeros(self._vocab_size, np.int32)  # (V,) of each id in the stream
        self._ids = torch.zeros(0, dtype=torch.int64)

    def on_prefill(self, tokens: Sequence[int], top_ids: Tensor) -> None:
        """Begin the stream of a prompt, equation 2."""
        self.reset()
        self._append(tokens, dict.fromkeys(top_ids.flatten().tolist()))

    def select(self, context: Context) -> Tensor:
        return self._ids

    def observe(self, finished: Round) -> None:
        evidence = finished.evidence
        assert evidence is not None  # always present for ``observe``
        self._append(
            dict.fromkeys(finished.proposed),
            dict.fromkeys(evidence.top_ids[:, : self.top_ids_wanted].flatten().tolist()),
        )

    def _append(self, *parts: Sequence[int] | dict[int, None]) -> None:
        """Equations 3 and 4."""
        for token in itertools.chain.from_iterable(parts):
            self._stream.append(token)
            self._counts[token] += 1
        while len(self._stream) > self._window:
            self._counts[self._stream.popleft()] -= 1
        distinct = np.flatnonzero(self._counts)
        if not np.array_equal(distinct, self._ids.numpy()):
            self._ids = torch.from_numpy(distinct)
