"""Parts of one's own: a shortlist, verifier or draft given as an object or as ``MODULE:NAME``.

``MODULE:NAME`` is imported from the current folder or from what is installed. A class or factory
is then called with the values that its parameters name (see ``build_part``), and what it returns
is checked against the protocol of its kind. Knows nothing of the built-in methods.
"""

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from minispec.errors import ArgumentError, MinispecError
from minispec.types import Draft, Shortlist
from minispec.verify import VERIFIERS, Verifier

_PROTOCOLS: dict[str, tuple[type, tuple[str, ...]]] = {  # the members that a part needs
    "shortlist": (Shortlist, ("name", "budget", "per_round", "select", "observe", "reset")),
    "draft": (
        Draft,
        ("head", "new_cache", "fuse", "step", "apply_final_norm", "with_own_head"),
    ),
}


def is_import_path(text: str) -> bool:
    """Whether a text has the form ``MODULE:NAME``, both dotted identifiers."""
    module, colon, name = text.partition(":")
    return bool(colon) and all(part.isidentifier() for part in (module + "." + name).split("."))


def import_part(path: str) -> Any:
    """The object at ``MODULE:NAME``; the current folder is importable.

    Raises ArgumentError for a module that cannot be imported and for a missing name.
    """
    module_name, _, name = path.partition(":")
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())  # last, so that no file there hides an installed module
        importlib.invalidate_caches()
    try:
        found = importlib.import_module(module_name)
    except MinispecError:
        raise
    except ModuleNotFoundError as error:
        if error.name and (module_name + ".").startswith(error.name + "."):
            raise ArgumentError(
                f"cannot import {path}: no module {error.name!r} in the current folder or installed"
            ) from None
        raise ArgumentError(f"cannot import {path}: {error}") from None
    except (Exception, SystemExit) as error:  # the module is the user's: it may raise anything
        raise ArgumentError(f"cannot import {path}: {type(error).__name__}: {error}") from None
    for attribute in name.split("."):
        if not hasattr(found, attribute):
            where = getattr(sys.modules[module_name], "__file__", None) or "built in"
            raise ArgumentError(f"module {module_name} ({where}) has no {name!r}")
        found = getattr(found, attribute)
    return found


def name_of(part: Any) -> str:
    """A short name of an object, class or factory, for reports and messages."""
    part = getattr(part, "func", part)  # of a functools.partial
    return str(getattr(part, "__name__", type(part).__name__))


def check_part(kind: str, part: Any, label: str) -> None:
    """Raises ArgumentError for what cannot be a part of this kind: a class without the methods of
    the protocol, or an object that lacks a member of it and cannot be called as a factory."""
    missing = _missing_members(kind, part)
    if missing and (isinstance(part, type) or not callable(part)):
        raise _not_a(kind, part, label, missing)


def _missing_members(kind: str, part: Any) -> list[str]:
    """The members of the protocol that a part lacks; of a class, the methods: its attributes may be
    set on construction."""
    protocol, members = _PROTOCOLS[kind]
    if isinstance(part, type):
        members = tuple(m for m in members if inspect.isfunction(getattr(protocol, m, None)))
    return [member for member in members if not hasattr(part, member)]


def _not_a(kind: str, part: Any, label: str, missing: Sequence[str]) -> ArgumentError:
    what = "" if isinstance(part, type) else f" ({type(part).__name__})"
    return ArgumentError(
        f"{label}{what} is not a {kind}: it has no {', '.join(missing)} "
        f"(see minispec.types.{_PROTOCOLS[kind][0].__name__})"
    )


def build_part(
    kind: str,
    part: Any,
    available: Mapping[str, Callable[[], Any]],
    label: str,
    **given: Any,
) -> Any:
    """A part of a ``kind`` ("shortlist", "draft"): ``part`` itself if it is an instance, else
    what the class or factory ``part`` returns.

    Parameters are filled by name: each one without a default gets the value of that name from
    ``available`` (functions, called only if needed), and ``given`` values override defaults. A
    single parameter of another name gets the first value. Raises ArgumentError for any other
    parameter, for a given value that no parameter takes, and as ``check_part``.
    """
    check_part(kind, part, label)
    if not isinstance(part, type) and not _missing_members(kind, part):
        for name in given:
            raise ArgumentError(f"{label} is an instance and takes no {name}: leave it out")
        return part
    built = part(**_arguments(part, available, given, label))
    if missing := _missing_members(kind, built):
        raise _not_a(kind, built, f"what {label} returned", missing)
    return built


def _arguments(
    part: Callable[..., Any],
    available: Mapping[str, Callable[[], Any]],
    given: Mapping[str, Any],
    label: str,
) -> dict[str, Any]:
    """The keyword arguments of a call. Raises ArgumentError as ``build_part``."""
    try:
        parameters = inspect.signature(part).parameters
    except (ValueError, TypeError):
        raise ArgumentError(
            f"{label} has no readable signature: give a class or function"
        ) from None
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name in given:
        if name not in parameters and not anything:
            raise ArgumentError(f"{label} has no parameter {name!r}: leave it out")
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p for p in parameters.values() if p.default is p.empty and p.kind not in variable]
    needed = [p for p in needed if p.name not in given]
    if len(needed) == 1 and needed[0].name not in available:
        return {needed[0].name: next(iter(available.values()))(), **given}
    for parameter in needed:
        if parameter.name not in available:
            raise ArgumentError(
                f"{label} asks for {parameter.name!r}: parameters without a default are filled by "
                f"name, from {', '.join(available)}"
            )
    return {parameter.name: available[parameter.name]() for parameter in needed} | dict(given)


def find_verifier(verifier: str | Verifier) -> Verifier:
    """A verifier by name ("token", "block"), as ``MODULE:FUNCTION``, or itself. Raises
    ArgumentError."""
    if isinstance(verifier, str) and verifier in VERIFIERS:
        return VERIFIERS[verifier]
    found: Any = verifier
    if isinstance(verifier, str):
        if not is_import_path(verifier):
            raise ArgumentError(
                f"unknown verifier {verifier!r}: choose from {', '.join(VERIFIERS)}, or name a "
                "function of your own as MODULE:FUNCTION"
            )
        found = import_part(verifier)
    _check_verifier(found, verifier_name(verifier))
    return found


def verifier_name(verifier: str | Verifier) -> str:
    """The name of a verifier in reports."""
    return verifier if isinstance(verifier, str) else name_of(verifier)


def _check_verifier(function: Any, label: str) -> None:
    """Raises ArgumentError for anything that cannot be called as ``verify.verify`` is, with
    (proposal, target distributions, random source)."""
    try:
        inspect.signature(function).bind(None, None, None)
    except (TypeError, ValueError):
        raise ArgumentError(
            f"{label} is not a verifier: a function of (proposal, target_distributions, rng) was "
            "expected (see minispec.verify.verify)"
        ) from None
