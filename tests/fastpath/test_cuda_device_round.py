"""The loop on the device decides what the reference's loop decides, and waits once a round."""

from collections.abc import Iterator

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastpath.cuda import backend as cuda
from fastpath.cuda import device
from fastpath.cuda import device_round as cuda_round
from helpers.toys import toy_transformer
from minispec import decode
from minispec.commit import StopRule
from minispec.errors import ArgumentError, ContextError
from minispec.models.eagle_draft import EagleDraft, init_from_target
from minispec.models.transformer import Transformer
from minispec.sampling import Sampling, SeededRandom
from minispec.shortlists.frspec import FRSpecShortlist
from minispec.shortlists.full import FullShortlist
from minispec.types import Context, Round, Shortlist

V = 23


@pytest.fixture(scope="module")
def pair() -> tuple[Transformer, EagleDraft]:
    """A target in float32 and a draft that is often right about it."""
    target = toy_transformer(
        num_hidden_layers=1, aux_hidden_state_layer_ids=(1,), vocab_size=V
    ).float()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draft = init_from_target(target)
        for weight in draft.parameters():
            weight.data.add_(0.02 * torch.randn_like(weight))
    return target, draft.requires_grad_(False)


class Wandering:
    """Another list in every round, which depends on all that a list may depend on."""

    name, budget, per_round = "wandering", 12, True

    def __init__(self) -> None:
        self.rounds = 0

    def select(self, context: Context) -> torch.Tensor:
        seed = len(context.tokens) + self.rounds + int(context.hidden[0] > 0)
        generator = torch.Generator().manual_seed(seed)
        return torch.randperm(V, generator=generator)[: 5 + seed % 8].sort().values

    def observe(self, finished: Round) -> None:
        assert finished.evidence is not None
        self.rounds += 1

    def reset(self) -> None:
        self.rounds = 0


LISTS = {
    "full": lambda: FullShortlist(V),
    "static": lambda: FRSpecShortlist(torch.arange(V).flip(0), 9, (3,)),
    "wandering": Wandering,
}


def both(
    pair: tuple[Transformer, EagleDraft], shortlist: str, temperature: float, seed: int, **stop: int
) -> Iterator[list[Round]]:
    target, draft = pair
    there = cuda.target(target)
    sides = (decode, target, draft), (cuda_round, there, cuda.draft(draft, there))
    for module, model, guesser in sides:
        yield list(module.speculative(
            model, guesser, LISTS[shortlist](), [1, 2, seed + 3], gamma=3,
            sampling=Sampling(temperature), rng=SeededRandom(seed),
            stop=StopRule(**({"max_new_tokens": 9} | stop)), trace=True,
        ))  # fmt: skip


@pytest.mark.parametrize("shortlist", LISTS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_same_seed_gives_the_same_rounds(pair, shortlist, temperature):
    for seed in range(2):
        theirs, ours = both(pair, shortlist, temperature, seed)
        assert len(theirs) == len(ours)
        for a, b in zip(theirs, ours, strict=True):
            assert (a.tokens, a.path, a.proposed, a.stop) == (b.tokens, b.path, b.proposed, b.stop)
            assert a.shortlist_sizes == b.shortlist_sizes
            same_evidence(a.evidence, b.evidence)


def same_evidence(theirs, ours):
    assert theirs.proposal.tokens == ours.proposal.tokens
    assert [float(a) for a in theirs.acceptance] == pytest.approx(list(ours.acceptance), abs=1e-5)
    assert (theirs.next_distribution is None) == (ours.next_distribution is None)
    for p, q in zip(
        theirs.proposal.draft_distributions, ours.proposal.draft_distributions, strict=True
    ):
        assert (p.ids == q.ids).all() and torch.allclose(p.probs, q.probs, atol=1e-5)
    # The target's laws may name all ids, or those alone that they give anything.
    a = (*theirs.target_distributions, *filter(None, [theirs.next_distribution]))
    b = (*ours.target_distributions, *filter(None, [ours.next_distribution]))
    for p, q in zip(a, b, strict=True):
        wide, short = (torch.zeros(1000).index_put((x.ids,), x.probs.float()) for x in (p, q))
        assert torch.allclose(wide, short, atol=1e-5)


def test_some_proposals_are_accepted_and_some_not(pair):
    rounds = [r for seed in range(2) for r in next(both(pair, "static", 1.0, seed))]
    proposed, accepted = sum(len(r.proposed) for r in rounds), sum(len(r.path) for r in rounds)
    assert 0 < accepted < proposed  # else equal rounds would show little


@pytest.mark.parametrize(
    "stop", [{"max_new_tokens": 1}, {"max_new_tokens": 2}, {"eos_ids": (7, 9)}]
)
def test_it_stops_where_the_reference_stops(pair, stop):
    theirs, ours = both(pair, "static", 1.0, 1, **stop)
    assert [r.tokens for r in theirs] == [r.tokens for r in ours]
    assert theirs[-1].stop == ours[-1].stop


def test_a_prompt_of_one_token(pair):
    target, draft = pair
    there = cuda.target(target)
    args = {"gamma": 2, "sampling": Sampling(), "stop": StopRule(5)}
    a = decode.speculative(target, draft, FullShortlist(V), [4], rng=SeededRandom(0), **args)
    b = cuda_round.speculative(
        there, cuda.draft(draft, there), FullShortlist(V), [4], rng=SeededRandom(0), **args
    )
    assert [r.tokens for r in a] == [r.tokens for r in b]


class NoLooking(TorchDispatchMode):
    """On a GPU the host waits where it looks at a value: ``int()``, ``if``, ``nonzero``."""

    LOOKS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.removeprefix("aten::")
        assert name not in self.LOOKS, f"{name} waits for the device"
        return function(*args, **(kwargs or {}))


def test_it_waits_once_a_round(pair, monkeypatch):
    waits = []
    queue = cuda_round._Queue.round

    def watched(self, *arguments):
        self._draft.head.pack(arguments[2])  # the list's own upkeep looks at ids of the host
        with NoLooking():
            return queue(self, *arguments)

    def fetched(tensor):
        waits.append(tensor.numel())
        return device.fetched(tensor)

    monkeypatch.setattr(cuda_round._Queue, "round", watched)
    monkeypatch.setattr(cuda_round, "fetched", fetched)
    target, draft = pair
    there = cuda.target(target)
    rounds = list(cuda_round.speculative(
        there, cuda.draft(draft, there), Wandering(), [1, 2, 3], gamma=3,
        sampling=Sampling(1.0), rng=SeededRandom(0), stop=StopRule(7),
    ))  # fmt: skip
    assert len(waits) == len(rounds) > 1


def test_looking_would_be_seen():
    with pytest.raises(AssertionError, match="waits"), NoLooking():
        int(torch.arange(3)[1])


def test_what_it_does_not_do_is_said(pair):
    target, draft = pair
    there = cuda.target(target)
    mine = cuda.draft(draft, there)

    def run(shortlist: Shortlist, sampling: Sampling, prompt: list[int]) -> None:
        cuda_round.speculative(
            there, mine, shortlist, prompt, gamma=2, sampling=sampling,
            rng=SeededRandom(0), stop=StopRule(4),
        )  # fmt: skip

    stepwise = Wandering()
    stepwise.per_round = False
    with pytest.raises(ArgumentError, match="every step"):
        run(stepwise, Sampling(), [1])
    with pytest.raises(ArgumentError, match="top-k"):
        run(FullShortlist(V), Sampling(1.0, top_k=3), [1])
    with pytest.raises(ContextError):
        run(FullShortlist(V), Sampling(), [1] * 64)
    with pytest.raises(ArgumentError, match="float64"):
        cuda.target(toy_transformer())


def test_the_reference_loop_runs_on_the_device_too(pair):
    target, draft = pair
    there = cuda.target(target)
    sides = (target, draft), (there, cuda.draft(draft, there).with_own_head())
    wandering = Wandering()
    wandering.per_round = False

    def tokens(model, guesser):
        rounds = decode.speculative(
            model, guesser, wandering, [1, 2, 3], gamma=3, sampling=Sampling(1.0, top_p=0.9),
            rng=SeededRandom(0), stop=StopRule(7),
        )  # fmt: skip
        return [finished.tokens for finished in rounds]

    assert tokens(*sides[0]) == tokens(*sides[1])
