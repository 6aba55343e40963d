"""Readers of what training writes and resumes from: shards, checkpoints, logs, encoded text."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from drill.format_json import Json
from drill.format_safetensors import Safetensors
from drill.reader import Outcome, Part, Reader, digest
from drill.readers_own import TOKENIZER
from drill.rules import are_ids, is_finite_data, own_tensors
from drill.values import Rule, any_of, is_absent, is_anything, is_index, is_number, list_of, one_of
from helpers.toys import TOY
from minispec.io.files import write_tensors
from minispec.tools.data import shards
from minispec.tools.data.batches import ShardDataset, make_batch
from minispec.tools.models import matmul_dtype
from minispec.tools.training import pocket
from minispec.tools.training.resumable import TrainingConfig, TrainingRun, read_log

_IDS = 200
_SHARD = shards.ShardSettings(model="toy", seed=3, dtype="float32", prompts=4, base=False)
_SHAPE = replace(TOY, vocab_size=_IDS, hidden_size=8)  # of the model that a shard is of


def write_shard(folder: Path) -> None:
    """A shard of random features."""
    generator = torch.Generator().manual_seed(0)
    lengths, answers = torch.tensor([12, 9, 20, 5]), torch.tensor([4, 3, 8, 2])
    n, ends = int(lengths.sum()), lengths.cumsum(0)
    shard = shards.Shard(
        tokens=torch.randint(_IDS, (n,), generator=generator),
        hidden=torch.randn(n, 8, generator=generator).bfloat16(),
        aux_hidden_states=torch.randn(n, 24, generator=generator).bfloat16(),
        starts=ends - lengths, answers=ends - lengths + answers, ends=ends,
    )  # fmt: skip
    metadata = _SHARD.metadata("general")
    shards.write_shard(shards.shard_path(folder, "general", 0), shard, metadata)


def _load_shard(folder: Path) -> Outcome:
    path = shards.shard_path(folder, "general", 0)
    shards.check_settings(path, _SHARD)
    dataset = ShardDataset([path], _SHAPE)
    found: dict[str, Any] = {"counts": digest(dataset.count_ids(_IDS))}
    for number in range(len(dataset)):
        batch = make_batch([dataset.read_sequence(number)])
        found[f"batch {number}"] = digest([digest(getattr(batch, n)) for n in vars(batch)])
    return found


class ToyRun(TrainingRun):
    """A run of a few numbers that ends in a millisecond."""

    def __init__(self, tokens: int = 400, report: int = 100) -> None:
        torch.manual_seed(0)
        config = TrainingConfig(tokens=tokens, report=report)
        super().__init__("toy", torch.nn.Linear(3, 3), config, self._batches())

    def _batches(self) -> Iterator[int]:
        number = 0
        while True:
            yield number
            number += 1

    def compute_loss(self, generator: torch.Generator) -> tuple[torch.Tensor, list[float], int]:
        """Noise whose mean depends on the batch's number."""
        values = torch.randn(4, 3, generator=generator) + next(self.order) / 100
        loss = self.model(values).square().mean()
        return loss, [loss.item()], 10

    def evaluate(self) -> dict[str, float]:
        """Nothing."""
        return {}


def _write_checkpoint(folder: Path) -> None:
    lines = ToyRun().train(folder, {"model": "toy", "shards": ["a", "b"]}, lambda seen: None)
    next(lines)
    next(lines)


def _load_checkpoint(folder: Path) -> Outcome:
    run = ToyRun()
    list(run.train(folder, {"model": "toy", "shards": ["a", "b"]}, lambda seen: None))
    log = json.loads((folder / "training.json").read_text())["log"]
    weights = {name: digest(value) for name, value in run.model.state_dict().items()}
    return {**weights, "log": [(line["tokens"], line["updates"], line["loss_1"]) for line in log]}


def _write_log(folder: Path) -> None:
    _write_checkpoint(folder)
    (folder / "checkpoint.safetensors").unlink()


def _load_log(folder: Path) -> Outcome:
    return {"log": digest(read_log(folder / "training.json"))}


def _write_run(folder: Path) -> None:
    matmul_dtype.keep_dtype(folder)


def _load_run(folder: Path) -> Outcome:
    return {"dtype": matmul_dtype.keep_dtype(folder)}


def _write_text(folder: Path) -> None:
    ids = (torch.arange(600) % _IDS).to(torch.int16)
    text = {"train": ids, "held_out": ids[:90].clone()}
    write_tensors(folder / "text.safetensors", text, {"tokenizer": TOKENIZER})


def _load_text(folder: Path) -> Outcome:
    text = pocket._read_text(folder / "text.safetensors", TOKENIZER)
    return {name: digest(ids) for name, ids in text.items()}


CHECKPOINT: dict[str, Rule] = {
    "toy.*.data": is_finite_data, "exp_avg*.data": is_finite_data, "step*.data": is_finite_data,
    "metadata.state.seen": is_index, "metadata.state.updates": is_index,
    "metadata.state.log.[].*": is_number,
}  # fmt: skip
_SHARDS = own_tensors(tokens=are_ids(_IDS, unique=False), answers=are_ids(46, unique=False))
_SHARDS |= {"*.data": is_finite_data}
_LOG: dict[str, Rule] = {
    "log.[].*": any_of(is_number, is_absent),
    "log": list_of(is_anything),
    "+*": is_anything,
}
_TEXT = dict.fromkeys(("train.data", "held_out.data"), are_ids(8192, unique=False))
READERS = (
    Reader("text shard", write_shard, _load_shard,
           (Part("general-0000.safetensors", Safetensors(), _SHARDS),), 2),
    Reader("training checkpoint", _write_checkpoint, _load_checkpoint,
           (Part("checkpoint.safetensors", Safetensors(), CHECKPOINT, 3),
            Part("training.json", Json(), {"*": is_anything}, optional=True)), 2),
    Reader("training log", _write_log, _load_log, (Part("training.json", Json(), _LOG),), 1),
    Reader("training settings", _write_run, _load_run,
           (Part("run.json", Json(), {"dtype": one_of("bfloat16", "float32")}),), 1),
    Reader("encoded text", _write_text, _load_text,
           (Part("text.safetensors", Safetensors(), _TEXT),), 1),
)  # fmt: skip
