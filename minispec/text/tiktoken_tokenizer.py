"""Byte-level BPE without a list of merges, on top of tiktoken: Llama 3's own file, and tekken.

In such a file a token's rank is its priority: two neighbours are merged whenever their bytes
together are a token, lowest rank first. That is tiktoken's rule, so its ids are the right ones.
(Files with a list of merges are read by ``hugging_face_tokenizer``: a merge that is not listed is
none there.)

Knows nothing of files.
"""

import re

import tiktoken

from minispec.errors import TextError
from minispec.text.tokenizer import TableTokenizer
from minispec.text.vocabulary import Vocabulary, convert_to_file_error, is_panic

# tiktoken's regex engine panics on a run of about a million characters of white space.
_MAX_RUN = 400_000


class TiktokenTokenizer(TableTokenizer):
    """Byte-level BPE by ranks. FileError for a vocabulary that tiktoken refuses.

    In tiktoken one number is both a token's id and its merge priority. Here the priority is the
    index in ``Vocabulary.order``, which also maps it back to the id.
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

    def _encode_text(self, text: str, start: int, begins: bool) -> list[int]:
        # Merging starts from single bytes, and tiktoken panics on a byte without a token.
        check_bytes(text, start, self._absent)
        runs = re.findall(r"\s+|\S+", text) if len(text) > _MAX_RUN else ()
        if any(len(run) > _MAX_RUN for run in runs):
            raise TextError(
                f"a run of more than {_MAX_RUN} characters without a change between white space "
                "and other characters; shorten it"
            )
        try:
            ids = [self._order[rank] for rank in self.encoding.encode_ordinary(text)]
        except BaseException as error:
            if not is_panic(error):
                raise
            raise TextError(
                "the vocabulary's own pattern takes too long to match this text; "
                "use a shorter text, or a vocabulary with another pattern"
            ) from None
        if sum(len(self._bytes[i]) for i in ids) != len(text.encode()):
            raise TextError(  # tiktoken skips text that its pattern does not match
                "the vocabulary's own pattern does not match all of this text; "
                "use a vocabulary whose pattern matches every character"
            )
        return ids


def check_bytes(text: str, start: int, absent: re.Pattern[bytes] | None) -> None:
    """Raises TextError for a text with one of these bytes, for which a vocabulary has no token.
    ``start``: where the text begins in the input."""
    data = text.encode()
    if absent and (found := absent.search(data)):
        index = len(data[: found.start()].decode(errors="ignore"))
        raise TextError(
            f"byte 0x{found[0][0]:02x} of {text[index]!a} at character {start + index} has no "
            "token in this vocabulary; leave out or replace the character"
        )
