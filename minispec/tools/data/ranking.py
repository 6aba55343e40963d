"""Rankings: token ids in order of their frequency in text, and their files.

FR-Spec (arXiv 2502.14856) cuts its shortlists from such a ranking. A ranking covers the whole
vocabulary, most frequent id first, ties to the lower id, so that a shortlist of any budget is a
prefix of it. Each file carries the fingerprint of the tokenizer whose ids it ranks: the ids of
another tokenizer are refused, even if its vocabulary has the same size.

Also reads and writes SGLang's token maps, which are plain lists of ids.
"""

import io
import warnings
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minispec.errors import ArgumentError, FileError, FileWarning
from minispec.io.artifacts import find_artifact
from minispec.io.draft_file import name_foreign_draft
from minispec.io.files import (
    INTEGERS,
    Fingerprints,
    TensorSpec,
    check_fingerprints,
    check_layout,
    open_safetensors,
    read_header,
    read_metadata,
    read_tensors,
    write_aside,
    write_tensors,
)
from minispec.io.schema import Index, check_file
from minispec.shortlists.frspec import complete_ranking
from minispec.tools.data.corpus import DOMAINS

NAMES = ("general", "mix", *(f"without-{domain}" for domain in DOMAINS))
_LAYOUT = {"ids": TensorSpec((None,), INTEGERS)}
_SHORTEST_ORDER = 8  # fewer ids can be in ascending order by chance
_LARGEST_MAP = 2**26  # bytes: the largest vocabularies have 2**18 ids
_PICKLED_ID = 6  # bytes: an id takes five, and a few may occur twice


class _Metadata(Fingerprints, kw_only=True):
    unseen: Index = 0  # ids that never occurred: the last of the ranking, not stored


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
    """Ids (N,) int64 of a ranking or of a token map, most frequent first.

    Raises FileError for a damaged file, FingerprintError for a ranking of another tokenizer.
    """
    if is_token_map(path):
        return read_token_map(path, vocab_size)
    found, length = _read_sizes(path, vocab_size)
    remedy = "make one for it with `minispec rank`"
    check_fingerprints(path, found, {"tokenizer": tokenizer}, remedy)
    ids = _check_ids(read_tensors(path, _LAYOUT)["ids"], vocab_size, path)
    if len(ids.unique()) != len(ids):
        raise FileError(f"{path} has {len(ids) - len(ids.unique())} duplicate ids: it is damaged")
    return torch.from_numpy(complete_ranking(ids, vocab_size)[:length])


def default_budget(path: Path, share: int, vocab_size: int) -> int:
    """The size of a shortlist from a file, where none is asked for: all of a token map; of a
    ranking ``share`` ids, or all of a shorter one. Raises FileError."""
    if is_token_map(path):
        return len(read_token_map(path, vocab_size))
    return min(share, _read_sizes(path, vocab_size)[1])


def check_order(ids: Tensor, budget: int, path: Path) -> None:
    """Raises ArgumentError where a budget would cut ids (N,) that are in ascending order, which
    says nothing about their frequency."""
    if budget < len(ids) and len(ids) >= _SHORTEST_ORDER and bool((ids[1:] > ids[:-1]).all()):
        raise ArgumentError(
            f"{path} lists its {len(ids)} ids in ascending order, not by frequency, so that a "
            f"budget of {budget} would keep the lowest: use all of it with frspec and no budget, "
            "or count a ranking with `minispec rank`"
        )


def _read_sizes(path: Path, vocab_size: int) -> tuple[_Metadata, int]:
    """A ranking's metadata, and the number of its ids, those that are not stored included."""
    with open_safetensors(path) as file:
        header = read_header(file, str(path))
    if kind := name_foreign_draft(header):
        raise FileError(
            f"{path} is {kind}, not a ranking: its d2t holds offsets (id = position + d2t); save "
            "a list of the ids themselves with torch.save"
        )
    if header.keys() != _LAYOUT.keys():
        raise FileError(f"{path} is not a ranking: give a file made by `minispec rank`")
    check_layout(header, _LAYOUT, str(path))
    found, (stored,) = read_metadata(path, _Metadata), header["ids"][0]
    if stored + found.unseen > vocab_size:
        raise FileError(
            f"{path} counts {found.unseen} unseen ids: with its {stored} ranked ids there can be "
            f"at most {vocab_size - stored}"
        )
    return found, stored + found.unseen


def find_shipped_ranking(model: str, name: str) -> Path | None:
    """The ranking that ships for a known model under this name, None if there is none."""
    return find_artifact(model, f"rankings/{name}") if name in NAMES else None


def find_ranking(model: str, name: str) -> Path:
    """The file of a ranking, given by the name of one that ships or by its path. Raises
    ArgumentError."""
    file = find_shipped_ranking(model, name) or Path(name)
    if file.is_dir():
        raise ArgumentError(f"ranking {name} is a folder: give a file made by `minispec rank`")
    if not file.exists():
        raise ArgumentError(
            f"no ranking {name!r} for model {model}: give a file made by `minispec rank`, or for a "
            f"known model one of {', '.join(NAMES)}"
        )
    return file


def is_token_map(path: Path) -> bool:
    """Whether a file is one of PyTorch's, by its content or its name. Raises FileError."""
    check_file(path)
    try:
        with path.open("rb") as file:
            return path.suffix == ".pt" or file.read(4) == b"PK\x03\x04"
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from None


def read_token_map(path: Path, vocab_size: int) -> Tensor:
    """Ids (N,) int64 of an SGLang token map: a pickled list or tensor of ids, in the order given.
    An id that occurs again is dropped, with a warning.

    Only plain data is unpickled: a file that would run code is refused. Raises FileError.
    """
    _check_archive(path, vocab_size)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's, of unusual files
            value = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(value, list) and all(type(i) is int for i in value):
            value = torch.tensor(value, dtype=torch.int64)
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from None
    except Exception:  # the bytes are untrusted, and torch raises many kinds of errors for bad ones
        raise FileError(
            f"{path} is not a token map: expected a list of ids or a tensor of ids"
        ) from None
    if isinstance(value, dict):
        kind = name_foreign_draft([str(name) for name in value]) or "a dictionary"
        raise FileError(f"{path} is {kind}, not a token map: expected a list of ids or a tensor")
    if isinstance(value, Tensor) and value.dtype == torch.bool:
        raise FileError(
            f"{path} is a mask over the vocabulary (t2d of an EAGLE-3 draft), not a token map: "
            "save the ids, mask.nonzero().flatten()"
        )
    ids = _check_ids(value, vocab_size, path)
    order = dict.fromkeys(ids.tolist())
    repeated = len(ids) - len(order)
    if repeated > len(ids) // 10 and bool((ids[1:] >= ids[:-1]).all()):
        raise FileError(
            f"{path} has ascending numbers of which {repeated} repeat: they look like the offsets "
            "of an EAGLE-3 draft (d2t), not like ids: save d2t + arange(len(d2t))"
        )
    if repeated:
        warnings.warn(f"{path} has {repeated} duplicate ids: dropped", FileWarning, stacklevel=2)
    return torch.tensor([*order])


def _check_archive(path: Path, vocab_size: int) -> None:
    """Refuses what would cost much to unpickle, before it is: an archive that is larger than token
    maps are, or that is compressed, which PyTorch's never are. Raises FileError."""
    check_file(path, _LARGEST_MAP)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        raise FileError(
            f"{path} is not a token map: expected a list of ids or a tensor, saved by torch.save"
        ) from None
    for member in members:
        is_pickle = member.filename.endswith(".pkl")  # unpickling takes about a second per MB
        limit = _PICKLED_ID * vocab_size + 4096 if is_pickle else _LARGEST_MAP
        if member.file_size != member.compress_size or member.file_size > limit:
            raise FileError(
                f"{path} is not a token map: {member.filename!a} in it would have "
                f"{member.file_size:,} bytes, expected at most {limit:,}, not compressed"
            )


def write_token_map(path: Path, ids: Tensor) -> None:
    """Writes ids (N,) as SGLang reads them: a tensor, in the order given. Raises FileError."""
    buffer = io.BytesIO()  # if torch wrote the file, a full disk would raise errors of torch's own
    torch.save(ids.to(torch.int64), buffer)
    with write_aside(path) as aside:
        aside.write_bytes(buffer.getvalue())


def _check_ids(ids: Any, vocab_size: int, path: Path) -> Tensor:
    """The value of a file as ids (N,) int64 within the vocabulary. Raises FileError."""
    plain = isinstance(ids, Tensor) and (ids.layout, ids.device.type) == (torch.strided, "cpu")
    if not plain or ids.dim() != 1 or ids.dtype not in INTEGERS or not len(ids):
        raise FileError(f"{path} does not hold ids: expected one or more integers")
    if len(ids) > max(2 * vocab_size, 64):  # a stride of 0 repeats one id without end
        raise FileError(f"{path} has {len(ids)} ids, the vocabulary only {vocab_size}")
    ids = ids.to(torch.int64)
    if ids.min() < 0 or ids.max() >= vocab_size:
        raise FileError(
            f"{path} has ids {int(ids.min())}..{int(ids.max())}, "
            f"the vocabulary has 0..{vocab_size - 1}"
        )
    return ids
