"""Readers of lists of ids and of text: rankings, token maps, prompts, texts that are counted."""

import json
from pathlib import Path
from typing import Any

import torch

from drill.format_pickle import Pickle
from drill.format_safetensors import Safetensors
from drill.format_text import Lines
from drill.reader import ANY, Outcome, Part, Reader, digest
from drill.readers_own import TOKENIZER, model
from drill.rules import are_ids, own_tensors
from drill.values import Rule, is_index, list_of
from minispec.tools.data import corpus, ranking, streams
from minispec.tools.training import recipe

_IDS = 200


def _ids() -> torch.Tensor:
    return torch.randperm(_IDS, generator=torch.Generator().manual_seed(4))


def _write_ranking(folder: Path) -> None:
    ids = torch.cat((_ids()[:120], torch.tensor(sorted(_ids()[120:].tolist()))))
    ranking.write_ranking(folder / "ranking.safetensors", ids, TOKENIZER, {"domains": "general"})


def _load_ranking(folder: Path) -> Outcome:
    ids = ranking.read_ranking(folder / "ranking.safetensors", TOKENIZER, _IDS)
    return {"ids": tuple(ids.tolist())}


def _write_map(folder: Path) -> None:
    ranking.write_token_map(folder / "map.pt", _ids()[:64])


def _load_map(folder: Path) -> Outcome:
    return {"ids": tuple(ranking.read_token_map(folder / "map.pt", _IDS).tolist())}


def _write_prompts(folder: Path) -> None:
    lines = ["What is a verb?", "Explain 2 + 2 to a child.", "Name three rivers:", "Grüße, 東京"]
    (folder / "prompts.txt").write_text("\n".join(lines) + "\n", "utf-8")


def _load_prompts(folder: Path) -> Outcome:
    found = streams.load_streams([str(folder / "prompts.txt")], None)
    return {"prompts": digest(found[0].prompts)}


def _write_json_lines(folder: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"question_id": 1, "turns": ["What is a verb?", "And a noun?"]},
        {"prompt": "Name three rivers."},
        {"messages": [{"role": "system", "content": "Be brief."},
                      {"role": "user", "content": "Who wrote this?"}]},
    ]  # fmt: skip
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")


def _load_json_lines(folder: Path) -> Outcome:
    found = streams.load_streams([str(folder / "prompts.jsonl")], None)
    return {"prompts": digest(found[0].prompts)}


def _load_corpus(folder: Path) -> Outcome:
    ids, _ = recipe.count_texts(model(), [folder / "prompts.txt"], (), None)
    return {"ids": digest(ids)}


def _write_bundle(folder: Path) -> None:
    (folder / "prompts.txt").write_text(corpus.load_prompts("general")[0] * 20)


_RANKING: dict[str, Rule] = own_tensors(ids=are_ids(_IDS))
_RANKING["metadata.unseen"] = lambda value: str(value).isascii() and str(value).isdecimal()
READERS = (
    Reader("ranking", _write_ranking, _load_ranking,
           (Part("ranking.safetensors", Safetensors(), _RANKING),), 2),
    Reader("token map", _write_map, _load_map,
           (Part("map.pt", Pickle(), {"ids": list_of(is_index)}),), 3),
    Reader("prompts", _write_prompts, _load_prompts, (Part("prompts.txt", Lines(), ANY),), 1),
    Reader("prompts in JSON lines", _write_json_lines, _load_json_lines,
           (Part("prompts.jsonl", Lines(), ANY),), 2),
    Reader("text to count", _write_bundle, _load_corpus, (Part("prompts.txt", Lines(), ANY),), 1),
)  # fmt: skip
