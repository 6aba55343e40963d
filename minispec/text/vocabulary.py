"""What a vocabulary file says, whatever its kind: one table from id to bytes.

The files themselves are read in ``workshop``. Knows nothing of how text becomes ids.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from minispec.errors import FileError, MinispecError


@dataclass(frozen=True)
class Vocabulary:
    """What a file says of a tokenizer. FileError for special ids that it does not have.

    ``tokens``: the bytes of every id. ``order``: the ids that a text can become, in the order
    in which merges make them. ``special`` and ``added`` map ids to names: special tokens stand
    for no text; added ones do, and their whole names are read before a text is cut.
    ``eos_ids`` end an answer; ``bos_id`` goes before a text, where the file asks for one.
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
        known = range(len(self.tokens))
        bos = () if self.bos_id is None else (self.bos_id,)
        "".join([*self.special.values(), *self.added.values()]).encode()  # names must be text
        for i in (*self.special, *self.added, *self.eos_ids, *bos):
            if i not in known:
                raise FileError(f"{self.source}: id {i!a} is outside its {len(known)} tokens")


@contextmanager
def reading(source: str | Path, wanted: str) -> Iterator[None]:
    """Turns whatever goes wrong with a file into one line that names it, a FileError."""
    try:
        yield
    except MinispecError:
        raise
    except OSError as error:
        raise FileError(f"{source}: {error.strerror or error}; give {wanted}") from None
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
        detail = ascii(f"{type(error).__name__}: {error}")[1:-1][:200]
        raise FileError(f"{source} is not {wanted} ({detail})") from None
