"""What passes cost on this machine, for ``--gamma auto`` and ``--tree auto``.

Target passes over several rows, and the rest of rounds that draft trees of several sizes, are timed
on the model itself, once for each backend, dtype, number of threads and budget, and kept in the
user's cache folder.
"""

import statistics
import timeit
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from msgspec import Struct, to_builtins

from minispec.checks import check_trees
from minispec.commit import StopRule
from minispec.decode import autoregressive, speculative
from minispec.errors import ArgumentError, FileError, FileWarning
from minispec.growth import TreeShape
from minispec.io import files
from minispec.io.artifacts import cache_folder
from minispec.io.schema import Positive, read_json
from minispec.round_costs import PassCosts
from minispec.sampling import Sampling, SeededRandom
from minispec.tools.models.backend import calibration_key
from minispec.tools.models.pretrained import Pretrained
from minispec.types import Draft, Round, Shortlist

_TARGET_ROWS = (1, 2, 3, 5, 9, 13, 17, 25)
_DRAFT_BEAMS = (1, 2, 4, 6)
_CONTEXT = 64  # positions in the cache of a timed pass
_REPEATS = 5  # timed passes, of which the fastest counts
_ROUNDS = 12  # timed rounds at least, of which the middle one counts
_LEAST = 1e-6  # seconds of a level of the draft: a difference of two times that is not above 0
_LARGEST = 2**22  # bytes of the file


class _Costs(Struct, frozen=True):
    """``PassCosts`` as they are kept."""

    target: list[tuple[int, Positive]]
    draft: list[tuple[int, Positive]]
    rest: float
    plain_rest: float


def load_costs(
    model: Pretrained, sampling: Sampling, drafting: tuple[Draft, Shortlist] | None
) -> PassCosts:
    """The costs for a model, and for its draft with a shortlist if these are given: as they were
    measured before, else measured now, which takes a few seconds. They are kept per budget, and for
    greedy decoding apart."""
    kept = _read_kept()
    budget = drafting[1].budget if drafting else 0
    key = "-".join(map(str, (calibration_key(model), model.backend, budget, _is_greedy(sampling))))
    if key not in kept:
        kept[key] = _measure(model, sampling, drafting)
        with suppress(FileError):  # without a writable cache, each call measures again
            files.write_json(_path(), to_builtins(kept))
    found = kept[key]
    return PassCosts(tuple(found.target), tuple(found.draft), found.rest, found.plain_rest)


def _measure(
    model: Pretrained, sampling: Sampling, drafting: tuple[Draft, Shortlist] | None
) -> _Costs:
    target = model.target
    cache = target.new_cache(_CONTEXT + max(_TARGET_ROWS))
    target.step(torch.arange(_CONTEXT) + 1, cache)
    greedy = _is_greedy(sampling)

    def run_target(rows: int) -> None:
        hidden = target.step(torch.arange(rows) + 1, cache).hidden
        cache.keep(_CONTEXT, ())
        target.head.argmax(hidden) if greedy else target.head.logits(hidden)

    costs = PassCosts(tuple((rows, _time(run_target, rows)) for rows in _TARGET_ROWS))
    options: Any = {"sampling": sampling, "rng": SeededRandom(0), "stop": StopRule(4 * _ROUNDS)}
    plain_rest = _time_rounds(autoregressive(target, [1, 2, 3], **options))
    if drafting is None:
        return _Costs([*costs.target], [], plain_rest, plain_rest)
    draft, shortlist = drafting

    def time_drafting(depth: int, beam: int) -> float:
        """Seconds of a round besides its target pass, with a tree of ``beam`` nodes a level."""
        tree = TreeShape(depth, beam, depth * beam) if beam > 1 else None
        rounds = speculative(target, draft, shortlist, [1, 2, 3], gamma=depth, tree=tree, **options)
        return _time_rounds(rounds)

    # In a tree of two levels the second one has ``beam`` nodes, in one of one level there is none.
    beams = _find_beams(target, draft)
    shallow, deep = ([time_drafting(depth, beam) for beam in beams] for depth in (1, 2))
    levels = [
        (beam, max(_LEAST, two - one)) for beam, one, two in zip(beams, shallow, deep, strict=True)
    ]
    rest = max(0.0, shallow[0] - levels[0][1])
    return _Costs([*costs.target], levels, rest, plain_rest)


def _find_beams(*models: Any) -> tuple[int, ...]:
    """The beams to time: 1 for models that run chains alone."""
    try:
        check_trees(*models)
    except ArgumentError:
        return _DRAFT_BEAMS[:1]
    return _DRAFT_BEAMS


def _time_rounds(rounds: Iterable[Round]) -> float:
    """Seconds of the middle one, by time, of some rounds, without their target passes."""
    return statistics.median(
        sum(
            seconds
            for phase, seconds in finished.seconds.items()
            if phase not in ("prefill", "target")
        )
        for finished in rounds
    )


def _time(run: Callable[[int], None], rows: int) -> float:
    run(rows)
    return min(timeit.repeat(lambda: run(rows), number=1, repeat=_REPEATS))


def _is_greedy(sampling: Sampling) -> bool:
    """Whether verification needs the largest logits alone."""
    return sampling.temperature == 0 and not sampling.changes_logits


def _path() -> Path:
    return cache_folder() / "pass-costs.json"


def _read_kept() -> dict[str, _Costs]:
    """Earlier costs by key; a file that is missing or damaged counts as empty, the latter with a
    warning."""
    try:
        path = _path()
    except FileError:  # without a home nothing is kept
        return {}
    if not path.exists():
        return {}
    try:
        return read_json(path, dict[str, _Costs], _LARGEST)
    except FileError as error:
        warnings.warn(f"{error}: ignored, passes are measured again", FileWarning, stacklevel=2)
        return {}
