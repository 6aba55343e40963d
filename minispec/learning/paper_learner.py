"""EvoSpec's alignment as published (arXiv 2605.27390 v1, section 3.4 and algorithm 1).

Where the draft failed, a trajectory of G = 6 emitted tokens is collected, with the target's top-k
logits at each. When the buffer has 32 of them, the adapters (LoRA of rank 32 on the draft's W_q and
W_v, scale 1) take one step on the horizon loss (``horizon``, beta = 0.3), with a rate of 1e-5, and
the buffer is emptied: no sample is used twice. Nothing else learns, and no guard switches it off.

In the paper the draft failed where its token was rejected, or where KL(p || q) is above a threshold
whose value is not stated. Here rejections alone count. As the paper's text has it, and unlike its
algorithm 1, the emitted token must be on the shortlist: one outside it is the vocabulary's failure,
not the draft's.

The paper leaves open, and is decided here: k = 64 and T = 1; adapters begin as in ``lora``, without
dropout; the optimiser, Adam unless the plain gradient step that the paper writes is asked for; what
becomes of cached keys and values made with the old W_v: all are computed anew (``types.Learner``).
See ``horizon`` and ``trajectories`` for what they decide.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from minispec.learning import lora
from minispec.learning.adapter_optimizer import AdapterOptimizer
from minispec.learning.horizon import horizon_loss
from minispec.learning.recorder import is_consistent
from minispec.learning.trajectories import (
    TextHistory,
    Trajectories,
    stack_trajectories,
    unroll,
)
from minispec.models.eagle_draft import EagleDraft
from minispec.sampling import Sampling
from minispec.tree import follow
from minispec.types import Context, LearnerUpdate, Round


@dataclass(frozen=True)
class PaperConfig:
    """The settings of ``PaperLearner``; the defaults are the paper's, table 5, or the choices that
    its module names. ``steps``: G; ``samples``: trajectories for one step of the optimiser;
    ``adam``: False for plain gradient descent."""

    rank: int = 32
    targets: tuple[str, ...] = ("attention.query", "attention.value")
    learning_rate: float = 1e-5
    steps: int = 6
    beta: float = 0.3
    temperature: float = 1.0
    top_k: int = 64
    samples: int = 32
    adam: bool = True
    seed: int = 0


class PaperLearner:
    """A draft whose W_q and W_v follow the target (see ``types.Learner``).

    Decode with ``draft``, a copy of the given draft with adapters; the given one is not changed.
    With ``carry`` everything learnt is kept from one text to the next, as the paper's streams of
    requests suggest.
    """

    def __init__(
        self, draft: EagleDraft, config: PaperConfig | None = None, *, carry: bool = False
    ) -> None:
        self.config = config = config or PaperConfig()
        self.draft = lora.add_adapters(draft, config.targets, config.rank, config.seed)
        self.invalidates_cache = bool(set(config.targets) & set(lora.CACHE_TARGETS))
        self.top_ids_wanted = config.top_k
        self.optimizer = AdapterOptimizer(self.draft, config.learning_rate, adam=config.adam)
        self._carry = carry
        self.reset()

    def reset(self) -> None:
        """Return to the initial state."""
        self.optimizer.reset()
        self._buffer: list[Trajectories] = []
        self._history = TextHistory(self.config.steps)

    def start(self, continued: bool = False) -> None:
        """Begin a text. Everything learnt from earlier texts is dropped, unless it is carried or
        the text continues the conversation before it."""
        if not (self._carry or continued):
            self.reset()
        self._history = TextHistory(self.config.steps)

    def on_prefill(self, ids: Tensor, aux_hidden_states: Tensor, hidden: Tensor) -> None:
        """Take T positions that the draft has processed: ids (T,), auxiliary hidden states
        (T, n_aux * D), and the draft's hidden states (T, D), which are not needed."""
        self._history.add_positions(ids, aux_hidden_states)

    def adjust_logits(
        self, logits: Tensor, ids: Tensor, context: Context, sampling: Sampling
    ) -> Tensor:
        """The logits (K,) as they are: the adapters have done their work."""
        return logits

    def observe(self, finished: Round) -> LearnerUpdate:
        """Learn from a finished round. Counts by name: ``positions`` trained on,
        ``refused_verdicts`` and ``refused_updates`` with wrong or infinite numbers."""
        if not is_consistent(finished):
            self._history = TextHistory(self.config.steps)
            return LearnerUpdate(counts={"refused_verdicts": len(finished.tokens)})
        self._history.add_round(finished, _find_failure(finished))
        self._buffer += self._history.take_complete(ended=finished.stop is not None)
        if len(self._buffer) < self.config.samples:
            return LearnerUpdate()
        batch, self._buffer = stack_trajectories(self._buffer), []
        with torch.inference_mode(False), torch.enable_grad():
            changed = self.optimizer.step(self._compute_loss(batch))
        counts = {"positions": int(batch.known.sum())} | ({} if changed else {"refused_updates": 1})
        return LearnerUpdate(changed, counts)

    def _compute_loss(self, batch: Trajectories) -> Tensor:
        hidden = unroll(self.draft, batch)  # (B, G, D)
        rows = self.draft.head.weight[batch.top_ids]  # (B, G, k, D)
        logits = torch.einsum("bgd,bgkd->bgk", hidden, rows)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return horizon_loss(
            batch.top_logits, logits, batch.labels, batch.known, self.config.beta,
            self.config.temperature,
        )  # fmt: skip

    def tensors(self) -> Mapping[str, list[Tensor]]:
        """All tensors that learning adds to plain speculative decoding, by kind, to count the
        memory that it needs."""
        samples = [value for sample in self._buffer for value in vars(sample).values()]
        return {**self.optimizer.tensors(), "buffer": samples}


def _find_failure(finished: Round) -> list[int]:
    """The index of the round's token at which the draft failed, if it failed and the token was on
    the shortlist."""
    index = len(finished.path)
    evidence = finished.evidence
    assert evidence is not None  # always present for learners
    distributions = follow(evidence.proposal, finished.path).draft_distributions
    if index >= min(len(finished.tokens), len(distributions)):
        return []
    listed = bool((torch.as_tensor(distributions[index].ids) == finished.tokens[index]).any())
    return [index] if listed else []
