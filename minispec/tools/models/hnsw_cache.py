"""The HNSW index of a model's LM head: built on first use, then kept in the user's cache folder.

The file's SHA-256 is kept beside it and checked before the library reads it: a damaged file, or one
of another version of the library, is built again. Knows nothing of who searches the index.
"""

import hashlib
import sys
from importlib import metadata
from pathlib import Path

import msgspec
from torch import Tensor
from tqdm import tqdm

from minispec.errors import FileError
from minispec.io.artifacts import cache_folder
from minispec.io.files import write_aside, write_json
from minispec.io.schema import Sha256, check_file, read_json
from minispec.shortlists.hnsw import NEIGHBOURS, HnswIndex, build_hnsw, read_hnsw


class _Record(msgspec.Struct, kw_only=True):
    """What is known of a kept index."""

    model: Sha256  # the fingerprint of the LM head
    sha256: Sha256  # of the index's file
    library: str  # usearch's version


def load_hnsw(rows: Tensor, fingerprint: str) -> HnswIndex:
    """The index of the rows (V, D) of a head with this fingerprint, from the cache or built now.

    If the cache cannot be written, the index serves this process alone, which a line on stderr
    says. Raises ArgumentError without usearch.
    """
    path = cache_folder() / "hnsw" / f"{fingerprint[:16]}-{NEIGHBOURS}.usearch"
    if _is_intact(path, fingerprint):
        return read_hnsw(path, *rows.shape)
    with tqdm(total=len(rows), desc="building the HNSW index", unit="row", disable=None) as bar:
        index = build_hnsw(rows, bar.update)
    try:
        with write_aside(path) as aside:
            digest = index.write(aside)
        record = {"model": fingerprint, "sha256": digest, "library": _library_version()}
        write_json(path.with_suffix(".json"), record)
    except FileError as error:
        print(f"the HNSW index is not kept: {error}", file=sys.stderr)
    return index


def _is_intact(path: Path, fingerprint: str) -> bool:
    try:
        record = read_json(path.with_suffix(".json"), _Record)
        check_file(path)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except (FileError, OSError):
        return False
    found = record.model, record.library, record.sha256
    return found == (fingerprint, _library_version(), digest)


def _library_version() -> str:
    try:
        return metadata.version("usearch")
    except metadata.PackageNotFoundError:
        return "none"
