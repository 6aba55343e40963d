"""Adam or plain gradient descent for the adapters of a draft; an infinite step is undone."""

import torch
from torch import Tensor

from minispec.learning import lora
from minispec.models.eagle_draft import EagleDraft


class AdapterOptimizer:
    """Trains the adapters of a draft (see ``lora.add_adapters``)."""

    def __init__(self, draft: EagleDraft, learning_rate: float, *, adam: bool = True) -> None:
        """``adam``: False for plain gradient descent."""
        self._draft, self._learning_rate, self._adam = draft, learning_rate, adam
        self._initial_state = lora.get_adapter_state(draft)
        self._optimizer = self._build_optimizer()

    def reset(self) -> None:
        """Undo all training."""
        lora.set_adapter_state(self._draft, self._initial_state)
        self._optimizer = self._build_optimizer()

    @property
    def has_stepped(self) -> bool:
        """Whether the adapters may differ from the initial ones."""
        return self._stepped

    def step(self, loss: Tensor) -> bool:
        """One step on a loss (scalar). If a number is not finite, the step is undone and False
        returned."""
        parameters = self._parameters()
        previous = lora.get_adapter_state(self._draft)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0 if self._adam else torch.inf)
        finite = bool(loss.isfinite()) and bool(norm.isfinite())
        if finite:
            self._optimizer.step()
            self._stepped = True
            finite = all(bool(p.isfinite().all()) for p in parameters)
        if finite:
            self._draft.version += 1
        else:
            lora.set_adapter_state(self._draft, previous)
            self._optimizer = self._build_optimizer()  # its moments may not be finite either
        for parameter in parameters:
            parameter.grad = None
        return finite

    def _parameters(self) -> list[torch.nn.Parameter]:
        modules = lora.find_adapters(self._draft).values()
        return [parameter for module in modules for parameter in module.parameters(recurse=False)]

    def _build_optimizer(self) -> torch.optim.Optimizer:
        """A fresh optimiser, created eagerly: the first one in a process imports for about a
        second."""
        self._stepped = False
        if not self._adam:
            return torch.optim.SGD(self._parameters(), self._learning_rate)
        return torch.optim.Adam(self._parameters(), self._learning_rate, betas=(0.9, 0.99))

    def tensors(self) -> dict[str, list[Tensor]]:
        """All tensors that training adds to the frozen draft, by kind."""
        parameters, moments = self._parameters(), self._optimizer.state.values()
        return {
            "weights": [p.data for p in parameters],
            "gradients": [p.grad for p in parameters if p.grad is not None],
            "optimiser": [v for s in moments for v in s.values() if isinstance(v, Tensor)],
        }
