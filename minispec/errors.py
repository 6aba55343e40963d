"""Errors and warnings caused by the input, one class for each kind.

Every message is one line: what was wrong, and what would be right. The command line prints it
and, for an error, exits with code 2. Knows nothing of the rest of the package.
"""


class MinispecError(ValueError):
    """Base class of all errors that are caused by the input, not by a bug."""


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
