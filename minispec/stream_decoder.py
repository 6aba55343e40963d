"""Ids in, text out as soon as it is certain.

Knows nothing of how text becomes ids.
"""

import codecs
from collections.abc import Iterable

from minispec.types import Tokenizer


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
        self._drop_space = self._tokenizer.leading_space

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
