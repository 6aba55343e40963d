"""Replay: on a recorded text it gives the rounds of the real decoding loop."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from helpers.follower import Follower
from helpers.tiny_model import Tiny
from minispec.certificate.toys import ToyDraft, ToyTarget, random_table
from minispec.commit import StopRule
from minispec.decode import autoregressive, prefill, speculative
from minispec.growth import TreeShape
from minispec.io import draft_file
from minispec.models.eagle_draft import EagleDraft
from minispec.ranked_head import RankedHead
from minispec.sampling import Sampling, SeededRandom
from minispec.shortlists.frspec import FRSpecShortlist
from minispec.shortlists.full import FullShortlist
from minispec.tools.evaluation import replay
from minispec.tools.evaluation.measure import measure
from minispec.tools.evaluation.replay import RETRIEVED, RecordedTarget, replay_text
from minispec.tools.models import pretrained
from minispec.tools.models.pretrained import Pretrained
from minispec.types import Round, Shortlist, Target

V = 320
GREEDY = Sampling()


@pytest.fixture(scope="module")
def model(tiny: Tiny) -> Pretrained:
    """In float64, where passes over many positions and over few have the same argmax."""
    return pretrained.load(str(tiny.folder), "float64")


@pytest.fixture(scope="module")
def draft(tiny: Tiny, model: Pretrained) -> EagleDraft:
    return draft_file.load_draft(tiny.draft_path, model.target, model.fingerprint)


def make_shortlists() -> dict[str, Shortlist]:
    ranking = torch.randperm(V, generator=torch.Generator().manual_seed(0))
    return {
        "full": FullShortlist(V),
        "static": FRSpecShortlist(ranking, 80, (V - 1,)),
        "follower": Follower(ranking, 80),
        "follower, once a round": Follower(ranking, 80, per_round=True),
    }


def decode_plainly(target: Target, prompt: Sequence[int], stop: StopRule) -> tuple[int, ...]:
    rounds = autoregressive(target, prompt, sampling=GREEDY, rng=SeededRandom(0), stop=stop)
    return measure(rounds).tokens


def summarize(finished: Round) -> tuple[Any, ...]:
    return (
        finished.tokens,
        finished.path,
        finished.proposed,
        finished.shortlist_sizes,
        finished.stop,
    )


def make_toys() -> tuple[ToyTarget, ToyDraft]:
    """A target and a draft that often agrees with it and checks its own cache."""
    table, other = random_table(V, seed=1), random_table(V, seed=2)
    similar = lambda tokens: table(tokens) + 0.4 * other(tokens)  # noqa: E731
    return ToyTarget(V, table, context=200), ToyDraft(V, similar)


@pytest.mark.parametrize("name", list(make_shortlists()))
@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("models", ["tiny", "toys"])
def test_recorded_target_gives_the_rounds_of_the_real_target(
    model: Pretrained, draft: EagleDraft, models: str, name: str, ends: bool
) -> None:
    """Over a conversation of two turns, through which the shortlist keeps what it learnt. With
    ``ends`` the first answer reaches an end id, and the chain drafted there runs past it."""
    target, drafter = (model.target, draft) if models == "tiny" else make_toys()
    prompt = (1, 2, 3)
    end = decode_plainly(target, prompt, StopRule(40))[23]
    stop = StopRule(40, (end,) if ends else ())
    first, second = make_shortlists()[name], make_shortlists()[name]
    accepted = 0
    for turn in range(2):
        answer = decode_plainly(target, prompt, stop)
        assert not ends or turn or len(answer) < 40
        text = RecordedTarget(target, prompt, answer)
        rounds = [
            [
                summarize(finished)
                for finished in speculative(
                    each, drafter, shortlist, prompt, gamma=4, sampling=GREEDY,
                    rng=SeededRandom(0), stop=stop, continued=turn > 0,
                )
            ]
            for each, shortlist in ((target, first), (text, second))
        ]  # fmt: skip
        assert rounds[0] == rounds[1]
        assert [token for finished in rounds[0] for token in finished[0]] == list(answer)
        accepted += sum(len(finished[1]) for finished in rounds[0])
        prompt = (*prompt, *answer, 7, 8, 9)
    if (models, name, ends) == ("toys", "full", False):
        assert accepted > 20


def test_recorded_target_verifies_trees_as_the_real_target(
    model: Pretrained, draft: EagleDraft
) -> None:
    prompt = (1, 2, 3)
    stop = StopRule(40)
    text = RecordedTarget(model.target, prompt, decode_plainly(model.target, prompt, stop))
    rounds = [
        [
            (finished.tokens, finished.path, finished.parents)
            for finished in speculative(
                target, draft, FullShortlist(V), prompt, gamma=1, sampling=GREEDY,
                rng=SeededRandom(0), stop=stop, tree=TreeShape(3, 3, 8),
            )
        ]
        for target in (model.target, text)
    ]  # fmt: skip
    assert rounds[0] == rounds[1] and any(path for _, path, _ in rounds[0])


def test_replay_text_has_the_figures_of_the_real_loop(model: Pretrained, draft: EagleDraft) -> None:
    """Although it also asks the shortlist for explanations."""
    prompt = model.tokenizer.chat("The sea")
    stop = StopRule(40)
    answer = decode_plainly(model.target, prompt, stop)
    for name, shortlist in make_shortlists().items():
        text = RecordedTarget(model.target, prompt, answer)
        found = replay_text(text, draft, shortlist, gamma=3, stop=stop)
        rounds = speculative(
            model.target, draft, make_shortlists()[name], prompt, gamma=3, sampling=GREEDY,
            rng=SeededRandom(0), stop=stop, trace=True,
        )  # fmt: skip
        real = measure(rounds, prompt)
        for key in ("tokens", "emitted", "accepted_at", "proposed_at", "coverage", "prompt"):
            assert getattr(found.figures, key) == getattr(real, key), (name, key)
        assert found.figures.prompt == tuple(prompt)


def test_replay_text_follows_the_recorded_text(model: Pretrained, draft: EagleDraft) -> None:
    """A control for the test above: the recorded text determines the result."""
    prompt = model.tokenizer.chat("The sea")
    answer = list(decode_plainly(model.target, prompt, StopRule(30)))
    answer[10:] = [i ^ 1 for i in answer[10:]]
    text = RecordedTarget(model.target, prompt, answer)
    found = replay_text(text, draft, FullShortlist(V), gamma=3, stop=StopRule(30))
    assert found.figures.tokens == tuple(answer)
    assert found.figures.tokens != decode_plainly(model.target, prompt, StopRule(30))


def test_recorded_target_has_the_features_of_the_target(model: Pretrained) -> None:
    prompt, answer = [5, 6, 7], [8, 9, 10, 11]
    text = RecordedTarget(model.target, prompt, answer)
    (features,) = prefill(model.target, [*prompt, *answer[:-1]], model.target.new_cache(10))
    assert torch.equal(text.hidden, features.hidden)
    cache = text.new_cache(100)
    text.step(torch.tensor(prompt[:-1]), cache)
    step = text.step(torch.tensor([7, 8]), cache)
    assert torch.equal(step.aux_hidden_states, features.aux_hidden_states[2:4])
    assert text.head.logits(step.hidden).argmax(-1).tolist() == [8, 9]
    cache.keep(3, ())
    assert text.head.logits(text.step(torch.tensor([0]), cache).hidden).argmax().item() == 9


@pytest.mark.parametrize("name", list(make_shortlists()))
def test_steps_are_compared_with_the_distribution_of_the_target(
    model: Pretrained, draft: EagleDraft, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the distributions that ``Sampling`` computes, x over the whole vocabulary."""
    steps: list[Any] = []
    real = replay._compare_step

    def record(text: RecordedTarget, draft: Any, step: Any) -> replay.StepFigures:
        steps.append(step)
        return real(text, draft, step)

    monkeypatch.setattr(replay, "_compare_step", record)
    prompt = model.tokenizer.chat("The sea")
    answer = decode_plainly(model.target, prompt, StopRule(20))
    text = RecordedTarget(model.target, prompt, answer)
    found = replay_text(text, draft, make_shortlists()[name], gamma=2, stop=StopRule(20))
    tokens = [*prompt, *answer]
    (features,) = prefill(model.target, tokens, model.target.new_cache(len(tokens)))
    sampling = Sampling(replay.TEMPERATURE)
    assert len(steps) == len(found.steps) > 5
    for step, compared in zip(steps, found.steps, strict=True):
        position = len(step.context.tokens) - 1
        assert list(step.context.tokens) == tokens[: position + 1]
        everything = torch.arange(V)
        p = sampling.distribution(
            model.target.head.logits(features.hidden[position]), everything
        ).probs
        q = torch.zeros_like(p)
        distribution = sampling.distribution(
            draft.head.logits_of(step.context.hidden, step.ids), step.ids
        )
        q[distribution.ids] = distribution.probs
        assert compared.overlap == pytest.approx(float(torch.minimum(p, q).sum()), abs=1e-5)
        assert compared.mass == pytest.approx(float(p[step.ids].sum()), abs=1e-5)
        assert compared.overlap <= compared.mass + 1e-6
        assert sum(compared.parts.values()) == pytest.approx(compared.mass if step.parts else 0)
        likeliest = p.argsort(descending=True)
        expected = [len({*likeliest[:n].tolist()} & {*step.ids.tolist()}) / n for n in RETRIEVED]
        assert compared.recall == pytest.approx(expected)


def test_recorded_target_ranks_as_the_target_does(model: Pretrained) -> None:
    """The ids below the recorded one too, which shortlists and learners may ask for; a recorded id
    that is not the likeliest comes first, and the likeliest takes its place."""
    prompt, answer = [5, 6, 7], [8, 9, 10, 11]
    text = RecordedTarget(model.target, prompt, answer)
    (features,) = prefill(model.target, [*prompt, *answer[:-1]], model.target.new_cache(10))
    logits = model.target.head.logits(features.hidden)  # (6, V)
    step = text.step(torch.tensor([*prompt, *answer[:-1]]), text.new_cache(100))
    ids, values = RankedHead(text.head, 12).rank(step.hidden)
    for row, following, found, sorted_values in zip(
        logits, [6, 7, *answer], ids, values, strict=True
    ):
        top = int(row.argmax())
        swapped = row.clone()
        swapped[following], swapped[top] = row[top], row[following]
        assert found.tolist() == swapped.argsort(descending=True)[:12].tolist()
        assert torch.equal(sorted_values, row.sort(descending=True).values[:12])


def test_origin_counts_accepted_tokens_by_part(model: Pretrained, draft: EagleDraft) -> None:
    prompt = model.tokenizer.chat("The sea")
    stop = StopRule(60)
    text = RecordedTarget(model.target, prompt, decode_plainly(model.target, prompt, stop))
    assert replay_text(text, draft, FullShortlist(V), gamma=4, stop=stop).origin == {}
    for name in ("follower", "follower, once a round"):
        found = replay_text(text, draft, make_shortlists()[name], gamma=4, stop=stop)
        assert sum(found.origin.values()) == sum(found.figures.accepted_at) > 0
        assert found.origin["core"] > 0


def test_origin_is_of_the_shortlist_at_the_time_of_drafting(
    model: Pretrained, draft: EagleDraft
) -> None:
    """Its parts are the ids observed before and all others: an accepted token that was observed
    only in the same round counts as unobserved."""

    class Halves(Follower):
        part_names = ("unknown", "known")

        def explain(self, context: Any) -> dict[str, torch.Tensor]:
            known = torch.tensor(sorted(set(self.observed)), dtype=torch.int64)
            others = torch.arange(V)[~torch.isin(torch.arange(V), known)]
            return {"unknown": others, "known": known}

    prompt = model.tokenizer.chat("The sea")
    stop = StopRule(60)
    text = RecordedTarget(model.target, prompt, decode_plainly(model.target, prompt, stop))
    found = replay_text(text, draft, Halves(torch.arange(V), V), gamma=4, stop=stop)
    observed: set[int] = set()
    expected = {"known": 0, "unknown": 0}
    for finished in speculative(
        model.target, draft, FullShortlist(V), prompt, gamma=4, sampling=GREEDY,
        rng=SeededRandom(0), stop=stop,
    ):  # fmt: skip
        for node in finished.path:
            expected["known" if finished.tokens[node] in observed else "unknown"] += 1
        observed |= {*finished.proposed, *finished.tokens}
    assert expected["unknown"] and expected["known"]
    assert dict(found.origin) == expected


def test_replay_text_can_be_repeated(model: Pretrained, draft: EagleDraft) -> None:
    prompt = model.tokenizer.chat("The sea")
    answer = decode_plainly(model.target, prompt, StopRule(20))
    text, shortlist = RecordedTarget(model.target, prompt, answer), make_shortlists()["follower"]
    first = replay_text(text, draft, shortlist, gamma=4, stop=StopRule(20))
    again = replay_text(text, draft, shortlist, gamma=4, stop=StopRule(20))
    assert (first.steps, first.origin) == (again.steps, again.origin)
