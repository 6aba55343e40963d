"""What can be wrong with what people hand us, each by name.

Every message is one line that says what was wrong and what would be right; the
command line prints it and exits with code 2. Knows nothing of the rest of the
package.
"""


class MinispecError(ValueError):
    """Base of all errors that are the input's fault and not the program's."""


class ArgumentError(MinispecError):
    """A number or a name outside what is possible."""


class FileError(MinispecError):
    """A file or folder that is missing, damaged, of another format or not writable."""


class TextError(MinispecError):
    """Text that cannot be turned into ids, or ids that are no text."""


class FingerprintError(MinispecError):
    """A list, index, draft or adapter made for another tokenizer or another model."""


class ContextError(MinispecError):
    """A prompt that leaves no room in the model's context."""


class ShortlistError(MinispecError):
    """A shortlist that breaks its contract: unsorted, repeated, out of range, empty, too long."""


class FetchError(MinispecError):
    """A download that could not be completed."""
