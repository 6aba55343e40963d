"""Training that can be interrupted: a run resumes from its last checkpoint and ends with exactly
the same weights, since every random draw depends only on the seed and the number of the update.
(Sums of floats depend on the number of threads too: resume with as many.)

Knows nothing of which model is trained, nor on which data.
"""

import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from msgspec import Meta, Struct
from torch import Tensor, nn

from minispec.errors import ArgumentError, FileError, MinispecError
from minispec.io.files import (
    TensorSpec,
    list_weights,
    read_metadata,
    read_tensors,
    write_json,
    write_tensors,
)
from minispec.io.schema import Real, convert, decode_json, read_json
from minispec.tools.models.matmul_dtype import MatmulDtype

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")  # of AdamW
LogLine = dict[str, float]
_Count = Annotated[int, Meta(ge=1, lt=2**53)]
_Number = Annotated[int, Meta(ge=-(2**53), le=2**53)] | Real


class _Log(Struct):
    """The part of ``training.json`` that is read back."""

    log: Annotated[list[dict[str, _Number]], Meta(min_length=1)]


class _EveryLine(Struct):
    """What each line of a log has."""

    tokens: _Count
    updates: _Count
    seconds: Real


class _Metadata(Struct):
    """Of a checkpoint: ``_State`` as JSON."""

    state: str


class _State(_Log):
    identity: dict[str, Any]
    seen: _Count
    updates: _Count
    lines: _Count  # of the log


def read_log(path: Path) -> list[LogLine]:
    """The lines of a training log. Raises FileError."""
    return _check_log(read_json(path, _Log), str(path))


def _check_log(found: _Log, origin: str) -> list[LogLine]:
    for number, line in enumerate(found.log):
        convert(line, _EveryLine, f"{origin}: log[{number}]")
        if other := line.keys() ^ found.log[0].keys():
            raise FileError(
                f"{origin}: log[{number}]: {min(other)[:40]!a} is not in every line of the log"
            )
    return found.log


@dataclass(frozen=True)
class TrainingConfig:
    """The length and the learning rate of a run; ``tokens`` counts every token each time it is
    seen."""

    tokens: int
    seed: int = 0
    peak_rate: float = 2e-3  # the highest learning rate
    warmup: float = 0.03  # fraction of the run
    report: int = 50_000  # tokens between two log lines, each with a checkpoint
    dtype: MatmulDtype = "float32"  # in which matrices are multiplied


class TrainingRun(ABC):
    """A training run with AdamW: the state that a checkpoint stores, and its updates."""

    def __init__(self, part: str, model: nn.Module, config: TrainingConfig, order: Iterator[Any]):
        """``part`` names the model in the checkpoint; ``order`` yields the data of each update."""
        self.part, self.model, self.config, self.order = part, model, config, order
        model.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(
            model.parameters(), betas=(0.9, 0.95), weight_decay=0.01, fused=True
        )
        self.seen = self.updates = 0

    @abstractmethod
    def compute_loss(self, generator: torch.Generator) -> tuple[Tensor, list[float], int]:
        """On the next data in ``order``: the loss (scalar), the losses to log, and the number of
        tokens. Random draws come from the generator."""

    @abstractmethod
    def evaluate(self) -> LogLine:
        """Figures on held-out text, added to each log line."""

    def learning_rate(self) -> float:
        """The current learning rate: linear warm-up, then cosine decay to zero."""
        done = self.seen / self.config.tokens
        if done < self.config.warmup:
            return self.config.peak_rate * (done + 1e-3) / self.config.warmup
        decayed = (done - self.config.warmup) / (1 - self.config.warmup)
        return self.config.peak_rate * (1 + math.cos(math.pi * decayed)) / 2

    def update(self) -> list[float]:
        """One optimizer step; returns the losses to log."""
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.updates)
        loss, losses, tokens = self.compute_loss(generator)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.updates += 1
        self.seen += tokens
        return losses

    def train(
        self, folder: Path, identity: dict[str, object], progress: Callable[[int], object]
    ) -> Iterator[LogLine]:
        """Trains in place; yields a log line every ``config.report`` tokens.

        ``folder`` holds the checkpoint (weights and optimizer state) and the log,
        ``training.json``. Training resumes from a checkpoint with the same ``identity``. Raises
        ArgumentError if the checkpoint is of another run, FileError if it is damaged,
        MinispecError if a loss is not finite.
        """
        identity = json.loads(json.dumps(identity))  # as JSON restores it: lists for tuples
        log: list[LogLine] = []
        checkpoint, log_path = folder / "checkpoint.safetensors", folder / "training.json"
        if checkpoint.exists():
            log = self._restore(checkpoint, identity)
            write_json(log_path, {**identity, "log": log})  # a kill may have left the older log
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
                "rate": self.learning_rate(),
                **self.evaluate(),
            }
            means = torch.tensor(losses).mean(0).tolist()
            line |= {f"loss_{number}": round(loss, 4) for number, loss in enumerate(means, 1)}
            if not all(map(math.isfinite, means)):
                raise MinispecError(
                    f"training diverged after {self.seen} tokens: train with a lower learning rate "
                    f"in a new folder; the last checkpoint in {folder} is intact"
                )
            log.append(line)
            self._save(checkpoint, identity, log)
            write_json(log_path, {**identity, "log": log})
            yield line

    def _save(self, path: Path, identity: dict[str, object], log: list[LogLine]) -> None:
        tensors = {f"{self.part}.{k}": v for k, v in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for key in _MOMENTS:
                tensors[f"{key}.{name}"] = self.optimizer.state[parameter][key]
        counts = {"seen": self.seen, "updates": self.updates, "lines": len(log)}
        state = {"identity": identity, **counts, "log": log}
        write_tensors(path, tensors, {"state": json.dumps(state)})

    def _restore(self, path: Path, identity: dict[str, object]) -> list[LogLine]:
        text = read_metadata(path, _Metadata).state
        state = decode_json(text, _State, f"{path}: state")
        log = _check_log(state, f"{path}: state")
        if state.identity != identity:
            raise ArgumentError(
                f"{path.parent} holds another training run: use its settings or a new folder"
            )
        weights = list_weights(self.model.state_dict())
        layout = {f"{self.part}.{name}": spec for name, spec in weights.items()}
        for name, parameter in self.model.named_parameters():
            for key in _MOMENTS:
                shape = () if key == "step" else tuple(parameter.shape)
                dtype = torch.float32 if key == "step" else parameter.dtype
                layout[f"{key}.{name}"] = TensorSpec(shape, frozenset((dtype,)))
        tensors = read_tensors(path, layout)
        steps = {int(value) for name, value in tensors.items() if name.startswith("step.")}
        counts = (len(log), log[-1]["tokens"], log[-1]["updates"], steps)
        if counts != (state.lines, state.seen, state.updates, {state.updates}):
            raise FileError(
                f"{path}: state says {state.seen} tokens and {state.updates} updates, its log and "
                "its optimizer say otherwise: the file is damaged, start in a new folder"
            )
        self.model.load_state_dict({k: tensors[f"{self.part}.{k}"] for k in weights})
        for name, parameter in self.model.named_parameters():
            self.optimizer.state[parameter] = {key: tensors[f"{key}.{name}"] for key in _MOMENTS}
        self.seen, self.updates = state.seen, state.updates
        for _ in range(self.updates):
            next(self.order)
        return log
