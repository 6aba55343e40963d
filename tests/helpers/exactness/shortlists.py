"""The shortlists that a certificate enumerates.

Two toys that change as much as a shortlist may, the project's own over a few ids, and the two
indices of EvoSpec alone. Knows nothing of verification.
"""

import random
from collections.abc import Callable

import numpy as np
import torch

from minispec.certificate.toys import ChangingShortlist
from minispec.shortlists.bigrams import build_graph, count_bigrams
from minispec.shortlists.dynaspec import DynaSpecShortlist, Router
from minispec.shortlists.evospec import EvoSpecShortlist
from minispec.shortlists.evospec_paper import EvoSpecPaperShortlist
from minispec.shortlists.frspec import FRSpecShortlist
from minispec.shortlists.full import FullShortlist
from minispec.shortlists.lowrank import LowRankShortlist, fit_factors
from minispec.shortlists.microspec import MicroSpecShortlist
from minispec.shortlists.semantic import SemanticIndex
from minispec.shortlists.statistical import StatisticalIndex, recent_ids
from minispec.types import BaseShortlist, Context, Round, Shortlist

ShortlistFactory = Callable[..., Shortlist]  # takes the vocabulary size


class HistoryShortlist(BaseShortlist):
    """A function of everything that a shortlist may depend on: rejected drafts, distributions,
    acceptance. It holds the ids rejected before, and one that depends on all the rest."""

    name = "history"

    def __init__(self, vocab_size: int) -> None:
        self.budget = max(2, vocab_size - 1)
        self._vocab_size = vocab_size
        self.reset()

    def select(self, context: Context) -> torch.Tensor:
        rng = random.Random(f"{self._past} {context.tokens}")
        others = rng.sample(range(self._vocab_size), self._vocab_size)
        required = {others[0], *self._rejected[1 - self.budget :]}
        ids = dict.fromkeys((others[0], *self._rejected[1 - self.budget :], *others))
        # Two at least: with one id, the same id would be rejected every time.
        count = max(len(required), min(2, self._vocab_size - 1))
        return torch.tensor(sorted([*ids][:count]))

    def observe(self, finished: Round) -> None:
        assert finished.evidence is not None
        self._rejected += finished.proposed[len(finished.path) :]
        acceptance = [
            [share for share in finished.evidence.acceptance if share is not None],
            *(distribution.probs for distribution in finished.evidence.target_distributions),
        ]
        # Rounded, so that fractions, float64 and float32 give the same key.
        rounded = [f"{float(share):.3f}" for row in acceptance for share in row]
        self._past = (*self._past, (finished.tokens, *rounded))

    def reset(self) -> None:
        self._past: tuple[object, ...] = ()
        self._rejected: tuple[int, ...] = ()


class SemanticShortlist(BaseShortlist):
    """The semantic index alone: the ids whose clusters are nearest to the draft's hidden state."""

    name = "semantic"

    def __init__(self, vocab_size: int, hidden_size: int = 0) -> None:
        self.budget, rows = half(vocab_size), torch.eye(vocab_size, hidden_size or vocab_size)
        ids, excluded = np.arange(vocab_size), np.array([], np.int64)
        self._index = SemanticIndex(pair_ids(vocab_size), rows, ids, excluded, rarity=0)
        self._taken = np.zeros(vocab_size, bool)

    def select(self, context: Context) -> torch.Tensor:
        near = self._index.find_nearest(context.hidden, self.budget, self._taken)
        return torch.from_numpy(np.sort(near))


class StatisticalShortlist(BaseShortlist):
    """The statistical index alone: the successors of the last token, rejected drafts included,
    the last id of the vocabulary, then the tokens of the text, the oldest first."""

    name = "statistical"

    def __init__(self, vocab_size: int) -> None:
        self.budget, self._vocab_size = half(vocab_size), vocab_size
        self._index = StatisticalIndex(vocab_size)

    def select(self, context: Context) -> torch.Tensor:
        successors = self._index.successors(context.tokens[-1])
        oldest_first = recent_ids(context.tokens).tolist()[::-1]
        ids = dict.fromkeys((*successors.tolist(), self._vocab_size - 1, *oldest_first))
        return torch.tensor(sorted([*ids][: self.budget]))

    def observe(self, finished: Round) -> None:
        self._index.observe(finished)

    def reset(self) -> None:
        self._index.reset()


def half(vocab_size: int) -> int:
    """Half of the vocabulary, rounded up."""
    return (vocab_size + 1) // 2


def rank_descending(vocab_size: int) -> torch.Tensor:
    """A ranking (V,) that starts with the ids that may be EOS."""
    return torch.arange(vocab_size).flip(0)


def pair_ids(vocab_size: int) -> torch.Tensor:
    """The cluster (V,) of each id: two neighbours form one."""
    return torch.arange(vocab_size) // 2


def build_frspec(vocab_size: int) -> Shortlist:
    """The upper half of the ids, EOS included."""
    return FRSpecShortlist(rank_descending(vocab_size), half(vocab_size), (vocab_size - 1,))


class FewNearest:
    """The id of the largest number of a hidden state alone, in place of an index over rows."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size

    def find_nearest(self, hidden: torch.Tensor, count: int) -> np.ndarray:
        return np.array([int(hidden.argmax()) % self._vocab_size])


def build_evospec_paper(vocab_size: int, hidden_size: int = 0, delay: int = 1) -> Shortlist:
    """A core of one id and a buffer of one or two, in which an id may be replaced at once; each id
    is followed by the next in the graph."""
    text = [*range(vocab_size), *range(vocab_size)]
    graph = build_graph(*count_bigrams([text], vocab_size), vocab_size, min_count=1)
    shortlist = EvoSpecPaperShortlist(
        rank_descending(vocab_size), 1, (), FewNearest(vocab_size), graph,
        buffer=half(vocab_size - 1), delay=delay, residence=0,
    )  # fmt: skip
    shortlist.top_ids_wanted = 1  # of so few ids ten would be all
    return shortlist


def build_microspec(vocab_size: int) -> Shortlist:
    """A window of two ids more than half of the vocabulary."""
    shortlist = MicroSpecShortlist(vocab_size, half(vocab_size) + 2)
    shortlist.top_ids_wanted = 1
    return shortlist


def build_lowrank(vocab_size: int, hidden_size: int = 0) -> Shortlist:
    """A head of rank 1."""
    rows = torch.eye(vocab_size, hidden_size or vocab_size)
    factors = fit_factors(rows, torch.eye(rows.shape[1]) + 0.5, 1)
    return LowRankShortlist(rows, half(vocab_size), (), factors)


def build_dynaspec(vocab_size: int, hidden_size: int = 0) -> Shortlist:
    with torch.random.fork_rng():
        torch.manual_seed(vocab_size)
        router = Router(hidden_size or vocab_size, half(vocab_size)).requires_grad_(False)
    return DynaSpecShortlist(
        rank_descending(vocab_size), half(vocab_size), (), pair_ids(vocab_size), router
    )


def build_evospec(vocab_size: int, hidden_size: int = 0, per_round: bool = True) -> Shortlist:
    """A core of one id; recency gets a share where two more ids fit. The rows are long, so that
    a hidden state outweighs the rarity of an id."""
    budget = max(1, vocab_size - 1)
    return EvoSpecShortlist(
        rank_descending(vocab_size), budget, (), pair_ids(vocab_size),
        8 * torch.eye(vocab_size, hidden_size or vocab_size), core=1,
        recency=(budget - 1) // 2, per_round=per_round,
    )  # fmt: skip


SHORTLISTS: dict[str, ShortlistFactory] = {
    "full": FullShortlist,
    "frspec": build_frspec,
    "changing": ChangingShortlist,
    "history": HistoryShortlist,
    "microspec": build_microspec,
    "dynaspec": build_dynaspec,
    "lowrank": build_lowrank,
    "evospec-paper": build_evospec_paper,
    "evospec-paper, delayed": lambda vocab_size, hidden_size=0: build_evospec_paper(
        vocab_size, hidden_size, delay=2
    ),
    "semantic": SemanticShortlist,
    "statistical": StatisticalShortlist,
    "evospec": build_evospec,
    "evospec, each step": lambda vocab_size, hidden_size=0: build_evospec(
        vocab_size, hidden_size, per_round=False
    ),
}


def build_shortlist(name: str, vocab_size: int, hidden_size: int) -> Shortlist:
    """A shortlist for a draft whose hidden states are ``hidden_size`` numbers, not its logits."""
    reads_hidden = name in ("dynaspec", "lowrank", "semantic") or name.startswith("evospec")
    sizes = (vocab_size, hidden_size) if reads_hidden else (vocab_size,)
    return SHORTLISTS[name](*sizes)
