"""The content of a vocabulary file, whatever its format: a table from id to bytes.

Files are read in ``tools.models.tokenizer_files``. Knows nothing of how text becomes ids.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from minispec.errors import FileError, MinispecError


@dataclass(frozen=True)
class Vocabulary:
    """The vocabulary and the settings of a tokenizer. FileError for special ids out of range.

    ``tokens``: the bytes of every id. ``order``: the ids that text is encoded to, in the order in
    which merges make them. ``special`` and ``added`` map ids to names. Special tokens stand for no
    text. Added tokens do, and are matched as a whole before text is split. ``eos_ids`` end an
    answer; ``bos_id`` goes before a text, if the file asks for one.
    """

    source: str
    tokens: Sequence[bytes]
    special: Mapping[int, str]
    order: Sequence[int] = ()
    pattern: str = ""
    added: Mapping[int, str] = field(default_factory=dict)
    eos_ids: Sequence[int] = ()
    bos_id: int | None = None
    chat_template: str | None = None

    def __post_init__(self) -> None:
        ids = range(len(self.tokens))
        bos = () if self.bos_id is None else (self.bos_id,)
        "".join([*self.special.values(), *self.added.values()]).encode()  # names must be text
        for i in (*self.special, *self.added, *self.eos_ids, *bos):
            if i not in ids:
                raise FileError(f"{self.source}: id {i!a} is outside its {len(ids)} tokens")


@contextmanager
def convert_to_file_error(source: str | Path, wanted: str) -> Iterator[None]:
    """A context that turns any error in reading ``source`` into a FileError of one line."""
    try:
        yield
    except MinispecError:
        raise
    except OSError as error:
        raise FileError(f"{source}: {error.strerror or error}; give {wanted}") from None
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
        detail = ascii(f"{type(error).__name__}: {error}")[1:-1][:200]
        raise FileError(f"{source} is not {wanted} ({detail})") from None
