"""Everything that is read is checked here: JSON and metadata against a schema.

A schema is a ``msgspec.Struct``: the names, types and limits of the fields of one kind of file. A
value of another type, a number out of range, NaN, infinity or endless nesting is refused in one
line that names the file, the field, what was found and what would be right. Fields that a schema
does not name are ignored: other programs add their own.

msgspec, because it checks while it parses: the same schema costs less than ``json.loads`` alone,
has no dependencies, and converts nothing silently (``true`` is not 1, ``"4"`` is not 4).

Knows nothing of what the fields mean.
"""

import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from minispec.errors import FileError

# The types that most fields have. A vocabulary, a hidden size or a context beyond these limits does
# not exist; sizes are checked against a file's length besides.
Index = Annotated[int, Meta(ge=0, lt=2**31)]
Size = Annotated[int, Meta(ge=1, lt=2**31)]
Real = Annotated[float, Meta(ge=-1e300, le=1e300)]
Positive = Annotated[float, Meta(gt=0, le=1e300)]
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]

LARGEST_JSON = 2**28  # bytes: the largest published tokenizer.json has 35 MB
T = TypeVar("T")


def check_file(path: Path, largest: int | None = None) -> None:
    """Raises FileError for a path that is missing or not a regular file (a pipe or a device could
    be read forever), and for a file of more than ``largest`` bytes."""
    try:
        found = path.stat()
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:  # a null byte in the path
        raise FileError(f"cannot read {str(path)!a}: {error}") from None
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe or a device"
        raise FileError(f"{path} is {kind}, expected a file")
    if largest is not None and found.st_size > largest:
        raise FileError(
            f"{path} has {found.st_size:,} bytes, expected at most {largest:,} for such a file"
        )


def read_bytes(path: Path, largest: int = LARGEST_JSON) -> bytes:
    """Read a whole file of at most ``largest`` bytes. Raises FileError, as ``check_file``."""
    check_file(path, largest)
    try:
        return path.read_bytes()
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from None


def read_json(path: Path, schema: type[T], largest: int = LARGEST_JSON) -> T:
    """Read a JSON file into its schema. Raises FileError."""
    return decode_json(read_bytes(path, largest), schema, str(path))


def decode_json(content: bytes | str, schema: type[T], origin: str) -> T:
    """Decode JSON, with or without a byte order mark, into its schema. ``origin`` names its source
    in errors. Raises FileError."""
    data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    data = data.removeprefix(b"\xef\xbb\xbf")
    try:
        return msgspec.json.decode(data, type=schema)
    except msgspec.ValidationError as error:
        raise _explain(error, origin, data) from None
    except (ValueError, RecursionError) as error:
        raise FileError(f"{origin} is not a JSON file, or is damaged: {error}") from None


def convert(value: Any, schema: type[T], origin: str) -> T:
    """Check a value that was parsed elsewhere (GGUF metadata, a token map) against a schema.
    Raises FileError."""
    try:
        return msgspec.convert(value, schema)
    except msgspec.ValidationError as error:
        raise _explain(error, origin, value) from None
    except RecursionError:
        raise FileError(f"{origin} is nested too deeply: the file is damaged") from None


def convert_metadata(metadata: Mapping[str, str], schema: type[T], origin: str) -> T:
    """Check the metadata of a safetensors file, whose values are all text, against a schema; a
    number is read from its text. Raises FileError."""
    try:
        return msgspec.convert(dict(metadata), schema, strict=False)
    except msgspec.ValidationError as error:
        raise _explain(error, origin, dict(metadata)) from None


def _explain(error: msgspec.ValidationError, origin: str, value: Any) -> FileError:
    """msgspec's "Expected `int`, got `str` - at `$.sizes[3]`", with the value that was found."""
    text, _, path = str(error).partition(" - at `$")
    path = path.rstrip("`")
    if isinstance(value, bytes):
        try:
            value = msgspec.json.decode(value)
        except (ValueError, RecursionError):
            value = msgspec.UNSET
    for name, index in re.findall(r"\.([^.\[\]]+)|\[(\d+|\.\.\.)\]", path):
        try:
            value = value[name] if name else value[int(index)]
        except (LookupError, TypeError, ValueError):
            value = msgspec.UNSET
    text = text.replace("`", "").replace("Object missing required field", "lacks the field")
    text = text[:1].lower() + text[1:]
    if isinstance(value, str | int | float) and "lacks" not in text:
        shown = "a huge number" if isinstance(value, int) and abs(value) >= 2**64 else f"{value!a}"
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        text += f", {shown}" if "got" in text else f", got {shown}"
    field = path.removeprefix(".")
    return FileError(f"{origin}: {field + ': ' if field else ''}{text}")
