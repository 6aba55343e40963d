"""Which implementation runs the model: the reference, or a fast path.

A backend is a module ``fastpath.NAME.backend`` with ``build_target`` and ``build_draft``, which
take the reference's model and draft and return faster ones with the same interface. ``auto`` times
the backends that can run here on the model itself, once per machine.
"""

import importlib
import os
import platform
import timeit
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from msgspec import Struct, to_builtins

from minispec.errors import ArgumentError, FileError, FileWarning
from minispec.io import files
from minispec.io.artifacts import cache_folder
from minispec.io.schema import Positive, read_json
from minispec.models.eagle3_draft import Eagle3Draft, ReducedHead
from minispec.models.eagle_draft import EagleDraft
from minispec.models.lm_head import LinearHead
from minispec.models.quantized_matrix import Rows
from minispec.models.quantized_modules import quantize_linears
from minispec.models.transformer import Transformer
from minispec.tools.models.pretrained import Pretrained
from minispec.types import Draft, Head, Target

NAMES = ("reference", "cpu", "compiled", "cuda")
LEARNING_BACKENDS = ("reference", "cpu")  # on which a draft can learn while it decodes
_CONTEXT = 64  # positions in the cache of a timed pass
_LARGEST_CALIBRATION = 2**22  # bytes
_REPEATS = 7  # timed passes, of which the fastest counts


class Choice(Struct, frozen=True):
    """The fastest backend for a model, and the measurements: milliseconds of a pass over 1 and over
    5 positions, by backend."""

    backend: Literal["reference", "cpu", "compiled", "cuda"]
    milliseconds: dict[str, tuple[Positive, Positive]]


def place_on_backend(
    model: Pretrained,
    draft: EagleDraft | None,
    name: str,
    measure: bool = True,
    learns: bool = False,
) -> tuple[Pretrained, Draft | None]:
    """The model and its draft on a backend, given by name or chosen by speed ("auto").

    "auto" takes the fastest backend of earlier measurements; with ``measure`` it measures now if
    there are none, which compiles kernels on first use. With ``learns`` it considers only
    ``LEARNING_BACKENDS``. A model on another device than the CPU runs on the reference. In dtype
    gguf the draft's matrices are quantised too, in place, unless it ``learns``.

    An imported EAGLE-3 draft runs on the reference, beside a target on the reference or "cpu".

    Raises ArgumentError for a backend that cannot run on this machine, or with the model's dtype or
    its draft.
    """
    if isinstance(draft, EagleDraft) and model.dtype == "gguf" and not learns:
        quantize_linears(draft)
    placed: Draft | None = draft
    imported = draft if isinstance(draft, Eagle3Draft) else None
    if imported and isinstance(imported.head, ReducedHead):
        model = replace(model, draft_ids=imported.head.ids)
    if name == "auto" and (model.device != "cpu" or why_not_own(model)):
        name = "reference"
    if name == "auto":
        choice = choose_backend(model) if measure else read_cached_choice(model)
        milliseconds = choice.milliseconds  # the reference is always among them
        able = [n for n in NAMES if n in LEARNING_BACKENDS or not learns]
        name = choice.backend
        if name not in able:
            candidates = milliseconds.keys() & set(able)
            name = min(candidates, key=lambda each: sum(milliseconds[each]))
    if name == "reference":
        return model, draft
    if reason := why_not_own(model):
        raise ArgumentError(f"backend {name} cannot run {model.name}: {reason}")
    if imported and name != "cpu":
        raise ArgumentError(
            f"backend {name} runs no imported EAGLE-3 draft: use --backend reference or cpu"
        )
    module = _import_backend(name)
    if model.device != "cpu":
        raise ArgumentError(
            f"backend {name} starts from weights on the CPU, not on device {model.device}: "
            "use --device cpu or --backend reference"
        )
    if reason := module.why_unsupported(model.reference):
        raise ArgumentError(f"backend {name} cannot run {model.name}: {reason}")
    target = module.build_target(model.reference)
    if draft and not imported:
        placed = module.build_draft(draft, target)
    return replace(model, target=target, backend=name), placed


def choose_backend(model: Pretrained, again: bool = False) -> Choice:
    """The fastest backend for this model, as measured. Kept in the user's cache directory, and
    measured ``again`` only if asked for, or if the backend cannot run any more."""
    choices = _read_calibration()
    key = calibration_key(model)
    found = choices.get(key)
    if again or found is None or why_unavailable(model, found.backend):
        threads = torch.get_num_threads()
        available = [name for name in NAMES if why_unavailable(model, name) is None]
        milliseconds = {name: _time_passes(model, name) for name in available}
        torch.set_num_threads(threads)
        fastest = min(milliseconds, key=lambda name: sum(milliseconds[name]))
        found = choices[key] = Choice(fastest, milliseconds)  # type: ignore[arg-type]
        with suppress(FileError):  # without a writable cache, each call measures again
            files.write_json(_calibration_path(), to_builtins(choices))
    return found


def read_cached_choice(model: Pretrained) -> Choice:
    """The choice of an earlier ``choose_backend``, or the reference if there was none."""
    found = _read_calibration().get(calibration_key(model))
    if found is None or why_unavailable(model, found.backend):
        return Choice("reference", {"reference": (1.0, 1.0)})
    return found


def measure_bandwidth() -> float:
    """Memory bandwidth for reads with torch's threads, bytes per second: the fastest of three sums
    over 256 MiB."""
    block = torch.ones(64 * 1024 * 1024)
    block.sum()
    return block.nbytes / min(timeit.repeat(block.sum, number=1, repeat=3))


def why_unavailable(model: Pretrained, name: str) -> str | None:
    """Why "auto" does not consider a backend for this model; None if it does."""
    if name == "reference":
        return None
    if reason := why_not_own(model):
        return reason
    if name == "compiled":
        return "runs only when asked for: compiling takes longer than auto may"
    try:
        return _import_backend(name).why_unsupported(model.reference)
    except ArgumentError as error:
        return str(error)


def why_not_own(model: Pretrained) -> str | None:
    """Why no fast path can run a model, which have the layers of minispec's alone; None if some
    may."""
    if isinstance(model.reference, Transformer):
        return None
    return f"it is run by {model.implementation}; use backend reference"


def choose_head(name: str) -> Callable[[Rows], Head]:
    """What builds a head over rows (V, r) on the CPU, for the shortlists of a backend."""
    if name != "cpu":
        return LinearHead
    build: Callable[[Rows], Head] = importlib.import_module("fastpath.cpu.weights").build_head
    return build


def build_background_runner(name: str) -> Any:
    """What runs retrievals beside the target's passes on a backend (``fastpath.background``), None
    for the reference, which retrieves in line."""
    if name == "reference":
        return None
    return importlib.import_module("fastpath.background").BackgroundRunner()


def _import_backend(name: str) -> ModuleType:
    if name not in NAMES:
        raise ArgumentError(f"unknown backend {name!r}: choose from auto, {', '.join(NAMES)}")
    try:
        return importlib.import_module(f"fastpath.{name}.backend")
    except (ImportError, ValueError) as error:  # Numba refuses settings that it reads on import
        raise ArgumentError(f"backend {name} cannot run here: {error}") from None


def _time_passes(model: Pretrained, name: str) -> tuple[float, float]:
    """Milliseconds of a target pass with its head over 1 and over 5 positions."""
    target: Target = place_on_backend(model, None, name)[0].target
    cache = target.new_cache(_CONTEXT + 8)
    target.step(torch.arange(_CONTEXT) + 1, cache)

    def time_pass(width: int) -> float:
        def run() -> None:
            target.head.logits(target.step(torch.arange(width) + 1, cache).hidden)
            cache.truncate(_CONTEXT)

        run()
        return 1000 * min(timeit.repeat(run, number=1, repeat=_REPEATS))

    return time_pass(1), time_pass(5)


def _calibration_path() -> Path:
    return cache_folder() / "calibration.json"


def calibration_key(model: Pretrained) -> str:
    """What measurements hold for: the machine, its threads and settings, the model, its dtype."""
    machine = platform.node(), os.cpu_count(), torch.__version__, torch.get_num_threads()
    # A setting of Numba for one run is not the machine's usual state.
    settings = [value for name, value in sorted(os.environ.items()) if name.startswith("NUMBA_")]
    return "-".join(map(str, (*machine, model.fingerprint[:12], model.dtype, *settings)))


def _read_calibration() -> dict[str, Choice]:
    """Earlier choices by key; a file that is missing or damaged counts as empty, the latter with a
    warning: it is written anew by the next measurement."""
    try:
        path = _calibration_path()
    except FileError:  # without a home nothing is kept
        return {}
    if not path.exists():
        return {}
    try:
        choices = read_json(path, dict[str, Choice], _LARGEST_CALIBRATION)
    except FileError as error:
        warnings.warn(
            f"{error}: ignored until backends are measured again", FileWarning, stacklevel=2
        )
        return {}
    return {key: choice for key, choice in choices.items() if "reference" in choice.milliseconds}
