"""Replay: on the same text it is the real loop, round for round."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from helpers.follower import Follower
from helpers.tiny_model import Tiny
from minispec.certificate.toys import ToyDraft, ToyTarget, random_table
from minispec.commit import StopRule
from minispec.decode import autoregressive, read, speculative
from minispec.io import draft_file
from minispec.models.eagle_draft import EagleDraft
from minispec.sampling import Sampling, SeededRandom
from minispec.shortlists.frspec import FRSpecShortlist
from minispec.shortlists.full import FullShortlist
from minispec.tools.evaluation import replay
from minispec.tools.evaluation.measure import measure
from minispec.tools.evaluation.replay import RecordedTarget, replay_text
from minispec.tools.models import pretrained
from minispec.tools.models.pretrained import Pretrained
from minispec.types import Round, Shortlist, Target

V = 320
GREEDY = Sampling()


@pytest.fixture(scope="module")
def model(tiny: Tiny) -> Pretrained:
    """In float64, where a pass over many positions and one over few agree on every choice."""
    return pretrained.load(str(tiny.folder), "float64")


@pytest.fixture(scope="module")
def drafter(tiny: Tiny, model: Pretrained) -> EagleDraft:
    return draft_file.load_draft(tiny.draft_path, model.target, model.fingerprint)


def lists() -> dict[str, Shortlist]:
    ranking = torch.randperm(V, generator=torch.Generator().manual_seed(0))
    return {
        "full": FullShortlist(V),
        "static": FRSpecShortlist(ranking, 80, (V - 1,)),
        "follower": Follower(ranking, 80),
        "follower, once a round": Follower(ranking, 80, per_round=True),
    }


def plain(target: Target, prompt: Sequence[int], stop: StopRule) -> tuple[int, ...]:
    rounds = autoregressive(target, prompt, sampling=GREEDY, rng=SeededRandom(0), stop=stop)
    return measure(rounds).tokens


def seen(finished: Round) -> tuple[Any, ...]:
    return (
        finished.tokens,
        finished.path,
        finished.proposed,
        finished.shortlist_sizes,
        finished.stop,
    )


def toys() -> tuple[ToyTarget, ToyDraft]:
    """A target and a draft that often agrees with it, and that checks its own cache."""
    table, other = random_table(V, seed=1), random_table(V, seed=2)
    close = lambda tokens: table(tokens) + 0.4 * other(tokens)  # noqa: E731
    return ToyTarget(V, table, context=200), ToyDraft(V, close)


@pytest.mark.parametrize("name", list(lists()))
@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("models", ["tiny", "toys"])
def test_replay_and_the_real_loop_agree(
    model: Pretrained, drafter: EagleDraft, models: str, name: str, ends: bool
) -> None:
    """Over a conversation of two turns, in which the list goes on with what it learnt; with an
    end id that the first answer reaches, also in the chain that is drafted past the end."""
    target, draft = (model.target, drafter) if models == "tiny" else toys()
    prompt = (1, 2, 3)
    end = plain(target, prompt, StopRule(40))[23]
    stop = StopRule(40, (end,) if ends else ())
    real, again = lists()[name], lists()[name]
    accepted = 0
    for turn in range(2):
        answer = plain(target, prompt, stop)
        assert not ends or turn or len(answer) < 40
        text = RecordedTarget(target, prompt, answer)
        rounds = [
            [
                seen(finished)
                for finished in speculative(
                    each, draft, shortlist, prompt, gamma=4, sampling=GREEDY,
                    rng=SeededRandom(0), stop=stop, continued=turn > 0,
                )
            ]
            for each, shortlist in ((target, real), (text, again))
        ]  # fmt: skip
        assert rounds[0] == rounds[1]
        assert [token for finished in rounds[0] for token in finished[0]] == list(answer)
        accepted += sum(len(finished[1]) for finished in rounds[0])
        prompt = (*prompt, *answer, 7, 8, 9)
    if (models, name, ends) == ("toys", "full", False):
        assert accepted > 20


def test_a_list_is_asked_and_taught_as_ever(model: Pretrained, drafter: EagleDraft) -> None:
    """``replay_text`` counts what the loop itself does, whatever else it asks the list."""
    prompt = model.tokenizer.chat("The sea")
    stop = StopRule(40)
    answer = plain(model.target, prompt, stop)
    for name, shortlist in lists().items():
        text = RecordedTarget(model.target, prompt, answer)
        found = replay_text(text, drafter, shortlist, gamma=3, stop=stop)
        rounds = speculative(
            model.target, drafter, lists()[name], prompt, gamma=3, sampling=GREEDY,
            rng=SeededRandom(0), stop=stop, trace=True,
        )  # fmt: skip
        real = measure(rounds, prompt)
        for key in ("tokens", "emitted", "accepted_at", "proposed_at", "covered", "prompt"):
            assert getattr(found.figures, key) == getattr(real, key), (name, key)
        assert found.figures.prompt == tuple(prompt)


def test_another_text_is_another_replay(model: Pretrained, drafter: EagleDraft) -> None:
    """So that the agreement above says something: the recorded text is what decides."""
    prompt = model.tokenizer.chat("The sea")
    answer = list(plain(model.target, prompt, StopRule(30)))
    answer[10:] = [i ^ 1 for i in answer[10:]]
    text = RecordedTarget(model.target, prompt, answer)
    found = replay_text(text, drafter, FullShortlist(V), gamma=3, stop=StopRule(30))
    assert found.figures.tokens == tuple(answer)
    assert found.figures.tokens != plain(model.target, prompt, StopRule(30))


def test_what_is_recorded_is_what_the_target_shows(model: Pretrained) -> None:
    prompt, answer = [5, 6, 7], [8, 9, 10, 11]
    text = RecordedTarget(model.target, prompt, answer)
    (features,) = read(model.target, [*prompt, *answer[:-1]], model.target.new_cache(10))
    assert torch.equal(text.hidden, features.hidden)
    cache = text.new_cache(100)
    text.step(torch.tensor(prompt[:-1]), cache)
    step = text.step(torch.tensor([7, 8]), cache)
    assert torch.equal(step.aux_hidden_states, features.aux_hidden_states[2:4])
    assert text.head.logits(step.hidden).argmax(-1).tolist() == [8, 9]
    cache.truncate(3)
    assert text.head.logits(text.step(torch.tensor([0]), cache).hidden).argmax().item() == 9


@pytest.mark.parametrize("name", list(lists()))
def test_overlap_is_the_laws_laid_over_each_other(
    model: Pretrained, drafter: EagleDraft, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against sum_x min(p(x), q(x)) of the laws that ``Sampling`` makes, x over the vocabulary."""
    steps: list[Any] = []
    overlap = replay._overlap

    def noted(text: RecordedTarget, draft: Any, step: Any) -> float:
        steps.append(step)
        return overlap(text, draft, step)

    monkeypatch.setattr(replay, "_overlap", noted)
    prompt = model.tokenizer.chat("The sea")
    answer = plain(model.target, prompt, StopRule(20))
    text = RecordedTarget(model.target, prompt, answer)
    found = replay_text(text, drafter, lists()[name], gamma=2, stop=StopRule(20))
    tokens = [*prompt, *answer]
    (features,) = read(model.target, tokens, model.target.new_cache(len(tokens)))
    shaped = Sampling(replay.TEMPERATURE)
    assert len(steps) == len(found.overlaps) > 5
    for step, value in zip(steps, found.overlaps, strict=True):
        place = len(step.context.tokens) - 1
        assert list(step.context.tokens) == tokens[: place + 1]
        everything = torch.arange(V)
        p = shaped.distribution(model.target.head.logits(features.hidden[place]), everything).probs
        q = torch.zeros_like(p)
        distribution = shaped.distribution(
            drafter.head.logits_of(step.context.hidden, step.ids), step.ids
        )
        q[distribution.ids] = distribution.probs
        assert value == pytest.approx(float(torch.minimum(p, q).sum()), abs=1e-5)


def test_origin_counts_accepted_tokens_by_part(model: Pretrained, drafter: EagleDraft) -> None:
    prompt = model.tokenizer.chat("The sea")
    stop = StopRule(60)
    text = RecordedTarget(model.target, prompt, plain(model.target, prompt, stop))
    assert replay_text(text, drafter, FullShortlist(V), gamma=4, stop=stop).origin == {}
    for name in ("follower", "follower, once a round"):
        found = replay_text(text, drafter, lists()[name], gamma=4, stop=stop)
        assert sum(found.origin.values()) == sum(found.figures.accepted_at) > 0
        assert found.origin["core"] > 0


def test_origin_is_judged_by_what_the_list_was_then(model: Pretrained, drafter: EagleDraft) -> None:
    """A list of what it has observed, and nothing else: an accepted token that it knows by now,
    but did not when it was asked, could not have been on it."""

    class Late(Follower):
        def explain(self, context: Any) -> dict[str, torch.Tensor]:
            known = torch.tensor(sorted(set(self.seen)), dtype=torch.int64)
            others = torch.arange(V)[~torch.isin(torch.arange(V), known)]
            return {"unknown": others, "known": known}

    prompt = model.tokenizer.chat("The sea")
    stop = StopRule(60)
    text = RecordedTarget(model.target, prompt, plain(model.target, prompt, stop))
    found = replay_text(text, drafter, Late(torch.arange(V), V), gamma=4, stop=stop)
    before: set[int] = set()
    expected = {"known": 0, "unknown": 0}
    for finished in speculative(
        model.target, drafter, FullShortlist(V), prompt, gamma=4, sampling=GREEDY,
        rng=SeededRandom(0), stop=stop,
    ):  # fmt: skip
        for node in finished.path:
            expected["known" if finished.tokens[node] in before else "unknown"] += 1
        before |= {*finished.proposed, *finished.tokens}
    assert expected["unknown"] and expected["known"]
    assert dict(found.origin) == expected


def test_a_text_can_be_replayed_again(model: Pretrained, drafter: EagleDraft) -> None:
    prompt = model.tokenizer.chat("The sea")
    answer = plain(model.target, prompt, StopRule(20))
    text, shortlist = RecordedTarget(model.target, prompt, answer), lists()["follower"]
    first = replay_text(text, drafter, shortlist, gamma=4, stop=StopRule(20))
    again = replay_text(text, drafter, shortlist, gamma=4, stop=StopRule(20))
    assert (first.overlaps, first.origin) == (again.overlaps, again.origin)
