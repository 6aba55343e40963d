"""Standard online adaptation, as in Online Speculative Decoding (Liu et al., arXiv 2310.07177):
every parameter of the draft is trained, by Adam, to the target's laws in a replay buffer, with
the Kullback-Leibler divergence. The buffer, the positions learnt from and the time of updates
are those of ``minispec.align``, so that only the way of learning differs."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from minispec.align import AdaptConfig, Aligner, reread
from minispec.draft import EagleDraft
from minispec.objective import OBJECTIVES, log_law, support
from minispec.types import Law
from minispec.verdicts import Verdicts


class FullVerdicts(Verdicts):
    """The same positions with whole laws beside them, in float16, as published."""

    def __init__(self, vocabulary_size: int, windows: int, window: int, *arguments: Any) -> None:
        super().__init__(windows, window, *arguments)
        self.laws = torch.zeros(windows * window, vocabulary_size, dtype=torch.float16)

    def add(self, taps: Tensor, directions: Tensor, trails: Tensor, laws: Sequence[Law],
            difficulties: Sequence[float], text: int) -> int:  # fmt: skip
        for place, law in enumerate(laws):
            one = slice(place, place + 1)
            refused = super().add(
                taps[one], directions[one], trails[one], [law], difficulties[one], text
            )
            if not refused:
                self.laws[(self._written - 1) % (self._ring * self.window)] = law.probs.half()
        return 0

    def _copy(self, source: int, destination: int) -> None:
        super()._copy(source, destination)
        laws = self.laws.unflatten(0, (-1, self.window))
        laws[destination] = laws[source]


class Rival(Aligner):
    """Full-parameter online distillation behind the interface of a learner. The draft is
    trained in place: hand in a copy."""

    def __init__(self, draft: EagleDraft, config: AdaptConfig, *, full_laws: bool = False):
        super().__init__(draft, replace(config, recall=False, floor=False), carry=True)
        self.draft = draft.requires_grad_(True)
        self.reaches_cache = True  # everything changes
        self._optimiser = self._rested()
        # The same buffer, but for the directions, which only recall needs.
        taps = len(draft.config.tap_layers) * draft.config.width
        shape = (config.windows, config.window, taps, 0, config.largest, config.seed)
        size = draft.config.vocabulary_size
        self.verdicts = FullVerdicts(size, *shape) if full_laws else Verdicts(*shape)

    def _parameters(self) -> list[torch.nn.Parameter]:
        return list(self.draft.parameters())

    def read(self, ids: Tensor, taps: Tensor, hidden: Tensor) -> None:
        super().read(ids, taps, hidden[:, :0])

    def _update(self, events: Counter[str]) -> None:
        old = self.verdicts.sampled()
        newest = self.verdicts.newest()
        index = torch.stack([newest] if old is None else [newest, old])
        batch = self.verdicts.rows.at(index)
        with torch.inference_mode(False), torch.enable_grad():
            hidden = reread(self.draft, batch) / self._temperature
            if isinstance(self.verdicts, FullVerdicts):
                logs = torch.log_softmax(self.draft.head.full(hidden).float(), dim=-1)
                laws = self.verdicts.laws[index.flatten()].float()
                loss = (torch.special.xlogy(laws, laws) - laws * logs).sum(-1).mean()
            else:
                ids, raised = support(
                    batch.ids, self.config.others, self.draft.head.vocabulary_size,
                    self._generator,
                )  # fmt: skip
                logs = log_law(hidden, self.draft.head.weight[ids], raised)
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
            kinds["buffer"] = [*kinds["buffer"], self.verdicts.laws]
        return kinds
