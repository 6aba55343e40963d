"""The content of a vocabulary file, whatever its format: a table from id to bytes, and settings.

Files are read in ``tools.models``. Knows nothing of how text becomes ids.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from minispec.errors import FileError, MinispecError

LARGEST_GAP = 2**16  # ids without a token, in all; no vocabulary has nearly as many


@dataclass(frozen=True)
class AddedToken:
    """A token that is matched as a whole, before text is split, under tokenizers' names.

    A ``special`` one stands for no text. ``lstrip`` and ``rstrip`` match the white space before and
    after it too, ``single_word`` not within a word; ``normalized``, in the normalised text.
    """

    content: str
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


@dataclass(frozen=True)
class Settings:
    """What the files beside a vocabulary say about it.

    ``named``: tokens with a role, such as ``eos_token``; ``added``: tokens by id; ``extra``:
    special tokens without an id. ``add_bos``: whether BOS goes before a text, None if nothing says
    it. ``legacy``: whether SentencePiece puts a space after special tokens too.
    """

    named: Mapping[str, AddedToken] = field(default_factory=dict)
    added: Mapping[int, AddedToken] = field(default_factory=dict)
    extra: Sequence[AddedToken] = ()
    add_bos: bool | None = None
    legacy: bool = False
    chat_template: str | None = None

    @property
    def variables(self) -> dict[str, str]:
        """The tokens with a role, by their names in a chat template."""
        return {role: token.content for role, token in self.named.items()}


@dataclass(frozen=True)
class Vocabulary:
    """The vocabulary and the settings of a tokenizer. FileError for special ids out of range.

    ``tokens``: the bytes of every id. ``special`` and ``added`` map ids to tokens. Special tokens
    stand for no text. Added tokens do, and are matched as a whole before text is split.
    ``matched``: those of them that the library itself finds in any text. ``eos_ids`` end an answer;
    ``bos_id`` goes before a text, if the file asks for one. ``variables``: what the chat template
    may read. ``order``: the ids that text is encoded to, in the order in which tiktoken merges
    make them, and ``pattern`` splits text for it.
    """

    source: str
    tokens: Sequence[bytes]
    special: Mapping[int, AddedToken]
    added: Mapping[int, AddedToken] = field(default_factory=dict)
    matched: frozenset[int] = frozenset()
    eos_ids: Sequence[int] = ()
    bos_id: int | None = None
    chat_template: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    order: Sequence[int] = ()
    pattern: str = ""

    def __post_init__(self) -> None:
        ids = range(len(self.tokens))
        bos = () if self.bos_id is None else (self.bos_id,)
        for i in (*self.special, *self.added, *self.eos_ids, *bos):
            if i not in ids:
                raise FileError(f"{self.source}: id {i!a} is outside its {len(ids)} tokens")
        for token in (*self.special.values(), *self.added.values()):
            if not token.content.isascii():
                token.content.encode()  # names must be text


def fill_gaps(source: str, tokens: Mapping[int, bytes]) -> list[bytes]:
    """The tokens as a table; ids without one get no bytes. Raises FileError for ids so far apart
    that they cannot be meant."""
    size = max(tokens, default=-1) + 1
    if min(tokens, default=0) < 0 or size - len(tokens) > LARGEST_GAP:
        raise FileError(
            f"{source}: {len(tokens)} tokens have ids from {min(tokens)} to {size - 1}; "
            f"ids must be 0 or above and leave at most {LARGEST_GAP} numbers out"
        )
    return (
        [tokens.get(i, b"") for i in range(size)]
        if size > len(tokens)
        else [tokens[i] for i in range(size)]
    )


@contextmanager
def convert_to_file_error(source: str | Path, wanted: str) -> Iterator[None]:
    """A context that turns any error in reading ``source`` into a FileError of one line, those of
    the libraries written in Rust included: their panics are no `Exception`, and tokenizers raises
    the bare class."""
    try:
        yield
    except MinispecError:
        raise
    except OSError as error:
        raise FileError(f"{source}: {error.strerror or error}; give {wanted}") from None
    except BaseException as error:
        ordinary = (ValueError, TypeError, LookupError, AttributeError, RuntimeError, OverflowError)
        if isinstance(error, ordinary) or type(error) is Exception or is_panic(error):
            detail = ascii(f"{type(error).__name__}: {error}")[1:-1][:200]
            raise FileError(f"{source} is not {wanted} ({detail})") from None
        raise


def is_panic(error: BaseException) -> bool:
    """Whether a library written in Rust gave up; its class cannot be imported."""
    return type(error).__name__ == "PanicException"
