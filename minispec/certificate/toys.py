"""Toy models whose distributions are known: a function of the tokens read.

Their hidden states are their logits, and their LM head is the identity.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from minispec.errors import ContextError
from minispec.models.lm_head import LinearHead
from minispec.types import Features, Head


class ToyCache:
    """A cache that remembers the inputs themselves."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.read = capacity, list[Any]()

    @property
    def length(self) -> int:
        """How many inputs it holds."""
        return len(self.read)

    def truncate(self, length: int) -> None:
        """Forgets all inputs from ``length`` on."""
        del self.read[length:]

    def extend(self, inputs: Sequence[Any]) -> None:
        """Remembers more inputs. Raises ContextError where there is no room."""
        if len(self.read) + len(inputs) > self.capacity:
            raise ContextError(f"{len(inputs)} more do not fit a cache of {self.capacity}")
        self.read += inputs


class ToyTarget:
    """A target whose logits after tokens x are ``table(x)`` (V,), float64.

    The taps of a position are the tokens read up to there, so that a draft can check them.
    """

    def __init__(
        self,
        vocab_size: int,
        table: Callable[[tuple[int, ...]], Tensor],
        context: int = 64,
        head: Head | None = None,
    ) -> None:
        self.head = head or LinearHead(torch.eye(vocab_size, dtype=torch.float64))
        self.context_limit = context
        self.after = table

    def new_cache(self, capacity: int) -> ToyCache:
        """An empty cache."""
        return ToyCache(capacity)

    def step(self, ids: Tensor, cache: ToyCache) -> Features:
        start = cache.length
        cache.extend(ids.tolist())
        read = [tuple(cache.read[: start + i + 1]) for i in range(len(ids))]
        hidden = torch.stack([self.after(tokens) for tokens in read])  # (T, V)
        rest = [0] * self.context_limit
        rows = [[token + 1 for token in tokens] + rest[len(tokens) :] for tokens in read]
        return Features(hidden, torch.tensor(rows, dtype=hidden.dtype))


class ToyDraft:
    """A draft whose logits after tokens x are ``table(x)``, if it was led as contracts say.

    Its state is the tokens that it believes to have been read; it refuses (AssertionError) a
    cache that disagrees with the tokens and taps it is given, so a wrong rollback is caught.
    """

    def __init__(
        self,
        vocab_size: int,
        table: Callable[[tuple[int, ...]], Tensor],
        head: Head | None = None,
    ) -> None:
        self.head = head or LinearHead(torch.eye(vocab_size, dtype=torch.float64))
        self.after = table

    def new_cache(self, capacity: int) -> ToyCache:
        return ToyCache(capacity)

    def with_own_head(self) -> "ToyDraft":
        return self  # its head packs nothing

    def fuse(self, aux_hidden_states: Tensor) -> Tensor:
        return aux_hidden_states

    def step(self, ids: Tensor, states: Tensor, cache: ToyCache) -> Tensor:
        outputs = states.clone()
        for row, token in enumerate(ids.tolist()):
            tokens = _tokens_of(states[row])
            # Input t carries the tokens up to t and the one after: the cache must hold t inputs.
            if len(tokens) != cache.length + 1 or any(
                tokens[: i + 2] != seen for i, seen in enumerate(cache.read)
            ):
                raise AssertionError(f"a draft at {tokens} over a cache of {cache.read}")
            cache.extend([(*tokens, token)])
            outputs[row, len(tokens)] = token + 1.0
        return outputs

    def apply_final_norm(self, states: Tensor) -> Tensor:
        if states.dim() > 1:
            return torch.stack([self.apply_final_norm(state) for state in states])
        return self.after(_tokens_of(states))


def _tokens_of(state: Tensor) -> tuple[int, ...]:
    return tuple(int(value) - 1 for value in state.tolist() if value > 0)


def random_table(
    vocab_size: int, seed: int, spread: float = 1.0
) -> Callable[[tuple[int, ...]], Tensor]:
    """Logits (V,) float64 that are an arbitrary but fixed function of the tokens read."""

    def table(tokens: tuple[int, ...]) -> Tensor:
        key = hashlib.sha256(f"{seed} {tokens}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(key[:7]))
        return spread * torch.randn(vocab_size, generator=generator, dtype=torch.float64)

    return table
