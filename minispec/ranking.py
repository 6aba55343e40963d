"""Rankings: which ids are frequent, counted from text, and the files that carry them.

A ranking is the whole vocabulary in order of frequency, ties to the lower id, so that any
budget can be cut from it. Each file carries the fingerprint of the tokenizer whose ids it
ranks, since the ids of another one mean nothing, even where there are as many.

Also reads and writes the token maps of SGLang, which are bare lists of ids.
"""

import pickle
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from minispec.checkpoint import read_metadata, read_tensors, write_tensors, written_aside
from minispec.corpus import DOMAINS
from minispec.errors import ArgumentError, FileError, FingerprintError

NAMES = ("general", "mix", *(f"without-{domain}" for domain in DOMAINS))


def counted(texts: Iterable[Sequence[int]], vocabulary_size: int) -> Tensor:
    """How often each id occurs in texts of ids: (V,) int64."""
    counts = torch.zeros(vocabulary_size, dtype=torch.int64)
    for ids in texts:
        counts += torch.bincount(torch.as_tensor(ids, dtype=torch.int64), minlength=len(counts))
    return counts


def blended(sources: Sequence[Tensor]) -> Tensor:
    """Counts (V,) of several texts -> mean of their relative frequencies (V,) float64, so
    that each text weighs the same, however long it is."""
    shares = [counts.double() / counts.sum().clamp(min=1) for counts in sources]
    return torch.stack(shares).mean(0)


def ranked(frequencies: Tensor) -> Tensor:
    """Ids (V,) by descending frequency; of equally frequent ones the lower id first."""
    return frequencies.argsort(descending=True, stable=True)


def composition(name: str) -> tuple[str, ...]:
    """The domains whose text a shipped ranking is counted from."""
    if name == "general":
        return ("general",)
    if name == "mix":
        return DOMAINS
    return tuple(domain for domain in DOMAINS if name != f"without-{domain}")


def write_ranking(path: Path, ids: Tensor, tokenizer: str, details: Mapping[str, str]) -> None:
    """Writes a ranking (V,) with its tokenizer's fingerprint and what it was counted from."""
    write_tensors(path, {"ids": ids.to(torch.int32)}, {"tokenizer": tokenizer, **details})


def read_ranking(path: Path, tokenizer: str, vocabulary_size: int) -> Tensor:
    """Ids (N,) of a ranking or of a token map (``.pt``), most frequent first.

    Raises FileError for a damaged file, FingerprintError for another tokenizer's.
    """
    if path.suffix == ".pt":
        return read_token_map(path, vocabulary_size)
    ids = read_tensors(path).get("ids")
    made_for = read_metadata(path).get("tokenizer", "none")
    if made_for != tokenizer:
        raise FingerprintError(
            f"{path} ranks the ids of tokenizer {made_for[:12]}, this one is {tokenizer[:12]}: "
            "make its own with `minispec rank`"
        )
    return _checked(ids, vocabulary_size, path)


def shipped(model: str, name: str) -> Path:
    """Where the ranking of a known model lies in the package. Raises ArgumentError."""
    path = Path(str(resources.files("minispec"))) / "data" / "rankings" / model
    path = path / f"{name}.safetensors"
    if not path.is_file():
        raise ArgumentError(
            f"no ranking {name!r} for model {model}: known are {', '.join(NAMES)} for smollm2, "
            "or give a file made by `minispec rank`"
        )
    return path


def read_token_map(path: Path, vocabulary_size: int) -> Tensor:
    """Ids (N,) int64 of SGLang's token map: a pickled list or tensor of ids, and nothing else.

    Loading is restricted to plain data: a file that asks for code is refused, not run.
    """
    try:
        value = torch.load(path, weights_only=True)
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError):
        raise FileError(f"{path} is no token map: a list or tensor of ids was expected") from None
    if isinstance(value, list) and all(type(i) is int for i in value):
        value = torch.tensor(value, dtype=torch.int64)
    return _checked(value, vocabulary_size, path)


def write_token_map(path: Path, ids: Tensor) -> None:
    """Writes ids (N,) as SGLang reads them: a tensor, sorted as they are."""
    with written_aside(path) as aside:
        torch.save(ids.to(torch.int64), aside)


def _checked(ids: object, vocabulary_size: int, path: Path) -> Tensor:
    if not isinstance(ids, Tensor) or ids.dim() != 1 or ids.is_floating_point() or not len(ids):
        raise FileError(f"{path} is no ranking: a list of ids was expected")
    if ids.min() < 0 or ids.max() >= vocabulary_size:
        raise FileError(
            f"{path} has ids {int(ids.min())}..{int(ids.max())}, "
            f"the vocabulary has 0..{vocabulary_size - 1}"
        )
    if len(ids.unique()) != len(ids):
        raise FileError(f"{path} has {len(ids) - len(ids.unique())} ids twice")
    return ids.to(torch.int64)
