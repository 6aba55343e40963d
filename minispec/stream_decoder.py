"""Streaming detokenization: ids in, text out as soon as its characters are complete.

Knows nothing of how text becomes ids.
"""

import codecs
from collections.abc import Iterable

from minispec.tokenizer import Tokenizer


class StreamDecoder:
    """Decodes ids as they arrive and never returns part of a character.

    However the ids are split over calls of ``feed``, the returned texts and ``flush`` together
    equal ``decode`` of all ids. Works with any `Tokenizer`; if its ``leading_space`` is
    true, the space that ``encode`` puts before a text is dropped again.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._restart()

    def _restart(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._drop_space = self._tokenizer.leading_space

    def feed(self, ids: Iterable[int]) -> str:
        """The text that these ids complete. Raises TextError for an id outside the vocabulary."""
        data = b"".join(map(self._tokenizer.token_bytes, ids))
        if self._drop_space and data:
            data, self._drop_space = data.removeprefix(b" "), False
        return self._utf8.decode(data)

    def flush(self) -> str:
        """The remaining text, U+FFFD for an incomplete character. Then start a new text."""
        rest = self._utf8.decode(b"", final=True)
        self._restart()
        return rest
