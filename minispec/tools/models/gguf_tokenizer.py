"""Reads the tokenizer in the metadata of a GGUF file, with llama.cpp's rules.

Knows nothing of the rest of the file.
"""

import warnings
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
import tokenizers
from msgspec import Meta, Struct
from tokenizers import Regex, models, pre_tokenizers

from minispec.errors import FileError, FileWarning
from minispec.io.schema import Index, Real, convert
from minispec.text.hugging_face_tokenizer import BYTE_OF, HuggingFaceTokenizer
from minispec.text.sentencepiece_model import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    build_bpe_model,
)
from minispec.text.sentencepiece_tokenizer import SentencePieceTokenizer
from minispec.text.vocabulary import AddedToken, Settings, Vocabulary, convert_to_file_error
from minispec.tools.models.patterns import SPLITTINGS, Splitting

_ORIGIN = "GGUF metadata"
_Kind = Annotated[int, Meta(ge=0, le=6)]


def _rename(name: str) -> str:
    return "tokenizer.chat_template" if name == "chat_template" else f"tokenizer.ggml.{name}"


class _Fields(Struct, rename=_rename):
    """The metadata of a tokenizer. Ids that are missing have llama.cpp's defaults."""

    model: str
    tokens: list[str]
    pre: str | None = None
    merges: list[str] | None = None
    scores: list[Real] | None = None
    token_type: list[_Kind] | None = None
    bos_token_id: Index | None = None
    eos_token_id: Index | None = None
    eot_token_id: Index | None = None
    eom_token_id: Index | None = None
    unknown_token_id: Index | None = None
    padding_token_id: Index | None = None
    add_bos_token: bool | None = None
    add_eos_token: bool | None = None
    add_space_prefix: bool | None = None
    suppress_tokens: list[Index] = msgspec.field(default_factory=list)
    chat_template: str | None = None

    @property
    def eos_ids(self) -> list[int]:
        """The ids that end an answer."""
        ids = (self.eos_token_id, self.eot_token_id, self.eom_token_id)
        return [i for i in dict.fromkeys(ids) if i is not None]


def from_gguf_fields(metadata: Mapping[str, Any]) -> HuggingFaceTokenizer | SentencePieceTokenizer:
    """The tokenizer in GGUF metadata, given as a plain mapping (`tokenizer.ggml.tokens`, `.merges`,
    `.scores`, ...). Raises FileError for one that is damaged or of another kind."""
    given = {k: v for k, v in metadata.items() if k.startswith("tokenizer.")}
    with convert_to_file_error(_ORIGIN, "text that is UTF-8"):
        fields = convert(given, _Fields, _ORIGIN)
    if fields.model not in ("gpt2", "llama"):
        raise FileError(
            f"GGUF tokenizer {fields.model[:40]!a} is not supported: must be 'gpt2' or 'llama'"
        )
    count = len(fields.tokens)
    kinds = fields.token_type or [NORMAL] * count
    for name, values in (("token_type", kinds), ("scores", fields.scores)):
        if values is not None and len(values) != count:
            raise FileError(
                f"{_ORIGIN}: tokenizer.ggml.{name} has {len(values)} values for {count} tokens"
            )
    for key in ("bos", "eos", "eot", "eom", "unknown", "padding"):
        number = getattr(fields, f"{key}_token_id")
        if number is not None and number >= count:
            raise FileError(
                f"{_ORIGIN}: tokenizer.ggml.{key}_token_id {number} is outside its {count} tokens"
            )
    if fields.suppress_tokens:
        raise FileError(
            "tokenizer.ggml.suppress_tokens is not supported: it changes the model's distribution"
        )
    if fields.add_eos_token:
        warnings.warn(
            "tokenizer.ggml.add_eos_token is left out: a prompt is to be continued",
            FileWarning, stacklevel=2,
        )  # fmt: skip
    with convert_to_file_error(_ORIGIN, "the vocabulary of a language model"):
        if fields.model == "llama":
            return _build_sentencepiece(fields, kinds)
        return _build_byte_level(fields, kinds, _find_splitting(fields.pre))


def _find_splitting(pre: str | None) -> Splitting:
    known = ", ".join(SPLITTINGS)
    if pre is None:
        raise FileError(
            "tokenizer.ggml.pre is missing: nothing says how text is split. Add it with "
            "`gguf-new-metadata --pre-tokenizer NAME IN OUT`, NAME as the model's own "
            "(llama-bpe, qwen2, smollm, gpt-2, ...)"
        )
    if pre not in SPLITTINGS:
        raise FileError(f"GGUF pre-tokenizer {pre[:40]!a} is not supported: must be one of {known}")
    if pre == "default":
        warnings.warn(
            "tokenizer.ggml.pre is 'default': text is split as llama.cpp does then, which is "
            "hardly how the model was trained", FileWarning, stacklevel=4,
        )  # fmt: skip
    return SPLITTINGS[pre]


def _build_byte_level(
    fields: _Fields, kinds: list[int], splitting: Splitting
) -> HuggingFaceTokenizer:
    names = fields.tokens
    if len(set(names)) != len(names) or BYTE in kinds:
        raise FileError(f"{_ORIGIN}: tokens of a byte-level BPE must differ, none of kind 6 (byte)")
    # As in llama.cpp, special tokens are those of the kinds unknown and control; unused ones are
    # paddings. What has a role is special, also without kinds.
    roles = [*fields.eos_ids, fields.bos_token_id] if fields.token_type is None else []
    special = {
        i: AddedToken(name)
        for i, name in enumerate(names)
        if kinds[i] in (UNKNOWN, CONTROL, UNUSED) or i in roles
    }
    added = {
        i: AddedToken(name, special=False)
        for i, name in enumerate(names)
        if kinds[i] == USER_DEFINED and i not in special
    }
    tokens = [
        (name.encode() if i in added else b"")
        if i in special or i in added
        else bytes(map(BYTE_OF.__getitem__, name))
        for i, name in enumerate(names)
    ]
    if fields.merges is None:
        raise FileError(f"{_ORIGIN}: tokenizer.ggml.merges is missing: a BPE needs it")
    merges = [_split_merge(merge) for merge in fields.merges]
    library = tokenizers.Tokenizer(
        models.BPE(
            vocab={name: i for i, name in enumerate(names)},
            merges=merges, ignore_merges=splitting.ignore_merges,
        )
    )  # fmt: skip
    splits = [pre_tokenizers.Split(Regex(p), "isolated") for p in splitting.patterns]
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    library.add_special_tokens(
        [tokenizers.AddedToken(t.content, special=True, normalized=False) for t in special.values()]
    )
    library.add_tokens([tokenizers.AddedToken(t.content, normalized=False) for t in added.values()])
    add_bos = splitting.add_bos if fields.add_bos_token is None else fields.add_bos_token
    if fields.add_bos_token and fields.bos_token_id is None:
        raise FileError(f"{_ORIGIN}: add_bos_token is true, bos_token_id is missing")
    vocabulary = Vocabulary(
        source=_ORIGIN,
        tokens=tokens,
        special=special,
        added=added,
        matched=frozenset(added),
        eos_ids=fields.eos_ids,
        bos_id=fields.bos_token_id if add_bos else None,
        chat_template=fields.chat_template,
        variables=_name_roles(fields),
    )
    return HuggingFaceTokenizer(library, vocabulary, byte_level=True)


def _split_merge(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    if not left or not right or " " in right:
        raise ValueError(f"merge {merge[:80]!a} must be two tokens with a space between them")
    return left, right


def _build_sentencepiece(fields: _Fields, kinds: list[int]) -> SentencePieceTokenizer:
    if fields.scores is None or fields.token_type is None:
        raise ValueError("scores and token_type must be given")
    unknown = fields.unknown_token_id or 0

    def role(number: int | None, default: int) -> int | None:
        known = default < len(kinds) and kinds[default] == CONTROL
        return default if number is None and known else number

    bos, eos = role(fields.bos_token_id, 1), role(fields.eos_token_id, 2)
    content = build_bpe_model(
        # Some files mark the unknown piece as a control piece. User-defined pieces are stored with
        # plain spaces.
        [
            (name.replace(" ", "\u2581"), UNKNOWN if i == unknown else kind or NORMAL)
            for i, (name, kind) in enumerate(zip(fields.tokens, kinds, strict=True))
        ],
        fields.scores,
        unknown=unknown,
        bos=bos,
        eos=eos,
        prefix=fields.add_space_prefix is not False,
    )
    settings = Settings(
        add_bos=fields.add_bos_token,
        legacy=True,  # llama.cpp puts a space after special tokens too
        chat_template=fields.chat_template,
    )
    tokenizer = SentencePieceTokenizer(_ORIGIN, content, settings)
    tokenizer.add_eos_ids(fields.eos_ids)
    return tokenizer


def _name_roles(fields: _Fields) -> dict[str, str]:
    """The tokens with a role, by their names in a chat template."""
    roles = {
        "bos_token": fields.bos_token_id,
        "eos_token": fields.eos_token_id,
        "unk_token": fields.unknown_token_id,
        "pad_token": fields.padding_token_id,
    }
    return {role: fields.tokens[i] for role, i in roles.items() if i is not None}
