"""Text <-> ids: one contract (`types.Tokenizer`), kept with tiktoken and with sentencepiece.

A `vocabulary.Vocabulary` is a table from id to bytes. Only the cutting of text into ids is left
to the libraries; everything else follows from the table.

Knows nothing of models, and of chat templates the plain ChatML family alone. The names of
special tokens in a text are ordinary text unless the caller says otherwise, so that a prompt
cannot forge a turn.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece
import tiktoken

from minispec.errors import TextError
from minispec.stream_decoder import StreamDecoder
from minispec.text.vocabulary import Vocabulary, reading
from minispec.types import Tokenizer

# Special tokens with one of these names end an answer, whether or not the file says so.
_END_NAMES = (
    "<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "<|eom_id|>", "<|eot_id|>", "</s>",
    "<end_of_turn>",
)  # fmt: skip
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


class _TableTokenizer:
    """All of a tokenizer that follows from its table: everything but `_encode_text`."""

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
        if not 0 <= token < self.vocab_size:
            raise TextError(f"id {token} is no token; ids are 0 to {self.vocab_size - 1}")
        return self._bytes[token]

    def chat(self, prompt: str, *, later: bool = False) -> list[int]:
        """Ids of a user's message in the model's own chat template, the answer's turn open; a
        ``later`` message begins with what closes the answer before it, its end id included.

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

        before = [] if self._chatml.system is None else turn("system", self._chatml.system)
        before = [end, *self.encode("\n")] if later else before
        return before + turn("user", prompt) + [start, *self.encode("assistant\n")]


class TiktokenTokenizer(_TableTokenizer):
    """Byte-level BPE around a `tiktoken.Encoding`. FileError for a table that tiktoken refuses.

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
        with reading(vocabulary.source, "a vocabulary that tiktoken can work with"):
            if not vocabulary.pattern:
                raise ValueError("its pattern is empty")
            # Names are cut out before: tiktoken never hears of special tokens.
            self.encoding = tiktoken.Encoding(
                "minispec", pat_str=vocabulary.pattern, mergeable_ranks=ranks, special_tokens={}
            )
        absent = bytes(byte for byte in range(256) if bytes([byte]) not in ranks)
        self._absent = re.compile(b"[%s]" % re.escape(absent)) if absent else None

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
    """A SentencePiece `.model`, unigram or BPE: a file, or its ``content``. FileError if it is
    anything else.

    Where the model puts a space before every text, ``decode`` takes it away again. A model that
    normalises gives back the normalised text, and U+2581, its own sign for a space, is read as
    a space. Such a file carries no chat template.
    """

    def __init__(self, path: str | Path, content: bytes | None = None) -> None:
        with reading(path, "a SentencePiece model"):
            content = Path(path).read_bytes() if content is None else content
            if not content:
                raise ValueError("empty")  # the library would take it for a model of nothing
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
            alone = (i for i, c in enumerate(text) if unknown in self._model.encode(c))
            place = next(alone, 0)
            raise TextError(
                f"{text[place]!a} at character {start + place} has no piece in this vocabulary; "
                "leave that character out or replace it"
            )
        return ids


def prompt_ids(tokenizer: Tokenizer, prompt: str, raw: bool) -> list[int]:
    """A user's prompt in the model's chat template or, ``raw``, as text to be continued,
    behind the mark that the model wants at the beginning, if any. Raises TextError."""
    if not raw:
        return tokenizer.chat(prompt)
    beginning = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    return beginning + tokenizer.encode(prompt)
