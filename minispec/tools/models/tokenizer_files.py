"""Tokenizers from files: GGUF metadata, a Llama 3 `tokenizer.model`, a tekken JSON, a Hugging Face
`tokenizer.json`.

Each is read into one ``minispec.text.vocabulary.Vocabulary``. SentencePiece's own `.model` is read by
its library: GGUF metadata of that kind are made into such a file first. Knows nothing of how text
becomes ids beyond the pattern that cuts it. Nothing is ever unpickled.
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
from minispec.text.vocabulary import Vocabulary, reading

# How text is cut into pieces, by GGUF's names for it: no token ever crosses a cut.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# SmolLM first cuts out every digit and then does as GPT-2 with what lies between. As a single
# pattern: a digit takes no space along, and white space before a digit is at the end of its text.
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

# Llama 3's vocabulary file ends before the 256 special tokens; those that Llama 3.1 uses:
_LLAMA3_NAMES = {0: "begin_of_text", 1: "end_of_text", 4: "finetune_right_pad_id"}
_LLAMA3_NAMES |= {6: "start_header_id", 7: "end_header_id", 8: "eom_id", 9: "eot_id"}
_LLAMA3_NAMES |= {10: "python_tag"}

# Byte-level BPE writes each byte as one visible character: those that are visible in Latin-1 as
# themselves, the others, in order, as the characters from U+0100 on.
_VISIBLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_BYTE_OF = {chr(byte): byte for byte in _VISIBLE} | {
    chr(0x100 + n): byte for n, byte in enumerate(sorted(set(range(256)) - set(_VISIBLE)))
}


def _json(path: str | Path) -> dict[str, Any]:
    with reading(path, "a JSON object"):
        data = json.loads(Path(path).read_bytes())
        if not isinstance(data, dict):
            raise TypeError(f"it is a {type(data).__name__}")
        return data


def _from_merges(
    names: Mapping[int, str], merges: Iterable[Sequence[str]], whole_pieces: bool, **rest: Any
) -> TiktokenTokenizer:
    """From tokens and merges written in byte-level BPE's alphabet of visible characters.

    With ``whole_pieces`` a piece that is a token stays whole, be there a merge for it or not.
    """
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
                "not there; the parts and the whole must be tokens"
            )
        order.setdefault(ordinary[left + right])
    if whole_pieces:
        order |= dict.fromkeys(i for i in ordinary.values() if tokens[i])
    return TiktokenTokenizer(Vocabulary(tokens=tokens, order=list(order), **rest))


def from_gguf_fields(metadata: Mapping[str, Any]) -> TiktokenTokenizer | SentencePieceTokenizer:
    """From GGUF metadata as a plain mapping: `tokenizer.ggml.tokens`, `.merges` or `.scores` and
    so on. Raises FileError for a tokenizer of another kind."""
    with reading("GGUF metadata", "the vocabulary of a byte-level BPE"):
        ggml = {key.removeprefix("tokenizer.ggml."): value for key, value in metadata.items()}
        if ggml["model"] == "llama":
            return SentencePieceTokenizer("GGUF metadata", _sentencepiece_model(ggml))
        if ggml["model"] != "gpt2":
            raise FileError(
                f"GGUF tokenizer {ggml['model']!a} is not known; known: 'gpt2', 'llama'"
            )
        pre = ggml.get("pre", "default")
        if pre not in PATTERNS:
            raise FileError(f"GGUF pre-tokenizer {pre!a} is not known; known: {[*PATTERNS]}")
        names, llama3 = dict(enumerate(ggml["tokens"])), pre == "llama-bpe"
        # 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused (padding)
        kinds = ggml.get("token_type", [1] * len(names))
        return _from_merges(
            names,
            [merge.split(" ") for merge in ggml["merges"]],
            whole_pieces=llama3,
            source="GGUF metadata",
            pattern=PATTERNS[pre],
            special={i: name for i, name in names.items() if kinds[i] in (2, 3, 5)},
            added={i: name for i, name in names.items() if kinds[i] == 4},
            eos_ids=[ggml[key] for key in ("eos_token_id", "eot_token_id") if key in ggml],
            # Llama 3 wants its first token even where the file does not say so.
            bos_id=ggml.get("bos_token_id") if ggml.get("add_bos_token", llama3) else None,
            chat_template=metadata.get("tokenizer.chat_template"),
        )


def _sentencepiece_model(ggml: Mapping[str, Any]) -> bytes:
    """The SentencePiece `.model` that GGUF metadata were taken from, as far as it cuts text.

    The file is one protocol buffer: pieces (1) of text (1), score (2) and type (3), then how it
    was trained (2), here as BPE (3) with bytes to fall back on (35) and the names of the unknown
    piece (45), the first (46) and the last (47), then how text is normalised (3): not at all.
    """
    with reading("GGUF metadata", "the pieces of a SentencePiece model"):
        names, unknown = ggml["tokens"], ggml.get("unknown_token_id", 0)
        first = ggml.get("bos_token_id") if ggml.get("add_bos_token", True) else None
        pieces = zip(names, ggml["scores"], ggml["token_type"], strict=True)
        content = bytearray()
        for i, (name, score, kind) in enumerate(pieces):
            # The types are SentencePiece's own, but that some files call the unknown piece one
            # of control; and what users defined is written there with spaces as they are.
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
    """One field of a protocol buffer: a number, or bytes behind their length."""

    def varint(n: int) -> bytes:
        return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + varint(n >> 7)

    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def from_llama3_model(path: str | Path) -> TiktokenTokenizer:
    """From a Llama 3 `tokenizer.model`: lines of a token in base64 and its rank."""
    with reading(path, "a Llama 3 tokenizer.model (lines of base64 and rank)"):
        lines = [line.split() for line in Path(path).read_bytes().splitlines()]
        ranked = {int(rank): base64.b64decode(token, validate=True) for token, rank in lines}
        if not ranked or len(set(ranked.values())) != len(lines):
            raise ValueError("no tokens, or a token twice")
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
    """From Mistral's tekken JSON: special tokens first, then as many ranks as it says."""
    with reading(path, "a tekken JSON"):
        data = _json(path)
        config, vocab = data["config"], data["vocab"]
        size, count = config["default_vocab_size"], config["default_num_special_tokens"]
        if not 3 <= count < size <= count + len(vocab) < 2**24:
            raise ValueError(f"{len(vocab)} tokens and {count} special ones do not make {size}")
        ranked = {entry["rank"]: base64.b64decode(entry["token_bytes"]) for entry in vocab}
        special = {i: f"<SPECIAL_{i}>" for i in range(count)}
        special |= {0: "<unk>", 1: "<s>", 2: "</s>"}  # older files name no others
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
    """From a `tokenizer.json`, and from the `tokenizer_config.json` and `chat_template.jinja`
    beside it. Refused is what would change a text before it is read, by FileError."""
    with reading(path, "a Hugging Face tokenizer.json of a byte-level BPE"):
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
            whole_pieces=model.get("ignore_merges", False),
            source=str(path),
            pattern=_hugging_face_pattern(data["pre_tokenizer"]),
            special={token["id"]: token["content"] for token in extra if token["special"]},
            added={token["id"]: token["content"] for token in extra if not token["special"]},
            eos_ids=[i for i, name in names.items() if name == eos],
            bos_id=_hugging_face_bos(data.get("post_processor") or {}),
            chat_template=template,
        )


def _hugging_face_pattern(pre: Mapping[str, Any]) -> str:
    """The one pattern that cuts as a `pre_tokenizer` does; ValueError where none is known."""
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
    """The token that a `post_processor` puts before every text."""
    for step in post.get("processors", [post]):
        if step.get("type") == "TemplateProcessing" and "SpecialToken" in step["single"][0]:
            name = step["single"][0]["SpecialToken"]["id"]
            return int(step["special_tokens"][name]["ids"][0])
    return None
