"""What a command needs before it begins: threads, a model, its draft, and a place to write.

All of it is checked here, so that what is wrong is said before any work. Models are imported by
what needs them, so that what is wrong with the options is said at once.
"""

import argparse
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from minispec.errors import ArgumentError, FileError


def loaded(options: argparse.Namespace, methods: Sequence[Any]) -> tuple[Any, Any]:
    """The model on its backend, and its draft if a method needs one. Raises FileError, and what
    loading them raises."""
    from tqdm import tqdm

    from minispec.io import draft_file
    from minispec.tools.models import backend, pretrained

    use_threads(options.threads)
    path = draft_path(options)
    if path and not path.is_file():
        raise FileError(f"{path} does not exist: a draft's weights were expected")
    plain = all(method.name == "autoregressive" for method in methods)
    with tqdm(total=1, desc="loading", unit="model", leave=False, disable=None):
        model = pretrained.load(options.model, options.dtype)
        model = replace(model, index=options.index)
        guesser = None
        if path and not plain:
            guesser = draft_file.load_draft(path, model.reference, model.fingerprint)
        # One prompt should not wait for a measurement: `doctor` and `compare` take the time.
        patient = options.command not in ("generate", "explore")
        learns = any(method.adapt for method in methods)
        return backend.place_on_backend(model, guesser, options.backend, patient, learns)


def draft_path(options: argparse.Namespace) -> Path | None:
    """Where the draft is: the one given, or the model's own, if it has one."""
    from minispec.io import draft_file
    from minispec.tools.models import pretrained

    known = options.model in (pretrained.POCKET, *pretrained.SOURCES)
    own = draft_file.find_draft(options.model) if known else None
    return options.draft or own


def sampling_of(options: argparse.Namespace) -> Any:
    """The way of sampling that the options ask for. Raises ArgumentError."""
    from minispec.sampling import Sampling

    return Sampling(options.temperature, options.top_k, options.top_p)


def use_threads(threads: int | None) -> None:
    """Has torch use so many threads, if a number is given. Raises ArgumentError."""
    import torch

    if threads is None:
        return
    if not 1 <= threads <= 1024:
        raise ArgumentError(f"threads {threads} must lie in 1..1024")
    torch.set_num_threads(threads)


def whole_number(text: str, name: str) -> int:
    """The number that an option called ``name`` holds as text. Raises ArgumentError."""
    try:
        return int(text)
    except ValueError:
        raise ArgumentError(f"{name} {text!r} is no whole number") from None


def check_out(out: Path, *suffixes: str) -> None:
    """Raises ArgumentError for another suffix, FileError for a place that cannot be written."""
    if out.suffix not in suffixes:
        raise ArgumentError(f"--out {out} must end in {' or '.join(suffixes)}")
    if out.is_dir():
        raise FileError(f"--out {out} is a folder: give a file")
    check_writable(out.parent)


def check_writable(folder: Path) -> None:
    """Raises FileError for a folder that cannot be written: before hours of work, not after. Leaves
    nothing behind, no empty folder either."""
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
