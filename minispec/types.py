"""The nouns of speculative decoding: what all other modules take and return.

The letters are those of Leviathan et al. (arXiv 2211.17192): **p** is the target's distribution,
**q** the draft's, **gamma** the number of tokens drafted in a round, which vLLM calls
``num_speculative_tokens``. **tau** is the mean number of tokens emitted in a round; EAGLE and
vLLM call it the mean acceptance length. Shapes: ``T`` positions, ``V`` vocabulary, ``K``
shortlist (the draft vocabulary), ``D`` hidden size, ``n_aux`` auxiliary layers; ids are int64.

Knows nothing of models or text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from minispec.errors import ArgumentError


@dataclass(frozen=True, eq=False)
class Distribution:
    """A probability distribution over some ids; every other id has probability 0.

    ``ids`` (K,) int64, sorted and unique; ``probs`` (K,) in float32 or better, summing to one,
    never a view of a buffer that is used again. A draft distribution lists every scored token,
    zeros included. A target distribution may omit tokens of probability zero; at temperature 0
    it has one entry.

    Both may also be numpy arrays, ``probs`` then of ``fractions.Fraction``: verification uses
    only operators, indexing and sums, so that a proof can run through the same lines.
    """

    ids: Any
    probs: Any

    def probability(self, token: int) -> Any:
        """The probability of one id, 0 if it is not listed."""
        return self.probs[np.flatnonzero(np.asarray(self.ids) == token)].sum()

    def common_indices(self, other: "Distribution") -> tuple[Any, Any]:
        """Indices, here and in ``other``, of the ids that both distributions list."""
        ours, theirs = np.asarray(self.ids), np.asarray(other.ids)
        indices = np.minimum(np.searchsorted(ours, theirs), len(ours) - 1)
        common = np.flatnonzero(ours[indices] == theirs)
        return indices[common], common


@dataclass(frozen=True, eq=False)
class Context:
    """What a shortlist may depend on when it selects ids: the past, nothing else.

    ``tokens``: the emitted tokens, followed by those drafted so far in this round. ``hidden``
    (D,): the draft's hidden state, on the CPU, which the selected rows of the LM head will be
    multiplied with; at depth 0 computed from the target's hidden states, later from its own.
    ``depth``: the draft step, from 0."""

    tokens: tuple[int, ...]
    hidden: Tensor
    depth: int


@dataclass(frozen=True, eq=False)
class Proposal:
    """A tree of drafted tokens, the nodes, each with the distribution it was *really* drawn from,
    or the point mass on it if it was picked.

    ``parents[i]``: the index of node i's parent, an earlier node; -1 after the last emitted token.
    Siblings are verified in the order of their indices, in which they were drawn. Not given: those
    of a chain, (-1, 0, 1, ...). Raises ArgumentError on construction."""

    tokens: tuple[int, ...]
    draft_distributions: tuple[Distribution, ...]
    parents: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        parents = self.parents or tuple(range(-1, len(self) - 1))
        inside = all(-1 <= parent < node for node, parent in enumerate(parents))
        if len(parents) != len(self) or not inside:
            raise ArgumentError(f"parents {parents} of {len(self)} tokens are not earlier indices")
        object.__setattr__(self, "parents", parents)

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a round revealed: all that a shortlist or a draft may learn from it.

    ``target_distributions[i]``: p at the position of the round's ``tokens[i]``. ``acceptance``: as
    in ``verify.Verdict``. ``next_distribution``: the one that the round's last token was drawn
    from, None if the output stopped at an accepted token. Nothing after a stop is included.
    ``proposal`` is the whole tree: ``tree.follow(proposal, path)`` has q where there is p.

    ``top_ids[i]`` (k,), ``top_logits[i]`` (k,): the target's k likeliest ids there before sampling,
    the best first; k: the larger ``top_ids_wanted`` of shortlist and learner. ``draft_hidden[i]``
    (D,): the state it was drafted from, or, after an accepted path, computed from the target's."""

    proposal: Proposal
    target_distributions: tuple[Distribution, ...]
    acceptance: tuple[Any, ...]
    next_distribution: Distribution | None
    top_ids: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.int64))
    top_logits: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    draft_hidden: Tensor = field(default_factory=lambda: torch.zeros(0, 0))


@dataclass(frozen=True, eq=False)
class Round:
    """One finished round of decoding: what it emitted, and what it cost.

    ``tokens``: the emitted tokens, none after a stop. ``text``: the text they complete (text
    that may be the start of a stop string is held back). ``path``: indices of the accepted
    tokens that were kept, root to leaf. ``proposed``: the drafted tokens; ``parents``: as in
    ``Proposal``. ``shortlist_sizes``: ids scored for each of them. ``seconds``: wall time by phase.
    ``stop``: why decoding ended, or None. ``evidence``: always present for ``observe``, but
    returned to the caller only with ``trace``, since it holds a distribution for each token.
    ``events``: counts, by name, of what a learner did. ``rows_probed``: rows of D numbers read to
    select the ids, besides their own head rows."""

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
    parents: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Features:
    """The target's output at T positions: ``hidden`` (T, D), the input of the LM head, and
    ``aux_hidden_states`` (T, n_aux * D), the draft's input: the hidden states after a low, a middle
    and a high layer, concatenated and divided by the scale of the embeddings."""

    hidden: Tensor
    aux_hidden_states: Tensor


class RandomSource(Protocol):
    """The only door through which randomness enters."""

    def bernoulli(self, probability: Any) -> bool:
        """True with the given probability; probabilities of 0 and 1 are certain."""

    def choose(self, probs: Any) -> int:
        """An index drawn from ``probs`` (K,), never one of probability zero."""


class Head(Protocol):
    """The LM head: a matrix (V, D) with one row for each id."""

    @property
    def vocab_size(self) -> int:
        """V, the number of rows."""

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> logits of all ids (..., V)."""

    def logits_of(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """(..., D), (K,) -> logits of these ids (..., K)."""

    def argmax(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """(T, D) -> ids (T,) of the largest logits, ties to the lowest id, and these logits
        (T,). NaN counts as the largest."""


class Target(Protocol):
    """The model whose distribution the output follows."""

    @property
    def head(self) -> Head:
        """The LM head that turns its hidden states into logits."""

    @property
    def context_limit(self) -> int:
        """The largest number of positions in a sequence."""

    def new_cache(self, capacity: int) -> Any:
        """An empty cache for at most ``capacity`` positions."""

    def step(self, ids: Tensor, cache: Any, parents: Sequence[int] | None = None) -> Features:
        """Run ids (T,) after the cached positions. Chunks of any size give the same features.
        ``parents`` (T,), as of a ``Proposal``: run a tree. Each token is at the position after its
        parent, and attends to the cached positions, its ancestors and itself."""


class Draft(Protocol):
    """The small model that drafts (EAGLE-3, arXiv 2503.01840). Its input at position t is the
    embedding of token t+1 and a state: the target's auxiliary hidden states at t, fused, or its
    own output while it drafts ahead."""

    @property
    def head(self) -> Head:
        """The LM head for its hidden states; the target's own rows."""

    def new_cache(self, capacity: int) -> Any:
        """An empty cache for at most ``capacity`` positions."""

    def fuse(self, aux_hidden_states: Tensor) -> Tensor:
        """(T, n_aux * D) -> states (T, D)."""

    def step(
        self, ids: Tensor, states: Tensor, cache: Any, parents: Sequence[int] | None = None
    ) -> Tensor:
        """ids (T,), states (T, D) -> the draft's own states (T, D), before the final norm.
        ``parents`` (N,): of a tree whose first N - T nodes are cached, the others run now."""

    def apply_final_norm(self, states: Tensor) -> Tensor:
        """States (..., D) -> hidden states (..., D), the input of the LM head."""

    def with_own_head(self) -> "Draft":
        """The same weights with a head that packs rows for this draft alone."""


class Shortlist(Protocol):
    """The draft vocabulary of a step: which ids the draft may propose.

    Any choice is exact that depends only on the past. This is the least that a shortlist needs;
    ``BaseShortlist`` has defaults for the rest."""

    name: str
    budget: int  # the most ids that ``select`` returns
    per_round: bool  # True: ``select`` is called once a round; False: at each draft step

    def select(self, context: Context) -> Tensor:
        """ids (K,): sorted, unique, within [0, V), 1 <= K <= budget. Changes no state. The same
        tensor means the same ids: other ids are a new tensor, never an edited one."""

    def observe(self, finished: Round) -> None:
        """Update the shortlist from a finished round."""

    def reset(self) -> None:
        """Restore the state after construction, between prompts but not turns of a chat."""


class BaseShortlist:
    """A shortlist to inherit from, which learns nothing and has no parts. A subclass sets ``name``
    and ``budget``, defines ``select``, and overrides what differs."""

    name: str
    budget: int
    per_round: bool = False
    rows_probed: int = 0  # rows of D numbers that one ``select`` reads beside the K head rows
    part_names: tuple[str, ...] = ()  # the keys of ``explain``, () for ids of a single origin
    top_ids_wanted: int = 0  # the target's likeliest ids that ``on_prefill`` and ``observe`` need
    reads_prompt: bool = False  # whether ``on_prefill`` is called: it costs a head over the prompt

    def select(self, context: Context) -> Tensor:
        """ids (K,), as ``Shortlist.select``."""
        raise NotImplementedError

    def explain(self, context: Context) -> Mapping[str, Tensor]:
        """The ids of ``select``, by the part that chose them: disjoint sorted tensors (n,)."""
        return {}

    def on_prefill(self, tokens: Sequence[int], top_ids: Tensor) -> None:
        """Take a prompt, and the target's likeliest ids (T, k) after its tokens but the last."""

    def observe(self, finished: Round) -> None:
        """Nothing to learn."""

    def reset(self) -> None:
        """Nothing to restore."""


@dataclass(frozen=True)
class LearnerUpdate:
    """Whether a learner changed the draft's weights, and counts of what happened, by name."""

    weights_changed: bool = False
    counts: Mapping[str, int] = field(default_factory=dict)


class Learner(Protocol):
    """A draft that learns while it serves, from the past alone, and only between rounds."""

    draft: Any  # the one to decode with
    invalidates_cache: bool  # whether its updates make cached keys and values stale
    top_ids_wanted: int  # how many of the target's likeliest ids and logits ``observe`` needs

    def start(self, continued: bool) -> None:
        """Begin a text, before its prompt; ``continued``: one that continues the text before."""

    def on_prefill(self, ids: Tensor, aux_hidden_states: Tensor, hidden: Tensor) -> None:
        """Take T positions that the draft has processed: ids (T,), auxiliary hidden states
        (T, n_aux * D), the draft's hidden states (T, D)."""

    def adjust_logits(self, logits: Tensor, ids: Tensor, context: Context, sampling: Any) -> Tensor:
        """The draft's logits (K,) over ids (K,) -> logits (K,) to draw from."""

    def observe(self, finished: Round) -> LearnerUpdate:
        """Learn from a finished round."""
