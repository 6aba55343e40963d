"""The decoding loop on the device makes the reference loop's decisions and waits once a round."""

from collections.abc import Iterator

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastpath.cuda import backend as cuda
from fastpath.cuda import device, device_round
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

VOCAB_SIZE = 23


@pytest.fixture(scope="module")
def pair() -> tuple[Transformer, EagleDraft]:
    """A float32 target and a draft with a high acceptance rate."""
    target = toy_transformer(
        num_hidden_layers=1, aux_hidden_state_layer_ids=(1,), vocab_size=VOCAB_SIZE
    ).float()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draft = init_from_target(target)
        for weight in draft.parameters():
            weight.data.add_(0.02 * torch.randn_like(weight))
    return target, draft.requires_grad_(False)


class ChangingShortlist:
    """Other ids in every round, a function of everything that a shortlist may depend on."""

    name, budget, per_round = "changing", 12, True

    def __init__(self) -> None:
        self.rounds = 0

    def select(self, context: Context) -> torch.Tensor:
        seed = len(context.tokens) + self.rounds + int(context.hidden[0] > 0)
        generator = torch.Generator().manual_seed(seed)
        return torch.randperm(VOCAB_SIZE, generator=generator)[: 5 + seed % 8].sort().values

    def observe(self, finished: Round) -> None:
        assert finished.evidence is not None
        self.rounds += 1

    def reset(self) -> None:
        self.rounds = 0


SHORTLISTS = {
    "full": lambda: FullShortlist(VOCAB_SIZE),
    "static": lambda: FRSpecShortlist(torch.arange(VOCAB_SIZE).flip(0), 9, (3,)),
    "changing": ChangingShortlist,
}


def run_both(
    pair: tuple[Transformer, EagleDraft], shortlist: str, temperature: float, seed: int, **stop: int
) -> Iterator[list[Round]]:
    target, draft = pair
    cuda_target = cuda.build_target(target)
    sides = (
        (decode, target, draft),
        (device_round, cuda_target, cuda.build_draft(draft, cuda_target)),
    )
    for module, model, draft_model in sides:
        yield list(module.speculative(
            model, draft_model, SHORTLISTS[shortlist](), [1, 2, seed + 3], gamma=3,
            sampling=Sampling(temperature), rng=SeededRandom(seed),
            stop=StopRule(**({"max_new_tokens": 9} | stop)), trace=True,
        ))  # fmt: skip


@pytest.mark.parametrize("shortlist", SHORTLISTS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_speculative_equals_reference_for_same_seed(pair, shortlist, temperature):
    for seed in range(2):
        theirs, ours = run_both(pair, shortlist, temperature, seed)
        assert len(theirs) == len(ours)
        for a, b in zip(theirs, ours, strict=True):
            assert (a.tokens, a.path, a.proposed, a.stop) == (b.tokens, b.path, b.proposed, b.stop)
            assert a.shortlist_sizes == b.shortlist_sizes
            assert_same_evidence(a.evidence, b.evidence)


def assert_same_evidence(theirs, ours):
    assert theirs.proposal.tokens == ours.proposal.tokens
    assert [float(a) for a in theirs.acceptance] == pytest.approx(list(ours.acceptance), abs=1e-5)
    assert (theirs.next_distribution is None) == (ours.next_distribution is None)
    for p, q in zip(
        theirs.proposal.draft_distributions, ours.proposal.draft_distributions, strict=True
    ):
        assert (p.ids == q.ids).all() and torch.allclose(p.probs, q.probs, atol=1e-5)
    # Target distributions may omit tokens of probability zero.
    a = (*theirs.target_distributions, *filter(None, [theirs.next_distribution]))
    b = (*ours.target_distributions, *filter(None, [ours.next_distribution]))
    for p, q in zip(a, b, strict=True):
        theirs_dense, ours_dense = (
            torch.zeros(1000).index_put((x.ids,), x.probs.float()) for x in (p, q)
        )
        assert torch.allclose(ours_dense, theirs_dense, atol=1e-5)


def test_run_both_accepts_some_proposals_and_rejects_others(pair):
    rounds = [r for seed in range(2) for r in next(run_both(pair, "static", 1.0, seed))]
    proposed, accepted = sum(len(r.proposed) for r in rounds), sum(len(r.path) for r in rounds)
    assert 0 < accepted < proposed  # otherwise equal rounds would prove little


@pytest.mark.parametrize(
    "stop", [{"max_new_tokens": 1}, {"max_new_tokens": 2}, {"eos_ids": (7, 9)}]
)
def test_speculative_stops_where_reference_stops(pair, stop):
    theirs, ours = run_both(pair, "static", 1.0, 1, **stop)
    assert [r.tokens for r in theirs] == [r.tokens for r in ours]
    assert theirs[-1].stop == ours[-1].stop


def test_speculative_equals_reference_for_prompt_of_one_token(pair):
    target, draft = pair
    cuda_target = cuda.build_target(target)
    args = {"gamma": 2, "sampling": Sampling(), "stop": StopRule(5)}
    a = decode.speculative(
        target, draft, FullShortlist(VOCAB_SIZE), [4], rng=SeededRandom(0), **args
    )
    b = device_round.speculative(
        cuda_target,
        cuda.build_draft(draft, cuda_target),
        FullShortlist(VOCAB_SIZE),
        [4],
        rng=SeededRandom(0),
        **args,
    )
    assert [r.tokens for r in a] == [r.tokens for r in b]


class ForbidWaiting(TorchDispatchMode):
    """Raises where the host would wait for a value on a GPU: ``int()``, ``if``, ``nonzero``."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.removeprefix("aten::")
        assert name not in self.WAITS, f"{name} waits for the device"
        return function(*args, **(kwargs or {}))


def test_speculative_waits_once_a_round(pair, monkeypatch):
    waits = []
    enqueue_round = device_round._RoundQueue.enqueue_round

    def enqueue_without_waiting(self, *arguments):
        self._draft.head.pack(arguments[2])  # packing reads ids on the host only
        with ForbidWaiting():
            return enqueue_round(self, *arguments)

    def count_to_host(tensor):
        waits.append(tensor.numel())
        return device.to_host(tensor)

    monkeypatch.setattr(device_round._RoundQueue, "enqueue_round", enqueue_without_waiting)
    monkeypatch.setattr(device_round, "to_host", count_to_host)
    target, draft = pair
    cuda_target = cuda.build_target(target)
    rounds = list(device_round.speculative(
        cuda_target, cuda.build_draft(draft, cuda_target), ChangingShortlist(), [1, 2, 3], gamma=3,
        sampling=Sampling(1.0), rng=SeededRandom(0), stop=StopRule(7),
    ))  # fmt: skip
    assert len(waits) == len(rounds) > 1


def test_forbid_waiting_detects_int():
    with pytest.raises(AssertionError, match="waits"), ForbidWaiting():
        int(torch.arange(3)[1])


def test_speculative_rejects_unsupported_options(pair):
    target, draft = pair
    cuda_target = cuda.build_target(target)
    cuda_draft = cuda.build_draft(draft, cuda_target)

    def run(shortlist: Shortlist, sampling: Sampling, prompt: list[int]) -> None:
        device_round.speculative(
            cuda_target, cuda_draft, shortlist, prompt, gamma=2, sampling=sampling,
            rng=SeededRandom(0), stop=StopRule(4),
        )  # fmt: skip

    per_step = ChangingShortlist()
    per_step.per_round = False
    with pytest.raises(ArgumentError, match="every step"):
        run(per_step, Sampling(), [1])
    for sampling, name in (
        (Sampling(1.0, top_k=3), "top-k 3"),
        (Sampling(1.0, top_p=0.9), "top-p 0.9"),
        (Sampling(1.0, min_p=0.1), "min-p 0.1"),
        (Sampling(0.0, repetition_penalty=1.2), "repetition-penalty 1.2"),
        (Sampling(0.0, presence_penalty=0.5), "presence-penalty 0.5"),
        (Sampling(0.0, frequency_penalty=0.5), "frequency-penalty 0.5"),
        (Sampling(0.0, logit_bias=((1, 2.0),)), "logit-bias of 1 ids"),
        (Sampling(0.0, bad_words=((1,),)), "1 bad words"),
    ):
        with pytest.raises(ArgumentError, match=f"{name}.*the temperature alone"):
            run(FullShortlist(VOCAB_SIZE), sampling, [1])
    with pytest.raises(ContextError):
        run(FullShortlist(VOCAB_SIZE), Sampling(), [1] * 64)
    with pytest.raises(ArgumentError, match="float64"):
        cuda.build_target(toy_transformer())


SHAPED = Sampling(
    1.0, top_p=0.9, min_p=0.01, repetition_penalty=1.3, frequency_penalty=0.5, presence_penalty=0.2,
    logit_bias=((3, 1.0),), bad_words=((2,), (1, 4)),
)  # fmt: skip


@pytest.mark.parametrize("sampling", [Sampling(1.0, top_p=0.9), SHAPED], ids=str)
def test_reference_loop_with_device_models_equals_reference(pair, sampling):
    target, draft = pair
    cuda_target = cuda.build_target(target)
    sides = (target, draft), (cuda_target, cuda.build_draft(draft, cuda_target).with_own_head())
    shortlist = ChangingShortlist()
    shortlist.per_round = False

    def tokens(model, draft_model):
        rounds = decode.speculative(
            model, draft_model, shortlist, [1, 2, 3], gamma=3, sampling=sampling,
            rng=SeededRandom(0), stop=StopRule(7),
        )  # fmt: skip
        return [finished.tokens for finished in rounds]

    assert tokens(*sides[0]) == tokens(*sides[1])
