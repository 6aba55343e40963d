"""Damaged JSON: one field of a document replaced, removed, renamed or given twice."""

import json
import random
from collections.abc import Iterator
from typing import Any

from drill.values import MISSING, RAW

_MARK = "@@damage@@"
_MOST = 12  # fields listed one by one: more are content, not settings
Path = tuple[str | int, ...]


class Json:
    """One JSON document per file."""

    name = "json"

    def damage(self, content: bytes, rng: random.Random) -> tuple[bytes, str, str]:
        """The damaged document, the field and what was done to it."""
        document = json.loads(content)
        path = choose_path(document, rng)
        text, how = damage_document(document, path, rng)
        return text.encode("utf-8", "surrogatepass"), name_field(path), how

    def diff(self, intact: bytes, damaged: bytes) -> dict[str, Any] | None:
        """The fields that differ, with their new values; None if it is not JSON."""
        try:
            new = json.loads(damaged.removeprefix(b"\xef\xbb\xbf").decode("utf-8"))
        except (ValueError, RecursionError):
            return None
        return dict(_differences(json.loads(intact), new, ()))


def choose_path(document: Any, rng: random.Random) -> Path:
    """A field, each setting as likely as a whole table of content."""
    path: Path = ()
    while isinstance(document, dict | list) and document and (not path or rng.random() < 0.7):
        keys = list(document) if isinstance(document, dict) else range(len(document))
        key = rng.choice(keys)
        path, document = (*path, key), document[key]
    return path


def name_field(path: Path) -> str:
    """The name of a field, without numbers of elements."""
    return ".".join("[]" if isinstance(key, int) else key[:40] for key in path) or "document"


def damage_document(document: Any, path: Path, rng: random.Random) -> tuple[str, str]:
    """The text of a document with one field damaged, and what was done."""
    parent: Any = None
    value = document
    for key in path:
        parent, value = value, value[key]
    if not path:
        how, raw = rng.choice(RAW)
        return raw, how
    last: Any = path[-1]
    kind = rng.choice(("value", "value", "value", "value", "own", "own", "structure"))
    if kind == "structure":
        how = rng.choice(("missing", "duplicate", "renamed", "swapped"))
        if how == "duplicate" and isinstance(parent, dict):
            _, raw = rng.choice(RAW)
            parent[_MARK] = _MARK
            text = json.dumps(document)
            return text.replace(f'"{_MARK}": "{_MARK}"', f"{json.dumps(last)}: {raw}"), how
        if how == "duplicate":
            parent.insert(last, value)
        elif how == "renamed" and isinstance(parent, dict):
            parent[last + "_"] = parent.pop(last)
        elif how == "swapped":
            keys = list(parent) if isinstance(parent, dict) else range(len(parent))
            other = rng.choice(keys)
            parent[last], parent[other] = parent[other], parent[last]
        else:
            how = "missing"
            del parent[last]
        return json.dumps(document), how
    how, raw = rng.choice(variations(value) if kind == "own" else RAW)
    parent[last] = _MARK
    return json.dumps(document).replace(f'"{_MARK}"', raw), how


def variations(value: Any) -> list[tuple[str, str]]:
    """Values that look like this one, as JSON."""
    found = [("an array", json.dumps([value])), ("text", json.dumps(json.dumps(value)[:200]))]
    if isinstance(value, bool):
        found += [("other flag", json.dumps(not value)), ("0 or 1", str(int(value)))]
    elif isinstance(value, int | float):
        found += [("negative", json.dumps(-value)), ("one more", json.dumps(value + 1))]
        found += [("double", json.dumps(value * 2)), ("a float", json.dumps(float(value)))]
        found += [("half", json.dumps(value / 2)), ("bool", "true"), ("cut", str(int(value)))]
    elif isinstance(value, str):
        found += [("longer", json.dumps(value + "x")), ("cut", json.dumps(value[:-1]))]
        found += [("null byte", json.dumps(value + "\0")), ("a number", "1")]
    elif isinstance(value, list):
        found += [("cut", json.dumps(value[:-1])), ("longer", json.dumps(value + value[:1]))]
        found += [("null inside", json.dumps([*value[:-1], None])), ("empty", "[]")]
    elif isinstance(value, dict):
        found += [("values only", json.dumps([*value.values()][:50])), ("empty", "{}")]
        found += [("pairs", json.dumps([*value.items()][:50]))]
    return found


def _differences(old: Any, new: Any, path: Path) -> Iterator[tuple[str, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in new.keys() - old.keys():
            yield f"+{name_field((*path, str(key)))}", new[key]
        for key in old:
            yield from _differences(old.get(key, MISSING), new.get(key, MISSING), (*path, str(key)))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from _differences(before, after, (*path, number))
    elif type(old) is not type(new) or old != new:
        yield name_field(path), new
