"""The tokenizer: what decoding needs of one.

Knows nothing of how a text is split; ``minispec.text`` does.
"""

from collections.abc import Sequence
from typing import Protocol


class Tokenizer(Protocol):
    """Text <-> ids."""

    vocab_size: int
    eos_ids: tuple[int, ...]
    bos_id: int | None  # the id that the model expects before a text, if any; never encoded
    leading_space: bool  # whether ``encode`` puts a space before a text, which ``decode`` drops
    fingerprint: str

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Ids of a text; with ``special``, names of special tokens are encoded as such."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; special tokens have no text, invalid UTF-8 becomes U+FFFD."""

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token; b'' for special tokens."""

    def chat(self, prompt: str, *, later: bool = False) -> list[int]:
        """Ids of a user's message in the chat template, up to the answer's header. A ``later``
        one begins with what ends the previous answer, its EOS included."""
