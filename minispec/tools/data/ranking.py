"""Rankings: token ids in order of their frequency in text, and their files.

FR-Spec (arXiv 2502.14856) cuts its shortlists from such a ranking. A ranking covers the whole
vocabulary, most frequent id first, ties to the lower id, so that a shortlist of any budget is a
prefix of it. Each file carries the fingerprint of the tokenizer whose ids it ranks: the ids of
another tokenizer are refused, even if its vocabulary has the same size.

Also reads and writes SGLang's token maps, which are plain lists of ids.
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
from minispec.shortlists.frspec import complete_ranking
from minispec.tools.data.corpus import DOMAINS

NAMES = ("general", "mix", *(f"without-{domain}" for domain in DOMAINS))
_INTEGERS = (torch.uint8, torch.int16, torch.int32, torch.int64)


def count_ids(texts: Iterable[Sequence[int]], vocab_size: int) -> Tensor:
    """Counts how often each id occurs in encoded texts: (V,) int64."""
    counts = torch.zeros(vocab_size, dtype=torch.int64)
    for ids in texts:
        counts += torch.bincount(torch.as_tensor(ids, dtype=torch.int64), minlength=len(counts))
    return counts


def mean_frequencies(sources: Sequence[Tensor]) -> Tensor:
    """Counts (V,) of several sources -> the mean of their relative frequencies (V,) float64, so
    that each source has the same weight, whatever its length."""
    shares = [counts.double() / counts.sum().clamp(min=1) for counts in sources]
    return torch.stack(shares).mean(0)


def rank_ids(frequencies: Tensor) -> Tensor:
    """Frequencies (V,) -> ids (V,) by descending frequency, ties to the lower id."""
    return frequencies.argsort(descending=True, stable=True)


def write_ranking(path: Path, ids: Tensor, tokenizer: str, details: Mapping[str, str]) -> None:
    """Writes a ranking (N,) with its tokenizer's fingerprint and ``details`` of its sources.

    Ids that never occurred are last and in ascending order, so only their number is stored.
    """
    falls = (ids[1:] < ids[:-1]).nonzero()
    seen = ids[: int(falls[-1]) + 1 if len(falls) else 1]
    if complete_ranking(seen, int(ids.max()) + 1)[: len(ids)].tolist() != ids.tolist():
        seen = ids
    details = {"tokenizer": tokenizer, "unseen": str(len(ids) - len(seen)), **details}
    write_tensors(path, {"ids": seen.to(torch.int32)}, details)


def read_ranking(path: Path, tokenizer: str, vocab_size: int) -> Tensor:
    """Ids (N,) int64 of a ranking or of a token map (``.pt``), most frequent first.

    Raises FileError for a damaged file, FingerprintError for a ranking of another tokenizer.
    """
    if path.suffix == ".pt":
        return read_token_map(path, vocab_size)
    tensors = read_tensors(path)
    if tensors.keys() != {"ids"}:
        raise FileError(f"{path} is not a ranking: give a file made by `minispec rank`")
    metadata = read_metadata(path)
    made_for = metadata.get("tokenizer", "none")
    if made_for != tokenizer:
        raise FingerprintError(
            f"{path} ranks the ids of tokenizer {made_for[:12]}, this model has tokenizer "
            f"{tokenizer[:12]}: make one for it with `minispec rank`"
        )
    ids = _check_ids(tensors["ids"], vocab_size, path)
    unseen = metadata.get("unseen", "0")
    if not (unseen.isdecimal() and len(ids) + int(unseen) <= vocab_size):
        raise FileError(
            f"{path} counts {unseen!a} unseen ids: with its {len(ids)} ranked ids there can be at "
            f"most {vocab_size - len(ids)}"
        )
    return torch.from_numpy(complete_ranking(ids, vocab_size)[: len(ids) + int(unseen)])


def find_shipped_ranking(model: str, name: str) -> Path | None:
    """The ranking that ships for a known model under this name, None if there is none."""
    return find_artifact(model, f"rankings/{name}") if name in NAMES else None


def find_ranking(model: str, name: str) -> Path:
    """The file of a ranking, given by the name of one that ships or by its path. Raises
    ArgumentError."""
    file = find_shipped_ranking(model, name) or Path(name)
    if not file.is_file():
        raise ArgumentError(
            f"no ranking {name!r} for model {model}: give a file made by `minispec rank`, or for a "
            f"known model one of {', '.join(NAMES)}"
        )
    return file


def read_token_map(path: Path, vocab_size: int) -> Tensor:
    """Ids (N,) int64 of an SGLang token map: a pickled list or tensor of ids.

    Only plain data is unpickled: a file that would run code is refused. Raises FileError.
    """
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(value, list) and all(type(i) is int for i in value):
            value = torch.tensor(value, dtype=torch.int64)
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from None
    except Exception:  # the bytes are untrusted, and torch raises many kinds of errors for bad ones
        raise FileError(
            f"{path} is not a token map: expected a list of ids or a tensor of ids"
        ) from None
    return _check_ids(value, vocab_size, path)


def write_token_map(path: Path, ids: Tensor) -> None:
    """Writes ids (N,) as SGLang reads them: a tensor, in the order given. Raises FileError."""
    buffer = io.BytesIO()  # if torch wrote the file, a full disk would raise errors of torch's own
    torch.save(ids.to(torch.int64), buffer)
    with write_aside(path) as aside:
        aside.write_bytes(buffer.getvalue())


def _check_ids(ids: Any, vocab_size: int, path: Path) -> Tensor:
    """The value of a file as ids (N,) int64, unique and within the vocabulary. Raises FileError."""
    plain = isinstance(ids, Tensor) and (ids.layout, ids.device.type) == (torch.strided, "cpu")
    if not plain or ids.dim() != 1 or ids.dtype not in _INTEGERS or not len(ids):
        raise FileError(f"{path} does not hold ids: expected one or more integers")
    ids = ids.to(torch.int64)
    if ids.min() < 0 or ids.max() >= vocab_size:
        raise FileError(
            f"{path} has ids {int(ids.min())}..{int(ids.max())}, "
            f"the vocabulary has 0..{vocab_size - 1}"
        )
    if len(ids.unique()) != len(ids):
        raise FileError(f"{path} has {len(ids) - len(ids.unique())} duplicate ids")
    return ids
