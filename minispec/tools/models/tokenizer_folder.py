"""Reads the tokenizer of a Hugging Face folder: the vocabulary, and what other files say about it.

The precedence is that of transformers 5; `docs/settings.md` has it as a table.

Knows nothing of weights.
"""

import warnings
from pathlib import Path
from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType

from minispec.errors import FileError, FileWarning
from minispec.io.schema import Index, convert, read_bytes, read_json
from minispec.text.tokenizer import TableTokenizer
from minispec.text.vocabulary import AddedToken, Settings
from minispec.tools.models import tokenizer_files
from minispec.tools.models.tokenizer_json import from_tokenizer_json

_LARGEST_SETTINGS = 2**24  # bytes; templates and thousands of added tokens included


class _Token(Struct):
    """An added token, in any of the files."""

    content: str
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


_Name = str | _Token | None
_Number = Annotated[str, Meta(pattern="^[0-9]{1,9}$")]


class _Template(Struct):
    name: str
    template: str


class _Config(Struct):
    """`tokenizer_config.json`."""

    bos_token: _Name | UnsetType = UNSET
    eos_token: _Name | UnsetType = UNSET
    unk_token: _Name | UnsetType = UNSET
    pad_token: _Name | UnsetType = UNSET
    additional_special_tokens: list[str | _Token] | dict[str, str | _Token] | None = None
    extra_special_tokens: list[str | _Token] | dict[str, str | _Token] | None = None
    added_tokens_decoder: dict[_Number, _Token] | None = None
    add_bos_token: bool | None = None
    add_eos_token: bool | None = None
    legacy: bool | None = None
    chat_template: str | list[_Template] | dict[str, str] | None = None


_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")


def read_tokenizer(folder: Path) -> TableTokenizer:
    """The tokenizer of a folder, from `tokenizer.json` if it has one, else from `tokenizer.model`,
    which also stands in, with a warning, for a `tokenizer.json` that is refused. Raises
    FileError."""
    settings, path = read_settings(folder), folder / "tokenizer.model"
    if (folder / "tokenizer.json").exists():
        try:
            return from_tokenizer_json(folder / "tokenizer.json", settings)
        except FileError as refusal:
            if not path.exists():
                raise
            warnings.warn(f"{refusal}; {path} is read instead", FileWarning, stacklevel=2)
    if not path.exists():
        raise FileError(f"{folder} has no tokenizer: expected tokenizer.json or tokenizer.model")
    try:
        return tokenizer_files.from_sentencepiece(path, settings)
    except FileError as refusal:
        try:
            return tokenizer_files.from_llama3_model(path, settings)
        except FileError:
            raise refusal from None


def read_settings(folder: Path) -> Settings:
    """What the files beside a vocabulary say about it. Raises FileError."""
    config = _read(folder / "tokenizer_config.json", _Config) or _Config()
    added = {int(i): _convert(token) for i, token in (config.added_tokens_decoder or {}).items()}
    roles: dict[str, Any] = {}
    if config.added_tokens_decoder is None:  # older files, which that field replaced
        older = _read(folder / "special_tokens_map.json", _Config) or _Config()
        roles = {role: getattr(older, role) for role in _ROLES}
        extra = [*_list(config), *_list(older)]
    else:
        extra = _list(config)
    named = {}
    for role in _ROLES:
        found = getattr(config, role) if roles.get(role, UNSET) is UNSET else roles[role]
        if found is not UNSET and found is not None:
            token = _Token(found) if isinstance(found, str) else found
            same = (a for a in added.values() if a.content == token.content)
            named[role] = next(same, None) or _convert(token, special=True)
    if config.added_tokens_decoder is None:
        special = {token.content for token in [*named.values(), *extra]}
        numbers = _read(folder / "added_tokens.json", dict[str, Index]) or {}
        added = {i: AddedToken(name, special=name in special) for name, i in numbers.items()}
    if config.add_eos_token and not (folder / "tokenizer.json").exists():
        warnings.warn(
            f"{folder / 'tokenizer_config.json'}: add_eos_token is left out: a prompt is to be "
            "continued", FileWarning, stacklevel=3,
        )  # fmt: skip
    return Settings(
        named=named,
        added=added,
        extra=extra,
        add_bos=config.add_bos_token,
        legacy=bool(config.legacy),
        chat_template=_read_template(folder, config),
    )


def _read(path: Path, schema: Any) -> Any:
    """The file in its schema, None if there is none."""
    return read_json(path, schema, _LARGEST_SETTINGS) if path.exists() else None


def _convert(token: _Token, special: bool | None = None) -> AddedToken:
    return AddedToken(
        token.content,
        token.special if special is None else special,
        token.lstrip,
        token.rstrip,
        token.single_word,
        token.normalized,
    )


def _list(config: _Config) -> list[AddedToken]:
    """The further special tokens of a file, under their name in transformers 5 or an older one."""
    given = config.extra_special_tokens or config.additional_special_tokens or []
    tokens = given.values() if isinstance(given, dict) else given
    return [_convert(_Token(t) if isinstance(t, str) else t, special=True) for t in tokens]


def _read_template(folder: Path, config: _Config) -> str | None:
    """The chat template for messages without tools. Files of their own replace what
    `tokenizer_config.json` has."""
    files = sorted((folder / "chat_templates").glob("*.jinja"))
    named: Any = {file.name.removesuffix(".jinja"): file for file in files}
    if (folder / "chat_template.jinja").exists():
        named.setdefault("default", folder / "chat_template.jinja")
    if named:
        return _read_text(named["default"]) if "default" in named else None
    if isinstance(config.chat_template, list):
        named = {entry.name: entry.template for entry in config.chat_template}
        return named.get("default")
    if isinstance(config.chat_template, dict):
        return config.chat_template.get("default")
    return config.chat_template


def _read_text(path: Path) -> str:
    content = read_bytes(path, _LARGEST_SETTINGS)
    try:
        return convert(content.decode(), str, str(path))
    except UnicodeDecodeError as error:
        raise FileError(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from None
