"""A training run that may be killed at any moment: it goes on, from its last checkpoint, to the
very same weights, since everything random in it is a function of the seed and the number of the
update. Knows nothing of what is trained, nor on what."""

import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minispec.errors import ArgumentError, FileError, MinispecError
from minispec.io.files import read_metadata, read_tensors, write_json, write_tensors

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")  # of AdamW
Line = dict[str, float]


@dataclass(frozen=True)
class TrainingConfig:
    """How long a run is, and how fast it learns; ``tokens`` counts those seen, repeats included."""

    tokens: int
    seed: int = 0
    peak_rate: float = 2e-3
    warmup: float = 0.03  # share of the run
    report: int = 50_000  # tokens between two lines of figures, and two checkpoints


class Run(ABC):
    """The state of a training run: what a checkpoint must hold, and how it moves on.

    ``part`` names what is trained; ``order`` says what each update is made of.
    """

    def __init__(self, part: str, model: nn.Module, config: TrainingConfig, order: Iterator[Any]):
        self.part, self.model, self.config, self.order = part, model, config, order
        model.requires_grad_(True)
        self.optimiser = torch.optim.AdamW(
            model.parameters(), betas=(0.9, 0.95), weight_decay=0.01, fused=True
        )
        self.seen = self.updates = 0

    @abstractmethod
    def loss(self, generator: torch.Generator) -> tuple[Tensor, list[float], int]:
        """Of the next in order: what to make smaller (scalar), the figures to report of it, and how
        many tokens it was of; draws come from the generator."""

    @abstractmethod
    def figures(self) -> Line:
        """What a line says beyond the losses: figures on text that is held out."""

    def rate(self) -> float:
        """The learning rate now: a linear warm-up, then down to nothing along a cosine."""
        done = self.seen / self.config.tokens
        if done < self.config.warmup:
            return self.config.peak_rate * (done + 1e-3) / self.config.warmup
        turn = (done - self.config.warmup) / (1 - self.config.warmup)
        return self.config.peak_rate * (1 + math.cos(math.pi * turn)) / 2

    def update(self) -> list[float]:
        """One step of the optimiser; its figures."""
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.updates)
        loss, parts, tokens = self.loss(generator)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate()
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.updates += 1
        self.seen += tokens
        return parts

    def train(
        self, folder: Path, identity: dict[str, object], progress: Callable[[int], object]
    ) -> Iterator[Line]:
        """Trains in place; yields a line of figures every ``config.report`` tokens.

        ``folder`` keeps the checkpoint (weights and optimiser) and the log, ``training.json``;
        if it holds those of this very run, known by its ``identity``, training goes on from
        there. Raises ArgumentError if they belong to another, FileError if they are damaged,
        MinispecError where a loss is not finite.
        """
        identity = json.loads(json.dumps(identity))  # as it comes back: lists for tuples
        log: list[Line] = []
        checkpoint, log_path = folder / "checkpoint.safetensors", folder / "training.json"
        if checkpoint.exists():
            log = self._restore(checkpoint, identity)
            write_json(log_path, {**identity, "log": log})  # a kill may have come between the two
        started = time.perf_counter() - (log[-1]["seconds"] if log else 0.0)
        while self.seen < self.config.tokens:
            goal = min(self.seen + self.config.report, self.config.tokens)
            losses: list[list[float]] = []
            while self.seen < goal:
                losses.append(self.update())
                progress(self.seen)
            line = {
                "tokens": self.seen,
                "updates": self.updates,
                "seconds": round(time.perf_counter() - started, 1),
                "rate": self.rate(),
                **self.figures(),
            }
            means = torch.tensor(losses).mean(0).tolist()
            line |= {f"loss_{number}": round(loss, 4) for number, loss in enumerate(means, 1)}
            if not all(map(math.isfinite, means)):
                raise MinispecError(
                    f"training diverged after {self.seen} tokens: the last checkpoint in {folder} "
                    "is sound; train with a lower peak_rate in a new folder"
                )
            log.append(line)
            self._save(checkpoint, identity, log)
            write_json(log_path, {**identity, "log": log})
            yield line

    def _save(self, path: Path, identity: dict[str, object], log: list[Line]) -> None:
        tensors = {f"{self.part}.{k}": v for k, v in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for key in _MOMENTS:
                tensors[f"{key}.{name}"] = self.optimiser.state[parameter][key]
        state = {"identity": identity, "seen": self.seen, "updates": self.updates, "log": log}
        write_tensors(path, tensors, {"state": json.dumps(state)})

    def _restore(self, path: Path, identity: dict[str, object]) -> list[Line]:
        try:
            state = json.loads(read_metadata(path)["state"])
        except (KeyError, ValueError):
            raise FileError(f"{path} is no checkpoint of a training run") from None
        if state["identity"] != identity:
            raise ArgumentError(
                f"{path.parent} holds another training run: give its settings, or a new folder"
            )
        weights = {k: tuple(v.shape) for k, v in self.model.state_dict().items()}
        shapes = {f"{self.part}.{k}": shape for k, shape in weights.items()}
        for name, parameter in self.model.named_parameters():
            for key in _MOMENTS:
                shapes[f"{key}.{name}"] = () if key == "step" else tuple(parameter.shape)
        tensors = read_tensors(path, shapes)
        self.model.load_state_dict({k: tensors[f"{self.part}.{k}"] for k in weights})
        for name, parameter in self.model.named_parameters():
            self.optimiser.state[parameter] = {key: tensors[f"{key}.{name}"] for key in _MOMENTS}
        self.seen, self.updates = state["seen"], state["updates"]
        for _ in range(self.updates):
            next(self.order)
        return state["log"]
