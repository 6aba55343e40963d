"""The damaged files of a drill: case ``number`` of a reader is the same for the same seed."""

import random
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

from drill.format_bytes import damage_bytes, place_special
from drill.reader import Part, Reader
from drill.values import find_illegal

# Shares of the cases: one or two damaged fields, damaged bytes, no file at all.
_FIELDS, _BYTES = 0.66, 0.94
_OTHERS = (struct.error, BadZipFile, ArithmeticError)


@dataclass(frozen=True)
class Damage:
    """What was done to one file."""

    part: Part
    field: str
    how: str
    structured: bool


def make_case(
    reader: Reader, intact: Path, folder: Path, seed: int, number: int, only: int | None = None
) -> list[Damage]:
    """Copy the intact files into ``folder`` and damage one or two of them, or ``only`` the first
    (0) or the second (1) of two."""
    rng = random.Random(f"{seed} {reader.name} {number}")
    shutil.copytree(intact, folder, symlinks=True)
    kind, done = rng.random(), []
    parts = rng.choices(reader.parts, [part.weight for part in reader.parts], k=2)
    twice = kind < _FIELDS and rng.random() < 0.25
    for position, part in enumerate(parts[: 2 if twice else 1]):
        if only not in (None, position):
            continue
        path = folder / part.file
        content = path.read_bytes()
        if kind < _FIELDS:
            try:
                content, field, how = part.format.damage(content, rng)
            except (ValueError, LookupError, TypeError, AttributeError, RecursionError, *_OTHERS):
                continue  # the first damage left nothing for a second
            path.write_bytes(content)
        elif kind < _BYTES:
            content, how = damage_bytes(content, rng)
            path.write_bytes(content)
            field = "bytes"
        else:
            field, how = "file", place_special(path, rng)
        done.append(Damage(part, field, how, kind < _FIELDS))
    return done


def explain(reader: Reader, intact: Path, folder: Path) -> tuple[list[str], list[str]]:
    """The fields whose new values are legal, and what is not: fields, or broken formats."""
    legal: list[str] = []
    illegal: list[str] = []
    for part in reader.parts:
        path = folder / part.file
        if not path.is_file():
            absent = part.optional and not path.exists() and not path.is_symlink()
            (legal if absent else illegal).append(f"{part.file}: no file")
            continue
        before, after = (intact / part.file).read_bytes(), path.read_bytes()
        if before == after:
            continue
        found = part.format.diff(before, after)
        if found is None:
            illegal.append(f"{part.file}: not {part.format.name}")
            continue
        wrong = find_illegal(found.items(), part.rules)
        illegal += [f"{part.file}: {field}" for field in wrong]
        legal += [f"{part.file}: {field}" for field in found if field not in wrong]
    return legal, illegal
