"""Online learning: a draft that learns from verification while it serves.

After each round the target's distribution is known at every emitted position: exactly what the
draft should have predicted. A recorder stores these distributions in a replay buffer, and two
learners use them: *retrieval* interpolates the draft's distribution with those recorded at
similar positions, and *LoRA* takes gradient steps on them.

Both change the draft between rounds only. A proposal records each token's distribution when it
is drawn, and learners share no randomness with verification, so decoding stays exact.
"""

from collections import Counter
from collections.abc import Mapping

from torch import Tensor

from minispec.learning.config import LearnerConfig
from minispec.learning.lora_learner import LoraLearner
from minispec.learning.recorder import PositionRecorder, is_consistent
from minispec.learning.replay_buffer import ReplayBuffer
from minispec.learning.retrieval_learner import RetrievalLearner
from minispec.models.eagle_draft import EagleDraft
from minispec.sampling import Sampling
from minispec.types import Context, LearnerUpdate, Round


class OnlineLearner:
    """Retrieval and LoRA over one replay buffer (see ``types.Learner``).

    Decode with ``draft``, a copy of the given draft with adapters; the given one is not changed.
    With ``carry`` everything learnt is kept from one text to the next.
    """

    top_ids_wanted = 0  # it learns from the distributions alone

    def __init__(
        self, draft: EagleDraft, config: LearnerConfig | None = None, *, carry: bool = False
    ) -> None:
        self.config = config = config or LearnerConfig()
        model = draft.config
        aux_size = len(model.aux_hidden_state_layer_ids) * model.hidden_size
        self.recorder = PositionRecorder(ReplayBuffer(
            config.num_windows, config.window_size, aux_size, model.hidden_size, config.top_k,
            config.seed,
        ))  # fmt: skip
        self.retrieval = RetrievalLearner(self.recorder, config)
        self.lora = LoraLearner(draft, self.recorder, config)
        self.draft, self.invalidates_cache = self.lora.draft, self.lora.invalidates_cache
        self._carry = carry

    def reset(self) -> None:
        """Return to the initial state."""
        self.recorder.reset()
        self.retrieval.reset()
        self.lora.reset()

    def start(self, continued: bool = False) -> None:
        """Begin a text. Everything learnt from earlier texts is dropped, unless it is carried or
        the text continues the conversation before it."""
        if not (self._carry or continued):
            self.reset()
        self.recorder.start()
        self.retrieval.discard()

    def on_prefill(self, ids: Tensor, aux_hidden_states: Tensor, hidden: Tensor) -> None:
        """Take T positions that the draft has processed: ids (T,), auxiliary hidden states
        (T, n_aux * D), and the draft's hidden states (T, D)."""
        self.recorder.on_prefill(ids, aux_hidden_states, hidden)

    def adjust_logits(
        self, logits: Tensor, ids: Tensor, context: Context, sampling: Sampling
    ) -> Tensor:
        """Logits (K,) of q over ids (K,) -> logits (K,) to draw from."""
        self.lora.temperature = sampling.temperature or 1.0  # greedy decoding: q at temperature 1
        return self.retrieval.adjust_logits(logits, ids, context, sampling)

    def observe(self, finished: Round) -> LearnerUpdate:
        """Learn from a finished round.

        Counts by name: ``positions`` trained on, ``refused_verdicts`` and ``refused_updates`` with
        wrong or infinite numbers, ``recall_switched_off`` and ``adapter_switched_off`` by a guard.
        """
        if not is_consistent(finished):
            self.retrieval.discard()
            return LearnerUpdate(counts={"refused_verdicts": len(finished.tokens)})
        counts = Counter(self.retrieval.observe(finished))
        counts.update(self.recorder.record(finished))
        update = self.lora.observe(finished)
        counts.update(update.counts)
        return LearnerUpdate(update.weights_changed, counts)

    def tensors(self) -> Mapping[str, list[Tensor]]:
        """All tensors that learning adds to plain speculative decoding, by kind, to count the
        memory that it needs."""
        return {**self.lora.optimizer.tensors(), "buffer": self.recorder.buffer.tensors()}
