"""Text <-> ids: one contract (`types.Tokenizer`), kept with tiktoken and with sentencepiece.

First half: five kinds of file are read into one `Vocabulary`, whose heart is a table from id to
bytes. Second half: the tokenizers. Only the cutting of text into ids is left to the libraries;
everything else follows from the table.

Knows nothing of models, and of chat templates the plain ChatML family alone. The names of
special tokens in a text are ordinary text unless the caller says otherwise, so that a prompt
cannot forge a turn. Nothing is ever unpickled.
"""

import base64
import codecs
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sentencepiece
import tiktoken

from minispec.errors import FileError, MinispecError, TextError
from minispec.types import Tokenizer

# ------------------------------------------------------------------ files -> Vocabulary

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
        for i in (*self.special, *self.added, *self.eos_ids, *bos):
            if i not in known:
                raise FileError(f"{self.source}: id {i!a} is outside its {len(known)} tokens")


@contextmanager
def _reading(source: str | Path, wanted: str) -> Iterator[None]:
    """Turns whatever goes wrong with a file into one line that names it."""
    try:
        yield
    except MinispecError:
        raise
    except OSError as error:
        raise FileError(f"{source}: {error.strerror or error}; give {wanted}") from None
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
        detail = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise FileError(f"{source} is not {wanted} ({detail})") from None


def _from_merges(
    names: Mapping[int, str], merges: Iterable[Sequence[str]], whole_pieces: bool, **rest: Any
) -> Vocabulary:
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
    return Vocabulary(tokens=tokens, order=list(order), **rest)


def read_gguf(metadata: Mapping[str, Any]) -> Vocabulary:
    """From GGUF metadata as a plain mapping: `tokenizer.ggml.tokens`, `.merges` and so on."""
    with _reading("GGUF metadata", "the vocabulary of a byte-level BPE"):
        ggml = {key.removeprefix("tokenizer.ggml."): value for key, value in metadata.items()}
        pre = ggml.get("pre", "default")
        if ggml["model"] != "gpt2":
            raise FileError(f"GGUF tokenizer {ggml['model']!a} is not known; known: 'gpt2'")
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


def read_llama3(path: str | Path) -> Vocabulary:
    """From a Llama 3 `tokenizer.model`: lines of a token in base64 and its rank."""
    with _reading(path, "a Llama 3 tokenizer.model (lines of base64 and rank)"):
        lines = [line.split() for line in Path(path).read_bytes().splitlines()]
        ranked = {int(rank): base64.b64decode(token, validate=True) for token, rank in lines}
        if not ranked or len(set(ranked.values())) != len(lines):
            raise ValueError("no tokens, or a token twice")
        first, reserved = len(lines), itertools.count()
        names = (
            _LLAMA3_NAMES.get(i) or f"reserved_special_token_{next(reserved)}" for i in range(256)
        )
        return Vocabulary(
            source=str(path),
            tokens=[ranked[rank] for rank in range(first)] + [b""] * 256,
            order=range(first),
            pattern=_LLAMA3,
            special={first + i: f"<|{name}|>" for i, name in enumerate(names)},
            bos_id=first,
        )


def read_tekken(path: str | Path) -> Vocabulary:
    """From Mistral's tekken JSON: special tokens first, then as many ranks as it says."""
    with _reading(path, "a tekken JSON"):
        data = json.loads(Path(path).read_bytes())
        config, vocab = data["config"], data["vocab"]
        size, count = config["default_vocab_size"], config["default_num_special_tokens"]
        if not 3 <= count < size <= count + len(vocab) < 2**24:
            raise ValueError(f"{len(vocab)} tokens and {count} special ones do not make {size}")
        ranked = {entry["rank"]: base64.b64decode(entry["token_bytes"]) for entry in vocab}
        special = {i: f"<SPECIAL_{i}>" for i in range(count)}
        special |= {0: "<unk>", 1: "<s>", 2: "</s>"}  # older files name no others
        special |= {t["rank"]: t["token_str"] for t in data.get("special_tokens") or ()}
        return Vocabulary(
            source=str(path),
            tokens=[b""] * count + [ranked[rank] for rank in range(size - count)],
            order=range(count, size),
            pattern=config["pattern"],
            special=special,
            bos_id=1,
        )


def read_hugging_face(path: str | Path) -> Vocabulary:
    """From a `tokenizer.json`, and from the `tokenizer_config.json` and `chat_template.jinja`
    beside it. Refused is what would change a text before it is read."""
    with _reading(path, "a Hugging Face tokenizer.json of a byte-level BPE"):
        path = Path(path)
        data = json.loads(path.read_bytes())
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
        config = json.loads(beside.read_bytes()) if beside.exists() else {}
        eos = config.get("eos_token")
        eos = eos["content"] if isinstance(eos, dict) else eos
        jinja = path.with_name("chat_template.jinja")
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
            chat_template=jinja.read_text("utf-8")
            if jinja.exists()
            else config.get("chat_template"),
        )


def _hugging_face_pattern(pre: Mapping[str, Any]) -> str:
    """The one pattern that cuts as a `pre_tokenizer` does; ValueError where none is known."""
    steps = pre.get("pretokenizers", [pre])
    kinds, first, last = [step["type"] for step in steps], steps[0], steps[-1]
    if kinds[-1] == "ByteLevel" and not last["add_prefix_space"]:
        if not last.get("use_regex", True):
            if kinds == ["Split", "ByteLevel"] and first["behavior"] == "Isolated":
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


# ------------------------------------------------------------------ tokenizers

# Special tokens with one of these names end an answer, whether or not the file says so.
_END_NAMES = ("<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "<|eom_id|>", "<|eot_id|>", "</s>")
# tiktoken's regex engine panics on a run of about a million characters of white space.
_LONGEST_RUN = 400_000


@dataclass(frozen=True)
class ChatML:
    """A chat of turns `<|im_start|>role\\ncontent<|im_end|>\\n`; ``system`` opens it, if any."""

    system: str | None

    @staticmethod
    def recognise(template: Any) -> "ChatML | None":
        """The ChatML behind a model's Jinja template, or None where it is anything else."""
        text = template.replace("\\n", "\n").strip() if isinstance(template, str) else ""
        text = re.sub(r"(?<=\{\{) | (?=\}\})", "", text)
        default = re.search(
            r"\{% if loop\.first and messages\[0\]\['role'\] != 'system' %\}"
            r"\{\{'<\|im_start\|>system\n([^']*?)<\|im_end\|>\n'\}\}\{% endif %\}",
            text,
        )
        plain = (
            "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + "
            "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
            "{% if add_generation_prompt %}{{'<|im_start|>assistant\n'}}{% endif %}"
        )
        if text.replace(default[0] if default else "", "") != plain:
            return None
        return ChatML(default[1] if default else None)


class StreamDecoder:
    """Ids in, text out as soon as it is certain: never half a character.

    However the ids are dealt out over calls, all that ``feed`` returned and ``flush`` at the end
    are what ``decode`` makes of the whole. Any `types.Tokenizer` will do; of one with a true
    attribute ``leading_space`` a first space is dropped, which its ``encode`` had put there.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._restart()

    def _restart(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._drop_space = bool(getattr(self._tokenizer, "leading_space", False))

    def feed(self, ids: Iterable[int]) -> str:
        """The text that these ids complete. TextError for an id outside the vocabulary."""
        data = b"".join(map(self._tokenizer.token_bytes, ids))
        if self._drop_space and data:
            data, self._drop_space = data.removeprefix(b" "), False
        return self._utf8.decode(data)

    def flush(self) -> str:
        """What is left at the end, U+FFFD for a character cut short; then starts afresh."""
        rest = self._utf8.decode(b"", final=True)
        self._restart()
        return rest


class _TableTokenizer:
    """All of a tokenizer that follows from its table: everything but `_encode_text`."""

    leading_space = False

    def __init__(self, vocabulary: Vocabulary) -> None:
        special = vocabulary.special
        ends = [i for name in _END_NAMES for i, other in special.items() if name == other]
        self.eos_ids = tuple(dict.fromkeys([*vocabulary.eos_ids, *ends]))
        self.bos_id = vocabulary.bos_id
        self.vocabulary_size = len(vocabulary.tokens)
        self.special_tokens = {name: i for i, name in special.items() if name}
        self._added = {name: i for i, name in vocabulary.added.items() if name}
        self._bytes = [b"" if i in special else b for i, b in enumerate(vocabulary.tokens)]
        self._chatml = ChatML.recognise(vocabulary.chat_template)
        digest = hashlib.sha256()
        for i, data in enumerate(self._bytes):
            # A special token is known by its name: two that swap places make another vocabulary.
            data = special[i].encode() if i in special else data
            digest.update(b"%d %d %d:" % (i, i in special, len(data)) + data)
        self.fingerprint = digest.hexdigest()

    def _encode_text(self, text: str, start: int) -> list[int]:
        """Ids of a text without names in it, which begins at character ``start`` of the whole."""
        raise NotImplementedError

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Ids of a text; with ``special`` the names of special tokens are read as such.

        TextError for what no ids stand for: half a surrogate pair, a byte without a token.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise TextError(
                f"{text[error.start]!a} at character {error.start} is half of a surrogate pair; "
                "give text of whole characters"
            ) from None
        names = self._added | (self.special_tokens if special else {})
        if not names:
            return self._encode_text(text, 0)
        ids: list[int] = []
        start = 0
        # The longest name first: a name may begin with another.
        pattern = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
        for part in re.split(f"({pattern})", text):
            ids += [names[part]] if part in names else self._encode_text(part, start)
            start += len(part)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; special tokens are silent, broken UTF-8 becomes U+FFFD.

        TextError for an id outside the vocabulary.
        """
        stream = StreamDecoder(self)
        return stream.feed(ids) + stream.flush()

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token; b'' for special tokens. TextError outside the vocabulary."""
        if not 0 <= token < self.vocabulary_size:
            raise TextError(f"id {token} is no token; ids are 0 to {self.vocabulary_size - 1}")
        return self._bytes[token]

    def chat(self, prompt: str) -> list[int]:
        """Ids of a user's message in the model's own chat template, the answer's turn open.

        TextError where that template is not known here, and as in ``encode``.
        """
        start, end = map(self.special_tokens.get, ("<|im_start|>", "<|im_end|>"))
        if self._chatml is None or start is None or end is None:
            raise TextError(
                "this tokenizer's chat template is none of the ChatML family; "
                "use --raw to continue the text as it stands"
            )
        self.encode(prompt)  # a refusal shall count from the beginning of the prompt

        def turn(role: str, content: str) -> list[int]:
            # Role and content are cut as one text, as the template renders them.
            return [start, *self.encode(f"{role}\n{content}"), end, *self.encode("\n")]

        system = [] if self._chatml.system is None else turn("system", self._chatml.system)
        return system + turn("user", prompt) + [start, *self.encode("assistant\n")]


class TiktokenTokenizer(_TableTokenizer):
    """Byte-level BPE around a `tiktoken.Encoding`. Its makers raise FileError, in one line.

    In tiktoken one number is both a token's id and its priority in merging; here priority is
    the place in ``Vocabulary.order``, and ``order`` itself leads back to the id.

    tiktoken merges whenever the bytes of two neighbours make a token, BPE proper only for the
    pairs it lists. The ids are the same if each token is what BPE makes of its own bytes: then
    its bytes never meet as another pair. Whatever was trained by merging is of this kind.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__(vocabulary)
        self._order = list(vocabulary.order)
        ranks = {self._bytes[i]: rank for rank, i in enumerate(self._order)}
        with _reading(vocabulary.source, "a vocabulary that tiktoken can work with"):
            # Names are cut out before: tiktoken never hears of special tokens.
            self.encoding = tiktoken.Encoding(
                "minispec", pat_str=vocabulary.pattern, mergeable_ranks=ranks, special_tokens={}
            )
        absent = bytes(byte for byte in range(256) if bytes([byte]) not in ranks)
        self._absent = re.compile(b"[%s]" % re.escape(absent)) if absent else None

    @classmethod
    def from_gguf_fields(cls, metadata: Mapping[str, Any]) -> "TiktokenTokenizer":
        """From GGUF metadata as a plain mapping (`tokenizer.ggml.tokens`, `.merges`, ...)."""
        return cls(read_gguf(metadata))

    @classmethod
    def from_llama3_model(cls, path: str | Path) -> "TiktokenTokenizer":
        """From a Llama 3 `tokenizer.model`."""
        return cls(read_llama3(path))

    @classmethod
    def from_tekken(cls, path: str | Path) -> "TiktokenTokenizer":
        """From Mistral's tekken JSON."""
        return cls(read_tekken(path))

    @classmethod
    def from_tokenizer_json(cls, path: str | Path) -> "TiktokenTokenizer":
        """From a Hugging Face `tokenizer.json`, with its neighbours in the same folder."""
        return cls(read_hugging_face(path))

    def _encode_text(self, text: str, start: int) -> list[int]:
        data = text.encode()
        # Merging begins with single bytes, and tiktoken panics on one that has no token.
        if self._absent and (found := self._absent.search(data)):
            place = len(data[: found.start()].decode(errors="ignore"))
            raise TextError(
                f"byte 0x{found[0][0]:02x} of {text[place]!a} at character {start + place} has no "
                "token in this vocabulary; leave that character out or replace it"
            )
        runs = re.findall(r"\s+|\S+", text) if len(text) > _LONGEST_RUN else ()
        if any(len(run) > _LONGEST_RUN for run in runs):
            raise TextError(
                f"a run of more than {_LONGEST_RUN} characters that are all white space, or all "
                "not; give shorter ones"
            )
        ids = [self._order[rank] for rank in self.encoding.encode_ordinary(text)]
        if sum(len(self._bytes[i]) for i in ids) != len(data):
            raise TextError(  # tiktoken passes over what its pattern does not match
                "the vocabulary's own pattern does not match all of this text; "
                "give a vocabulary whose pattern matches every character"
            )
        return ids


class SentencePieceTokenizer(_TableTokenizer):
    """A SentencePiece `.model`, unigram or BPE. FileError if the file is anything else.

    Where the model puts a space before every text, ``decode`` takes it away again. A model that
    normalises gives back the normalised text, and U+2581, its own sign for a space, is read as
    a space. Such a file carries no chat template.
    """

    def __init__(self, path: str | Path) -> None:
        with _reading(path, "a SentencePiece model"):
            content = Path(path).read_bytes()
            if not content:
                raise ValueError("empty")  # the library would take it for a model of nothing
            self._model: Any = sentencepiece.SentencePieceProcessor(model_proto=content)
        model, ids = self._model, range(self._model.get_piece_size())
        pieces = [model.id_to_piece(i) for i in ids]
        vocabulary = Vocabulary(
            source=str(path),
            tokens=[
                # "<0x0A>" stands for one byte of a character that has no piece of its own.
                bytes([int(p[3:5], 16)]) if model.is_byte(i) else p.replace("\u2581", " ").encode()
                for i, p in enumerate(pieces)
            ],
            special={i: pieces[i] for i in ids if model.is_control(i) or model.is_unknown(i)},
            eos_ids=[model.eos_id()] if model.eos_id() >= 0 else [],
            bos_id=model.bos_id() if model.bos_id() >= 0 else None,
        )
        super().__init__(vocabulary)
        self.leading_space = "".join(model.encode("a", out_type=str)).startswith("\u2581")

    def _encode_text(self, text: str, start: int) -> list[int]:
        ids: list[int] = self._model.encode(text)
        unknown = self._model.unk_id()
        if unknown in ids:
            alone = (i for i, c in enumerate(text) if unknown in self._model.encode(c))
            place = next(alone, 0)
            raise TextError(
                f"{text[place]!a} at character {start + place} has no piece in this vocabulary; "
                "leave that character out or replace it"
            )
        return ids
