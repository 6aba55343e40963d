"""Reads tokenizers from files: GGUF metadata, a Llama 3 `tokenizer.model`, a tekken JSON, a Hugging
Face `tokenizer.json`.

Byte-level BPE tokenizers are read into a ``minispec.text.vocabulary.Vocabulary``. SentencePiece
models in GGUF metadata are converted to SentencePiece's own `.model` format, which its library
reads. Nothing is unpickled.

Knows nothing of how text is encoded beyond the pattern that splits it.
"""

import base64
import itertools
import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from minispec.errors import FileError
from minispec.text.tokenizer import SentencePieceTokenizer, TiktokenTokenizer
from minispec.text.vocabulary import Vocabulary, convert_to_file_error

# The patterns that split text into pieces, under GGUF's names. No token crosses a split.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# SmolLM splits off every digit and then splits the rest as GPT-2 does. As a single pattern: a digit
# takes no space with it, and white space before a digit counts as the end of its text.
_SMOLLM = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
PATTERNS = {
    "default": _GPT2,
    "gpt-2": _GPT2,
    "llama-bpe": _LLAMA3,
    "qwen2": _QWEN2,
    "smollm": _SMOLLM,
}

# Llama 3's vocabulary file does not list the 256 special tokens; these are used by Llama 3.1.
_LLAMA3_NAMES = {0: "begin_of_text", 1: "end_of_text", 4: "finetune_right_pad_id"}
_LLAMA3_NAMES |= {6: "start_header_id", 7: "end_header_id", 8: "eom_id", 9: "eot_id"}
_LLAMA3_NAMES |= {10: "python_tag"}

# Byte-level BPE writes each byte as one printable character: bytes that are printable in Latin-1 as
# themselves, the others, in order, as the characters from U+0100 on.
_VISIBLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_BYTE_OF = {chr(byte): byte for byte in _VISIBLE} | {
    chr(0x100 + n): byte for n, byte in enumerate(sorted(set(range(256)) - set(_VISIBLE)))
}


def _json(path: str | Path) -> dict[str, Any]:
    with convert_to_file_error(path, "a JSON object"):
        data = json.loads(Path(path).read_bytes())
        if not isinstance(data, dict):
            raise TypeError(f"it is a {type(data).__name__}")
        return data


def _from_merges(
    names: Mapping[int, str], merges: Iterable[Sequence[str]], ignore_merges: bool, **rest: Any
) -> TiktokenTokenizer:
    """A tokenizer from tokens and merges in byte-level BPE's printable alphabet. With
    ``ignore_merges`` a piece that is a token is that token, even if no merges lead to it."""
    if sorted(names) != list(range(len(names))) or len(set(names.values())) != len(names):
        raise FileError(f"{rest['source']}: ids must run from 0 without gaps or repeated tokens")
    ordinary = {
        name: i for i, name in names.items() if i not in rest["special"] and i not in rest["added"]
    }
    tokens = [rest["added"].get(i, "").encode() for i in range(len(names))]
    for name, i in ordinary.items():
        tokens[i] = bytes(_BYTE_OF[character] for character in name)
    order = {i: None for i in ordinary.values() if len(tokens[i]) == 1}  # an ordered set
    for left, right in merges:
        if not {left, right, left + right} <= ordinary.keys():
            raise FileError(
                f"{rest['source']}: the merge of {left!a} and {right!a} needs a token that is "
                "missing: both parts and the result must be tokens"
            )
        order.setdefault(ordinary[left + right])
    if ignore_merges:
        order |= dict.fromkeys(i for i in ordinary.values() if tokens[i])
    return TiktokenTokenizer(Vocabulary(tokens=tokens, order=list(order), **rest))


def from_gguf_fields(metadata: Mapping[str, Any]) -> TiktokenTokenizer | SentencePieceTokenizer:
    """The tokenizer in GGUF metadata, given as a plain mapping (`tokenizer.ggml.tokens`, `.merges`,
    `.scores`, ...). Raises FileError for one that is damaged or of another kind."""
    with convert_to_file_error("GGUF metadata", "the vocabulary of a byte-level BPE"):
        ggml = {key.removeprefix("tokenizer.ggml."): value for key, value in metadata.items()}
        if ggml["model"] == "llama":
            return SentencePieceTokenizer("GGUF metadata", _sentencepiece_model(ggml))
        if ggml["model"] != "gpt2":
            raise FileError(
                f"GGUF tokenizer {ggml['model']!a} is not supported: must be 'gpt2' or 'llama'"
            )
        pre = ggml.get("pre", "default")
        if pre not in PATTERNS:
            raise FileError(
                f"GGUF pre-tokenizer {pre!a} is not supported: must be one of {[*PATTERNS]}"
            )
        names, llama3 = dict(enumerate(ggml["tokens"])), pre == "llama-bpe"
        # 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused (padding)
        kinds = ggml.get("token_type", [1] * len(names))
        return _from_merges(
            names,
            [merge.split(" ") for merge in ggml["merges"]],
            ignore_merges=llama3,
            source="GGUF metadata",
            pattern=PATTERNS[pre],
            special={i: name for i, name in names.items() if kinds[i] in (2, 3, 5)},
            added={i: name for i, name in names.items() if kinds[i] == 4},
            eos_ids=[ggml[key] for key in ("eos_token_id", "eot_token_id") if key in ggml],
            # Llama 3 needs its BOS id even if the file does not ask for it.
            bos_id=ggml.get("bos_token_id") if ggml.get("add_bos_token", llama3) else None,
            chat_template=metadata.get("tokenizer.chat_template"),
        )


def _sentencepiece_model(ggml: Mapping[str, Any]) -> bytes:
    """The SentencePiece `.model` that GGUF metadata were converted from, without what encoding does
    not need.

    The file is one protocol buffer: pieces (1) with text (1), score (2) and type (3); the trainer's
    settings (2), here BPE (3) with byte fallback (35) and the names of the unknown (45), BOS (46)
    and EOS (47) pieces; and the normaliser (3), here the identity.
    """
    with convert_to_file_error("GGUF metadata", "the pieces of a SentencePiece model"):
        names, unknown = ggml["tokens"], ggml.get("unknown_token_id", 0)
        first = ggml.get("bos_token_id") if ggml.get("add_bos_token", True) else None
        pieces = zip(names, ggml["scores"], ggml["token_type"], strict=True)
        content = bytearray()
        for i, (name, score, kind) in enumerate(pieces):
            # The types are SentencePiece's, except that some files mark the unknown piece as a
            # control piece. User-defined pieces are stored with plain spaces.
            parts = _field(1, name.replace(" ", "\u2581").encode())
            parts += b"\x15" + struct.pack("<f", score) + _field(3, 2 if i == unknown else kind)
            content += _field(1, parts)
        trained = _field(3, 2) + _field(35, int(6 in ggml["token_type"]))
        for number, named in ((45, unknown), (46, first), (47, ggml.get("eos_token_id"))):
            trained += _field(number, b"" if named is None else names[named].encode())
        prefix = int(ggml.get("add_space_prefix", True))
        normalised = _field(1, b"identity") + _field(3, prefix) + _field(4, 0) + _field(5, 1)
        return bytes(content) + _field(2, trained) + _field(3, normalised)


def _field(number: int, value: int | bytes) -> bytes:
    """One field of a protocol buffer: an integer, or bytes with their length before them."""

    def varint(n: int) -> bytes:
        return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + varint(n >> 7)

    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def from_llama3_model(path: str | Path) -> TiktokenTokenizer:
    """The tokenizer in a Llama 3 `tokenizer.model`: lines of a token in base64 and its rank. Raises
    FileError."""
    with convert_to_file_error(path, "a Llama 3 tokenizer.model (lines of base64 and rank)"):
        lines = [line.split() for line in Path(path).read_bytes().splitlines()]
        ranked = {int(rank): base64.b64decode(token, validate=True) for token, rank in lines}
        if not ranked or len(set(ranked.values())) != len(lines):
            raise ValueError("it has no tokens, or duplicate ones")
        first, reserved = len(lines), itertools.count()
        names = (
            _LLAMA3_NAMES.get(i) or f"reserved_special_token_{next(reserved)}" for i in range(256)
        )
        vocabulary = Vocabulary(
            source=str(path),
            tokens=[ranked[rank] for rank in range(first)] + [b""] * 256,
            order=range(first),
            pattern=_LLAMA3,
            special={first + i: f"<|{name}|>" for i, name in enumerate(names)},
            bos_id=first,
        )
        return TiktokenTokenizer(vocabulary)


def from_tekken(path: str | Path) -> TiktokenTokenizer:
    """The tokenizer in Mistral's tekken JSON: special tokens first, then as many ranks as the
    vocabulary size leaves. Raises FileError."""
    with convert_to_file_error(path, "a tekken JSON"):
        data = _json(path)
        config, vocab = data["config"], data["vocab"]
        size, count = config["default_vocab_size"], config["default_num_special_tokens"]
        if not 3 <= count < size <= count + len(vocab) < 2**24:
            raise ValueError(
                f"{len(vocab)} tokens and {count} special ones do not add up to {size}"
            )
        ranked = {entry["rank"]: base64.b64decode(entry["token_bytes"]) for entry in vocab}
        special = {i: f"<SPECIAL_{i}>" for i in range(count)}
        special |= {0: "<unk>", 1: "<s>", 2: "</s>"}  # older files list no others
        special |= {t["rank"]: t["token_str"] for t in data.get("special_tokens") or ()}
        vocabulary = Vocabulary(
            source=str(path),
            tokens=[b""] * count + [ranked[rank] for rank in range(size - count)],
            order=range(count, size),
            pattern=config["pattern"],
            special=special,
            bos_id=1,
        )
        return TiktokenTokenizer(vocabulary)


def from_tokenizer_json(path: str | Path) -> TiktokenTokenizer:
    """The tokenizer in a `tokenizer.json`, with the `tokenizer_config.json` and
    `chat_template.jinja` in the same folder. Raises FileError for a damaged file, and for settings
    that are not supported, such as a normaliser."""
    with convert_to_file_error(path, "a Hugging Face tokenizer.json of a byte-level BPE"):
        path = Path(path)
        data = _json(path)
        model, extra = data["model"], data.get("added_tokens", [])
        options = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
        odd = [f"model.{key}" for key in options if model.get(key)]
        odd += ["normalizer"] if data.get("normalizer") else []
        odd += [t["content"] for t in extra if t["lstrip"] or t["rstrip"] or t["single_word"]]
        if model["type"] != "BPE" or odd:
            raise ValueError(f"not supported: {', '.join(odd or [model['type']])}")
        names = {i: name for name, i in model["vocab"].items()}
        names |= {token["id"]: token["content"] for token in extra}
        beside = path.with_name("tokenizer_config.json")
        config = _json(beside) if beside.exists() else {}
        eos = config.get("eos_token")
        eos = eos["content"] if isinstance(eos, dict) else eos
        jinja = path.with_name("chat_template.jinja")
        template = jinja.read_text("utf-8") if jinja.exists() else config.get("chat_template")
        return _from_merges(
            names,
            [m.split(" ") if isinstance(m, str) else m for m in model["merges"]],
            ignore_merges=model.get("ignore_merges", False),
            source=str(path),
            pattern=_hugging_face_pattern(data["pre_tokenizer"]),
            special={token["id"]: token["content"] for token in extra if token["special"]},
            added={token["id"]: token["content"] for token in extra if not token["special"]},
            eos_ids=[i for i, name in names.items() if name == eos],
            bos_id=_hugging_face_bos(data.get("post_processor") or {}),
            chat_template=template,
        )


def _hugging_face_pattern(pre: Mapping[str, Any]) -> str:
    """The single pattern that splits text as a `pre_tokenizer` does. Raises ValueError if there is
    none."""
    steps = pre.get("pretokenizers", [pre])
    kinds, first, last = [step["type"] for step in steps], steps[0], steps[-1]
    if kinds[-1] == "ByteLevel" and not last["add_prefix_space"]:
        if not last.get("use_regex", True):
            isolated = first.get("behavior") == "Isolated" and not first.get("invert")
            if kinds == ["Split", "ByteLevel"] and isolated:
                return str(first["pattern"]["Regex"])
        elif kinds == ["ByteLevel"]:
            return _GPT2
        elif kinds == ["Digits", "ByteLevel"] and first["individual_digits"]:
            return _SMOLLM
    raise ValueError(f"not supported: pre-tokenizer {' + '.join(kinds)}, or its settings")


def _hugging_face_bos(post: Mapping[str, Any]) -> int | None:
    """The BOS id that a `post_processor` puts before every text, if any."""
    for step in post.get("processors", [post]):
        if step.get("type") == "TemplateProcessing" and "SpecialToken" in step["single"][0]:
            name = step["single"][0]["SpecialToken"]["id"]
            return int(step["special_tokens"][name]["ids"][0])
    return None
