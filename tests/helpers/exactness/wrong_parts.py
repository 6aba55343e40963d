"""Shortlists, learners and samplings with common mistakes: ``certify`` must refuse and name each.

See ``wrong_verifiers.py``.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from helpers.exactness.learners import build_learner
from minispec.certificate.decodings import ToyModels
from minispec.learning.learner import OnlineLearner
from minispec.sampling import Sampling
from minispec.types import BaseShortlist, Context, Distribution, Head, Learner, Round, Shortlist

# --- shortlists -----------------------------------------------------------------------------


class OneId(BaseShortlist):
    """A shortlist of one id, ``choose(context)``, which each mistake overrides."""

    name, budget = "one id", 1

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size, self.count = vocab_size, 0
        self.ids = torch.zeros(2, dtype=torch.int64)

    def choose(self, context: Context) -> int:
        return context.tokens[-1]

    def select(self, context: Context) -> Tensor:
        return torch.tensor([self.choose(context)])


class EditedShortlist(OneId):
    """Every selection is the same tensor with other ids."""

    def select(self, context: Context) -> Tensor:
        self.ids[0] = context.tokens[-1]
        return self.ids[:1]


class BufferShortlist(OneId):
    """Selections are new tensors over one buffer."""

    def select(self, context: Context) -> Tensor:
        self.ids.copy_(torch.tensor([context.tokens[-1], 0]))
        return self.ids.narrow(0, 0, 1)


class HindsightShortlist(OneId):
    """Two ids; the selection of a step is edited when the token drafted from it is known."""

    budget = 2

    def select(self, context: Context) -> Tensor:
        if context.depth:
            drafted = context.tokens[-1]
            self.ids[:] = torch.tensor(sorted({drafted, (drafted + 1) % self.vocab_size}))
        self.ids = torch.tensor([0, self.vocab_size - 1])
        return self.ids


class HindsightInPlaceShortlist(HindsightShortlist):
    """The same, with the edit after a new selection was made."""

    def select(self, context: Context) -> Tensor:
        earlier = self.ids
        self.ids = torch.tensor([0, self.vocab_size - 1])
        if context.depth:
            earlier[0] = context.tokens[-1]
        return self.ids


class ImpureShortlist(OneId):
    """``select`` counts its calls."""

    def choose(self, context: Context) -> int:
        self.count += 1
        return self.count % self.vocab_size


class RandomShortlist(OneId):
    """``select`` tosses a coin."""

    def choose(self, context: Context) -> int:
        return int(torch.randint(self.vocab_size, ()))


class LeakingShortlist(OneId):
    """Counts rounds, and ``reset`` resets nothing."""

    def choose(self, context: Context) -> int:
        return self.count % self.vocab_size

    def observe(self, finished: Round) -> None:
        self.count += 1


class RememberingShortlist(OneId):
    """Remembers whether it ever saw token 1, in whatever text."""

    def choose(self, context: Context) -> int:
        return min(self.count, 1)

    def observe(self, finished: Round) -> None:
        self.count += 1 in finished.tokens


class ListShortlist(OneId):
    """Ids as a list of Python ints."""

    def select(self, context: Context) -> Any:
        return [0]


class UnfinishedShortlist:
    """Has no ``per_round``, and no ``reset``."""

    name, budget = "unfinished", 1

    def select(self, context: Context) -> Tensor:
        return torch.tensor([0])

    def observe(self, finished: Round) -> None: ...


SHORTLIST_MISTAKES: dict[str, tuple[Callable[[int], Shortlist], str]] = {
    "the tensor is edited in place": (EditedShortlist, "one id: ids were edited in place after"),
    "selections share one buffer": (BufferShortlist, "one id: ids were edited in place after"),
    "a selection depends on the token drafted from it": (
        HindsightShortlist, "one id: ids were edited in place after",
    ),
    "a selection is edited when its token is known": (
        HindsightInPlaceShortlist, "one id: ids were edited in place after",
    ),
    "select changes state": (ImpureShortlist, "one id: select gave other ids when it was called"),
    "select is random": (RandomShortlist, "one id: select gave other ids when it was called"),
    "reset resets nothing": (LeakingShortlist, "reset must restore the state after construction"),
    "a memory of other texts": (RememberingShortlist, "reset must restore the state after"),
    "a member is missing": (
        lambda vocab_size: UnfinishedShortlist(),  # type: ignore[dict-item, return-value]
        "UnfinishedShortlist has no per_round: derive it from BaseShortlist",
    ),
    "ids are not a tensor": (ListShortlist, "expected an int64 tensor (K,)"),
}  # fmt: skip

# --- learners -------------------------------------------------------------------------------


class BiasLearner:
    """Adds a bias to the first logit. A right learner counts rounds; each mistake overrides."""

    invalidates_cache, top_ids_wanted = False, 0

    def __init__(self, models: ToyModels) -> None:
        self.draft, self.bias = models.draft, 0.0

    def start(self, continued: bool) -> None:
        self.bias = 0.0

    def on_prefill(self, ids: Tensor, aux_hidden_states: Tensor, hidden: Tensor) -> None: ...

    def adjust_logits(self, logits: Tensor, ids: Tensor, context: Context, sampling: Any) -> Tensor:
        adjusted = logits.clone()
        adjusted[0] += self.bias
        return adjusted

    def observe(self, finished: Round) -> Any:
        self.bias += 0.5
        return OnlineUpdate()


class OnlineUpdate:
    weights_changed, counts = False, dict[str, int]()


class HastyLearner(BiasLearner):
    """Learns at every draft step."""

    def adjust_logits(self, logits: Tensor, ids: Tensor, context: Context, sampling: Any) -> Tensor:
        self.bias += 0.5
        return super().adjust_logits(logits, ids, context, sampling)


class EditingLearner(BiasLearner):
    """Replaces an id of the shortlist in place."""

    def adjust_logits(self, logits: Tensor, ids: Tensor, context: Context, sampling: Any) -> Tensor:
        if len(ids) == 1:
            ids[0] = 0
        return logits


class LeakingLearner(BiasLearner):
    """Keeps what it learnt from one text to the next."""

    def start(self, continued: bool) -> None: ...


def build_weight_learner(models: ToyModels) -> OnlineLearner:
    """The production learner, but its draft's weights change at every draft step."""
    learner = build_learner(models)
    right = learner.adjust_logits

    def adjust_logits(*arguments: Any) -> Tensor:
        with torch.no_grad():
            for weight in learner.draft.parameters():
                weight.add_(0.1)
        return right(*arguments)

    learner.adjust_logits = adjust_logits  # type: ignore[method-assign]
    return learner


LEARNER_MISTAKES: dict[str, tuple[Callable[[ToyModels], Learner], str]] = {
    "learns at every draft step": (HastyLearner, "the learner changed within a round"),
    "changes weights at every draft step": (
        build_weight_learner, "the learner changed within a round",
    ),
    "edits the ids": (EditingLearner, "the learner edited the ids that it was given"),
    "keeps what it learnt": (LeakingLearner, "start must restore the state after construction"),
}  # fmt: skip

# --- samplings ------------------------------------------------------------------------------


class UnshapedBonus(Sampling):
    """The last of several target distributions is not shaped by top-p."""

    def target_distributions(self, head: Head, hidden: Tensor, *history: Any) -> list[Distribution]:
        distributions = super().target_distributions(head, hidden, *history)
        if len(hidden) > 1:
            last = Sampling(self.temperature).target_distributions(head, hidden[-1:])
            distributions[-1:] = last
        return distributions
