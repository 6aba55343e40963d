"""Rankings: which ids are frequent, counted from text, and the files that carry them.

A ranking is the whole vocabulary in order of frequency, ties to the lower id, so that any
budget can be cut from it. Each file carries the fingerprint of the tokenizer whose ids it
ranks, since the ids of another one mean nothing, even where there are as many.

Also reads and writes the token maps of SGLang, which are bare lists of ids.
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minispec.errors import ArgumentError, FileError, FingerprintError
from minispec.io.artifacts import find_artifact
from minispec.io.files import read_metadata, read_tensors, write_aside, write_tensors
from minispec.shortlists.semantic import whole
from minispec.tools.data.corpus import DOMAINS

NAMES = ("general", "mix", *(f"without-{domain}" for domain in DOMAINS))
_WHOLE = (torch.uint8, torch.int16, torch.int32, torch.int64)


def counted(texts: Iterable[Sequence[int]], vocab_size: int) -> Tensor:
    """How often each id occurs in texts of ids: (V,) int64."""
    counts = torch.zeros(vocab_size, dtype=torch.int64)
    for ids in texts:
        counts += torch.bincount(torch.as_tensor(ids, dtype=torch.int64), minlength=len(counts))
    return counts


def blended(sources: Sequence[Tensor]) -> Tensor:
    """Counts (V,) of several texts -> mean of their relative frequencies (V,) float64, so
    that each text weighs the same, however long it is."""
    shares = [counts.double() / counts.sum().clamp(min=1) for counts in sources]
    return torch.stack(shares).mean(0)


def ranked(frequencies: Tensor) -> Tensor:
    """Frequencies (V,) -> ids (V,) by descending frequency, of equals the lower id first."""
    return frequencies.argsort(descending=True, stable=True)


def write_ranking(path: Path, ids: Tensor, tokenizer: str, details: Mapping[str, str]) -> None:
    """Writes a ranking (N,) with its tokenizer's fingerprint and what it was counted from.

    Ids that the text never had stand at the end, the lower first: only their number is kept.
    """
    falls = (ids[1:] < ids[:-1]).nonzero()
    seen = ids[: int(falls[-1]) + 1 if len(falls) else 1]
    if whole(seen, int(ids.max()) + 1)[: len(ids)].tolist() != ids.tolist():
        seen = ids
    details = {"tokenizer": tokenizer, "unseen": str(len(ids) - len(seen)), **details}
    write_tensors(path, {"ids": seen.to(torch.int32)}, details)


def read_ranking(path: Path, tokenizer: str, vocab_size: int) -> Tensor:
    """Ids (N,) of a ranking or of a token map (``.pt``), most frequent first.

    Raises FileError for a damaged file, FingerprintError for another tokenizer's.
    """
    if path.suffix == ".pt":
        return read_token_map(path, vocab_size)
    tensors = read_tensors(path)
    if tensors.keys() != {"ids"}:
        raise FileError(f"{path} is no ranking: give a file made by `minispec rank`")
    metadata = read_metadata(path)
    made_for = metadata.get("tokenizer", "none")
    if made_for != tokenizer:
        raise FingerprintError(
            f"{path} ranks the ids of tokenizer {made_for[:12]}, this one is {tokenizer[:12]}: "
            "make its own with `minispec rank`"
        )
    ids = _checked(tensors["ids"], vocab_size, path)
    unseen = metadata.get("unseen", "0")
    if not (unseen.isdecimal() and len(ids) + int(unseen) <= vocab_size):
        raise FileError(
            f"{path} says that {unseen!a} ids were unseen: beside its {len(ids)} there can be "
            f"{vocab_size - len(ids)}"
        )
    return torch.from_numpy(whole(ids, vocab_size)[: len(ids) + int(unseen)])


def shipped(model: str, name: str) -> Path | None:
    """Where the package keeps a ranking of a known model, None where it has none."""
    return find_artifact(model, f"rankings/{name}") if name in NAMES else None


def find(model: str, name: str) -> Path:
    """The file of a ranking, by the name of one that is shipped or by its path. Raises
    ArgumentError."""
    file = shipped(model, name) or Path(name)
    if not file.is_file():
        raise ArgumentError(
            f"no ranking {name!r} for model {model}: known ones may have {', '.join(NAMES)}, "
            "any model those in files made by `minispec rank`"
        )
    return file


def read_token_map(path: Path, vocab_size: int) -> Tensor:
    """Ids (N,) int64 of SGLang's token map: a pickled list or tensor of ids, and nothing else.

    Loading is restricted to plain data: a file that asks for code is refused (FileError), not run.
    """
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(value, list) and all(type(i) is int for i in value):
            value = torch.tensor(value, dtype=torch.int64)
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from None
    except Exception:  # what is read is anyone's bytes, and torch has no one error for bad ones
        raise FileError(f"{path} is no token map: a list or tensor of ids was expected") from None
    return _checked(value, vocab_size, path)


def write_token_map(path: Path, ids: Tensor) -> None:
    """Writes ids (N,) as SGLang reads them: a tensor, in the order given."""
    buffer = io.BytesIO()  # torch, writing files itself, has errors of its own for a full disk
    torch.save(ids.to(torch.int64), buffer)
    with write_aside(path) as aside:
        aside.write_bytes(buffer.getvalue())


def _checked(ids: Any, vocab_size: int, path: Path) -> Tensor:
    """Whatever was in a file, as ids (N,) int64 of this vocabulary, none of them twice."""
    plain = isinstance(ids, Tensor) and (ids.layout, ids.device.type) == (torch.strided, "cpu")
    if not plain or ids.dim() != 1 or ids.dtype not in _WHOLE or not len(ids):
        raise FileError(f"{path} is no list of ids: one or more whole numbers were expected")
    ids = ids.to(torch.int64)
    if ids.min() < 0 or ids.max() >= vocab_size:
        raise FileError(
            f"{path} has ids {int(ids.min())}..{int(ids.max())}, "
            f"the vocabulary has 0..{vocab_size - 1}"
        )
    if len(ids.unique()) != len(ids):
        raise FileError(f"{path} has {len(ids) - len(ids.unique())} ids more than once")
    return ids
