"""Whole generations, every branch walked: production code over models whose law is known.

The walk goes through ``speculative()`` itself: proposals, lists, verification, rollback, end
ids and limits, several rounds. What comes out is compared, as a law over whole outputs, with
plain decoding's.
"""

import pytest
import torch

from minispec import verify as verification
from minispec.certificate.toys import ToyDraft, ToyTarget, random_table
from minispec.certificate.walker import Branching, distribution_of, total_variation
from minispec.commit import StopRule
from minispec.decode import autoregressive, speculative
from minispec.errors import ArgumentError
from minispec.sampling import Sampling
from minispec.shortlists.dynaspec import RoutedShortlist, Router
from minispec.shortlists.evospec import EvoSpecShortlist
from minispec.shortlists.frspec import FRSpecShortlist
from minispec.shortlists.full import FullShortlist
from minispec.shortlists.microspec import InContextShortlist
from minispec.types import Context, Distribution, Round, Shortlist

V, EOS = 4, 3
TARGET = ToyTarget(V, random_table(V, seed=1))
DRAFT = ToyDraft(V, random_table(V, seed=2))
PROMPT = [0, 1]


class RestlessList:
    """Another list at every position, and after every round: it learns from rejected drafts."""

    name, budget, per_round = "restless", 3, False

    def __init__(self) -> None:
        self.reset()

    def select(self, context: Context) -> torch.Tensor:
        key = hash((context.tokens, context.depth, self._learnt)) % (2**V - 1) + 1
        return torch.tensor([i for i in range(V) if key >> i & 1][:3])

    def observe(self, finished: Round) -> None:
        assert finished.evidence is not None
        self._learnt = (*self._learnt, finished.proposed[len(finished.path) :], finished.tokens)

    def reset(self) -> None:
        self._learnt: tuple[object, ...] = ()


def evolving(per_round: bool) -> EvoSpecShortlist:
    """One id of the core, one recent, and one of successors or clusters."""
    return EvoSpecShortlist(
        torch.tensor([3, 0, 1, 2]), 3, (EOS,), torch.tensor([0, 1, 1, 0]), torch.eye(V).double(),
        core=1, recency=1, per_round=per_round,
    )  # fmt: skip


def routed() -> RoutedShortlist:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        router = Router(V, 3).double().requires_grad_(False)
    return RoutedShortlist(torch.arange(V), 2, (), torch.tensor([0, 1, 2, 1]), router)


LISTS: dict[str, Shortlist] = {
    "full": FullShortlist(V),
    "static, end id on": FRSpecShortlist(torch.tensor([2, 1, 0, 3]), 2, (EOS,)),
    "static, end id off": FRSpecShortlist(torch.tensor([2, 1, 0, 3]), 2, ()),
    "one id": FRSpecShortlist(torch.tensor([1]), 1, ()),
    "restless": RestlessList(),
}
DYNAMIC: dict[str, Shortlist] = {
    "evolving, a step": evolving(per_round=False),
    "evolving, a round": evolving(per_round=True),
    "in context": InContextShortlist(torch.arange(V), 2, ()),
    "routed": routed(),
}


def output_distribution(
    shortlist: Shortlist | None, gamma: int, sampling: Sampling, limit: int, draft: ToyDraft = DRAFT
) -> dict[object, float]:
    """The law over whole outputs; without a list, plain decoding's."""
    stop = StopRule(limit, (EOS,))

    def program(rng: Branching) -> tuple[tuple[int, ...], str | None]:
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
@pytest.mark.parametrize("name", LISTS)
def test_speculation_keeps_the_law_of_whole_outputs(
    name: str, gamma: int, temperature: float
) -> None:
    sampling = Sampling(temperature)
    expected = output_distribution(None, 0, sampling, limit=3)
    assert abs(sum(expected.values()) - 1) < 1e-12
    assert (
        total_variation(output_distribution(LISTS[name], gamma, sampling, limit=3), expected)
        < 1e-12
    )


@pytest.mark.parametrize("name", DYNAMIC)
def test_lists_that_follow_the_text_keep_the_law(name: str) -> None:
    sampling = Sampling(1.0)
    expected = output_distribution(None, 0, sampling, limit=3)
    assert (
        total_variation(output_distribution(DYNAMIC[name], 2, sampling, limit=3), expected) < 1e-12
    )


def test_a_list_that_learns_from_rejected_drafts_keeps_the_law() -> None:
    """Over several rounds; and it does learn: the same text with other drafts refused on the
    way leads to other lists, without which the walk would prove nothing."""
    few, stop, sampling = 3, StopRule(5, (2,)), Sampling(1.0)
    target = ToyTarget(few, random_table(few, seed=5))
    draft = ToyDraft(few, random_table(few, seed=39))
    lists: dict[tuple[int, ...], set[tuple[int, ...]]] = {}

    class Spied(EvoSpecShortlist):
        def select(self, context: Context) -> torch.Tensor:
            ids = super().select(context)
            lists.setdefault(context.tokens, set()).add(tuple(ids.tolist()))
            return ids

    shortlist = Spied(
        torch.tensor([1, 0, 2]), 2, (), torch.arange(few), torch.eye(few).double(),
        core=1, recency=0, per_round=False,
    )  # fmt: skip

    def speculated(rng: Branching) -> tuple[int, ...]:
        rounds = speculative(
            target, draft, shortlist, [0, 1], gamma=1, sampling=sampling, rng=rng, stop=stop
        )
        return tuple(t for finished in rounds for t in finished.tokens)

    def plain(rng: Branching) -> tuple[int, ...]:
        rounds = autoregressive(target, [0, 1], sampling=sampling, rng=rng, stop=stop)
        return tuple(t for finished in rounds for t in finished.tokens)

    assert total_variation(distribution_of(speculated), distribution_of(plain)) < 1e-12
    assert any(len(found) > 1 for found in lists.values())


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("size", [1, 2])
def test_long_chains_keep_the_law(size: int, temperature: float) -> None:
    """gamma 3 needs four tokens to come to its full length, and few ids to be walked."""
    few, stop, sampling = 3, StopRule(4, (2,)), Sampling(temperature)
    target = ToyTarget(few, random_table(few, seed=5))
    draft = ToyDraft(few, random_table(few, seed=6))
    shortlist = FRSpecShortlist(torch.tensor([1, 2, 0]), size, ())
    lengths = set()

    def speculated(rng: Branching) -> tuple[int, ...]:
        rounds = list(speculative(
            target, draft, shortlist, [0, 1], gamma=3, sampling=sampling, rng=rng, stop=stop
        ))  # fmt: skip
        lengths.update(len(finished.proposed) for finished in rounds)
        return tuple(t for finished in rounds for t in finished.tokens)

    def plain(rng: Branching) -> tuple[int, ...]:
        rounds = autoregressive(target, [0, 1], sampling=sampling, rng=rng, stop=stop)
        return tuple(t for finished in rounds for t in finished.tokens)

    assert total_variation(distribution_of(speculated), distribution_of(plain)) < 1e-12
    assert 3 in lengths


@pytest.mark.parametrize("sampling", [Sampling(0.8, top_k=2), Sampling(1.2, top_p=0.6)], ids=str)
def test_a_shaped_law_is_kept_at_every_position(sampling: Sampling) -> None:
    """Top-k and top-p on the bonus token and after a rejection too."""
    expected = output_distribution(None, 0, sampling, limit=4)
    assert (
        total_variation(output_distribution(LISTS["restless"], 2, sampling, limit=4), expected)
        < 1e-12
    )


@pytest.mark.parametrize("limit", [0, 1, 2, 3])
def test_a_limit_inside_a_run_keeps_the_law(limit: int) -> None:
    """None, fewer than gamma, gamma and gamma + 1 tokens."""
    sampling = Sampling(1.0)
    expected = output_distribution(None, 0, sampling, limit)
    assert total_variation(output_distribution(LISTS["full"], 2, sampling, limit), expected) < 1e-12


def test_a_draft_that_is_the_target_is_always_accepted() -> None:
    twin = ToyDraft(V, random_table(V, seed=1))

    def program(rng: Branching) -> bool:
        rounds = list(speculative(
            TARGET, twin, FullShortlist(V), PROMPT,
            gamma=2, sampling=Sampling(1.0), rng=rng, stop=StopRule(4, (EOS,)),
        ))  # fmt: skip
        accepted = [len(r.path) for r in rounds if r.stop is None]
        return all(n == len(r.proposed) for n, r in zip(accepted, rounds, strict=False))

    assert distribution_of(program) == {True: pytest.approx(1.0, abs=1e-12)}


def test_a_planted_defect_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The residual's classic mistake: the target's law instead of what the draft left over."""

    def mistaken(p: Distribution, q: Distribution) -> Distribution:
        return p

    sampling = Sampling(1.0)
    expected = output_distribution(None, 0, sampling, limit=3)
    monkeypatch.setattr(verification, "residual", mistaken)
    assert (
        total_variation(output_distribution(LISTS["static, end id on"], 2, sampling, 3), expected)
        > 0.01
    )


def test_a_draft_that_is_led_wrongly_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactness hides a confused draft, so the toy draft checks its cache: without the
    rollback of rejected tokens it must complain."""
    monkeypatch.setattr("minispec.certificate.toys.ToyCache.truncate", lambda self, length: None)
    with pytest.raises(AssertionError, match="over a cache of"):
        output_distribution(LISTS["full"], 2, Sampling(1.0), limit=4)


def test_a_program_that_remembers_other_runs_is_refused() -> None:
    """Its branches would not be those of one program, and their law no law at all."""
    runs = iter(range(9))

    def program(source: Branching) -> int:
        return source.choose([0.5, 0.5] if next(runs) == 0 else [1.0, 0.0])

    with pytest.raises(ArgumentError, match="remembers something between runs"):
        distribution_of(program)
