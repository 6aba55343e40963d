"""How an answer is graded: by a property, by the formula, or by the certificate.

A grader takes what a student's file defines and returns None if it is right, otherwise what is
wrong: the first input on which it differs, and the mistake that explains all of them, if a known
one does.
"""

import math
import sysconfig
import traceback
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from minispec.certificate.cases import GRID, SAMPLINGS
from minispec.certificate.certify import certify
from minispec.certificate.walker import BranchingSource, distribution_of

# Small cases in which the common mistakes change the output, at temperature 1. What the first ones
# refuse is explained without the later ones, which take longer.
STAGES = (GRID[2:4], GRID[4:5])
_LONGEST = 60  # characters of a value that is shown
_MANY = 12  # numbers of a tensor that is shown by its shape alone
# Folders whose code is not the student's.
_FOLDERS = (Path(__file__).parents[1], *map(Path, sysconfig.get_paths().values()))

Grader = Callable[[Any], str | None]
Known = Mapping[str, Callable[..., Any]]


@dataclass(frozen=True)
class Exercise:
    """A function or class that a student's file defines, and what decides on it.

    ``defect``: the stub holds working code with one mistake, which is to be found.
    """

    name: str
    task: str
    grade: Grader
    defect: bool = False


def grade(exercise: Exercise, answer: Any) -> str | None:
    """None if an answer is right, otherwise what is wrong with it, an error that it raises
    included."""
    try:
        return exercise.grade(answer)
    except NotImplementedError:
        return "not written yet"
    except Exception as error:
        return describe_error(error)


def describe_error(error: BaseException) -> str:
    """An error of a student's code: its type, the last line of theirs that it passed, and its
    text."""
    text = str(error).split("\n")[0]
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not any(map(Path(f.filename).is_relative_to, _FOLDERS))]
    place = f" in {own[-1].name}, line {own[-1].lineno}" if own else ""
    return f"{type(error).__name__}{place}: {text}"


def to_plain(value: Any) -> Any:
    """Tensors, arrays and sets as nested sequences of Python numbers."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Mapping):
        return {to_plain(key): to_plain(each) for key, each in value.items()}
    if isinstance(value, set | frozenset):
        value = sorted(value)
    return [to_plain(each) for each in value] if isinstance(value, list | tuple) else value


def is_same(left: Any, right: Any) -> bool:
    """Equal, floats up to rounding; a tensor equals the nested sequence of its numbers."""
    left, right = to_plain(left), to_plain(right)
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(is_same(left[k], right[k]) for k in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(is_same, left, right))
    if isinstance(left, float) or isinstance(right, float):
        numbers = isinstance(left, int | float | Fraction) and isinstance(
            right, int | float | Fraction
        )
        return numbers and math.isclose(float(left), float(right), rel_tol=1e-9, abs_tol=1e-12)
    return bool(left == right)


def compare_values(
    answer: Callable[..., Any],
    right: Callable[..., Any],
    inputs: Iterable[Sequence[Any]],
    known: Known,
) -> str | None:
    """The first input on which ``answer`` differs from ``right``, and which ``known`` mistakes give
    the answer's values on all of them. None if no input differs."""
    inputs = list(inputs)
    found = [_call(answer, arguments) for arguments in inputs]
    wrong = [
        (arguments, value, right(*arguments))
        for arguments, value in zip(inputs, found, strict=True)
        if not is_same(value, right(*arguments))
    ]
    if not wrong:
        return None
    arguments, value, expected = wrong[0]
    shown = ", ".join(map(format_value, arguments))
    name = getattr(answer, "__name__", "the answer")
    text = f"{name}({shown}) gives {format_value(value)}, expected {format_value(expected)}"
    return text + _name_known(
        {
            name: all(is_same(mistake(*a), v) for a, v in zip(inputs, found, strict=True))
            for name, mistake in known.items()
        }
    )


def compare_distributions(
    program: Callable[[BranchingSource], Hashable],
    right: Mapping[Any, Any],
    known: Mapping[str, Callable[[BranchingSource], Hashable]],
) -> str | None:
    """The result of a program whose probability, over all branches, differs most from that of
    ``right``, and which ``known`` programs have the same distribution. None if none differs."""
    ours = distribution_of(program)
    results = sorted(ours.keys() | right.keys(), key=str)
    worst = max(results, key=lambda result: abs(ours.get(result, 0) - right.get(result, 0)))
    if ours.get(worst, 0) == right.get(worst, 0):
        return None
    distance = sum(abs(ours.get(r, 0) - right.get(r, 0)) for r in results) / 2
    text = (
        f"token {worst} comes out with probability {ours.get(worst, 0)}, expected "
        f"{right.get(worst, 0)}: total variation {distance}"
    )
    return text + _name_known({name: distribution_of(k) == ours for name, k in known.items()})


def certify_part(**parts: Any) -> str | None:
    """What the certificate says of a part that is not exact, over a few cases; None if it is."""
    for cases in STAGES:
        result = certify(**parts, samplings=[SAMPLINGS[2]], cases=cases)
        if not result.exact:
            return str(result)
    return None


def format_value(value: Any) -> str:
    """A value in one short line: large tensors by their shape, functions and objects by name."""
    if hasattr(value, "numel") and value.numel() > _MANY:
        return f"tensor {tuple(value.shape)}"
    plain = to_plain(value)
    named = callable(plain) or not isinstance(
        plain, int | float | str | Fraction | list | dict | None
    )
    text = getattr(plain, "__name__", type(plain).__name__) if named else _format_plain(plain)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _format_plain(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_format_plain, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{k}: {_format_plain(v)}' for k, v in value.items())}}}"
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)


def _call(answer: Callable[..., Any], arguments: Sequence[Any]) -> Any:
    """The answer's value, with the arguments in the error that it raises."""
    try:
        return answer(*arguments)
    except NotImplementedError:
        raise
    except Exception as error:
        shown = ", ".join(map(format_value, arguments))
        error.args = (f"{error} (called with {shown})",)
        raise


def _name_known(agrees: Mapping[str, bool]) -> str:
    """The known mistakes that explain every wrong value."""
    names = [name for name, same in agrees.items() if same]
    return f"; the mistake: {' or '.join(names)}" if names else ""
