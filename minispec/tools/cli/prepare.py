"""What a command needs before it begins: a model with its draft, and a place to write to.

Everything is checked before any work. Models are imported by the function that needs them, so that
bad options are reported at once.
"""

import argparse
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minispec.errors import ArgumentError, FileError
from minispec.tools.cli.process import read_stdin

if TYPE_CHECKING:
    from minispec.api.model import Model
    from minispec.tools.evaluation.methods import Method
    from minispec.tools.models.pretrained import Pretrained


def load_model(
    name: str,
    *,
    draft: str | None,
    index: Path | None = None,
    dtype: str = "float32",
    backend: str = "auto",
    device: str = "cpu",
    threads: int | None = None,
    plain: bool = False,
    learns: bool = False,
    measure_backends: bool = False,
) -> "Model":
    """The model with its draft on a backend, under a progress bar on a terminal. With ``plain`` no
    draft is loaded, though a missing file is reported all the same. Raises as ``api.model.load``,
    of which the other options are."""
    from tqdm import tqdm

    from minispec.api import model as api
    from minispec.tools.evaluation.drafts import find_draft

    found = find_draft(name, draft)
    with tqdm(total=1, desc="loading", unit="model", leave=False, disable=None):
        model = api.load(
            name, dtype=dtype, backend=backend, device=device, index=index, threads=threads,
            draft=False if plain or found is None else found,
            measure_backends=measure_backends, adapt=learns,
        )  # fmt: skip
    report_implementation(model.pretrained)
    return model


def report_implementation(model: "Pretrained") -> None:
    """One line on stderr where a model is not run by an implementation of minispec's."""
    if model.implementation != "minispec":
        print(f"minispec: {model.name} is run by {model.implementation}", file=sys.stderr)


def load_decoding_model(
    options: argparse.Namespace,
    *,
    plain: bool = False,
    learns: bool = False,
    measure_backends: bool = False,
) -> "Model":
    """``load_model`` by the options that ``options.add_decoding`` adds to a command."""
    return load_model(
        options.model, draft=options.draft, index=options.index, dtype=options.dtype,
        backend=options.backend, device=options.device, threads=options.threads,
        plain=plain, learns=learns, measure_backends=measure_backends,
    )  # fmt: skip


def list_shaping(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of ``api.request.build_sampling`` that the options stand for. Raises
    ArgumentError for an id with two biases."""
    biases = dict(options.logit_bias)
    if len(biases) < len(options.logit_bias):
        raise ArgumentError("--logit-bias names a token twice: give it once")
    return {
        "temperature": options.temperature, "top_k": options.top_k, "top_p": options.top_p,
        "min_p": options.min_p, "repetition_penalty": options.repetition_penalty,
        "presence_penalty": options.presence_penalty,
        "frequency_penalty": options.frequency_penalty,
        "logit_bias": biases, "bad_words": options.bad_words,
    }  # fmt: skip


def parse_methods(text: str) -> list["Method"]:
    """Methods separated by commas. Raises ArgumentError."""
    from minispec.tools.evaluation.methods import Method

    return [Method.parse(spelled.strip()) for spelled in text.split(",")]


def parse_integer(text: str, name: str) -> int:
    """The value of an option called ``name``. Raises ArgumentError."""
    try:
        return int(text)
    except ValueError:
        raise ArgumentError(f"{name} {text!r} is not a whole number") from None


def read_prompt(prompt: str | None) -> str:
    """The prompt given, or for none and for "-" all of stdin without its last line break. Raises
    TextError."""
    return read_stdin().removesuffix("\n") if prompt in (None, "-") else prompt or ""


def check_prompt(prompt: str) -> None:
    """Raises ArgumentError for a prompt without text."""
    if not prompt.strip():
        raise ArgumentError("the prompt is empty: give some text")


def check_out(out: Path, *suffixes: str) -> None:
    """Raises ArgumentError for another suffix, FileError for a place that cannot be written."""
    if out.suffix not in suffixes:
        raise ArgumentError(f"--out {out} must end in {' or '.join(suffixes)}")
    if out.is_dir():
        raise FileError(f"--out {out} is a folder: give a file")
    check_writable(out.parent)


def check_folder(out: Path, default: Path) -> None:
    """Raises FileError if the folder of a file to write does not exist, unless it is the default's,
    which is created when the file is written."""
    if out != default and not out.parent.exists():
        raise FileError(f"--out {out}: folder {out.parent} does not exist; create it first")


def check_writable(folder: Path) -> None:
    """Raises FileError for a folder that cannot be written to: before hours of work, not after.
    Folders created for the check are removed again."""
    missing = []
    try:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        reason = error.strerror or error
        raise FileError(f"cannot write into {folder}: {reason}; give another folder") from None
    finally:
        for path in missing:
            with suppress(OSError):
                path.rmdir()
