"""Values that do not belong into a field, as JSON text, and rules for those that do."""

import json
import math
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Any

MISSING = "(missing)"  # the new value of a field that is gone
_DEEP = 10_000

RAW: list[tuple[str, str]] = [
    ("true", "true"),
    ("false", "false"),
    ("null", "null"),
    ("0", "0"),
    ("1", "1"),
    ("-1", "-1"),
    ("2^31", str(2**31)),
    ("2^62", str(2**62)),
    ("2^63", str(2**63)),
    ("-2^63 - 1", str(-(2**63) - 1)),
    ("10^400", "1" + "0" * 400),
    ("1e400", "1e400"),
    ("1e308", "1e308"),
    ("5e-324", "5e-324"),
    ("0.5", "0.5"),
    ("NaN", "NaN"),
    ("Infinity", "Infinity"),
    ("-Infinity", "-Infinity"),
    ("5,000 digits", "1" * 5000),
    ("empty text", '""'),
    ("text", '"text"'),
    ("digits as text", '"4"'),
    ("half a surrogate pair", '"\\ud800"'),
    ("100,000 letters", json.dumps("x" * 100_000)),
    ("a path", '"../../../../etc/passwd"'),
    ("a control character", '"\\u0000\\u001b[2J\\n"'),
    ("empty array", "[]"),
    ("empty object", "{}"),
    ("an array of null", "[null]"),
    ("an array of text", '["text"]'),
    ("an array of arrays", "[[1], [2]]"),
    ("10,000 arrays deep", "[" * _DEEP + "]" * _DEEP),
    ("10,000 objects deep", '{"a":' * _DEEP + "1" + "}" * _DEEP),
    ("not JSON", "}{"),
]

Rule = Callable[[Any], bool]


def is_number(value: Any) -> bool:
    """A finite number, no flag."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e301 and math.isfinite(value)


def is_positive(value: Any) -> bool:
    """A finite number above 0."""
    return is_number(value) and value > 0


def is_size(value: Any) -> bool:
    """A whole number from 1 to 2^31 - 1."""
    return type(value) is int and 1 <= value < 2**31


def is_index(value: Any) -> bool:
    """A whole number from 0 to 2^31 - 1."""
    return type(value) is int and 0 <= value < 2**31


def is_text(value: Any) -> bool:
    """Text."""
    return isinstance(value, str) and value != MISSING


def is_flag(value: Any) -> bool:
    """True or false."""
    return isinstance(value, bool)


def is_absent(value: Any) -> bool:
    """A field that is missing or null."""
    return value is None or (isinstance(value, str) and value == MISSING)


def is_anything(value: Any) -> bool:
    """Whatever it is: the field's library has checked it."""
    return True


def any_of(*rules: Rule) -> Rule:
    """Whether one of the rules holds."""
    return lambda value: any(rule(value) for rule in rules)


def list_of(rule: Rule) -> Rule:
    """An array whose elements follow the rule."""
    return lambda value: isinstance(value, list) and all(map(rule, value))


def one_of(*values: Any) -> Rule:
    """One of some values, of the same type."""
    return lambda value: any(type(value) is type(each) and value == each for each in values)


def find_illegal(differences: Iterable[tuple[str, Any]], rules: dict[str, Rule]) -> list[str]:
    """The fields whose new value no rule allows; patterns are as of a shell."""
    return [
        field
        for field, value in differences
        if not any(fnmatchcase(field, pattern) and rule(value) for pattern, rule in rules.items())
    ]
