"""Shards: files of text that a target generated, with the target's features.

What is in one, which run it belongs to, and that it is whole. Knows nothing of how the text is
generated, nor of what is trained on it.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from msgspec import Meta, Struct
from safetensors import safe_open
from torch import Tensor

from minispec.errors import ArgumentError, FileError
from minispec.io.files import (
    TensorSpec,
    check_layout,
    open_safetensors,
    read_header,
    read_metadata,
    write_tensors,
)
from minispec.io.schema import read_json
from minispec.models.model_config import ModelConfig
from minispec.tools.models.matmul_dtype import MatmulDtype

AUX_KEY = "taps"  # the name of the auxiliary hidden states in shard files
_FEATURES, _POSITIONS = frozenset((torch.bfloat16,)), frozenset((torch.int64,))
_LAYOUT = {
    "tokens": TensorSpec((None,), _POSITIONS),
    "hidden": TensorSpec((None, None), _FEATURES),
    AUX_KEY: TensorSpec((None, None), _FEATURES),
    "starts": TensorSpec((None,), _POSITIONS),
    "answers": TensorSpec((None,), _POSITIONS),
    "ends": TensorSpec((None,), _POSITIONS),
}
_REMEDY = "the file is damaged, delete it and repeat the command"


@dataclass(frozen=True, eq=False)
class Shard:
    """S concatenated sequences of ``n`` tokens in all, with the target's features at each position.

    The features at the last position of each sequence are zero: the target never processed it.
    Sequence s is ``tokens[starts[s] : ends[s]]``, its answer ``tokens[answers[s] : ends[s]]``.
    """

    tokens: Tensor  # (n,) int64
    hidden: Tensor  # (n, D) bfloat16
    aux_hidden_states: Tensor  # (n, n_aux * D) bfloat16
    starts: Tensor  # (S,) int64
    answers: Tensor  # (S,) int64
    ends: Tensor  # (S,) int64


@dataclass(frozen=True)
class ShardSettings:
    """What a shard depends on, besides its domain and number."""

    model: str
    seed: int
    dtype: MatmulDtype
    prompts: int
    base: bool

    def metadata(self, domain: str) -> dict[str, str]:
        """The metadata of a shard of a domain."""
        return {name: str(value) for name, value in asdict(self).items()} | {"domain": domain}


class _Training(Struct):
    """The part of a draft's training log that says which shards it was trained on."""

    shards: list[Annotated[str, Meta(pattern=r"^[a-z]+-\d{4,}\.safetensors$")]]


def shard_path(folder: Path, domain: str, number: int) -> Path:
    """The file of a shard in a folder."""
    return folder / f"{domain}-{number:04d}.safetensors"


def find_shards(folder: Path, domain: str = "*") -> list[Path]:
    """The shards in a folder, of one domain or of all: those that a draft was trained on, or all
    if none was trained yet. (Processes write ahead, and end where they are when the text is
    enough: which other shards there are is chance.) Raises FileError for a damaged log."""
    paths = sorted(folder.glob(f"{domain}-*.safetensors"))
    log = folder / "training.json"
    if not log.exists():
        return paths
    used = {*read_json(log, _Training).shards}
    return [path for path in paths if path.name in used]


def write_shard(path: Path, shard: Shard, metadata: dict[str, str]) -> None:
    """Writes a shard. Raises FileError."""
    tensors = {
        "tokens": shard.tokens,
        "hidden": shard.hidden,
        AUX_KEY: shard.aux_hidden_states,
        "starts": shard.starts,
        "answers": shard.answers,
        "ends": shard.ends,
    }
    write_tensors(path, tensors, metadata)


def check_settings(path: Path, settings: ShardSettings) -> None:
    """Raises ArgumentError for a shard that was generated with other settings, FileError for a
    damaged one."""
    found = read_metadata(path, dict[str, str])
    for name, ours in settings.metadata(path.name.rpartition("-")[0]).items():
        if (theirs := found.get(name, "unknown")) != ours:
            raise ArgumentError(
                f"{path} was generated with {name} {theirs[:60]!a}, this run has {ours!a}: give "
                "another folder"
            )


def read_spans(path: Path) -> list[tuple[int, int, int]]:
    """Where each sequence of a shard begins, where its answer begins, and where it ends. Raises
    FileError for a file that is not a shard, or is damaged."""
    with open_safetensors(path) as file:
        header = read_header(file, str(path))
        check_layout(header, _LAYOUT, str(path))
        length = header["tokens"][0][0]
        bounds = [file.get_tensor(name).tolist() for name in ("starts", "answers", "ends")]
    spans = list(zip(*bounds, strict=False))
    # A draft reads two tokens before it predicts one; sequences follow each other without gaps.
    begins = [0, *(end for _, _, end in spans)]
    whole = begins[-1] == length > 0 and len({*map(len, bounds)}) == 1
    if not whole or not all(
        start == begin and start + 2 <= answer < end
        for begin, (start, answer, end) in zip(begins, spans, strict=False)
    ):
        raise FileError(f"{path}: starts, answers and ends contradict each other: {_REMEDY}")
    return spans


def count_answer_tokens(path: Path) -> int:
    """Counts the tokens of a shard that belong to answers. Raises FileError."""
    return sum(end - answer for _, answer, end in read_spans(path))


def open_shard(path: Path, config: ModelConfig) -> Any:
    """The open file of a shard of a model with these sizes, to read slices from. Raises FileError
    for a damaged shard, or one of a model with other sizes."""
    length, width = read_spans(path)[-1][-1], config.hidden_size
    file = safe_open(path, framework="pt")
    columns = {"hidden": width, AUX_KEY: len(config.aux_hidden_state_layer_ids) * width}
    for name, wanted in columns.items():
        if (shape := tuple(file.get_slice(name).get_shape())) != (length, wanted):
            raise FileError(
                f"{path}: {name} has shape {shape}, expected {(length, wanted)} for text of this "
                "model"
            )
    tokens = file.get_tensor("tokens")
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= config.vocab_size:
        raise FileError(
            f"{path}: tokens has ids {low}..{high}, the vocabulary has 0..{config.vocab_size - 1}"
        )
    return file
