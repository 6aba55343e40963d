"""Full-parameter online distillation, the baseline for LoRA: after Online Speculative Decoding
(Liu et al., arXiv 2310.07177).

All parameters of the draft are trained with Adam and the Kullback-Leibler divergence from the
target's distributions in a replay buffer. The buffer, the positions of a batch and the times of
updates are those of ``minispec.learning.learner``, so only the way of learning differs.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from minispec.learning.config import LearnerConfig
from minispec.learning.losses import LOSSES, sample_softmax_ids, sampled_log_softmax
from minispec.learning.recorder import PositionRecorder, is_consistent
from minispec.learning.replay_buffer import ReplayBuffer
from minispec.learning.training_forward import training_forward
from minispec.models.eagle_draft import EagleDraft
from minispec.sampling import Sampling
from minispec.types import Context, Distribution, LearnerUpdate, Round


class FullDistributionBuffer(ReplayBuffer):
    """A replay buffer that also stores the complete distributions (R, V) in float16, as the paper
    does."""

    def __init__(self, vocab_size: int, num_windows: int, window_size: int, *rest: int) -> None:
        super().__init__(num_windows, window_size, *rest)
        size = num_windows * window_size
        self.distributions = torch.zeros(size, vocab_size, dtype=torch.float16)  # (R, V)

    def add(
        self,
        aux_hidden_states: Tensor,
        keys: Tensor,
        ngrams: Tensor,
        distributions: Sequence[Distribution],
        difficulties: Sequence[float],
        sequence: int,
    ) -> int:
        """As ``ReplayBuffer.add``: (n, n_aux * D), (n, 0), (n, NGRAM_SIZE), and n distributions
        over all ids."""
        refused = 0
        for i, distribution in enumerate(distributions):
            one, index = slice(i, i + 1), self._ring.next_index
            if super().add(
                aux_hidden_states[one], keys[one], ngrams[one], [distribution],
                difficulties[one], sequence,
            ):  # fmt: skip
                refused += 1
            else:
                self.distributions[index] = distribution.probs.half()
        return refused

    def _copy_window(self, source: int, destination: int) -> None:
        super()._copy_window(source, destination)
        windows = self.distributions.unflatten(0, (-1, self.window_size))
        windows[destination] = windows[source]

    def tensors(self) -> list[Tensor]:
        """All tensors of the buffer, (R, ...) each."""
        return [*super().tensors(), self.distributions]


class FullFinetuningLearner:
    """Trains the given draft itself, so pass a copy (see ``types.Learner``). Keeps everything
    learnt from one text to the next.

    Uses the update interval, replay buffer, learning rate and seed of ``config``. With
    ``full_distributions`` it learns from complete distributions instead of their top k.
    """

    invalidates_cache, top_ids_wanted = True, 0

    def __init__(
        self, draft: EagleDraft, config: LearnerConfig, *, full_distributions: bool = False
    ) -> None:
        self.draft, self._config = draft.requires_grad_(True), config
        model = draft.config
        aux_size = len(model.aux_hidden_state_layer_ids) * model.hidden_size
        # Keys of size 0: only retrieval needs them.
        shape = (config.num_windows, config.window_size, aux_size, 0, config.top_k, config.seed)
        self._buffer = (
            FullDistributionBuffer(model.vocab_size, *shape)
            if full_distributions
            else ReplayBuffer(*shape)
        )
        self._recorder = PositionRecorder(self._buffer)
        self._parameters = list(self.draft.parameters())
        self._optimizer = torch.optim.Adam(
            self._parameters, config.learning_rate, betas=(0.9, 0.99)
        )
        self._generator = torch.Generator().manual_seed(config.seed)
        self._tokens_since_update, self._temperature = 0, 1.0

    def start(self, continued: bool = False) -> None:
        """Begin a text."""
        self._recorder.start()

    def on_prefill(self, ids: Tensor, aux_hidden_states: Tensor, hidden: Tensor) -> None:
        """Take T positions: ids (T,), auxiliary hidden states (T, n_aux * D), hidden (T, D)."""
        self._recorder.on_prefill(ids, aux_hidden_states, hidden[:, :0])

    def adjust_logits(
        self, logits: Tensor, ids: Tensor, context: Context, sampling: Sampling
    ) -> Tensor:
        """The logits (K,) over ids (K,), unchanged (K,)."""
        self._temperature = sampling.temperature or 1.0  # greedy decoding: q at temperature 1
        return logits

    def observe(self, finished: Round) -> LearnerUpdate:
        """Record a round, and take a training step if one is due."""
        if not is_consistent(finished):
            return LearnerUpdate(counts={"refused_verdicts": len(finished.tokens)})
        counts = Counter(self._recorder.record(finished))
        self._tokens_since_update += len(finished.tokens)
        enough = self._buffer.num_recent >= self._config.window_size
        if self._tokens_since_update < self._config.update_interval or not enough:
            return LearnerUpdate(counts=counts)
        self._tokens_since_update = 0
        index = self._buffer.sample_batch(replay=True)  # (B, W)
        counts["positions"] += index.numel()
        return LearnerUpdate(self._update(index), counts)

    def _update(self, index: Tensor) -> bool:
        """One training step; False, and nothing changed, if the gradient is not finite."""
        with torch.inference_mode(False), torch.enable_grad():
            self._loss(index).backward()
            norm = torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
            finite = math.isfinite(float(norm))
            if finite:
                self._optimizer.step()
                self.draft.version += 1
            self._optimizer.zero_grad()
        return finite

    def _loss(self, index: Tensor) -> Tensor:
        """The mean of KL(p || q) over the entries at an index."""
        batch = self._buffer.entries.select(index)
        hidden = training_forward(self.draft, batch) / self._temperature  # (N, D)
        if isinstance(self._buffer, FullDistributionBuffer):
            log_q = torch.log_softmax(self.draft.head.logits(hidden).float(), dim=-1)  # (N, V)
            p = self._buffer.distributions[index.flatten()].float()  # (N, V)
            return (torch.special.xlogy(p, p) - p * log_q).sum(-1).mean()
        vocab_size = self.draft.head.vocab_size
        ids, offsets = sample_softmax_ids(
            batch.ids, self._config.num_random_ids, vocab_size, self._generator
        )  # (K,)
        log_q = sampled_log_softmax(hidden, self.draft.head.weight[ids], offsets)  # (N, K)
        columns = torch.searchsorted(ids, batch.ids).flatten(0, 1)  # (N, m)
        return LOSSES["kl"](log_q, batch.probs.flatten(0, 1), columns).mean()

    def tensors(self) -> Mapping[str, list[Tensor]]:
        """All tensors that learning adds to plain speculative decoding, by kind. The trained
        weights replace the draft's own and are not counted."""
        moments = self._optimizer.state.values()
        return {
            "weights": [],
            "gradients": [p.grad for p in self._parameters if p.grad is not None],
            "optimiser": [v for s in moments for v in s.values() if isinstance(v, Tensor)],
            "buffer": self._buffer.tensors(),
        }
