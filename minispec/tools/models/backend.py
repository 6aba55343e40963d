"""Which implementation does the arithmetic: the reference, or a fast path beside it.

A backend is a module of ``fastpath`` with two functions, ``target`` and ``draft``, which take
the reference's and return something that behaves alike and is faster. ``auto`` measures the
reference against those that can run here, on the model itself and once for each machine.
"""

import importlib
import os
import platform
import timeit
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from minispec.commit import StopRule
from minispec.errors import ArgumentError, FileError
from minispec.io import files
from minispec.io.artifacts import cache_folder
from minispec.models.eagle_draft import EagleDraft
from minispec.sampling import Sampling, SeededRandom
from minispec.tools.evaluation import methods
from minispec.tools.models.pretrained import Pretrained
from minispec.types import Draft, Target

NAMES = ("reference", "cpu", "compiled", "cuda")
_CONTEXT, _REPEATS = 64, 7


def placed(
    model: Pretrained,
    draft: EagleDraft | None,
    name: str,
    measure: bool = True,
    learns: bool = False,
) -> tuple[Pretrained, Draft | None]:
    """A model and its draft on a backend by name, or on the fastest ("auto"), of those where a
    draft can learn if it ``learns``: by what was measured before, or, with ``measure``, is
    measured now, which compiles what was not yet.

    Raises ArgumentError for a backend that this machine, or the model's dtype, rules out.
    """
    if name == "auto":
        found = chosen(model) if measure else known(model)
        name = found["backend"]
        if learns and name not in methods.LEARNING:
            figures = found["milliseconds"]  # of those that fit the model, which the reference does
            name = min(figures.keys() & methods.LEARNING, key=lambda each: sum(figures[each]))
    if name == "reference":
        return model, draft
    module = _loaded(name)
    if reason := module.unfit(model.reference):
        raise ArgumentError(f"backend {name} cannot run {model.name}: {reason}")
    target = module.target(model.reference)
    return replace(model, target=target, backend=name), draft and module.draft(draft, target)


def chosen(model: Pretrained) -> dict[str, Any]:
    """The fastest backend for a round of this model, and what was measured: milliseconds of a
    pass over 1 and over 5 positions, by backend. Kept in the user's cache directory."""
    kept = _read()
    if (key := _key(model)) not in kept:
        threads = torch.get_num_threads()
        fit = [name for name in NAMES if hindrance(model, name) is None]
        figures = {name: _measured(model, name) for name in fit}
        torch.set_num_threads(threads)
        fastest = min(figures, key=lambda name: sum(figures[name]))
        kept[key] = {"backend": fastest, "milliseconds": figures}
        with suppress(FileError):  # where it cannot be kept, it is measured again
            files.write_json(_path(), kept)
    return kept[key]


def known(model: Pretrained) -> dict[str, Any]:
    """What was chosen before; the reference, if nothing was."""
    return _read().get(_key(model), {"backend": "reference"})


def bandwidth() -> float:
    """Bytes a second that reading memory yields with the threads at hand: the fastest of three
    sums over 256 MiB."""
    block = torch.ones(64 * 1024 * 1024)
    block.sum()
    return block.nbytes / min(timeit.repeat(block.sum, number=1, repeat=3))


def hindrance(model: Pretrained, name: str) -> str | None:
    """Why ``auto`` does not consider a backend, None if it does."""
    if name == "reference":
        return None
    if name == "compiled":
        return "runs where it is asked for: it compiles for longer than auto may take"
    try:
        reason: str | None = _loaded(name).unfit(model.reference)
    except ArgumentError as error:
        return str(error)
    return reason


def warm(model: Pretrained, draft: Draft | None) -> None:
    """Decodes a few tokens in every way, so that all that is compiled on first use is."""
    names = {"autoregressive", methods.default(model.name, draft is not None)}
    for name in sorted(names | {"full"} if draft else names):
        decode = methods.decoder(
            methods.Method.parse(name), model, draft, None, gamma=4, sampling=Sampling(),
            stop=StopRule(8),
        )  # fmt: skip
        for _ in decode([0, 1, 2], SeededRandom(0)):
            pass


def _loaded(name: str) -> ModuleType:
    if name not in NAMES:
        raise ArgumentError(f"no backend {name!r}: known are auto, {', '.join(NAMES)}")
    try:
        return importlib.import_module(f"fastpath.{name}.backend")
    except ImportError as error:
        raise ArgumentError(f"backend {name} cannot run here: {error}") from None


def _measured(model: Pretrained, name: str) -> list[float]:
    target: Target = placed(model, None, name)[0].target
    cache = target.new_cache(_CONTEXT + 8)
    target.step(torch.arange(_CONTEXT) + 1, cache)
    figures = []
    for width in (1, 5):

        def run(width: int = width) -> None:
            target.head.logits(target.step(torch.arange(width) + 1, cache).hidden)
            cache.truncate(_CONTEXT)

        run()
        figures.append(1000 * min(timeit.repeat(run, number=1, repeat=_REPEATS)))
    return figures


def _path() -> Path:
    return cache_folder() / "calibration.json"


def _key(model: Pretrained) -> str:
    machine = platform.node(), os.cpu_count(), torch.__version__, torch.get_num_threads()
    return "-".join(map(str, (*machine, model.fingerprint[:12], model.dtype)))


def _read() -> dict[str, Any]:
    """What was measured before; a file that is not ours, or damaged, is as good as none."""
    try:
        kept = files.read_json(_path())
    except FileError:
        return {}
    return kept if isinstance(kept, dict) else {}
