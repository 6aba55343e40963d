"""Biases, penalties and bad words: the arithmetic by hand, and at every place of decoding."""

import math
from typing import Any

import pytest
import torch

from minispec.certificate.toys import ToyDraft, ToyTarget, random_table
from minispec.commit import StopRule
from minispec.decode import autoregressive, speculative
from minispec.errors import ArgumentError
from minispec.logits_processor import History, LogitsProcessor
from minispec.sampling import Sampling, SeededRandom
from minispec.shortlists.full import FullShortlist
from minispec.types import BaseShortlist, Context

IDS = torch.arange(4)
LOGITS = torch.tensor([2.0, -2.0, 0.5, 0.0])
# The prompt has ids 1 and 3, the output id 0 twice and id 1 once.
HISTORY = History((1, 3, 0, 1, 0), 2)
TINY = 1e-6


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [2.0, -2.0, 0.5, 0.0]),
        ({"logit_bias": {2: 1.5, 0: -1.0}}, [1.0, -2.0, 2.0, 0.0]),
        ({"repetition_penalty": 2.0}, [1.0, -4.0, 0.5, 0.0]),  # prompt and output
        ({"frequency_penalty": 0.5}, [1.0, -2.5, 0.5, 0.0]),  # output alone, each time
        ({"presence_penalty": 0.5}, [1.5, -2.5, 0.5, 0.0]),  # output alone, once
        ({"presence_penalty": -2.0}, [4.0, 0.0, 0.5, 0.0]),
        ({"bad_words": [[2]]}, [2.0, -2.0, -math.inf, 0.0]),
        ({"bad_words": [[1, 0, 3], [2, 0], [0, 1, 0, 1]]}, [2.0, -math.inf, 0.5, -math.inf]),
        ({"bad_words": [[3, 0, 1, 0, 2]]}, [2.0, -2.0, 0.5, 0.0]),  # began in the prompt
        # The bias decides which side of 0 the penalty is applied on.
        ({"logit_bias": {1: 3.0}, "repetition_penalty": 2.0}, [1.0, 0.5, 0.5, 0.0]),
        (
            {"repetition_penalty": 2.0, "frequency_penalty": 0.5, "presence_penalty": 1.0},
            [2 / 2 - 2 * 0.5 - 1, -2 * 2 - 0.5 - 1, 0.5, 0.0],
        ),
        ({"logit_bias": {2: 100}, "bad_words": [[2]]}, [2.0, -2.0, -math.inf, 0.0]),
    ],
    ids=str,
)
def test_process_matches_the_definition(changes: dict[str, Any], expected: list[float]) -> None:
    before = LOGITS.clone()
    for dtype in (torch.float32, torch.float64):
        found = LogitsProcessor(**changes).process(LOGITS.to(dtype), IDS, HISTORY)
        assert found.dtype == dtype and found.tolist() == pytest.approx(expected, abs=TINY)
    assert torch.equal(LOGITS, before)


def test_process_of_a_shortlist_matches_its_rows_of_the_vocabulary() -> None:
    processor = LogitsProcessor(
        logit_bias={1: 0.5, 3: -1.0}, repetition_penalty=1.3, frequency_penalty=0.2,
        presence_penalty=0.1, bad_words=[[0, 3]],
    )  # fmt: skip
    whole = processor.process(LOGITS, IDS, HISTORY)
    for ids in ([1], [0, 2], [1, 2, 3]):
        some = torch.tensor(ids)
        assert torch.equal(processor.process(LOGITS[some], some, HISTORY), whole[some])


def test_process_is_as_precise_as_float64() -> None:
    logits = torch.tensor([0.1, 0.2], dtype=torch.float64)
    processor = LogitsProcessor(presence_penalty=0.3, frequency_penalty=0.7)
    found = processor.process(logits, torch.arange(2), History((0, 0), 0))
    assert abs(float(found[0]) - (0.1 - 2 * 0.7 - 0.3)) < 1e-15


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"repetition_penalty": 0.0}, "repetition-penalty 0.0 must be above 0"),
        ({"repetition_penalty": math.nan}, "repetition-penalty nan"),
        ({"presence_penalty": 2.1}, "presence-penalty 2.1 must lie in -2..2"),
        ({"frequency_penalty": math.nan}, "frequency-penalty nan"),
        ({"logit_bias": {3: 101}}, "logit-bias 101.0 of token 3 must lie in -100..100"),
        ({"logit_bias": {3: math.nan}}, "logit-bias nan"),
        ({"logit_bias": {-1: 1}}, "token -1"),
        ({"logit_bias": {"a": 1}}, "token 'a'"),
        ({"bad_words": [[1], []]}, "a bad word has no tokens"),
        ({"bad_words": [[1.5]]}, "token 1.5"),
        ({"min_p": -0.1}, "min-p"),
        ({"min_p": math.nan}, "min-p"),
    ],
    ids=str,
)
def test_sampling_refuses_invalid_changes(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Sampling(1.0, **changes)


@pytest.mark.parametrize(
    "changes",
    [{"repetition_penalty": 2.0}, {"frequency_penalty": 1.0}, {"bad_words": [[1]]}],
    ids=str,
)
def test_distribution_refuses_to_ignore_the_history(changes: dict[str, Any]) -> None:
    sampling = Sampling(1.0, **changes)
    with pytest.raises(ArgumentError, match="history"):
        sampling.distribution(LOGITS, IDS)
    with pytest.raises(ArgumentError, match="history"):
        sampling.target_distribution(LOGITS)
    with pytest.raises(ArgumentError, match="history"):
        sampling.target_distributions(ToyTarget(4, random_table(4, 0)).head, LOGITS[None].double())
    assert sampling.distribution(LOGITS, IDS, HISTORY).probs.sum() == pytest.approx(1)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_bad_words_that_leave_no_token_are_refused(temperature: float) -> None:
    sampling = Sampling(temperature, bad_words=[[0], [1], [2], [3]])
    with pytest.raises(ArgumentError, match="bad-words exclude every token"):
        sampling.target_distribution(LOGITS, HISTORY)


@pytest.mark.parametrize(
    ("sampling", "logits", "expected"),
    [
        (Sampling(1.0, min_p=0.5), [math.log(4), math.log(2.1), 0.0], [4 / 6.1, 2.1 / 6.1, 0]),
        (Sampling(1.0, min_p=1.0), [1.0, 3.0, 3.0], [0, 0.5, 0.5]),
        (Sampling(0.5, min_p=0.5), [math.log(4), math.log(2.1), 0.0], [1, 0, 0]),  # after it
        # Before top-p: of 0.4, 0.3, 0.2, 0.1 the last goes first, and 0.7 / 0.9 reaches 0.75.
        (
            Sampling(1.0, min_p=0.3, top_p=0.75),
            [math.log(4), math.log(3), math.log(2), 0.0], [4 / 7, 3 / 7, 0, 0],
        ),
        (Sampling(0.0, min_p=0.9), [0.0, 1.0], [0, 1]),
    ],
)  # fmt: skip
def test_min_p_keeps_ids_relative_to_the_likeliest(
    sampling: Sampling, logits: list[float], expected: list[float]
) -> None:
    found = sampling.distribution(torch.tensor(logits), torch.arange(len(logits))).probs.tolist()
    assert found == pytest.approx(expected, abs=TINY)
    assert [p == 0 for p in found] == [p == 0 for p in expected]


def test_greedy_decoding_takes_the_argmax_of_the_changed_logits() -> None:
    sampling = Sampling(0.0, logit_bias={2: 1.5, 0: 0.0})
    assert sampling.target_distribution(LOGITS).ids.tolist() == [0]  # a tie: the lowest id
    head = ToyTarget(4, random_table(4, 0)).head
    rows = LOGITS.double().repeat(3, 1)
    frequency = Sampling(0.0, frequency_penalty=2.0)
    found = frequency.target_distributions(head, rows, History((1, 0, 2), 1))
    assert [int(p.ids) for p in found] == [0, 2, 0]  # each row counts one token more


@pytest.mark.parametrize("changes", [{"logit_bias": {4: 1.0}}, {"bad_words": [[0, 7]]}], ids=str)
def test_decoding_refuses_ids_outside_the_vocabulary(changes: dict[str, Any]) -> None:
    target, draft = ToyTarget(4, random_table(4, 1)), ToyDraft(4, random_table(4, 2))
    options: dict[str, Any] = {
        "sampling": Sampling(1.0, **changes), "rng": SeededRandom(0), "stop": StopRule(3),
    }  # fmt: skip
    with pytest.raises(ArgumentError, match=r"not within 0\.\.3"):
        Sampling(1.0, **changes).target_distribution(LOGITS)
    with pytest.raises(ArgumentError, match=r"not within 0\.\.3"):
        autoregressive(target, [0], **options)
    with pytest.raises(ArgumentError, match=r"not within 0\.\.3"):
        speculative(target, draft, FullShortlist(4), [0], gamma=2, **options)


class OneId(BaseShortlist):
    """The id 1 alone."""

    name, budget, per_round = "one", 1, True

    def select(self, context: Context) -> torch.Tensor:
        return torch.tensor([1])


def test_a_shortlist_of_bad_words_alone_drafts_nothing() -> None:
    target, draft = ToyTarget(4, random_table(4, 1)), ToyDraft(4, random_table(4, 2))
    rounds = list(speculative(
        target, draft, OneId(), [0, 1], gamma=3, sampling=Sampling(1.0, bad_words=[[1]]),
        rng=SeededRandom(0), stop=StopRule(6),
    ))  # fmt: skip
    assert [finished.proposed for finished in rounds] == [()] * 6
    assert all(1 not in finished.tokens for finished in rounds)


def test_sampling_shows_what_differs_from_the_defaults() -> None:
    sampling = Sampling(0.5, 40, min_p=0.1, logit_bias={3: 1}, bad_words=[[1, 2]])
    assert repr(Sampling()) == "Sampling(temperature=0.0)"
    assert repr(Sampling(1.0, top_k=2)) == "Sampling(temperature=1.0, top_k=2)"
    assert str(sampling) == "temperature 0.5, logit-bias of 1 ids, 1 bad words, top-k 40, min-p 0.1"
    assert Sampling(**sampling.to_json()) == sampling
    assert Sampling().to_json() == {"temperature": 0.0, "top_k": 0, "top_p": 1.0}


def test_each_sampling_shows_its_own_settings() -> None:
    """In objects made one after the other, and in results that a caller changes."""
    for k in range(1, 20):
        assert repr(Sampling(1.0, top_k=k)) == f"Sampling(temperature=1.0, top_k={k})"
        assert str(Sampling(1.0, top_k=k)) == f"temperature 1, top-k {k}"
        assert Sampling(1.0, top_k=k).to_json()["top_k"] == k
    sampling = Sampling(0.5)
    sampling.to_json().clear()
    assert sampling.to_json() == {"temperature": 0.5, "top_k": 0, "top_p": 1.0}


@pytest.mark.parametrize("drafts", [False, True])
def test_decoding_counts_the_tokens_before_each_position(drafts: bool) -> None:
    """The emitted and the drafted ones, as the definition does for each position by itself."""
    table, prompt = random_table(8, 1), [1, 3, 3]
    sampling = Sampling(
        1.0, repetition_penalty=1.5, frequency_penalty=0.5, presence_penalty=0.25,
        bad_words=[[1, 2], [4, 4]],
    )  # fmt: skip
    options: dict[str, Any] = {
        "sampling": sampling, "rng": SeededRandom(2), "stop": StopRule(16), "trace": True,
    }  # fmt: skip
    target, draft = ToyTarget(8, table), ToyDraft(8, table)
    rounds = (
        speculative(target, draft, FullShortlist(8), prompt, gamma=4, **options)
        if drafts else autoregressive(target, prompt, **options)
    )  # fmt: skip
    text = list(prompt)
    for finished in rounds:
        assert finished.evidence is not None
        # With the target's own logits every drafted token is accepted.
        assert finished.proposed == finished.tokens[: len(finished.proposed)]
        for token, p in zip(finished.tokens, finished.evidence.target_distributions, strict=True):
            exact = sampling.target_distribution(table(tuple(text)), History(tuple(text), 3))
            assert torch.equal(p.ids, exact.ids) and torch.equal(p.probs, exact.probs)
            text.append(token)
    assert len(text) == 19
