"""Standard online adaptation, as in Online Speculative Decoding (Liu et al., arXiv 2310.07177):
every parameter of the draft is trained, by Adam, to the target's laws in a replay buffer, with
the Kullback-Leibler divergence. The buffer, the positions learnt from and the time of updates
are those of ``minispec.learning.learner``, so that only the way of learning differs."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from minispec.learning.learner import AdaptConfig, Aligner, training_forward
from minispec.learning.losses import OBJECTIVES, log_distribution, support
from minispec.learning.replay_buffer import ReplayBuffer
from minispec.models.eagle_draft import EagleDraft
from minispec.types import Distribution


class FullVerdicts(ReplayBuffer):
    """The same positions with whole laws beside them, in float16, as published."""

    def __init__(self, vocab_size: int, windows: int, window: int, *arguments: Any) -> None:
        super().__init__(windows, window, *arguments)
        self.distributions = torch.zeros(windows * window, vocab_size, dtype=torch.float16)

    def add(self, aux_hidden_states: Tensor, directions: Tensor, trails: Tensor, distributions: Sequence[Distribution],
            difficulties: Sequence[float], text: int) -> int:  # fmt: skip
        for place, distribution in enumerate(distributions):
            one = slice(place, place + 1)
            refused = super().add(
                aux_hidden_states[one],
                directions[one],
                trails[one],
                [distribution],
                difficulties[one],
                text,
            )
            if not refused:
                self.distributions[(self._written - 1) % (self._ring * self.window)] = (
                    distribution.probs.half()
                )
        return 0

    def _copy(self, source: int, destination: int) -> None:
        super()._copy(source, destination)
        distributions = self.distributions.unflatten(0, (-1, self.window))
        distributions[destination] = distributions[source]


class Rival(Aligner):
    """Full-parameter online distillation behind the interface of a learner. The draft is
    trained in place: hand in a copy."""

    def __init__(self, draft: EagleDraft, config: AdaptConfig, *, full_distributions: bool = False):
        super().__init__(draft, replace(config, recall=False, floor=False), carry=True)
        self.draft = draft.requires_grad_(True)
        self.reaches_cache = True  # everything changes
        self._optimiser = self._rested()
        # The same buffer, but for the directions, which only recall needs.
        aux_hidden_states = len(draft.config.aux_hidden_state_layer_ids) * draft.config.hidden_size
        shape = (
            config.windows,
            config.window,
            aux_hidden_states,
            0,
            config.largest,
            config.seed,
        )
        size = draft.config.vocab_size
        self.verdicts = FullVerdicts(size, *shape) if full_distributions else ReplayBuffer(*shape)

    def _parameters(self) -> list[torch.nn.Parameter]:
        return list(self.draft.parameters())

    def on_prefill(self, ids: Tensor, aux_hidden_states: Tensor, hidden: Tensor) -> None:
        super().on_prefill(ids, aux_hidden_states, hidden[:, :0])

    def _update(self, events: Counter[str]) -> None:
        old = self.verdicts.sampled()
        newest = self.verdicts.newest()
        index = torch.stack([newest] if old is None else [newest, old])
        batch = self.verdicts.rows.at(index)
        with torch.inference_mode(False), torch.enable_grad():
            hidden = training_forward(self.draft, batch) / self._temperature
            if isinstance(self.verdicts, FullVerdicts):
                logs = torch.log_softmax(self.draft.head.logits(hidden).float(), dim=-1)
                distributions = self.verdicts.distributions[index.flatten()].float()
                loss = (
                    (torch.special.xlogy(distributions, distributions) - distributions * logs)
                    .sum(-1)
                    .mean()
                )
            else:
                ids, raised = support(
                    batch.ids, self.config.others, self.draft.head.vocab_size,
                    self._generator,
                )  # fmt: skip
                logs = log_distribution(hidden, self.draft.head.weight[ids], raised)
                places = torch.searchsorted(ids, batch.ids).flatten(0, 1)
                loss = OBJECTIVES["kl"](logs, batch.probs.flatten(0, 1), places).mean()
            events["positions"] += index.numel()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(self._parameters(), 1.0)
            if math.isfinite(float(norm)):
                self._optimiser.step()
                self.draft.version += 1
                events["changed"] += 1
            self._optimiser.zero_grad()

    def tensors(self) -> Mapping[str, list[Tensor]]:
        """As ``Aligner.tensors``; the weights that it trains replace the draft's own."""
        kinds = dict(super().tensors())
        kinds["weights"] = []
        if isinstance(self.verdicts, FullVerdicts):
            kinds["buffer"] = [*kinds["buffer"], self.verdicts.distributions]
        return kinds
