"""What callers give, checked at the door: numbers, texts, token ids and parts.

A value of another type that clearly means the same is converted: a numpy number or a tensor with
one element, an array of ids. Everything else raises ArgumentError with what was given and what
would be right. Knows nothing of what the values mean.
"""

import inspect
import operator
from collections.abc import Callable, Iterable, Mapping, Set
from contextlib import suppress
from numbers import Real
from pathlib import Path
from typing import Any

from minispec.errors import ArgumentError

# The members that decoding uses of its parts, and where to get such a part.
_PARTS = {
    "target": (("step", "new_cache", "head", "context_limit"), "minispec.load(...).target"),
    "draft": (("step", "new_cache", "fuse", "head"), "minispec.load(...).draft"),
    "shortlist": (("select", "observe", "reset", "budget"), "a minispec.BaseShortlist"),
    "sampling": (("target_distributions", "distribution"), "minispec.Sampling(...)"),
    "rng": (("bernoulli", "choose"), "minispec.SeededRandom(seed)"),
    "tree": (("depth", "beam", "nodes"), "minispec.TreeShape(depth, beam, nodes), or None"),
    "stop": (("max_new_tokens", "eos_ids", "stop_strings"), "minispec.StopRule(...)"),
    "tokenizer": (("token_bytes", "vocab_size"), "minispec.load(...).tokenizer, or None"),
}


def to_int(value: Any, name: str) -> int:
    """A whole number; True and False are not numbers here. Raises ArgumentError."""
    if not isinstance(value, bool):
        with suppress(TypeError, RuntimeError):
            return operator.index(value)  # also of numpy's integers and of integer tensors
    raise ArgumentError(f"{name} must be a whole number, not {describe(value)}")


def to_real(value: Any, name: str) -> Any:
    """A real number, or a tensor of one; the caller checks its range. Raises ArgumentError."""
    if hasattr(value, "item") and getattr(value, "size", None) is not None:
        with suppress(RuntimeError, ValueError):
            value = value.item()  # of numpy or torch
    if isinstance(value, Real) and not isinstance(value, bool):
        return value
    raise ArgumentError(f"{name} must be a number, not {describe(value)}")


def to_flag(value: Any, name: str) -> bool:
    """True or False. Raises ArgumentError."""
    if isinstance(value, bool):
        return value
    raise ArgumentError(f"{name} must be True or False, not {describe(value)}")


def to_text(value: Any, name: str) -> str:
    """A text. Raises ArgumentError."""
    if isinstance(value, str):
        return value
    raise ArgumentError(f"{name} must be a text, not {describe(value)}")


def to_texts(value: Any, name: str) -> tuple[str, ...]:
    """One text or several. Raises ArgumentError."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, Iterable) or isinstance(value, bytes):
        raise ArgumentError(f"{name} must be a text or several, not {describe(value)}")
    return tuple(to_text(each, f"each of {name}") for each in value)


def to_path(value: Any, name: str) -> Path:
    """A path, given as text or as one. Raises ArgumentError."""
    if isinstance(value, str | Path):
        return Path(value)
    raise ArgumentError(f"{name} must be a path, not {describe(value)}")


def to_ids(value: Any, name: str) -> list[int]:
    """Token ids: a sequence of whole numbers, or an array or tensor (T,) or (1, T) of them.
    Raises ArgumentError."""
    if isinstance(value, str | bytes | Path):
        raise ArgumentError(
            f"{name} is {describe(value)} where token ids are needed: use tokenizer.encode(text)"
        )
    if hasattr(value, "tolist") and hasattr(value, "ndim"):
        shape = tuple(value.shape)
        value = value.tolist()
        if len(shape) == 2 and shape[0] == 1:
            value = value[0]
        elif len(shape) != 1:
            raise ArgumentError(f"{name} has shape {shape}, expected (T,) or (1, T) token ids")
    return [to_int(token, f"each id of {name}") for token in to_sequence(value, name)]


def to_sequence(value: Any, name: str) -> Iterable[Any]:
    """Several values in an order; a text is one value. Raises ArgumentError."""
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping | Set):
        return value
    raise ArgumentError(f"{name} must be a sequence, not {describe(value)}")


def to_dict(value: Any, name: str) -> dict[Any, Any]:
    """A mapping, or its pairs. Raises ArgumentError."""
    try:
        return dict(value)
    except (TypeError, ValueError):
        raise ArgumentError(f"{name} must be a mapping, not {describe(value)}") from None


def convert_fields(instance: Any, **converters: Callable[[Any, str], Any]) -> None:
    """Converts fields of a frozen dataclass in its ``__post_init__``."""
    for field, convert in converters.items():
        value = convert(getattr(instance, field), field.replace("_", "-"))
        object.__setattr__(instance, field, value)


def check_parts(**parts: Any) -> None:
    """Raises ArgumentError for a part, by its name, that decoding cannot use."""
    for name, part in parts.items():
        members, remedy = _PARTS[name]
        if isinstance(part, type) or not all(hasattr(part, member) for member in members):
            raise ArgumentError(f"{name} is {describe(part)}: give {remedy}")


def check_trees(*models: Any) -> None:
    """Raises ArgumentError for a target or a draft whose ``step`` takes no ``parents``, or that has
    a reason ``why_chains`` are all that it runs."""
    for model in models:
        takes = "parents" in inspect.signature(model.step).parameters
        if reason := getattr(model, "why_chains", "" if takes else "its step takes no parents"):
            raise ArgumentError(
                f"{describe(model)} runs chains, no trees: {reason}; use another backend or no tree"
            )


def describe(value: Any) -> str:
    """A value in an error: its type, and itself if it is short."""
    if value is None or isinstance(value, bool):
        return str(value)
    if isinstance(value, type):
        return f"the class {value.__name__}"
    kind = f"{type(value).__module__.split('.')[0]}.".removeprefix("builtins.")
    shown = repr(value) if isinstance(value, str | bytes | int | float | Path) else ""
    return f"{kind}{type(value).__name__}" + (f" {shown}" if 0 < len(shown) <= 40 else "")
