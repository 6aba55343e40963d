"""Reads a `tokenizer.json`, the format of Hugging Face's tokenizers library.

The library reads it too; what is read here is the table, and whether tokens can be decoded one by
one, which streaming needs.

Knows nothing of the files beside it but their settings.
"""

import warnings
from collections.abc import Iterator
from pathlib import Path

import tokenizers
from msgspec import Struct

from minispec.errors import FileError, FileWarning
from minispec.io.schema import Index, Real, decode_json, read_bytes
from minispec.text.hugging_face_tokenizer import (
    HuggingFaceTokenizer,
    decode_byte_level,
    decode_pieces,
)
from minispec.text.vocabulary import (
    AddedToken,
    Settings,
    Vocabulary,
    convert_to_file_error,
    fill_gaps,
)

_SPACE = "\u2581"


class _Token(Struct):
    id: Index
    content: str
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


class _Model(Struct):
    vocab: dict[str, Index] | list[tuple[str, Real]]
    type: str | None = None
    dropout: Real | None = None
    unk_token: str | None = None
    unk_id: Index | None = None
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None


class _Step(Struct):
    """A decoder or a pre-tokenizer, or a sequence of them."""

    type: str
    decoders: list["_Step"] | None = None
    pretokenizers: list["_Step"] | None = None
    pattern: dict[str, str] | str | None = None
    content: str | None = None
    start: int | None = None
    stop: int | None = None
    replacement: str | None = None
    prepend_scheme: str | None = None
    add_prefix_space: bool | None = None

    def flatten(self) -> Iterator["_Step"]:
        """Itself, or the steps of a sequence."""
        for step in self.decoders or self.pretokenizers or ():
            yield from step.flatten()
        if self.decoders is None and self.pretokenizers is None:
            yield self


class _File(Struct):
    model: _Model
    added_tokens: list[_Token] | None = None
    pre_tokenizer: _Step | None = None
    decoder: _Step | None = None


def from_tokenizer_json(path: Path, settings: Settings | None = None) -> HuggingFaceTokenizer:
    """The tokenizer in a `tokenizer.json`, with the settings of other files. Raises FileError for a
    damaged file, and for one whose tokens cannot be decoded one by one."""
    settings, content = settings or Settings(), read_bytes(path)
    file = decode_json(content, _File, str(path))
    odd = ["dropout"] if file.model.dropout else []
    odd += [
        k for k in ("continuing_subword_prefix", "end_of_word_suffix") if getattr(file.model, k)
    ]
    if file.model.type not in (None, "BPE", "Unigram") or odd:
        found = f"model.{odd[0]}" if odd else f"model {str(file.model.type)[:40]!a}"
        raise FileError(f"{path}: {found} is not supported: must be a BPE or Unigram without")
    with convert_to_file_error(path, "a Hugging Face tokenizer.json"):
        library = tokenizers.Tokenizer.from_str(content.removeprefix(b"\xef\xbb\xbf").decode())
        table = {t.id: _convert(t) for t in file.added_tokens or ()}
        for i, token in table.items():
            if (number := library.token_to_id(token.content)) != i:
                raise FileError(
                    f"{path}: the added token {token.content[:40]!a} has id {i}, the tokenizers "
                    f"library gives it {number}: such ids must continue those of the vocabulary"
                )
        _add_tokens(library, table, settings, path)
        return _build(library, table, file, settings, path)


def _convert(token: _Token) -> AddedToken:
    return AddedToken(
        token.content, token.special, token.lstrip, token.rstrip, token.single_word,
        token.normalized,
    )  # fmt: skip


def _add_tokens(
    library: tokenizers.Tokenizer, table: dict[int, AddedToken], settings: Settings, path: Path
) -> None:
    """Adds the tokens of the files beside: as in transformers, they go after the vocabulary unless
    they are in it. Raises FileError where another file gives such a token another id."""
    known = {token.content for token in table.values()}
    wanted: list[tuple[int | None, AddedToken]] = [
        (i, token) for i, token in sorted(settings.added.items(), key=lambda item: item[0])
    ]
    wanted += [(None, token) for token in (*settings.named.values(), *settings.extra)]
    for wanted_id, token in wanted:
        if token.content not in known:
            library.add_tokens([
                tokenizers.AddedToken(
                    token.content, special=token.special, lstrip=token.lstrip, rstrip=token.rstrip,
                    single_word=token.single_word, normalized=token.normalized,
                )
            ])  # fmt: skip
            known.add(token.content)
        found = library.token_to_id(token.content)
        assert found is not None  # it is in the vocabulary, or was added
        table.setdefault(found, token)
        if wanted_id not in (None, found):
            raise FileError(
                f"{path}: the token {token.content[:40]!a} has id {found}, tokenizer_config.json "
                f"says {wanted_id}: they must agree"
            )


def _build(
    library: tokenizers.Tokenizer,
    table: dict[int, AddedToken],
    file: _File,
    settings: Settings,
    path: Path,
) -> HuggingFaceTokenizer:
    vocab = file.model.vocab
    names = (
        {i: name for name, i in vocab.items()}
        if isinstance(vocab, dict)
        else {i: name for i, (name, _) in enumerate(vocab)}
    )
    if len(names) != len(vocab) or any(
        names.get(i, t.content) != t.content for i, t in table.items()
    ):
        raise ValueError("two tokens have the same id")
    byte_level, byte_fallback, leading_space = _find_alphabet(file)
    tokens = {
        i: decode_byte_level(name) if byte_level else decode_pieces(name, byte_fallback)
        for i, name in names.items()
    }
    tokens |= {i: token.content.encode() for i, token in table.items()}
    numbers = {token.content: i for i, token in table.items()}
    eos = settings.named.get("eos_token")
    unknown = file.model.unk_id
    if file.model.unk_token is not None:
        unknown = library.token_to_id(file.model.unk_token)
    vocabulary = Vocabulary(
        source=str(path),
        tokens=fill_gaps(str(path), tokens),
        special={i: token for i, token in table.items() if token.special},
        added={i: token for i, token in table.items() if not token.special},
        matched=frozenset(i for i, token in table.items() if not token.special),
        eos_ids=[] if eos is None else [numbers[eos.content]],
        bos_id=_find_bos(library, path),
        chat_template=settings.chat_template,
        variables=settings.variables,
    )
    return HuggingFaceTokenizer(
        library, vocabulary, byte_level=byte_level, leading_space=leading_space, unknown=unknown
    )


def _find_alphabet(file: _File) -> tuple[bool, bool, bool]:
    """Whether tokens are written in byte-level BPE's alphabet; if not, whether `<0x0A>` is a byte,
    and whether the space before a text is dropped in decoding. Raises ValueError for decoders that
    do not work token by token."""
    steps = [] if file.decoder is None else list(file.decoder.flatten())
    kinds = [step.type for step in steps]
    before = [] if file.pre_tokenizer is None else list(file.pre_tokenizer.flatten())
    if kinds == ["ByteLevel"] or (not kinds and "ByteLevel" in [s.type for s in before]):
        return True, False, False
    fallback = leading = spaces = False
    for step in steps:
        match step:
            case _Step(type="Replace", pattern={"String": "\u2581"}, content=" "):
                spaces = True
            case _Step(type="ByteFallback"):
                fallback = True
            case _Step(type="Fuse"):
                pass
            case _Step(type="Strip", content=" ", start=1, stop=0):
                leading = True
            case _Step(type="Metaspace", replacement="\u2581"):
                spaces = True
                first = step.prepend_scheme or ("never" if step.add_prefix_space is False else "")
                leading = first != "never"
            case _:
                raise ValueError(f"not supported: decoder {step.type[:40]!a}, or its settings")
    if not spaces:
        raise ValueError(f"not supported: decoder {' + '.join(kinds) or None!a}")
    return False, fallback, leading


def _find_bos(library: tokenizers.Tokenizer, path: Path) -> int | None:
    """The id that the post-processor puts before every text, if any."""
    encoded = library.encode("a")
    mask = encoded.special_tokens_mask
    length = len(library.encode("a", add_special_tokens=False).ids)
    first = mask.index(0) if 0 in mask else len(mask)
    if first > 1:
        raise FileError(f"{path}: {first} tokens before every text are not supported: must be one")
    if len(mask) > first + length:
        warnings.warn(
            f"{path}: the token that it puts after every text is left out: a prompt is to be "
            "continued", FileWarning, stacklevel=4,
        )  # fmt: skip
    return encoded.ids[0] if first else None
