"""Every file that minispec writes and reads back, damaged in every way: refused in one line that
names the file, or read as if it were intact."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from helpers.drafts import DRAFT, TARGET
from minispec.errors import MinispecError
from minispec.io import adapter_file, draft_file, index_file, statistical_state
from minispec.io.files import write_tensors
from minispec.learning import lora
from minispec.shortlists.dynaspec import Router
from minispec.shortlists.statistical import StatisticalIndex
from minispec.tools.data import ranking, shards
from minispec.tools.data.batches import ShardDataset
from minispec.tools.models import matmul_dtype
from minispec.tools.training import pocket
from minispec.tools.training.resumable import LogLine, TrainingConfig, TrainingRun, read_log

MODEL, TOKENIZER = "a" * 64, "b" * 64
SIZE, WIDTH = TARGET.config.vocab_size, TARGET.config.hidden_size
LAYERS = len(TARGET.config.aux_hidden_state_layer_ids)
SETTINGS = shards.ShardSettings("toy", 3, "float32", 6, False)
LOADED = lora.add_adapters(DRAFT, lora.TARGETS, 4, seed=1)


class Kind(NamedTuple):
    """A kind of file: what writes one, and what reads it into something that can be compared."""

    name: str
    write: Callable[[Path], object]
    read: Callable[[Path], object]


def flatten(tensors: dict[str, Tensor]) -> dict[str, list[float]]:
    return {name: value.flatten().tolist() for name, value in tensors.items()}


def write_router(path: Path) -> None:
    weights = Router(WIDTH, 7).state_dict()
    index_file.write_index(path, torch.arange(SIZE) % 7, weights, MODEL, TOKENIZER)


def read_router(path: Path) -> object:
    clusters, weights = index_file.read_index(path, SIZE, MODEL, TOKENIZER)
    router = index_file.build_router(weights, WIDTH, int(clusters.max()) + 1, str(path))
    return clusters.tolist(), flatten(router.state_dict())


def read_adapters(path: Path) -> object:
    adapter_file.load_adapters(path, LOADED, MODEL)
    return flatten(lora.get_adapter_state(LOADED))


def read_state(path: Path) -> object:
    index = StatisticalIndex(SIZE)
    statistical_state.read_state(path, index, TOKENIZER)
    return flatten(index.state())


def write_text(path: Path) -> None:
    ids = (torch.arange(40) % 9).to(torch.int16)
    write_tensors(path, {"train": ids, "held_out": ids[:9].clone()}, {"tokenizer": TOKENIZER})


def write_shard(path: Path) -> None:
    features = torch.linspace(-1, 1, 20 * WIDTH).reshape(20, WIDTH).bfloat16()
    starts, answers, ends = torch.tensor([[0, 8], [3, 11], [8, 20]])
    aux = features.repeat(1, LAYERS)
    shard = shards.Shard(torch.arange(20), features, aux, starts, answers, ends)
    shards.write_shard(path, shard, SETTINGS.metadata("law"))


def read_shard(path: Path) -> object:
    shards.check_settings(path, SETTINGS)
    dataset = ShardDataset([path], TARGET.config)
    found = [vars(dataset.read_sequence(index)) for index in range(len(dataset))]
    return shards.count_answer_tokens(path), [flatten(each) for each in found]


class Run(TrainingRun):
    """A run with one weight."""

    def __init__(self) -> None:
        super().__init__("toy", nn.Linear(2, 1), TrainingConfig(tokens=6, report=2), iter(range(9)))

    def compute_loss(self, generator: torch.Generator) -> tuple[Tensor, list[float], int]:
        loss = self.model(torch.ones(2)).sum() * next(self.order)
        return loss, [loss.item()], 1

    def evaluate(self) -> LogLine:
        return {"tau": 1.0}


def write_checkpoint(path: Path) -> None:
    lines = Run().train(path.parent, {"seed": 0, "shards": ["law-0000.safetensors"]}, print)
    next(lines), next(lines)


def read_checkpoint(path: Path) -> object:
    run = Run()
    log = run._restore(path, {"seed": 0, "shards": ["law-0000.safetensors"]})
    return log, run.seen, run.updates, next(run.order), flatten(run.model.state_dict())


TENSOR_FILES = (
    Kind("draft.safetensors", lambda path: draft_file.save_draft(path, DRAFT, MODEL),
         lambda path: flatten(draft_file.load_draft(path, TARGET, MODEL).state_dict())),
    Kind("adapters.safetensors", lambda path: adapter_file.save_adapters(path, LOADED, MODEL),
         read_adapters),
    Kind("router.safetensors", write_router, read_router),
    Kind("ranking.safetensors",
         lambda path: ranking.write_ranking(path, torch.arange(SIZE).flip(0), TOKENIZER, {}),
         lambda path: ranking.read_ranking(path, TOKENIZER, SIZE).tolist()),
    Kind("state.safetensors",
         lambda path: statistical_state.write_state(path, StatisticalIndex(SIZE), TOKENIZER),
         read_state),
    Kind("text.safetensors", write_text,
         lambda path: flatten(pocket._read_text(path, TOKENIZER))),
    Kind("law-0000.safetensors", write_shard, read_shard),
    Kind("checkpoint.safetensors", write_checkpoint, read_checkpoint),
)  # fmt: skip
JSON_FILES = (
    Kind("training.json", lambda path: write_checkpoint(path.with_name("checkpoint.safetensors")),
         lambda path: (read_log(path), shards.find_shards(path.parent))),
    Kind("run.json", lambda path: matmul_dtype.keep_dtype(path.parent),
         lambda path: matmul_dtype.keep_dtype(path.parent)),
)  # fmt: skip
MAP = Kind("map.pt", lambda path: ranking.write_token_map(path, torch.arange(SIZE).flip(0)),
           lambda path: ranking.read_ranking(path, TOKENIZER, SIZE).tolist())  # fmt: skip
TEXTS = ("", "x" * 5000, "[" * 10_000, "9" * 5000, "NaN", "1e999", "\n", "null", "{}", '{"a": 1}')


def read_damaged(kind: Kind, path: Path, intact: object) -> bool:
    """Whether a damaged file is refused, in one line that names it; if not, it reads as intact."""
    try:
        found = kind.read(path)
    except MinispecError as error:
        message = str(error)
        assert "\n" not in message and len(message) < 600, message
        assert str(path) in message or str(path.parent) in message, message
        return True
    assert found == intact
    return False


def change_tensor(name: str, value: Tensor) -> dict[str, Tensor | None]:
    """A tensor in the ways in which it can be wrong: None for a missing one."""
    outside = value.clone()
    outside.flatten()[:1] = float("nan") if value.is_floating_point() else -2
    beyond = value.clone()
    beyond.flatten()[:1] = float("inf") if value.is_floating_point() else 2**15 - 1
    return {
        f"{name} missing": None,
        f"{name} bool": torch.ones(value.shape, dtype=torch.bool),
        f"{name} complex": torch.ones(value.shape, dtype=torch.complex64),
        f"{name} uint64": torch.ones(value.shape, dtype=torch.uint64),
        f"{name} outside": outside,
        f"{name} beyond": beyond,
        f"{name} longer": torch.cat((value.reshape(-1), value.reshape(-1)[:1])),
        f"{name} empty": torch.zeros((*value.shape[:-1], 0), dtype=value.dtype),
        f"{name} deeper": value[None].clone(),
    }


@pytest.mark.parametrize("kind", TENSOR_FILES, ids=lambda kind: kind.name)
def test_damaged_tensors_and_metadata_are_refused_or_do_not_matter(
    kind: Kind, tmp_path: Path
) -> None:
    path = tmp_path / kind.name
    kind.write(path)
    intact = kind.read(path)
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = dict(file.metadata())
    refused = tried = 0
    for name, value in tensors.items():
        for change, other in change_tensor(name, value).items():
            if kind.name.startswith("text") and change.endswith("longer"):
                continue  # a text has any length
            changed = {**tensors, name: other}
            save_file({n: v for n, v in changed.items() if v is not None}, path, metadata)
            assert read_damaged(kind, path, intact), change
    save_file({**tensors, "other": torch.ones(2)}, path, metadata)
    assert read_damaged(kind, path, intact)
    for key in metadata:
        for text in TEXTS:
            save_file(tensors, path, {**metadata, key: text})
            refused, tried = refused + read_damaged(kind, path, intact), tried + 1
    assert refused == tried or kind.name.startswith("ranking")
    save_file(tensors, path, metadata)
    assert kind.read(path) == intact


@pytest.mark.parametrize("kind", (*TENSOR_FILES, MAP, *JSON_FILES), ids=lambda kind: kind.name)
def test_files_of_other_kinds_are_refused(kind: Kind, tmp_path: Path) -> None:
    path = tmp_path / kind.name
    kind.write(path)
    whole = path.read_bytes()
    cut = (whole[:-1], whole[: len(whole) // 2], whole[:9])
    pointer = b"version https://git-lfs.github.com/spec/v1\n"
    for content in (*cut, b"", b"PK\x03\x04", b"\xff" * 99, b"[" * 100_000, pointer):
        path.write_bytes(content)
        if kind in JSON_FILES and content == whole[:-1]:
            continue  # without its last line break it is whole
        assert read_damaged(kind, path, None), content[:20]
    path.unlink()
    path.mkdir()
    assert read_damaged(kind, path, None)
    path.rmdir()
    os.mkfifo(path)
    assert read_damaged(kind, path, None)


@pytest.mark.parametrize("kind", JSON_FILES, ids=lambda kind: kind.name)
def test_damaged_json_is_refused_or_does_not_matter(kind: Kind, tmp_path: Path) -> None:
    path = tmp_path / kind.name
    kind.write(path)
    intact, whole = kind.read(path), json.loads(path.read_bytes())

    def replace(value: Any, place: tuple[Any, ...], new: Any) -> Any:
        if not place:
            return new
        key, rest = place[0], place[1:]
        other = dict(value) if isinstance(value, dict) else [*value]
        other[key] = replace(value[key], rest, new)
        return other

    def list_places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        inside = value.items() if isinstance(value, dict) else ()
        inside = enumerate(value) if isinstance(value, list) else inside
        return [place, *(p for key, each in inside for p in list_places(each, (*place, key)))]

    refused = 0
    for place in list_places(whole):
        for number, wrong in enumerate(("", [], {}, None, True, "HUGE", "NAN", "DEEP")):
            text = json.dumps(replace(whole, place, wrong))
            text = text.replace('"HUGE"', "9" * 5000).replace('"NAN"', "NaN")
            path.write_text(text.replace('"DEEP"', "[" * 10_000 + "]" * 10_000))
            if number > 4:  # no JSON, wherever it stands
                assert read_damaged(kind, path, intact) or place[:1] == ("seed",), place
            else:
                refused += read_damaged(kind, path, intact) if place[:1] != ("shards",) else 1
    assert refused >= 5


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("starts", [1, 8]), ("starts", [0, 9]), ("answers", [3, 21]), ("answers", [8, 11]),
        ("answers", [1, 11]), ("ends", [8, 19]), ("ends", [8, 21]), ("ends", [20, 8]),
        ("tokens", [SIZE, *range(19)]), ("tokens", [-1, *range(19)]),
    ],
)  # fmt: skip
def test_shards_whose_parts_contradict_each_other_are_refused(
    name: str, values: list[int], tmp_path: Path
) -> None:
    path, kind = tmp_path / "law-0000.safetensors", TENSOR_FILES[6]
    kind.write(path)
    with safe_open(path, framework="pt") as file:
        tensors = {each: file.get_tensor(each) for each in file.keys()}  # noqa: SIM118
        metadata = dict(file.metadata())
    save_file({**tensors, name: torch.tensor(values)}, path, metadata)
    assert read_damaged(kind, path, None)


@pytest.mark.parametrize(
    ("key", "value"), [("seen", 3), ("updates", 2**52), ("updates", 5), ("seen", 0), ("lines", 1)]
)
def test_checkpoints_that_contradict_their_log_are_refused(
    key: str, value: int, tmp_path: Path
) -> None:
    path, kind = tmp_path / "checkpoint.safetensors", TENSOR_FILES[7]
    kind.write(path)
    with safe_open(path, framework="pt") as file:
        tensors = {each: file.get_tensor(each) for each in file.keys()}  # noqa: SIM118
        state = json.loads(file.metadata()["state"])
    save_file(tensors, path, {"state": json.dumps({**state, key: value})})
    assert read_damaged(kind, path, None)
