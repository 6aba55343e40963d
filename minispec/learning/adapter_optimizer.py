"""Adam for the adapters of a draft; a step that is not finite is undone."""

import torch
from torch import Tensor

from minispec.learning import lora
from minispec.models.eagle_draft import EagleDraft


class AdapterOptimizer:
    """Trains the adapters of a draft (see ``lora.add_adapters``)."""

    def __init__(self, draft: EagleDraft, learning_rate: float) -> None:
        self._draft, self._learning_rate = draft, learning_rate
        self._initial_state = lora.get_adapter_state(draft)
        self._adam = self._new_adam()

    def reset(self) -> None:
        """Undo all training."""
        lora.set_adapter_state(self._draft, self._initial_state)
        self._adam = self._new_adam()

    @property
    def has_stepped(self) -> bool:
        """Whether the adapters may differ from the initial ones."""
        return bool(self._adam.state)

    def step(self, loss: Tensor) -> bool:
        """One step on a loss (scalar). If a number is not finite, the step is undone and False
        returned."""
        parameters = self._parameters()
        previous = lora.get_adapter_state(self._draft)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        finite = bool(loss.isfinite()) and bool(norm.isfinite())
        if finite:
            self._adam.step()
            finite = all(bool(p.isfinite().all()) for p in parameters)
        if finite:
            self._draft.version += 1
        else:
            lora.set_adapter_state(self._draft, previous)
            self._adam = self._new_adam()  # its moments may not be finite either
        for parameter in parameters:
            parameter.grad = None
        return finite

    def _parameters(self) -> list[torch.nn.Parameter]:
        modules = lora.find_adapters(self._draft).values()
        return [parameter for module in modules for parameter in module.parameters(recurse=False)]

    def _new_adam(self) -> torch.optim.Adam:
        """A fresh Adam, created eagerly: the first one in a process imports for about a second."""
        return torch.optim.Adam(self._parameters(), self._learning_rate, betas=(0.9, 0.99))

    def tensors(self) -> dict[str, list[Tensor]]:
        """All tensors that training adds to the frozen draft, by kind."""
        parameters, moments = self._parameters(), self._adam.state.values()
        return {
            "weights": [p.data for p in parameters],
            "gradients": [p.grad for p in parameters if p.grad is not None],
            "optimiser": [v for s in moments for v in s.values() if isinstance(v, Tensor)],
        }
