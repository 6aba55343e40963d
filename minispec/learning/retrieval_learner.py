"""The retrieval learner: drafts from q interpolated with recorded target distributions (kNN-LM).

It helps from the first repetition in a text on, without gradients. A guard compares the
acceptance rate with and without retrieval at the first draft step of each round, and switches
retrieval off while it is harmful.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from minispec.learning.config import LearnerConfig
from minispec.learning.guard import Guard
from minispec.learning.losses import acceptance_rate
from minispec.learning.recorder import PositionRecorder
from minispec.learning.replay_buffer import NGRAM_SIZE, Entries
from minispec.learning.retrieval import interpolate_neighbours
from minispec.sampling import Sampling
from minispec.types import Context, Distribution, Round


class RetrievalLearner:
    """Retrieves from the positions of a recorder (see ``retrieval``)."""

    def __init__(self, recorder: PositionRecorder, config: LearnerConfig) -> None:
        self._recorder, self._config = recorder, config
        self.reset()

    def reset(self) -> None:
        """Return to the initial state; the recorder is reset by its owner."""
        self._guard = Guard(horizon=64, margin=0.02)
        self.discard()

    def discard(self) -> None:
        """Drop the distributions that the guard would compare after this round."""
        # At the first draft step of the round, without retrieval and with.
        self._compared: tuple[Distribution, Distribution] | None = None

    def adjust_logits(
        self, logits: Tensor, ids: Tensor, context: Context, sampling: Sampling
    ) -> Tensor:
        """Logits (K,) of q over ids (K,) -> logits (K,) to draw from."""
        first_step = context.depth == 0
        if first_step:
            self.discard()
        entries = self._entries()
        # While the guard is active, retrieval is only measured, at the first step.
        if entries is None or (self._guard.active and not first_step):
            return logits
        temperature = sampling.temperature or 1.0  # greedy decoding: q at temperature 1
        recent = context.tokens[: -NGRAM_SIZE - 1 : -1]
        ngram = torch.tensor([*recent, *[-1] * NGRAM_SIZE][:NGRAM_SIZE])
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        adjusted = temperature * interpolate_neighbours(
            logits / temperature, context.hidden, ids, ngram, entries
        )
        if first_step and self._config.guard:
            self._compared = (
                sampling.shape(logits, ids), sampling.shape(adjusted, ids)
            )  # fmt: skip
        return logits if self._guard.active else adjusted

    def _entries(self) -> Entries | None:
        """The recorded positions, None if there are none or retrieval is switched off."""
        used = len(self._recorder.buffer)
        if not used or not self._config.retrieval:
            return None
        return self._recorder.buffer.entries.select(slice(used))

    def observe(self, finished: Round) -> Mapping[str, int]:
        """Update the guard after a round. Returns counts by name: ``recall_switched_off``."""
        counts: dict[str, int] = {}
        if self._compared:
            assert finished.evidence is not None  # always present for learners
            p = finished.evidence.target_distributions[0]
            without, with_retrieval = (acceptance_rate(p, q) for q in self._compared)
            gain = with_retrieval - without
            if math.isfinite(gain) and self._guard.record(gain):
                counts["recall_switched_off"] = 1
        self.discard()
        return counts
