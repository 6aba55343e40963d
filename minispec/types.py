"""What travels down the river: the nouns of speculative decoding, and nothing else.

The letters are those of Leviathan et al. (arXiv 2211.17192): **p** is the target's law,
**q** the draft's, **gamma** the number of tokens proposed in a round. Shapes: ``T``
positions, ``V`` vocabulary, ``K`` shortlist, ``D`` model width. Ids are ``int64``.

Knows neither models nor text. Every other module speaks to its neighbours in these types.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Distribution:
    """A probability law over some ids of the vocabulary; every other id has probability 0.

    ``ids`` (K,) int64, sorted and unique; ``probs`` (K,) float32 or better, summing to one,
    never a view of a buffer that is used again. A draft's law names all ids that were scored; of
    the target's ids, those that it gives nothing may be missing: at temperature 0 one is left.

    Both may also be numpy arrays, ``probs`` then of ``fractions.Fraction``: the arithmetic of
    verification uses operators, indexing and sums alone, so that a proof can run through it.
    """

    ids: Any
    probs: Any

    def probability(self, token: int) -> Any:
        """The probability of one id, 0 where the law does not know it."""
        return self.probs[np.flatnonzero(np.asarray(self.ids) == token)].sum()

    def shared(self, other: "Distribution") -> tuple[Any, Any]:
        """The ids that two laws both know: where each of them stands here, and where there."""
        ours, theirs = np.asarray(self.ids), np.asarray(other.ids)
        places = np.minimum(np.searchsorted(ours, theirs), len(ours) - 1)
        both = np.flatnonzero(ours[places] == theirs)
        return places[both], both


@dataclass(frozen=True, eq=False)
class Context:
    """All that a shortlist may look at before it is asked for ids: the past, nothing else.

    ``tokens``: emitted tokens followed by those drafted so far on this path. ``hidden`` (D,):
    the draft's state that the list's rows of the LM head will be multiplied with; at depth 0 the
    draft made it of the target's own. ``depth``: the draft step, 0 for a round's first token.
    """

    tokens: tuple[int, ...]
    hidden: Tensor
    depth: int


@dataclass(frozen=True, eq=False)
class Proposal:
    """A chain of drafted tokens, each with the law that it was *really* drawn from."""

    tokens: tuple[int, ...]
    draft_distributions: tuple[Distribution, ...]

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, eq=False)
class Verdict:
    """What verification decided about a proposal.

    ``path``: indices of the accepted nodes (for a chain 0..n-1). ``next_token``: drawn by the
    target itself, from ``next_distribution``: the residual after a rejection, else the target's law
    after the last accepted token (the *bonus token*). ``acceptance``: for each examined node,
    in the proposal's order, the probability that it was to be accepted; token by token this
    is given that those before it were, in a block it is given only which they are.
    """

    path: tuple[int, ...]
    next_token: int
    next_distribution: Distribution
    acceptance: tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a round revealed: everything that a list or a draft may learn from.

    ``target_distributions[i]`` is the target's law of ``round.tokens[i]``; ``acceptance`` as in ``Verdict``;
    ``next_distribution`` is what the round's last token was drawn from, None where a stop fell among
    the accepted tokens before it. Nothing past a stop is in it.
    """

    proposal: Proposal
    target_distributions: tuple[Distribution, ...]
    acceptance: tuple[Any, ...]
    next_distribution: Distribution | None


@dataclass(frozen=True, eq=False)
class Round:
    """One round of decoding: what was decided, and what it cost.

    ``tokens``: the tokens emitted, never past a stop. ``text``: the text that is decided by
    now (text that may be the start of a stop string is held back). ``path``: indices of the
    accepted proposals that were kept. ``proposed``: the drafted tokens. ``shortlist_sizes``:
    ids scored at each draft step. ``rows_probed``: rows of the model's width that were read to
    choose these ids, beside their own. ``seconds``: wall time by phase. ``stop``: why decoding
    ended with this round, or None. ``evidence`` is always there for ``observe`` and is
    handed to the caller only when tracing, since it holds (gamma + 1) * V numbers. ``events``:
    what a learning draft did with it, counted by name.
    """

    tokens: tuple[int, ...]
    text: str
    path: tuple[int, ...]
    proposed: tuple[int, ...]
    shortlist_sizes: tuple[int, ...]
    seconds: Mapping[str, float]
    stop: str | None
    evidence: Evidence | None = field(default=None, repr=False)
    events: Mapping[str, int] = field(default_factory=dict)
    rows_probed: int = 0


@dataclass(frozen=True, eq=False)
class Features:
    """What the target shows of T positions: ``hidden`` (T, D), ready for the LM head, and
    ``aux_hidden_states`` (T, n_aux * D), the outputs of chosen layers side by side, for the draft, in units
    of the scale that the embeddings were given."""

    hidden: Tensor
    aux_hidden_states: Tensor


class RandomSource(Protocol):
    """The only door through which randomness enters."""

    def bernoulli(self, probability: Any) -> bool:
        """True with the given probability; probabilities of 0 and 1 are certain."""
        ...

    def choose(self, probs: Any) -> int:
        """An index drawn from ``probs`` (K,), never one of probability zero."""
        ...


class Head(Protocol):
    """The LM head as rows of a (V, D) matrix."""

    @property
    def vocab_size(self) -> int:
        """V, the number of rows."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> logits of all ids (..., V)."""
        ...

    def logits_of(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """(..., D), (K,) -> logits of those ids (..., K)."""
        ...

    def argmax(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """(T, D) -> the ids (T,) of the largest logits, ties to the lowest, and these logits
        (T,); where a logit is no number, it is the largest."""
        ...


class Target(Protocol):
    """The model whose law the output follows."""

    @property
    def head(self) -> Head:
        """Whose logits its law is made of."""
        ...

    @property
    def context_limit(self) -> int:
        """The most positions that a sequence may have."""
        ...

    def new_cache(self, capacity: int) -> Any:
        """An empty cache for at most ``capacity`` positions."""
        ...

    def step(self, ids: Tensor, cache: Any) -> Features:
        """Reads ids (T,) after what the cache holds; any chunking gives the same features."""
        ...


class Draft(Protocol):
    """The small model that guesses ahead. Its input at position t is the embedding of token
    t+1 and a state: the target's taps at t, fused, or its own output where it runs ahead."""

    @property
    def head(self) -> Head:
        """Rows that its hidden states are multiplied with; the target's own."""
        ...

    def new_cache(self, capacity: int) -> Any:
        """An empty cache for at most ``capacity`` positions."""
        ...

    def fuse(self, aux_hidden_states: Tensor) -> Tensor:
        """(T, n_aux * D) -> states (T, D)."""
        ...

    def step(self, ids: Tensor, states: Tensor, cache: Any) -> Tensor:
        """ids (T,), states (T, D) -> the draft's own states (T, D)."""
        ...

    def apply_final_norm(self, states: Tensor) -> Tensor:
        """(..., D) -> (..., D), what the LM head's rows are multiplied with."""
        ...

    def with_own_head(self) -> "Draft":
        """The same weights with a head that packs rows for itself alone."""
        ...


class Shortlist(Protocol):
    """Which ids the draft may propose. A law of the past alone, so any choice is exact."""

    name: str
    budget: int
    per_round: bool

    def select(self, context: Context) -> Tensor:
        """ids (K,): sorted, unique, within [0, V), 1 <= K <= budget. Changes no state. The same
        tensor means the same ids: another list is a new tensor, never an edited one."""
        ...

    def observe(self, finished: Round) -> None:
        """Learns from a finished round."""
        ...

    def reset(self) -> None:
        """Forgets everything learnt since construction: called between prompts, but not between
        the turns of a conversation."""
        ...


class Learner(Protocol):
    """How a draft learns while it serves. It may change the draft's laws in any way that looks
    at the past alone; within a round nothing that it knows changes."""

    draft: Any
    reaches_cache: bool  # whether keys and values are made with what it changes

    def start(self, continued: bool) -> None:
        """A new text, or more of a conversation: called before the prompt is read."""
        ...

    def on_prefill(self, ids: Tensor, aux_hidden_states: Tensor, hidden: Tensor) -> None:
        """The draft has read ids (T,) with taps (T, n_aux * D) and made hidden (T, D) of it."""
        ...

    def adjust_logits(self, logits: Tensor, ids: Tensor, context: Context, sampling: Any) -> Tensor:
        """Logits (K,) over ids (K,) to draw from in place of the draft's own."""
        ...

    def observe(self, finished: Round) -> Mapping[str, int]:
        """Learns from a finished round, and says what happened; "changed" among it means that
        the draft's weights are others from now on."""
        ...


class Tokenizer(Protocol):
    """Text <-> ids."""

    vocab_size: int
    eos_ids: tuple[int, ...]
    bos_id: int | None  # what the model wants before a text, if anything; ``encode`` adds none
    leading_space: bool  # whether ``encode`` puts a space before a text, which ``decode`` drops
    fingerprint: str

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Ids of a text; with ``special`` the names of special tokens are read as such."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; special tokens are silent, broken UTF-8 becomes U+FFFD."""
        ...

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token; b'' for special tokens."""
        ...

    def chat(self, prompt: str, *, later: bool = False) -> list[int]:
        """Ids of a user's message in the model's own chat template, the answer's turn open; a
        ``later`` message begins with what closes the answer before it, its end id included."""
        ...
