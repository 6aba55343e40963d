"""Errors and warnings caused by the input, one class for each kind.

Every message is one line: what was wrong, and what would be right. The command line prints it
and, for an error, exits with code 2. Knows nothing of the rest of the package.
"""

_LONGEST = 500  # characters of a message


class MinispecError(ValueError):
    """Base class of all errors that are caused by the input, not by a bug.

    A message that quotes a damaged file is one line all the same: control characters are escaped,
    and the middle of a long one is left out."""

    def __init__(self, message: str = "") -> None:
        super().__init__(_fit_line(message))


def _fit_line(message: str) -> str:
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
    return line if len(line) <= _LONGEST else f"{line[:320]} ... {line[-160:]}"


class ArgumentError(MinispecError):
    """A number outside its range, or an unknown name."""


class FileError(MinispecError):
    """A file or folder that is missing, damaged, not writable or in another format."""


class TextError(MinispecError):
    """Text that cannot be encoded, or ids that cannot be decoded."""


class FingerprintError(MinispecError):
    """A shortlist, index, draft or adapter that was made for another tokenizer or model."""


class ContextError(MinispecError):
    """More positions than the model's context or a cache can hold."""


class ShortlistError(MinispecError):
    """A selection that breaks a shortlist's contract: not sorted, not unique, out of range, empty
    or over budget."""


class FetchError(MinispecError):
    """A download that did not complete."""


class FileWarning(UserWarning):
    """A file whose parts disagree, or that lacks a fact: it is read, and the message says how."""
