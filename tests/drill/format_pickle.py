"""Hostile token maps (``.pt``): pickles that run code, tensors of every kind but ids."""

import io
import os
import pickle
import random
import zipfile
from collections import OrderedDict
from functools import cache
from typing import Any

import torch

from drill.format_bytes import damage_bytes
from drill.format_template import CANARY


class _Code:
    """Makes a folder when it is unpickled."""

    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> Any:
        return self.call, self.arguments


def _save(value: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


@cache
def hostile() -> list[tuple[str, bytes]]:
    """Files that must all be refused."""
    nested: list[Any] = []
    for _ in range(60):
        nested = [nested]
    code = [_Code(os.mkdir, CANARY), _Code(eval, f"__import__('os').mkdir('{CANARY}')"),
            _Code(os.system, f"touch {CANARY}")]  # fmt: skip
    values: list[tuple[str, Any]] = [
        *((f"code {n}", each) for n, each in enumerate(code)),
        ("code in an array", [0, 1, code[0]]), ("code in a dict", {"ids": code[0]}),
        ("floats", torch.tensor([0.0, 1.0, 2.0])), ("floats in an array", [0.0, 1.0]),
        ("flags", torch.tensor([True, False])), ("flags in an array", [True, False]),
        ("complex", torch.tensor([0j, 1j])), ("text", "0 1 2"), ("texts", ["0", "1"]),
        ("none", None), ("empty", []), ("empty tensor", torch.tensor([], dtype=torch.int64)),
        ("scalar", torch.tensor(3)), ("matrix", torch.arange(6).reshape(2, 3)),
        ("2^62 elements", torch.zeros(1, dtype=torch.int64).expand(2**40)),
        ("sparse", torch.tensor([0, 1, 2]).to_sparse()), ("negative", [-1, 0, 1]),
        ("beyond the vocabulary", [0, 1, 10**6]), ("2^62", [2**62]), ("2^63", [2**63]),
        ("10^400", [10**400]), ("nested", nested), ("dict", {"ids": [1, 2]}),
        ("ordered dict", OrderedDict(a=torch.tensor([1]))), ("module", torch.nn.Linear(2, 2)),
        ("set", {1, 2}), ("on no device", torch.arange(3, device="meta")),
        ("an array of tensors", [torch.tensor(1), torch.tensor([2, 3])]),
    ]  # fmt: skip
    found = [(name, _save(value)) for name, value in values]
    found += [(f"{name}, old format", _save(value, _use_new_zipfile_serialization=False))
              for name, value in values[:5]]  # fmt: skip
    found += [(f"{name}, plain pickle", pickle.dumps(value)) for name, value in values[:5]]
    found += [
        ("a zip of nothing", _zip({})),
        ("a zip bomb", _zip({"archive/data.pkl": bytes(2**27)})),
    ]
    deep = b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b"."
    found += [("50,000 arrays deep", _zip({"archive/data.pkl": deep, "archive/version": b"3"}))]
    return found


def _zip(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


class Pickle:
    """A token map as torch saves it."""

    name = "pickle"

    def damage(self, content: bytes, rng: random.Random) -> tuple[bytes, str, str]:
        """The damaged file, the field and what was done to it."""
        if rng.random() < 0.5:
            how, damaged = rng.choice(hostile())
            return damaged, "value", how
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        pickled = [name for name in members if name.endswith("data.pkl")]
        name = rng.choice([*members, *pickled * 2])
        members[name], how = damage_bytes(members[name], rng)
        return _store(members), name.split("/")[-1], how

    def diff(self, intact: bytes, damaged: bytes) -> dict[str, Any] | None:
        """Whether plain ids in some order are what another reader finds; None if not."""
        if damaged in (content for _, content in hostile()):
            return None
        try:
            value = torch.load(io.BytesIO(damaged), weights_only=True)
        except Exception:  # torch has no common class for what it raises
            return None
        ids = value.tolist() if isinstance(value, torch.Tensor) else value
        return {"ids": ids}


def _store(members: dict[str, bytes]) -> bytes:
    """An archive whose members are aligned as torch wants them: its checksums are right."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()
