"""Toy models with known distributions: their logits are a function of the tokens read.

Their hidden states are their logits, so their LM head is the identity matrix.
"""

import hashlib
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from minispec.errors import ContextError
from minispec.models.lm_head import LinearHead
from minispec.tree import find_path
from minispec.types import BaseShortlist, Context, Features, Head

Table = Callable[[tuple[int, ...]], Tensor]


class ToyCache:
    """A cache that holds the inputs themselves instead of keys and values."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.inputs = capacity, list[Any]()

    @property
    def length(self) -> int:
        """The number of inputs in the cache."""
        return len(self.inputs)

    def truncate(self, length: int) -> None:
        """Drop all inputs from position ``length`` on."""
        del self.inputs[length:]

    def keep(self, start: int, path: Sequence[int]) -> None:
        """Of the inputs from position ``start`` on, keep those of ``path``."""
        self.inputs[start:] = [self.inputs[start + node] for node in path]

    def extend(self, inputs: Sequence[Any]) -> None:
        """Append inputs. Raises ContextError above the capacity."""
        if len(self.inputs) + len(inputs) > self.capacity:
            raise ContextError(
                f"{len(self.inputs)} + {len(inputs)} inputs exceed the cache's capacity of "
                f"{self.capacity}"
            )
        self.inputs += inputs


class ToyTarget:
    """A target whose logits after tokens x are ``table(x)`` (V,), float64.

    The auxiliary hidden states of a position encode the tokens read up to it, so that a
    ``ToyDraft`` can check them.
    """

    def __init__(
        self,
        vocab_size: int,
        table: Table,
        context: int = 64,
        head: Head | None = None,
    ) -> None:
        self.head = head or LinearHead(torch.eye(vocab_size, dtype=torch.float64))
        self.context_limit = context
        self.logits_after = table

    def new_cache(self, capacity: int) -> ToyCache:
        """An empty cache."""
        return ToyCache(capacity)

    def step(self, ids: Tensor, cache: ToyCache, parents: Sequence[int] | None = None) -> Features:
        before = tuple(cache.inputs)
        cache.extend(ids.tolist())
        tree = range(-1, len(ids) - 1) if parents is None else parents
        paths = [[int(ids[i]) for i in find_path(tree, node)] for node in range(len(ids))]
        prefixes = [(*before, *path) for path in paths]
        hidden = torch.stack([self.logits_after(tokens) for tokens in prefixes])  # (T, V)
        padding = [0] * self.context_limit
        rows = [[token + 1 for token in tokens] + padding[len(tokens) :] for tokens in prefixes]
        return Features(hidden, torch.tensor(rows, dtype=hidden.dtype))  # aux: (T, context)


class ToyDraft:
    """A draft whose logits after tokens x are ``table(x)``, and which checks its own inputs.

    Its state encodes the tokens read. ``step`` raises AssertionError if the cache disagrees with
    the tokens and auxiliary hidden states, so that a wrong rollback cannot go unnoticed.
    """

    def __init__(
        self,
        vocab_size: int,
        table: Table,
        head: Head | None = None,
    ) -> None:
        self.head = head or LinearHead(torch.eye(vocab_size, dtype=torch.float64))
        self.logits_after = table

    def new_cache(self, capacity: int) -> ToyCache:
        return ToyCache(capacity)

    def with_own_head(self) -> "ToyDraft":
        return self  # a toy head packs no rows

    def fuse(self, aux_hidden_states: Tensor) -> Tensor:
        return aux_hidden_states

    def step(
        self, ids: Tensor, states: Tensor, cache: ToyCache, parents: Sequence[int] | None = None
    ) -> Tensor:
        outputs = states.clone()  # (T, context)
        tree = range(-1, len(ids) - 1) if parents is None else parents
        start = cache.length + len(ids) - len(tree)
        for row, token in enumerate(ids.tolist()):
            tokens = _decode_tokens(states[row])
            path = find_path(tree, len(tree) - len(ids) + row)[:-1]
            past = [*cache.inputs[:start], *(cache.inputs[start + node] for node in path)]
            # Input t is the tokens up to t and the next one, so there must be t inputs before.
            if len(tokens) != len(past) + 1 or any(
                tokens[: i + 2] != cached for i, cached in enumerate(past)
            ):
                raise AssertionError(f"draft step after {tokens} with a cache of {past}")
            cache.extend([(*tokens, token)])
            outputs[row, len(tokens)] = token + 1.0
        return outputs

    def apply_final_norm(self, states: Tensor) -> Tensor:
        if states.dim() > 1:
            return torch.stack([self.apply_final_norm(state) for state in states])
        return self.logits_after(_decode_tokens(states))


def _decode_tokens(state: Tensor) -> tuple[int, ...]:
    """The tokens that a state (context,) encodes: token + 1 per position, 0 as padding."""
    return tuple(int(value) - 1 for value in state.tolist() if value > 0)


def random_table(vocab_size: int, seed: int, spread: float = 1.0) -> Table:
    """Random logits (V,) float64, fixed by the seed and the tokens read."""

    def table(tokens: tuple[int, ...]) -> Tensor:
        key = hashlib.sha256(f"{seed} {tokens}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(key[:7]))
        return spread * torch.randn(vocab_size, generator=generator, dtype=torch.float64)

    return table


class ChangingShortlist(BaseShortlist):
    """A shortlist with other ids at every draft step: 1 to V - 1 of them, fixed by the context."""

    name = "changing"

    def __init__(self, vocab_size: int) -> None:
        self.budget, self._vocab_size = max(1, vocab_size - 1), vocab_size

    def select(self, context: Context) -> Tensor:
        rng = random.Random(f"{context.tokens} {context.depth}")
        return torch.tensor(
            sorted(rng.sample(range(self._vocab_size), rng.randint(1, self.budget)))
        )
