"""The LoRA learner: trains low-rank adapters of the draft between rounds.

Every ``update_interval`` emitted tokens it takes one step of Adam on the newest window of
positions and on one older window. Two safeguards: a step that is not finite is undone, and a guard
compares the acceptance rate of the adapted draft with that of the frozen one, and resets the
adapters when they are harmful.

The number of steps depends on emitted tokens, not on time, so a seed reproduces a run.
"""

import torch
from torch import Tensor

from minispec.learning import curriculum, lora
from minispec.learning.adapter_optimizer import AdapterOptimizer
from minispec.learning.config import LearnerConfig
from minispec.learning.guard import Guard
from minispec.learning.losses import (
    LOSSES,
    acceptance_rates,
    sample_softmax_ids,
    sampled_log_softmax,
)
from minispec.learning.recorder import PositionRecorder
from minispec.learning.replay_buffer import Entries
from minispec.learning.training_forward import training_forward
from minispec.models.eagle_draft import EagleDraft
from minispec.types import LearnerUpdate, Round


class LoraLearner:
    """Trains adapters on the positions of a recorder. ``draft`` is a copy of the given draft that
    shares its weights and has the adapters; the given one is not changed.

    ``temperature``: of sampling, at which q is compared with p; 1 for greedy decoding.
    """

    def __init__(
        self, draft: EagleDraft, recorder: PositionRecorder, config: LearnerConfig
    ) -> None:
        self.draft = lora.add_adapters(draft, config.targets, config.rank, config.seed)
        self.invalidates_cache = bool(set(config.targets) & set(lora.CACHE_TARGETS))
        self._frozen, self._recorder, self._config = draft, recorder, config
        self.optimizer = AdapterOptimizer(self.draft, config.learning_rate)
        self.reset()

    def reset(self) -> None:
        """Return to untrained adapters; the recorder is reset by its owner."""
        self.optimizer.reset()
        self._generator = torch.Generator().manual_seed(self._config.seed)
        self._guard = Guard(horizon=3, margin=0.01)
        self._tokens_since_update, self.temperature = 0, 1.0

    def observe(self, finished: Round) -> LearnerUpdate:
        """Take a training step if one is due after this round, which is already recorded."""
        config = self._config
        self._tokens_since_update += len(finished.tokens)
        enough = self._recorder.buffer.num_recent >= config.window_size
        due = self._tokens_since_update >= config.update_interval and enough
        if not due or self._guard.active:
            return LearnerUpdate()
        self._tokens_since_update = 0
        return self._update()

    def _update(self) -> LearnerUpdate:
        """One training step, unless the adapters are harmful or a number is not finite."""
        config, buffer = self._config, self._recorder.buffer
        batch = buffer.entries.select(buffer.sample_batch(config.replay))  # (B, W)
        ids, offsets = sample_softmax_ids(
            batch.ids, config.num_random_ids, self.draft.head.vocab_size, self._generator
        )  # (K,)
        head_rows = self.draft.head.weight[ids]  # (K, D)
        columns = torch.searchsorted(ids, batch.ids).flatten(0, 1)  # (N, m), N = B * W
        probs = batch.probs.flatten(0, 1)  # (N, m)

        def log_q_of(draft: EagleDraft, entries: Entries) -> Tensor:
            hidden = training_forward(draft, entries) / self.temperature  # (N, D)
            return sampled_log_softmax(hidden, head_rows, offsets)  # (N, K)

        with torch.inference_mode(False), torch.enable_grad():
            log_q = log_q_of(self.draft, batch)
            if config.guard and self.optimizer.has_stepped:
                with torch.no_grad():  # on the newest window
                    frozen_log_q = log_q_of(self._frozen, batch.select(slice(0, 1)))  # (W, K)
                    harmful = self._is_harmful(log_q, frozen_log_q, probs, columns)
                del frozen_log_q  # not kept during the backward pass
                if harmful:
                    self.optimizer.reset()
                    return LearnerUpdate(True, {"adapter_switched_off": 1})
            weights = torch.ones(len(probs))
            if config.curriculum:
                competence = curriculum.competence(self._recorder.acceptance)
                weights = curriculum.weights(batch.difficulty.flatten(), competence)
            losses = LOSSES[config.loss](log_q, probs, columns)  # (N,)
            loss = (losses * weights).sum() / weights.sum().clamp(min=1)
            if self.optimizer.step(loss):
                return LearnerUpdate(True, {"positions": len(probs)})
            return LearnerUpdate(False, {"positions": len(probs), "refused_updates": 1})

    def _is_harmful(
        self, log_q: Tensor, frozen_log_q: Tensor, probs: Tensor, columns: Tensor
    ) -> bool:
        """Whether the guard becomes active. It compares acceptance rates at the newest positions,
        which were not trained on yet."""
        new = slice(0, self._config.window_size)
        rates = acceptance_rates(log_q[new], probs[new], columns[new])  # (W,)
        frozen_rates = acceptance_rates(frozen_log_q, probs[new], columns[new])  # (W,)
        return self._guard.record(float((rates - frozen_rates).mean()))
