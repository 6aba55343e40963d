"""The decoding loop: where it stops, which input it rejects, what it passes to its parts."""

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from minispec import stopwatch
from minispec.certificate.toys import ToyDraft, ToyTarget, random_table
from minispec.commit import StopRule
from minispec.decode import autoregressive, speculative
from minispec.errors import ArgumentError, ContextError, ShortlistError
from minispec.sampling import Sampling, SeededRandom
from minispec.shortlists.full import FullShortlist
from minispec.types import Context, LearnerUpdate, Round

V = 8
TARGET = ToyTarget(V, random_table(V, seed=3))
DRAFT = ToyDraft(V, random_table(V, seed=3))  # equals the target: long accepted runs
UNRELATED = ToyDraft(V, random_table(V, seed=4))  # differs from the target: many rejections


class LetterTokenizer:
    """A tokenizer of eight tokens, two of which are the halves of one character."""

    vocab_size, eos_ids, bos_id, fingerprint = V, (7,), None, "letters"
    leading_space = False
    _bytes = (b"a", b"b", b"c", b"ab", b" ", b"\xc3", b"\xa4", b"")

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        return [self._bytes.index(c.encode()) for c in text]

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(self._bytes[i] for i in ids).decode(errors="replace")

    def token_bytes(self, token: int) -> bytes:
        return self._bytes[token]

    def chat(self, prompt: str) -> list[int]:
        return self.encode(prompt)


def make_scripted_target(script: Sequence[int]) -> ToyTarget:
    """A target that emits the script, whatever came before."""

    def table(tokens: tuple[int, ...]) -> torch.Tensor:
        logits = torch.zeros(V, dtype=torch.float64)
        logits[script[min(len(tokens), len(script)) - 1]] = 9.0
        return logits

    return ToyTarget(V, table)


def run(target: ToyTarget, draft: ToyDraft | None, stop: StopRule, **changes: Any) -> list[Round]:
    settings: dict[str, Any] = {
        "sampling": Sampling(),
        "rng": SeededRandom(0),
        "stop": stop,
        "tokenizer": LetterTokenizer(),
    } | changes
    prompt = settings.pop("prompt", [0])
    if draft is None:
        return list(autoregressive(target, prompt, **settings))
    gamma = settings.pop("gamma", 3)
    return list(speculative(target, draft, FullShortlist(V), prompt, gamma=gamma, **settings))


def tokens_of(rounds: Sequence[Round]) -> tuple[int, ...]:
    return tuple(token for finished in rounds for token in finished.tokens)


def text_of(rounds: Sequence[Round]) -> str:
    return "".join(finished.text for finished in rounds)


@pytest.mark.parametrize("draft", [None, "equal", "unrelated"])
@pytest.mark.parametrize(
    ("script", "stop", "tokens", "text", "reason"),
    [
        ([0, 1, 2, 7, 0], StopRule(9, (7,)), (0, 1, 2, 7), "abc", "eos"),
        ([0, 1, 7, 2, 1], StopRule(4, (5, 6)), (0, 1, 7, 2), "abc", "length"),
        ([0, 1, 2, 0, 1], StopRule(9, (7,), ("ca",)), (0, 1, 2, 0), "ab", "stop_string"),
        # The stop string begins inside one token and ends inside another.
        ([2, 3, 3, 1], StopRule(9, (7,), ("ba",)), (2, 3, 3), "ca", "stop_string"),
        ([0, 0, 1, 2], StopRule(9, (7,), ("abc",)), (0, 0, 1, 2), "a", "stop_string"),
        # Text held back for a stop string that never completes is emitted at the end.
        ([0, 1, 1, 7], StopRule(9, (7,), ("bbb",)), (0, 1, 1, 7), "abb", "eos"),
        # If one token completes two stop strings, the text ends before the earlier one.
        ([0, 1, 2, 1], StopRule(9, (7,), ("c", "bc")), (0, 1, 2), "a", "stop_string"),
        # Half a character becomes U+FFFD only if the other half never comes.
        ([5, 6, 5, 7], StopRule(9, (7,)), (5, 6, 5, 7), "\u00e4\ufffd", "eos"),
        ([0, 1], StopRule(1), (0,), "a", "length"),
    ],
)
def test_decode_stops_at_the_same_token_with_and_without_a_draft(
    draft: str | None,
    script: list[int],
    stop: StopRule,
    tokens: tuple[int, ...],
    text: str,
    reason: str,
) -> None:
    target = make_scripted_target(script)
    drafts = {
        None: None,
        "equal": ToyDraft(V, lambda tokens: target.logits_after(tokens)),
        "unrelated": UNRELATED,
    }
    rounds = run(target, drafts[draft], stop)
    assert tokens_of(rounds) == tokens
    assert text_of(rounds) == text
    assert rounds[-1].stop == reason and all(r.stop is None for r in rounds[:-1])


@pytest.mark.parametrize(
    ("stop_strings", "texts"),
    [((), ["a", "b", "b", ""]), (("bbb",), ["a", "", "", "bb"]), (("abc",), ["", "", "abb", ""])],
)
def test_decode_emits_text_once_no_stop_string_can_include_it(
    stop_strings: tuple[str, ...], texts: list[str]
) -> None:
    rounds = run(make_scripted_target([0, 1, 1, 7]), None, StopRule(9, (7,), stop_strings))
    assert [finished.text for finished in rounds] == texts


def test_decode_emits_no_text_for_ids_outside_the_tokenizer() -> None:
    class FiveTokens(LetterTokenizer):
        vocab_size, _bytes = 5, LetterTokenizer._bytes[:5]

    rounds = run(
        make_scripted_target([0, 5, 1, 7, 2]), None, StopRule(5, (6,)), tokenizer=FiveTokens()
    )
    assert text_of(rounds) == "abc"


def test_speculative_takes_one_draft_step_less_than_it_drafts() -> None:
    """The first token of a chain is drawn from the state that the prefill left."""
    lengths = []

    class RecordingDraft(ToyDraft):
        def step(self, ids: torch.Tensor, *rest: Any) -> torch.Tensor:
            lengths.append(len(ids))
            return super().step(ids, *rest)

    draft = RecordingDraft(V, random_table(V, seed=3))
    (finished,) = run(TARGET, draft, StopRule(4), gamma=3, prompt=[0, 1, 2])
    assert len(finished.proposed) == 3 and lengths == [2, 1, 1]
    # Of three tokens the target gives the last.
    (finished,) = run(TARGET, DRAFT, StopRule(3), gamma=3, prompt=[0, 1, 2])
    assert len(finished.proposed) == 2


def test_decode_with_max_new_tokens_0_yields_no_rounds() -> None:
    assert run(TARGET, DRAFT, StopRule(0)) == run(TARGET, None, StopRule(0)) == []


@pytest.mark.parametrize("draft", [None, DRAFT, UNRELATED], ids=["none", "equal", "unrelated"])
def test_decode_stops_at_the_end_of_the_context(draft: ToyDraft | None) -> None:
    target = ToyTarget(V, random_table(V, seed=3), context=10)
    rounds = run(target, draft, StopRule(50), prompt=[1, 2, 3])
    assert len(tokens_of(rounds)) == 7 and rounds[-1].stop == "context"


def test_decode_emits_one_token_after_a_prompt_that_fills_the_context_but_one() -> None:
    (finished,) = run(TARGET, DRAFT, StopRule(5), prompt=[0] * 63)
    assert len(finished.tokens) == 1 and finished.stop == "context"


def test_prefill_splits_a_long_prompt_into_chunks() -> None:
    lengths = []

    class RecordingTarget(ToyTarget):
        def step(self, ids: torch.Tensor, cache: Any) -> Any:
            lengths.append(len(ids))
            return super().step(ids, cache)

    target = RecordingTarget(V, random_table(V, seed=3), context=700)
    run(target, DRAFT, StopRule(1), prompt=[0] * 600)
    assert lengths == [512, 87, 1]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"prompt": []}, ArgumentError, "no tokens"),
        ({"prompt": [0, 8]}, ArgumentError, "outside 0..7"),
        ({"prompt": [-1, 0]}, ArgumentError, "outside 0..7"),
        ({"prompt": [0] * 64}, ContextError, "64 tokens, the context holds 64"),
        ({"gamma": 0}, ArgumentError, "must lie in 1..16"),
        ({"gamma": 17}, ArgumentError, "must lie in 1..16"),
    ],
    ids=str,
)
def test_speculative_rejects_invalid_arguments(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run(TARGET, DRAFT, StopRule(3), **changes)


OUTSIDE = Sampling(logit_bias={V: 1})  # names an id outside the vocabulary


@pytest.mark.parametrize(
    ("draft", "wrong", "message"),
    [
        (None, {"rng": None, "prompt": "hi"}, "rng is None"),
        (None, {"prompt": [], "sampling": OUTSIDE}, "no tokens"),
        (DRAFT, {"gamma": 0, "target": None}, "gamma 0"),
        (DRAFT, {"target": None, "sampling": None}, "target is None"),
        (DRAFT, {"stop": None, "prompt": "hi"}, "stop is None"),
        (DRAFT, {"prompt": [], "sampling": OUTSIDE}, "no tokens"),
    ],
)
def test_decode_names_the_first_of_two_wrong_arguments(
    draft: ToyDraft | None, wrong: dict[str, Any], message: str
) -> None:
    arguments = {"target": TARGET, "stop": StopRule(2)} | wrong
    with pytest.raises(ArgumentError, match=message):
        run(draft=draft, **arguments)


@pytest.mark.parametrize("draft", [None, DRAFT])
def test_decode_takes_any_kind_of_prompt(draft: ToyDraft | None) -> None:
    expected = tokens_of(run(TARGET, draft, StopRule(4), prompt=[1, 2]))
    for prompt in ((1, 2), torch.tensor([1, 2]), torch.tensor([[1, 2]]), iter([1, 2])):
        assert tokens_of(run(TARGET, draft, StopRule(4), prompt=prompt)) == expected


def test_stop_rule_rejects_invalid_values() -> None:
    with pytest.raises(ArgumentError, match="max-new-tokens -1"):
        StopRule(-1)
    with pytest.raises(ArgumentError, match="empty"):
        StopRule(1, (), ("",))
    with pytest.raises(ArgumentError, match="need a tokenizer"):
        run(TARGET, DRAFT, StopRule(1, (), ("a",)), tokenizer=None)


class FixedShortlist:
    """A shortlist that selects the given ids and records every call."""

    name, budget, per_round = "fixed", 3, False

    def __init__(self, ids: torch.Tensor) -> None:
        self.ids = ids
        self.contexts: list[Context] = []
        self.rounds: list[Round] = []
        self.resets = 0

    def select(self, context: Context) -> torch.Tensor:
        self.contexts.append(context)
        return self.ids

    def observe(self, finished: Round) -> None:
        self.rounds.append(finished)

    def reset(self) -> None:
        self.resets += 1


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.tensor([2, 1]), "not sorted"),
        (torch.tensor([1, 1]), "not unique"),
        (torch.tensor([-1, 1]), "not within 0..7"),
        (torch.tensor([1, 8]), "not within 0..7"),
        (torch.tensor([0, 1, 2, 3]), "4 ids, expected 1 to 3"),
        (torch.tensor([], dtype=torch.int64), "0 ids, expected 1 to 3"),
        (torch.tensor([1], dtype=torch.int32), r"ids are torch.int32 \(1,\), expected an int64 "),
        (torch.tensor([[1]]), r"ids are torch.int64 \(1, 1\), expected an int64 tensor"),
        ((1,), "ids are a tuple, expected an int64 tensor"),
    ],
    ids=str,
)
def test_propose_rejects_a_selection_that_breaks_the_contract(ids: Any, message: str) -> None:
    with pytest.raises(ShortlistError, match=message):
        list(speculative(
            TARGET, DRAFT, FixedShortlist(ids), [0], gamma=2, sampling=Sampling(),
            rng=SeededRandom(0), stop=StopRule(4),
        ))  # fmt: skip


def test_shortlist_gets_each_context_and_each_finished_round() -> None:
    recording = FixedShortlist(torch.tensor([1, 2, 5]))
    rounds = list(speculative(
        TARGET, UNRELATED, recording, [0, 1], gamma=2, sampling=Sampling(1.0),
        rng=SeededRandom(1), stop=StopRule(9, (2,)), trace=True,
    ))  # fmt: skip
    assert recording.resets == 1
    emitted: tuple[int, ...] = (0, 1)
    contexts = iter(recording.contexts)
    for finished, observed in zip(rounds, recording.rounds, strict=True):
        for depth in range(len(finished.shortlist_sizes)):
            context = next(contexts)
            assert context.tokens == emitted + finished.proposed[:depth] and context.depth == depth
        emitted += finished.tokens
        assert observed.evidence is not None and finished.evidence is observed.evidence
        assert (
            len(observed.evidence.target_distributions)
            == len(observed.tokens)
            == len(finished.tokens)
        )
        for distribution, token in zip(
            observed.evidence.target_distributions, observed.tokens, strict=True
        ):
            assert distribution.probability(token) > 0
        if finished.stop is None:
            assert observed.evidence.next_distribution is not None
    assert next(contexts, None) is None


def test_decode_returns_evidence_only_with_trace() -> None:
    for draft in (DRAFT, None):
        assert all(finished.evidence is None for finished in run(TARGET, draft, StopRule(5)))
        assert all(finished.evidence for finished in run(TARGET, draft, StopRule(5), trace=True))


def test_round_that_stops_inside_its_chain_is_cut_in_every_field() -> None:
    target = make_scripted_target([3, 0, 1, 7, 2, 1])
    draft = ToyDraft(V, lambda tokens: target.logits_after(tokens))
    (finished,) = run(target, draft, StopRule(9, (7,)), gamma=4, prompt=[0, 0], trace=True)
    assert finished.tokens == finished.proposed == (0, 1, 7) and finished.path == (0, 1, 2)
    evidence = finished.evidence
    assert (
        evidence
        and evidence.proposal.tokens == finished.tokens
        and evidence.next_distribution is None
    )
    assert (
        len(evidence.target_distributions)
        == len(evidence.acceptance)
        == len(finished.shortlist_sizes)
        == 3
    )


def test_abandoned_run_does_not_affect_later_runs() -> None:
    full = run(TARGET, UNRELATED, StopRule(9), sampling=Sampling(1.0))
    rounds = speculative(
        TARGET, UNRELATED, FullShortlist(V), [0], gamma=3, sampling=Sampling(1.0),
        rng=SeededRandom(0), stop=StopRule(9),
    )  # fmt: skip
    next(rounds)
    rounds.close()  # type: ignore[attr-defined]
    again = run(TARGET, UNRELATED, StopRule(9), sampling=Sampling(1.0))
    assert tokens_of(again) == tokens_of(full)


def test_autoregressive_rounds_have_no_drafted_tokens() -> None:
    for finished in run(TARGET, None, StopRule(3)):
        assert (finished.path, finished.proposed, finished.shortlist_sizes) == ((), (), ())
        assert finished.rows_probed == 0 and not finished.events


def test_speculative_is_reproducible_by_seed() -> None:
    runs = [
        tokens_of(run(TARGET, UNRELATED, StopRule(20), sampling=Sampling(1.0), rng=SeededRandom(s)))
        for s in (5, 5, 6)
    ]
    assert runs[0] == runs[1] != runs[2]


class IdleLearner:
    """A learner that changes nothing and counts the tokens."""

    draft, invalidates_cache, top_ids_wanted = UNRELATED, False, 0

    def start(self, continued: bool) -> None: ...

    def on_prefill(
        self, ids: torch.Tensor, aux_hidden_states: torch.Tensor, hidden: torch.Tensor
    ) -> None: ...

    def adjust_logits(
        self, logits: torch.Tensor, ids: torch.Tensor, context: Context, sampling: Any
    ) -> torch.Tensor:
        return logits

    def observe(self, finished: Round) -> LearnerUpdate:
        return LearnerUpdate(counts={"seen": len(finished.tokens)})


@pytest.mark.parametrize("learner", [None, IdleLearner()], ids=["", "learner"])
def test_round_seconds_assign_all_time_to_a_phase(
    learner: IdleLearner | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock advances by one each time it is read, so a phase takes as many seconds as it has
    laps. Time between rounds belongs to the caller and is not counted."""
    now = itertools.count()
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: float(next(now)))
    lengths = []
    for finished in speculative(
        TARGET, UNRELATED, FullShortlist(V), [0, 1], gamma=2, sampling=Sampling(1.0),
        rng=SeededRandom(0), stop=StopRule(6), learner=learner,
    ):  # fmt: skip
        steps, more = len(finished.proposed), finished.stop is None
        once = {"target": 1, "verify": 1, "commit": 1, "observe": 1}
        drafted = {"draft": steps + 1 + more, "learn": 1 + steps * bool(learner)}
        scored = {"shortlist": steps, "draft_head": steps * (2 if learner else 1)} if steps else {}
        first = {} if lengths else {"prefill": 1}
        assert finished.seconds == once | drafted | scored | first
        assert finished.events == ({"seen": len(finished.tokens)} if learner else {})
        lengths.append(steps)
        for _ in range(100):
            next(now)
    assert lengths[:2] == [2, 2] and lengths[-1] < 2
