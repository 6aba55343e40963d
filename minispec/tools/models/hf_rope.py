"""Rotary positions as ``config.json`` has them: in ``rope_parameters`` or ``rope_scaling``.

Read as transformers reads them; a kind of scaling that is not implemented is refused by name.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from msgspec import Struct

from minispec.errors import FileError, FileWarning
from minispec.io.schema import Positive, Size, convert
from minispec.models.rope import FrequencyFactors, RopeScaling, Scaling

_NEEDED = {  # by kind of scaling
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}


class _Rope(Struct):
    """The settings that are read."""

    rope_type: str | None = None
    type: str | None = None  # the older name
    rope_theta: Positive | None = None
    partial_rotary_factor: float = 1.0
    factor: Positive = 1.0
    low_freq_factor: Positive = 1.0
    high_freq_factor: Positive = 1.0
    original_max_position_embeddings: Size | None = None


@dataclass(frozen=True)
class Outer:
    """What stands beside a rope's settings: ``base`` counts if the rope has none, and
    ``default_base`` if there is neither; ``original_context`` counts before the rope's own;
    ``context``, the model's, is the default of that."""

    base: float | None
    default_base: float
    original_context: int | None
    context: int


def read_rope(raw: Mapping[str, Any], where: str, outer: Outer) -> tuple[float, Scaling | None]:
    """The base of the rotary frequencies, and their scaling if any. ``where`` names the settings
    in messages. Raises FileError, and ArgumentError for numbers that do not fit together; warns
    of settings that disagree."""
    if any(isinstance(value, dict) for value in raw.values()):
        raise FileError(f"{where}: settings for each kind of layer are supported in a Gemma 3 only")
    given = {name: value for name, value in raw.items() if value is not None}
    rope = convert(given, _Rope, where)
    named = rope.rope_type or rope.type
    kind = named or "default"
    if kind not in _NEEDED:
        known = " or ".join(map(ascii, _NEEDED))
        raise FileError(f"{where}: rope type {kind!a} is not supported: must be {known}")
    if missing := [name for name in _NEEDED[kind] if name not in given]:
        raise FileError(f"{where}: rope type {kind!a} lacks the field {missing[0]}")
    if named is None and rope.factor != 1:
        raise FileError(f"{where}: factor {rope.factor} needs a rope_type, such as 'linear'")
    if rope.partial_rotary_factor != 1:
        raise FileError(f"{where}: partial_rotary_factor must be 1 or absent")
    if rope.type not in (None, kind):
        warn(f"{where}: rope_type {kind!a} and type {rope.type!a} disagree: rope_type counts")
    base = rope.rope_theta or outer.base or outer.default_base
    if base != (outer.base or base):
        warn(f"{where}: its rope_theta {base} counts, not the {outer.base} beside it")
    if kind == "default":
        return base, None
    if kind == "linear":
        return base, None if rope.factor == 1 else FrequencyFactors((rope.factor,))
    inner = rope.original_max_position_embeddings
    original = outer.original_context or inner or outer.context
    if original != (inner or original):
        warn(f"{where}: its original_max_position_embeddings {inner} does not count, but the "
             f"{original} beside it")  # fmt: skip
    return base, RopeScaling(rope.factor, rope.low_freq_factor, rope.high_freq_factor, original)


def warn(text: str) -> None:
    """Warn of settings in a file that disagree."""
    warnings.warn(text, FileWarning, stacklevel=3)
