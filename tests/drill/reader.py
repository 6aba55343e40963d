"""What a drill damages: a reader of the project, an intact input, and what may change unnoticed.

A reader that takes a damaged file must give what it gave for the intact one. Where it does not,
the new value of the field must be one that the field's rule allows: then nothing but a checksum
could have shown that it was not meant.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from drill.values import Rule, is_anything
from minispec.errors import MinispecError

REFUSED = "(refused)"
Outcome = Mapping[str, Any]
PROBES = ("the cat is on it", "a  b\n\nc 12 345", "Grüße, 東京! 🙂", "<|im_end|> </s> it's", "")


class Format(Protocol):
    """How a kind of file is damaged, and how two such files are compared."""

    name: str

    def damage(self, content: bytes, rng: Any) -> tuple[bytes, str, str]:
        """Damage one field; returns the new content, the field and what was done."""

    def diff(self, intact: bytes, damaged: bytes) -> dict[str, Any] | None:
        """The fields that differ, with their new values; None if the format is broken."""


@dataclass(frozen=True)
class Part:
    """A file that is damaged; ``rules`` say which new values of its fields are legal. An
    ``optional`` one may be missing."""

    file: str
    format: Format
    rules: dict[str, Rule] = field(default_factory=dict)
    weight: int = 1
    optional: bool = False


@dataclass(frozen=True)
class Reader:
    """``prepare`` writes the intact files into a folder, ``load`` reads them and describes what
    was read; ``weight`` is its share of the damaged files."""

    name: str
    prepare: Callable[[Path], None]
    load: Callable[[Path], Outcome]
    parts: tuple[Part, ...]
    weight: int = 2


def digest(value: Any) -> str:
    """A short name of a value: text, numbers, arrays or tensors."""
    if isinstance(value, torch.Tensor):
        value = value.detach().float() if value.is_floating_point() else value.detach()
        value = value.contiguous().numpy()
    if isinstance(value, np.ndarray):
        value = f"{value.dtype}{value.shape}".encode() + value.tobytes()
    if not isinstance(value, bytes):
        value = repr(value).encode("utf-8", "backslashreplace")
    return hashlib.sha256(value).hexdigest()[:16]


def attempt(call: Callable[[], Any]) -> Any:
    """The value of a call, or that minispec refused it."""
    try:
        return call()
    except MinispecError as error:
        return REFUSED, str(error)


def find_changes(intact: Outcome, found: Outcome) -> list[str]:
    """What differs from the intact outcome and was not refused."""

    def is_refused(value: Any) -> bool:
        return isinstance(value, tuple) and len(value) == 2 and value[0] == REFUSED

    return sorted(
        key
        for key in intact.keys() | found.keys()
        if intact.get(key) != found.get(key) and not is_refused(found.get(key))
    )


def describe_tokenizer(tokenizer: Any) -> dict[str, Any]:
    """Ids and texts of the probes, and the special ids."""
    found: dict[str, Any] = {"eos": tuple(tokenizer.eos_ids), "bos": tokenizer.bos_id}
    for number, text in enumerate(PROBES):
        found[f"ids {number}"] = attempt(lambda text=text: tuple(tokenizer.encode(text)))
        marked = attempt(lambda text=text: tuple(tokenizer.encode(text, special=True)))
        found[f"special ids {number}"] = marked
    found["chat"] = attempt(lambda: tuple(tokenizer.chat("the cat")))
    # A template without an end takes its second once.
    refused = found["chat"][0] == REFUSED
    later = attempt(lambda: () if refused else tuple(tokenizer.chat("the cat", later=True)))
    found["later chat"] = found["chat"] if refused else later
    ids = range(0, min(tokenizer.vocab_size, 2000), 7)
    found["text"] = attempt(lambda: digest(tokenizer.decode(list(ids))))
    return found


@torch.inference_mode()
def describe_model(model: Any) -> dict[str, Any]:
    """Logits of a few ids, beyond those of the tokenizer."""
    target = model.target
    size = target.head.vocab_size
    ids = torch.arange(1, 40) * 7 % size
    features = target.step(ids, target.new_cache(len(ids)))
    logits = target.head.logits(features.hidden)
    return {**describe_tokenizer(model.tokenizer), "logits": digest(logits)}


ANY = {"*": is_anything}
