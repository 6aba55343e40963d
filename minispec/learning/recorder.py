"""The recorder: every emitted position goes into the replay buffer that all learners share.

The draft processes a position before the target's distribution of the next token there is known
(``on_prefill``). Verification computes that distribution, and ``record`` stores both together.
Also keeps the mean acceptance rate. Knows nothing of training or retrieval.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from minispec.learning import curriculum
from minispec.learning.losses import acceptance_rate
from minispec.learning.replay_buffer import NGRAM_SIZE, ReplayBuffer
from minispec.tree import follow
from minispec.types import Round

_ACCEPTANCE_HORIZON = 64  # positions in the moving average of the acceptance rate
_Position = tuple[Tensor, Tensor, Tensor]  # auxiliary hidden states, key, n-gram


class PositionRecorder:
    """Records the positions of one text at a time into a replay buffer.

    ``acceptance`` is an exponential moving average of the acceptance rate.
    """

    def __init__(self, buffer: ReplayBuffer) -> None:
        self.buffer = buffer
        self._sequence = 0  # number of the text
        self.reset()

    def reset(self) -> None:
        """Remove everything recorded."""
        self.buffer.clear()
        self.acceptance = 0.0

    def start(self) -> None:
        """Begin the next text."""
        self._sequence += 1
        self._pending: list[_Position] = []  # the next token's distribution is still unknown
        self._ngram = [-1] * NGRAM_SIZE

    def on_prefill(self, ids: Tensor, aux_hidden_states: Tensor, hidden: Tensor) -> None:
        """Take T positions that the draft has processed: ids (T,), auxiliary hidden states
        (T, n_aux * D), and the draft's hidden states (T, D), the keys before normalisation."""
        tokens = torch.tensor([*self._ngram[: NGRAM_SIZE - 1][::-1], *ids.tolist()])
        ngrams = tokens.unfold(0, NGRAM_SIZE, 1).flip(1)  # (T, NGRAM_SIZE), newest first
        self._ngram = ngrams[-1].tolist()
        keys = F.normalize(hidden, dim=-1)  # (T, D)
        # The last position before these is still pending.
        self._pending = [*self._pending[-1:], *zip(aux_hidden_states, keys, ngrams, strict=True)]

    def record(self, finished: Round) -> Mapping[str, int]:
        """Store the pending positions whose next distribution the round revealed, and update the
        mean acceptance rate. Returns the number of positions refused because a number was not
        finite, as ``refused_verdicts``, if there was any position to store."""
        evidence = finished.evidence
        assert evidence is not None  # always present for learners
        rates = _acceptance_rates(finished)
        for rate in filter(math.isfinite, rates):
            self.acceptance += (rate - self.acceptance) / _ACCEPTANCE_HORIZON
        positions, first = self._take_revealed(finished)
        if not positions:
            return {}
        last = first + len(positions)
        distributions = evidence.target_distributions[first:last]
        # A position without a draft token follows a chain that was accepted completely.
        rates = [*rates, *[self.acceptance] * len(finished.tokens)][first:last]
        difficulties = [curriculum.difficulty(rate, step) for step, rate in enumerate(rates, first)]
        aux_hidden_states, keys, ngrams = map(torch.stack, zip(*positions, strict=True))
        refused = self.buffer.add(
            aux_hidden_states, keys, ngrams, distributions, difficulties, self._sequence
        )
        return {"refused_verdicts": refused}

    def _take_revealed(self, finished: Round) -> tuple[list[_Position], int]:
        """The pending positions whose next distribution is now known, and the index of the first
        of these distributions in the round's evidence."""
        if finished.stop is None:
            # The draft has processed all emitted tokens. The one after the last is unknown.
            revealed = self._pending[:-1]
            return revealed, len(finished.tokens) - len(revealed)
        # After a stop the draft does not process this round's tokens.
        return self._pending[-1:], 0


def is_consistent(finished: Round) -> bool:
    """Whether each emitted token has a positive probability under its target distribution. If
    not, e.g. because of a NaN, the round's evidence is wrong and must not be used."""
    assert finished.evidence is not None  # always present for learners
    pairs = zip(finished.evidence.target_distributions, finished.tokens, strict=True)
    return all(float(p.probability(token)) > 0 for p, token in pairs)


def _acceptance_rates(finished: Round) -> list[float]:
    """alpha at each position that has both a target and a draft distribution; in a tree that of the
    accepted candidate, or of the first one where none was."""
    assert finished.evidence is not None  # always present for learners
    verified = follow(finished.evidence.proposal, finished.path)
    pairs = zip(
        finished.evidence.target_distributions, verified.draft_distributions, strict=False
    )  # the bonus token has no q
    return [acceptance_rate(p, q) for p, q in pairs]
