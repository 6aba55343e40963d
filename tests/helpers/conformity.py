"""Our logits beside those of transformers, for models in a folder in Hugging Face layout."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor

from minispec.errors import FileError
from minispec.tools.models import hf_folder

IDS = torch.randint(256, (60,), generator=torch.Generator().manual_seed(1))


def write_byte_tokenizer(folder: Path) -> None:
    """The smallest byte-level tokenizer: every byte is a token."""
    model = {"type": "BPE", "vocab": {c: i for i, c in enumerate(sorted(ByteLevel.alphabet()))}}
    pre = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True, "trim_offsets": True}
    data = {"model": model | {"merges": []}, "added_tokens": [], "pre_tokenizer": pre}
    (folder / "tokenizer.json").write_text(json.dumps(data))


def our_logits(folder: Path, ids: Tensor) -> Tensor:
    """Logits (T, V) of ids (T,), by our reading of the folder."""
    target, _ = hf_folder.load(folder)
    return target.head.logits(target.step(ids, target.new_cache(len(ids))).hidden)


@torch.inference_mode()
def relative_error(logits: Tensor, model: Any, ids: Tensor) -> float:
    """The largest difference from the logits of a transformers model, over the largest of these."""
    expected = model(ids[None]).logits[0].float()
    assert logits.shape == expected.shape
    return float((logits - expected).abs().max() / expected.abs().max())


def edit_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Applies ``change`` to the folder's config.json, in place."""
    data = json.loads((folder / "config.json").read_text())
    change(data)
    (folder / "config.json").write_text(json.dumps(data))


def assert_refused(folder: Path, *words: str) -> None:
    """Loading raises FileError, in one line that names the folder and all of the words."""
    with pytest.raises(FileError) as caught:
        hf_folder.load(folder)
    message = str(caught.value)
    assert str(folder) in message and "\n" not in message
    assert all(word in message for word in words), message
