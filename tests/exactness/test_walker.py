"""Whole outputs, every branch enumerated: production code over models with known distributions.

The enumeration runs ``speculative()`` itself: proposals, shortlists, verification, rollback, EOS
ids, limits, several rounds. The distribution of whole outputs is compared with plain decoding's.
"""

import pytest
import torch

from minispec import verify as verification
from minispec.certificate.toys import ToyDraft, ToyTarget, random_table
from minispec.certificate.walker import BranchingSource, distribution_of, total_variation
from minispec.commit import StopRule
from minispec.decode import autoregressive, speculative
from minispec.errors import ArgumentError
from minispec.sampling import Sampling
from minispec.shortlists.dynaspec import DynaSpecShortlist, Router
from minispec.shortlists.evospec import EvoSpecShortlist
from minispec.shortlists.frspec import FRSpecShortlist
from minispec.shortlists.full import FullShortlist
from minispec.shortlists.microspec import MicroSpecShortlist
from minispec.types import BaseShortlist, Context, Distribution, Round, Shortlist

V, EOS = 4, 3
TARGET = ToyTarget(V, random_table(V, seed=1))
DRAFT = ToyDraft(V, random_table(V, seed=2))
PROMPT = [0, 1]


class HashedShortlist(BaseShortlist):
    """Other ids at every position and after every round: they depend on rejected drafts."""

    name, budget = "hashed", 3

    def __init__(self) -> None:
        self.reset()

    def select(self, context: Context) -> torch.Tensor:
        key = hash((context.tokens, context.depth, self._past)) % (2**V - 1) + 1
        return torch.tensor([i for i in range(V) if key >> i & 1][:3])

    def observe(self, finished: Round) -> None:
        assert finished.evidence is not None
        self._past = (*self._past, finished.proposed[len(finished.path) :], finished.tokens)

    def reset(self) -> None:
        self._past: tuple[object, ...] = ()


def build_evospec(per_round: bool) -> EvoSpecShortlist:
    """One id of the core, one recent id, and one of the successors or clusters."""
    return EvoSpecShortlist(
        torch.tensor([3, 0, 1, 2]), 3, (EOS,), torch.tensor([0, 1, 1, 0]), torch.eye(V).double(),
        core=1, recency=1, per_round=per_round,
    )  # fmt: skip


def build_dynaspec() -> DynaSpecShortlist:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        router = Router(V, 3).double().requires_grad_(False)
    return DynaSpecShortlist(torch.arange(V), 2, (), torch.tensor([0, 1, 2, 1]), router)


SHORTLISTS: dict[str, Shortlist] = {
    "full": FullShortlist(V),
    "frspec with EOS": FRSpecShortlist(torch.tensor([2, 1, 0, 3]), 2, (EOS,)),
    "frspec without EOS": FRSpecShortlist(torch.tensor([2, 1, 0, 3]), 2, ()),
    "one id": FRSpecShortlist(torch.tensor([1]), 1, ()),
    "hashed": HashedShortlist(),
}
DYNAMIC: dict[str, Shortlist] = {
    "evospec, each step": build_evospec(per_round=False),
    "evospec, each round": build_evospec(per_round=True),
    "microspec": MicroSpecShortlist(V, 3),
    "dynaspec": build_dynaspec(),
}


def output_distribution(
    shortlist: Shortlist | None, gamma: int, sampling: Sampling, limit: int, draft: ToyDraft = DRAFT
) -> dict[object, float]:
    """The distribution of whole outputs; without a shortlist, plain decoding's."""
    stop = StopRule(limit, (EOS,))

    def program(rng: BranchingSource) -> tuple[tuple[int, ...], str | None]:
        if shortlist is None:
            rounds = autoregressive(TARGET, PROMPT, sampling=sampling, rng=rng, stop=stop)
        else:
            rounds = speculative(
                TARGET, draft, shortlist, PROMPT,
                gamma=gamma, sampling=sampling, rng=rng, stop=stop,
            )  # fmt: skip
        done = list(rounds)
        return tuple(t for r in done for t in r.tokens), done[-1].stop if done else None

    return distribution_of(program)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("gamma", [1, 2])
@pytest.mark.parametrize("name", SHORTLISTS)
def test_speculative_keeps_the_output_distribution(
    name: str, gamma: int, temperature: float
) -> None:
    sampling = Sampling(temperature)
    expected = output_distribution(None, 0, sampling, limit=3)
    assert abs(sum(expected.values()) - 1) < 1e-12
    ours = output_distribution(SHORTLISTS[name], gamma, sampling, limit=3)
    assert total_variation(ours, expected) < 1e-12


@pytest.mark.parametrize("name", DYNAMIC)
def test_speculative_with_a_dynamic_shortlist_keeps_the_output_distribution(name: str) -> None:
    sampling = Sampling(1.0)
    expected = output_distribution(None, 0, sampling, limit=3)
    ours = output_distribution(DYNAMIC[name], 2, sampling, limit=3)
    assert total_variation(ours, expected) < 1e-12


def test_speculative_with_a_learning_shortlist_keeps_the_output_distribution() -> None:
    """Over several rounds. The shortlist does learn: the same text, reached with other rejected
    drafts, has other shortlists; without that the enumeration would prove nothing."""
    size, stop, sampling = 3, StopRule(5, (2,)), Sampling(1.0)
    target = ToyTarget(size, random_table(size, seed=5))
    draft = ToyDraft(size, random_table(size, seed=39))
    selected: dict[tuple[int, ...], set[tuple[int, ...]]] = {}

    class RecordingShortlist(EvoSpecShortlist):
        def select(self, context: Context) -> torch.Tensor:
            ids = super().select(context)
            selected.setdefault(context.tokens, set()).add(tuple(ids.tolist()))
            return ids

    shortlist = RecordingShortlist(
        torch.tensor([1, 0, 2]), 2, (), torch.arange(size), torch.eye(size).double(),
        core=1, recency=0, per_round=False,
    )  # fmt: skip

    def speculate(rng: BranchingSource) -> tuple[int, ...]:
        rounds = speculative(
            target, draft, shortlist, [0, 1], gamma=1, sampling=sampling, rng=rng, stop=stop
        )
        return tuple(t for finished in rounds for t in finished.tokens)

    def decode_plain(rng: BranchingSource) -> tuple[int, ...]:
        rounds = autoregressive(target, [0, 1], sampling=sampling, rng=rng, stop=stop)
        return tuple(t for finished in rounds for t in finished.tokens)

    assert total_variation(distribution_of(speculate), distribution_of(decode_plain)) < 1e-12
    assert any(len(shortlists) > 1 for shortlists in selected.values())


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("budget", [1, 2])
def test_speculative_with_gamma_3_keeps_the_output_distribution(
    budget: int, temperature: float
) -> None:
    """A full chain of gamma 3 needs four tokens, and few ids to be enumerated."""
    size, stop, sampling = 3, StopRule(4, (2,)), Sampling(temperature)
    target = ToyTarget(size, random_table(size, seed=5))
    draft = ToyDraft(size, random_table(size, seed=6))
    shortlist = FRSpecShortlist(torch.tensor([1, 2, 0]), budget, ())
    lengths = set()

    def speculate(rng: BranchingSource) -> tuple[int, ...]:
        rounds = list(speculative(
            target, draft, shortlist, [0, 1], gamma=3, sampling=sampling, rng=rng, stop=stop
        ))  # fmt: skip
        lengths.update(len(finished.proposed) for finished in rounds)
        return tuple(t for finished in rounds for t in finished.tokens)

    def decode_plain(rng: BranchingSource) -> tuple[int, ...]:
        rounds = autoregressive(target, [0, 1], sampling=sampling, rng=rng, stop=stop)
        return tuple(t for finished in rounds for t in finished.tokens)

    assert total_variation(distribution_of(speculate), distribution_of(decode_plain)) < 1e-12
    assert 3 in lengths


@pytest.mark.parametrize("sampling", [Sampling(0.8, top_k=2), Sampling(1.2, top_p=0.6)], ids=str)
def test_speculative_with_top_k_or_top_p_keeps_the_output_distribution(sampling: Sampling) -> None:
    """The bonus token and the token after a rejection are shaped too."""
    expected = output_distribution(None, 0, sampling, limit=4)
    ours = output_distribution(SHORTLISTS["hashed"], 2, sampling, limit=4)
    assert total_variation(ours, expected) < 1e-12


@pytest.mark.parametrize("limit", [0, 1, 2, 3])
def test_speculative_with_a_limit_inside_a_run_keeps_the_output_distribution(limit: int) -> None:
    """No token, fewer than gamma, gamma and gamma + 1 tokens."""
    sampling = Sampling(1.0)
    expected = output_distribution(None, 0, sampling, limit)
    ours = output_distribution(SHORTLISTS["full"], 2, sampling, limit)
    assert total_variation(ours, expected) < 1e-12


def test_speculative_accepts_every_token_of_a_draft_equal_to_the_target() -> None:
    equal_draft = ToyDraft(V, random_table(V, seed=1))

    def program(rng: BranchingSource) -> bool:
        rounds = list(speculative(
            TARGET, equal_draft, FullShortlist(V), PROMPT,
            gamma=2, sampling=Sampling(1.0), rng=rng, stop=StopRule(4, (EOS,)),
        ))  # fmt: skip
        accepted = [len(r.path) for r in rounds if r.stop is None]
        return all(n == len(r.proposed) for n, r in zip(accepted, rounds, strict=False))

    assert distribution_of(program) == {True: pytest.approx(1.0, abs=1e-12)}


def test_distribution_of_detects_a_residual_equal_to_p(monkeypatch: pytest.MonkeyPatch) -> None:
    """The classic defect of a residual: p itself instead of the normalised (p - q)+."""

    def wrong_residual(p: Distribution, q: Distribution) -> Distribution:
        return p

    sampling = Sampling(1.0)
    expected = output_distribution(None, 0, sampling, limit=3)
    monkeypatch.setattr(verification, "residual", wrong_residual)
    ours = output_distribution(SHORTLISTS["frspec with EOS"], 2, sampling, 3)
    assert total_variation(ours, expected) > 0.01


def test_toy_draft_detects_a_cache_that_is_not_truncated(monkeypatch: pytest.MonkeyPatch) -> None:
    """The output stays exact whatever the draft computes, so the toy draft checks its cache."""
    monkeypatch.setattr("minispec.certificate.toys.ToyCache.truncate", lambda self, length: None)
    with pytest.raises(AssertionError, match="with a cache of"):
        output_distribution(SHORTLISTS["full"], 2, Sampling(1.0), limit=4)


def test_distribution_of_refuses_a_program_with_state_between_runs() -> None:
    """Its branches would not be those of one program."""
    runs = iter(range(9))

    def program(source: BranchingSource) -> int:
        return source.choose([0.5, 0.5] if next(runs) == 0 else [1.0, 0.0])

    with pytest.raises(ArgumentError, match="keeps state between runs"):
        distribution_of(program)
