"""Text <-> ids: what all tokenizers have in common, the ``minispec.tokenizer.Tokenizer`` protocol.

A ``vocabulary.Vocabulary`` is a table from id to bytes. The libraries only split text into ids;
everything else follows from the table.

Knows nothing of models, and nothing of the libraries. The names of special tokens in a text are
ordinary text unless the caller asks otherwise, so that a prompt cannot forge a turn.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence

from minispec.errors import ArgumentError, TextError
from minispec.stream_decoder import StreamDecoder
from minispec.text.chat_template import ChatTemplate, RenderedTurn
from minispec.text.vocabulary import AddedToken, Vocabulary
from minispec.tokenizer import Tokenizer

# Tokens with these names end an answer, whether or not the file says so: llama.cpp's list, without
# the tokens of other architectures.
_END_NAMES = (
    "<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "<|eom_id|>", "<|eot_id|>", "</s>",
    "<end_of_turn>", "<|end|>", "<eos>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<end_of_utterance>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
)  # fmt: skip
# Some vocabularies have "</s>" as the HTML tag that it is, so there it must be marked as special.
_ENDS_IF_SPECIAL = ("</s>",)

Match = tuple[int, int, int | None]  # start, end and id; no id where text is only cut


class TableTokenizer:
    """The part of a tokenizer that follows from its table: everything but ``_encode_text``."""

    leading_space = False
    # Whether a text after a special token is encoded as the beginning of a text.
    _begins_after_special = False

    def __init__(self, vocabulary: Vocabulary) -> None:
        special, added = dict(vocabulary.special), dict(vocabulary.added)
        ends = [
            i
            for name in _END_NAMES
            for i, token in (special if name in _ENDS_IF_SPECIAL else special | added).items()
            if token.content == name
        ]
        self.eos_ids = tuple(dict.fromkeys([*vocabulary.eos_ids, *ends]))
        # As in llama.cpp, what ends an answer has no text, however its file marks it.
        special |= {i: added.pop(i) for i in self.eos_ids if i in added}
        self.bos_id = vocabulary.bos_id
        self.vocab_size = len(vocabulary.tokens)
        self._source = vocabulary.source
        self._special, self._added = special, added
        self._matched = vocabulary.matched
        self._bytes = [b"" if i in special else b for i, b in enumerate(vocabulary.tokens)]
        self._chat = None
        if vocabulary.chat_template is not None:
            self._chat = ChatTemplate(vocabulary.chat_template, vocabulary.variables)
        self.fingerprint = _fingerprint(vocabulary)

    @property
    def special_tokens(self) -> dict[str, int]:
        """The ids of the special tokens, by name."""
        return {token.content: i for i, token in self._special.items() if token.content}

    def add_eos_ids(self, ids: Iterable[int]) -> None:
        """Add ids that end an answer by a source outside the tokenizer's own files."""
        self.eos_ids = tuple(dict.fromkeys([*self.eos_ids, *ids]))
        for i in self.eos_ids:
            if i in self._added:
                self._special[i], self._bytes[i] = self._added.pop(i), b""

    def drop_ids(self, size: int) -> None:
        """Drop the ids from ``size`` on: the model has no rows for them. Their names in a text are
        refused. Raises ArgumentError if other text becomes one of them."""
        used = [i for i in range(size, self.vocab_size) if self._bytes[i] or i == self.bos_id]
        if used:
            raise ArgumentError(f"text becomes id {used[0]}, the model has {size} rows")
        self.eos_ids = tuple(i for i in self.eos_ids if i < size)
        self.vocab_size = min(size, self.vocab_size)
        self._bytes = self._bytes[: self.vocab_size]

    def _encode_text(self, text: str, start: int, begins: bool) -> list[int]:
        """Encode a text without names of special tokens, from character ``start`` of the input on.
        ``begins``: whether it is the beginning of a text, before which a space may belong."""
        raise NotImplementedError

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Encode a text; with ``special`` the names of special tokens in it become these tokens.

        Raises TextError for text without ids: bytes that are not UTF-8, half a surrogate pair, a
        byte without a token, the name of a token without a row.
        """
        _check_characters(text)
        return self._encode_around(text, self._find(text, special), True)

    def _find(self, text: str, special: bool) -> list[Match]:
        """The names of tokens in a text, in order, and cuts within names that the library would
        find but must not."""
        names = {token.content: i for i, token in self._added.items() if i not in self._matched}
        names |= self.special_tokens if special else {}
        flags = {**self._added, **self._special}
        found = [
            (match.start(), match.end(), names.get(match[0], names.get(match[0].strip())))
            for match in _compile(flags[i] for i in names.values()).finditer(text)
        ]
        return found if special else _sort([*found, *self._split_names(text, self._special)])

    def _split_names(self, text: str, ids: Iterable[int]) -> Iterator[Match]:
        """A cut after the first character of every name that the library itself would find."""
        tokens = (self._special.get(i) or self._added[i] for i in ids if i in self._matched)
        pattern = _compile(AddedToken(token.content) for token in tokens)
        return ((m.start() + 1, m.start() + 1, None) for m in pattern.finditer(text))

    def _encode_around(self, text: str, matches: Iterable[Match], begins: bool) -> list[int]:
        """Encode a text with these tokens in it."""
        ids: list[int] = []
        position = 0
        for start, end, token in [*matches, (len(text), len(text), None)]:
            if start < position:
                continue
            if start > position:
                ids += self._encode_text(text[position:start], position, begins)
            if token is not None:
                if token >= self.vocab_size:
                    name = text[start:end].strip()[:40]
                    raise TextError(
                        f"token {name!a} has id {token}, for which the model has no row"
                    )
                ids.append(token)
            begins = self._begins_after_special and token is not None
            position = end
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
        ``later`` message of a conversation starts with what ends the answer before it.

        Raises TextError without a template, for one that cannot be used, and as ``encode``.
        """
        if self._chat is None:
            raise TextError(
                "this tokenizer has no chat template; use --raw to continue the text as it is, "
                "with --parse-special if it has names of special tokens"
            )
        self.encode(prompt)  # so that the position in an error counts from the start of the prompt
        turn = self._chat.render_later(prompt) if later else self._chat.render_first(prompt)
        return self._encode_around(turn.text, self._find_in_turn(turn), not later)

    def _find_in_turn(self, turn: RenderedTurn) -> list[Match]:
        """The tokens that the template wrote, not those whose names the message has in it; those
        added tokens that the template does not write are ordinary text, wherever they are."""
        assert self._chat is not None
        written = {i for i, t in self._added.items() if t.content in self._chat.source}
        written -= {i for i in written if self._added[i].content.isspace()}
        control = written | self._special.keys()
        matches = [
            (start, end, token)
            for start, end, token in self._find(turn.text, True)
            if token not in control
            or not any(turn.text[max(a, start) : min(b, end)].strip() for a, b in turn.user)
        ]
        cuts = [
            (a + start, a + end, None)
            for a, b in turn.user
            for start, end, _ in self._split_names(turn.text[a:b], control)
        ]
        return _sort([*matches, *cuts])


def _fingerprint(vocabulary: Vocabulary) -> str:
    """SHA-256 over ids, bytes and whether the file marks a token as special."""
    parts = [b"%d 0 %d:%b" % (i, len(data), data) for i, data in enumerate(vocabulary.tokens)]
    for i, token in vocabulary.special.items():
        # A special token counts by its name: two that swap ids make another vocabulary.
        name = token.content.encode()
        parts[i] = b"%d 1 %d:%b" % (i, len(name), name)
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _sort(matches: Iterable[Match]) -> list[Match]:
    return sorted(matches, key=lambda match: match[:2])


def _compile(tokens: Iterable[AddedToken]) -> re.Pattern[str]:
    """A pattern that matches these tokens, the longest names first: one may start with another."""
    parts = []
    for token in sorted(tokens, key=lambda token: len(token.content), reverse=True):
        part = re.escape(token.content)
        part = rf"(?<!\w){part}(?!\w)" if token.single_word else part
        part = (r"\s*" if token.lstrip else "") + part + (r"\s*" if token.rstrip else "")
        parts += [part] if token.content else []
    return re.compile("|".join(parts) or "(?!)")  # the latter matches nothing


def _check_characters(text: str) -> None:
    """Raises TextError for text that is not made of whole characters."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = text[error.start]
        if "\udc80" <= found <= "\udcff":  # how Python keeps a byte that it could not decode
            raise TextError(
                f"byte 0x{ord(found) - 0xDC00:02x} at character {error.start} is not UTF-8; "
                "save the text as UTF-8"
            ) from None
        raise TextError(
            f"{found!a} at character {error.start} is half of a surrogate pair; "
            "remove it or complete the pair"
        ) from None


def encode_prompt(
    tokenizer: Tokenizer, prompt: str, raw: bool, parse_special: bool = False
) -> list[int]:
    """Encode a user's prompt in the model's chat template or, with ``raw``, as text to be
    continued, after the BOS id if the model has one. With ``parse_special`` the names of special
    tokens in raw text become these tokens, and a BOS that is written out is not doubled. Raises
    TextError."""
    if not raw:
        return tokenizer.chat(prompt)
    ids = tokenizer.encode(prompt, special=parse_special)
    written = bool(ids) and ids[0] == tokenizer.bos_id
    return ids if tokenizer.bos_id is None or written else [tokenizer.bos_id, *ids]
