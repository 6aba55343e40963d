"""Text <-> ids: the ``types.Tokenizer`` protocol on top of tiktoken and sentencepiece.

A ``vocabulary.Vocabulary`` is a table from id to bytes. The libraries only split text into ids;
everything else follows from the table.

Knows nothing of models, and of chat templates only the plain ChatML family. The names of special
tokens in a text are ordinary text unless the caller asks otherwise, so that a prompt cannot forge
a turn.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece
import tiktoken

from minispec.errors import ArgumentError, TextError
from minispec.stream_decoder import StreamDecoder
from minispec.text.vocabulary import Vocabulary, convert_to_file_error
from minispec.types import Tokenizer

# Special tokens with these names end an answer, whether or not the file marks them as such.
_END_NAMES = (
    "<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "<|eom_id|>", "<|eot_id|>", "</s>",
    "<end_of_turn>",
)  # fmt: skip
# tiktoken's regex engine panics on a run of about a million characters of white space.
_MAX_RUN = 400_000


@dataclass(frozen=True)
class ChatML:
    """A chat of turns `<|im_start|>role\\ncontent<|im_end|>\\n`; ``system``: the first, if any."""

    system: str | None

    @staticmethod
    def parse_template(template: Any) -> "ChatML | None":
        """Parse plain ChatML from a model's Jinja template; None for any other template."""
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


class _TableTokenizer:
    """The part of a tokenizer that follows from its table: everything but ``_encode_text``."""

    leading_space = False

    def __init__(self, vocabulary: Vocabulary) -> None:
        special = vocabulary.special
        ends = [i for name in _END_NAMES for i, other in special.items() if name == other]
        self.eos_ids = tuple(dict.fromkeys([*vocabulary.eos_ids, *ends]))
        self.bos_id = vocabulary.bos_id
        self.vocab_size = len(vocabulary.tokens)
        self.special_tokens = {name: i for i, name in special.items() if name}
        self._added = {name: i for i, name in vocabulary.added.items() if name}
        self._bytes = [b"" if i in special else b for i, b in enumerate(vocabulary.tokens)]
        self._chatml = ChatML.parse_template(vocabulary.chat_template)
        digest = hashlib.sha256()
        for i, data in enumerate(self._bytes):
            # A special token counts by its name: two that swap ids make another vocabulary.
            data = special[i].encode() if i in special else data
            digest.update(b"%d %d %d:" % (i, i in special, len(data)) + data)
        self.fingerprint = digest.hexdigest()

    def add_eos_ids(self, ids: Iterable[int]) -> None:
        """Add ids that end an answer by a source outside the tokenizer's own files."""
        self.eos_ids = tuple(dict.fromkeys([*self.eos_ids, *ids]))

    def drop_ids(self, size: int) -> None:
        """Drop the ids from ``size`` on: the model has no rows for them. Raises ArgumentError if
        text becomes one of them."""
        lost = range(size, self.vocab_size)
        used = [i for i in lost if self._bytes[i] or i in (self.bos_id, *self._added.values())]
        if used:
            raise ArgumentError(f"text becomes id {used[0]}, the model has {size} rows")
        self.vocab_size -= len(lost)
        self._bytes = self._bytes[: self.vocab_size]
        self.special_tokens = {n: i for n, i in self.special_tokens.items() if i not in lost}
        self.eos_ids = tuple(i for i in self.eos_ids if i not in lost)

    def _encode_text(self, text: str, start: int) -> list[int]:
        """Encode a text without token names, from character ``start`` of the input on."""
        raise NotImplementedError

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Encode a text; with ``special`` the names of special tokens in it become these tokens.

        Raises TextError for text without ids: half a surrogate pair, a byte without a token.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise TextError(
                f"{text[error.start]!a} at character {error.start} is half of a surrogate pair; "
                "remove it or complete the pair"
            ) from None
        names = self._added | (self.special_tokens if special else {})
        if not names:
            return self._encode_text(text, 0)
        ids: list[int] = []
        start = 0
        # Longest names first: one name may start with another.
        pattern = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
        for part in re.split(f"({pattern})", text):
            ids += [names[part]] if part in names else self._encode_text(part, start)
            start += len(part)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ids; special tokens give no text, invalid UTF-8 becomes U+FFFD.

        Raises TextError for an id outside the vocabulary.
        """
        stream = StreamDecoder(self)
        return stream.feed(ids) + stream.flush()

    def token_bytes(self, token: int) -> bytes:
        """The bytes of a token; b'' for special tokens. Raises TextError outside the vocabulary."""
        if not 0 <= token < self.vocab_size:
            raise TextError(
                f"id {token} is outside the vocabulary; ids are 0 to {self.vocab_size - 1}"
            )
        return self._bytes[token]

    def chat(self, prompt: str, *, later: bool = False) -> list[int]:
        """Encode a user's message in the model's chat template, up to the start of the answer. A
        ``later`` message of a conversation starts with the end of the answer before it, end id
        included.

        Raises TextError if the template is not ChatML, and as ``encode``.
        """
        start, end = map(self.special_tokens.get, ("<|im_start|>", "<|im_end|>"))
        if self._chatml is None or start is None or end is None:
            raise TextError(
                "this tokenizer has no chat template of the ChatML family; "
                "use --raw to continue the text as it is"
            )
        self.encode(prompt)  # so that the position in an error counts from the start of the prompt

        def turn(role: str, content: str) -> list[int]:
            # Role and content are encoded as one text, as the template renders them.
            return [start, *self.encode(f"{role}\n{content}"), end, *self.encode("\n")]

        before = [] if self._chatml.system is None else turn("system", self._chatml.system)
        before = [end, *self.encode("\n")] if later else before
        return before + turn("user", prompt) + [start, *self.encode("assistant\n")]


class TiktokenTokenizer(_TableTokenizer):
    """Byte-level BPE on top of tiktoken. FileError for a vocabulary that tiktoken refuses.

    In tiktoken one number is both a token's id and its merge priority. Here the priority is the
    index in ``Vocabulary.order``, which also maps it back to the id.

    tiktoken merges two neighbours whenever their bytes together are a token, BPE proper only if
    it lists the pair. The ids are the same if BPE encodes the bytes of each token to that token,
    since then no other pair can form it. This holds for every vocabulary trained by merging.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__(vocabulary)
        self._order = list(vocabulary.order)
        ranks = {self._bytes[i]: rank for rank, i in enumerate(self._order)}
        with convert_to_file_error(vocabulary.source, "a vocabulary that tiktoken can work with"):
            if not vocabulary.pattern:
                raise ValueError("its pattern is empty")
            # Names are split off before, so tiktoken needs no special tokens.
            self.encoding = tiktoken.Encoding(
                "minispec", pat_str=vocabulary.pattern, mergeable_ranks=ranks, special_tokens={}
            )
        absent = bytes(byte for byte in range(256) if bytes([byte]) not in ranks)
        self._absent = re.compile(b"[%s]" % re.escape(absent)) if absent else None

    def _encode_text(self, text: str, start: int) -> list[int]:
        data = text.encode()
        # Merging starts from single bytes, and tiktoken panics on a byte without a token.
        if self._absent and (found := self._absent.search(data)):
            index = len(data[: found.start()].decode(errors="ignore"))
            raise TextError(
                f"byte 0x{found[0][0]:02x} of {text[index]!a} at character {start + index} has no "
                "token in this vocabulary; leave out or replace the character"
            )
        runs = re.findall(r"\s+|\S+", text) if len(text) > _MAX_RUN else ()
        if any(len(run) > _MAX_RUN for run in runs):
            raise TextError(
                f"a run of more than {_MAX_RUN} characters without a change between white space "
                "and other characters; shorten it"
            )
        ids = [self._order[rank] for rank in self.encoding.encode_ordinary(text)]
        if sum(len(self._bytes[i]) for i in ids) != len(data):
            raise TextError(  # tiktoken skips text that its pattern does not match
                "the vocabulary's own pattern does not match all of this text; "
                "use a vocabulary whose pattern matches every character"
            )
        return ids


class SentencePieceTokenizer(_TableTokenizer):
    """A SentencePiece ``.model``, unigram or BPE: a file, or its ``content``. FileError if it is
    anything else.

    If the model puts a space before every text, ``decode`` removes it again. With a model that
    normalises, decoding gives the normalised text. U+2581, the library's sign for a space, is read
    as a space. Such a file has no chat template.
    """

    def __init__(self, path: str | Path, content: bytes | None = None) -> None:
        with convert_to_file_error(path, "a SentencePiece model"):
            content = Path(path).read_bytes() if content is None else content
            if not content:
                raise ValueError("empty")  # the library would accept it as a model without pieces
            self._model: Any = sentencepiece.SentencePieceProcessor(model_proto=content)
            model, ids = self._model, range(self._model.get_piece_size())
            pieces = [model.id_to_piece(i) for i in ids]
            vocabulary = Vocabulary(
                source=str(path),
                tokens=[
                    # "<0x0A>" stands for one byte of a character that has no piece of its own.
                    bytes([int(p[3:5], 16)])
                    if model.is_byte(i)
                    else p.replace("\u2581", " ").encode()
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
            unencodable = (i for i, c in enumerate(text) if unknown in self._model.encode(c))
            index = next(unencodable, 0)
            raise TextError(
                f"{text[index]!a} at character {start + index} has no piece in this vocabulary; "
                "leave out or replace the character"
            )
        return ids


def encode_prompt(tokenizer: Tokenizer, prompt: str, raw: bool) -> list[int]:
    """Encode a user's prompt in the model's chat template or, with ``raw``, as text to be
    continued, after the BOS id if the model has one. Raises TextError."""
    if not raw:
        return tokenizer.chat(prompt)
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    return bos + tokenizer.encode(prompt)
