"""Lists that are walked: toys that change as much as a list may, our own over a few ids, and the
two indices of the evolving list, each alone."""

import random
from collections.abc import Callable

import numpy as np
import torch

from minispec.shortlists.dynaspec import RoutedShortlist, Router
from minispec.shortlists.evospec import EvoSpecShortlist
from minispec.shortlists.frspec import FRSpecShortlist
from minispec.shortlists.full import FullShortlist
from minispec.shortlists.microspec import InContextShortlist
from minispec.shortlists.semantic import SemanticIndex
from minispec.shortlists.statistical import StatisticalIndex, recent
from minispec.types import Context, Round, Shortlist

ListOf = Callable[..., Shortlist]  # of the vocabulary's size


class RestlessList:
    """Another list at every position, of every size but the whole."""

    name, per_round = "restless", False

    def __init__(self, size: int) -> None:
        self.budget, self._size = max(1, size - 1), size

    def select(self, context: Context) -> torch.Tensor:
        luck = random.Random(f"{context.tokens} {context.depth}")
        return torch.tensor(sorted(luck.sample(range(self._size), luck.randint(1, self.budget))))

    def observe(self, finished: Round) -> None:
        """Learns nothing."""

    def reset(self) -> None:
        """Has learnt nothing."""


class LearningList:
    """Remembers all that a list may: rejected drafts, laws, acceptance. It proposes what was
    rejected before, and one id that hangs on everything else."""

    name, per_round = "learning", False

    def __init__(self, size: int) -> None:
        self.budget = max(2, size - 1)
        self._size = size
        self.reset()

    def select(self, context: Context) -> torch.Tensor:
        luck = random.Random(f"{self._past} {context.tokens}")
        others = luck.sample(range(self._size), self._size)
        ids = dict.fromkeys((others[0], *self._rejected[1 - self.budget :], *others))
        fewest = min(2, self._size - 1)  # with a single one, it is always the same that is rejected
        known = len({others[0], *self._rejected[1 - self.budget :]})
        return torch.tensor(sorted([*ids][: max(known, fewest)]))

    def observe(self, finished: Round) -> None:
        assert finished.evidence is not None
        self._rejected += finished.proposed[len(finished.path) :]
        # As numbers that are the same in every arithmetic.
        acceptance = [
            finished.evidence.acceptance,
            *(distribution.probs for distribution in finished.evidence.target_distributions),
        ]
        shares = [f"{float(share):.3f}" for row in acceptance for share in row]
        self._past = (*self._past, (finished.tokens, *shares))

    def reset(self) -> None:
        self._past: tuple[object, ...] = ()
        self._rejected: tuple[int, ...] = ()


class SemanticList:
    """What the draft's state points at, at every step: the semantic index alone."""

    name, per_round = "semantic", False

    def __init__(self, size: int, width: int = 0) -> None:
        self.budget, rows = half(size), torch.eye(size, width or size)
        ids, none = np.arange(size), np.array([], np.int64)
        self._index = SemanticIndex(clusters(size), rows, ids, none, rarity=0)
        self._taken = np.zeros(size, bool)

    def select(self, context: Context) -> torch.Tensor:
        near = self._index.near(context.hidden, self.budget, self._taken)
        return torch.from_numpy(np.sort(near))

    def observe(self, finished: Round) -> None:
        """Learns nothing: its rows were clustered before."""

    def reset(self) -> None:
        """Has learnt nothing."""


class StatisticalList:
    """What followed the last token before, rejected drafts included, an id that may end a case,
    then what was said, the oldest first: the statistical index alone."""

    name, per_round = "statistical", False

    def __init__(self, size: int) -> None:
        self.budget, self._size = half(size), size
        self._index = StatisticalIndex(size)

    def select(self, context: Context) -> torch.Tensor:
        followers = self._index.successors(context.tokens[-1])
        said = recent(context.tokens).tolist()[::-1]
        ids = dict.fromkeys((*followers.tolist(), self._size - 1, *said))
        return torch.tensor(sorted([*ids][: self.budget]))

    def observe(self, finished: Round) -> None:
        self._index.observe(finished)

    def reset(self) -> None:
        self._index.reset()


def half(size: int) -> int:
    return (size + 1) // 2


def upper(size: int) -> torch.Tensor:
    """A ranking that begins with the ids that may end a case."""
    return torch.arange(size).flip(0)


def clusters(size: int) -> torch.Tensor:
    """Neighbours by twos."""
    return torch.arange(size) // 2


def static(size: int) -> Shortlist:
    """The upper half of the ids, ends included."""
    return FRSpecShortlist(upper(size), half(size), (size - 1,))


def in_context(size: int) -> Shortlist:
    return InContextShortlist(upper(size), half(size), ())


def routed(size: int, width: int = 0) -> Shortlist:
    with torch.random.fork_rng():
        torch.manual_seed(size)
        router = Router(width or size, half(size)).requires_grad_(False)
    return RoutedShortlist(upper(size), half(size), (), clusters(size), router)


def evolving(size: int, width: int = 0, per_round: bool = True) -> Shortlist:
    """A core of one; of what is left, recency has a part where there are two places or more.
    Rows are so long that a state says more than how rare an id is."""
    budget = max(1, size - 1)
    return EvoSpecShortlist(
        upper(size), budget, (), clusters(size), 8 * torch.eye(size, width or size), core=1,
        recency=(budget - 1) // 2, per_round=per_round,
    )  # fmt: skip


LISTS: dict[str, ListOf] = {
    "full": FullShortlist,
    "static": static,
    "restless": RestlessList,
    "learning": LearningList,
    "in_context": in_context,
    "routed": routed,
    "semantic": SemanticList,
    "statistical": StatisticalList,
    "evospec": evolving,
    "evospec, each step": lambda size, width=0: evolving(size, width, per_round=False),
}


def over_states(name: str, size: int, width: int) -> Shortlist:
    """A list for a draft whose states are not its logits, but ``width`` numbers."""
    looks = name in ("routed", "semantic") or name.startswith("evospec")
    return LISTS[name](size, width) if looks else LISTS[name](size)
