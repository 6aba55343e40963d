"""What shortlists and learners are shown of a round that stops: nothing after the stop.

A run that stops is compared with the same run without the stop: its last round is a prefix, in
every field, of the round at the same place.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from minispec.certificate.toys import ToyDraft, ToyTarget, random_table
from minispec.commit import StopRule
from minispec.decode import speculative
from minispec.sampling import Sampling, SeededRandom
from minispec.types import BaseShortlist, Context, Evidence, LearnerUpdate, Round
from minispec.verify import VERIFIERS

V, GAMMA, LIMIT = 40, 4, 14
PROMPT = [0, 1, 2]
TARGET = ToyTarget(V, random_table(V, 3, spread=2.0))
# Close to the target: long accepted runs, and rejections.
DRAFT = ToyDraft(V, lambda tokens: TARGET.logits_after(tokens) + 0.3 * random_table(V, 4)(tokens))


class Letters:
    """A tokenizer whose ids are letters, each of its own."""

    vocab_size, eos_ids, bos_id, fingerprint, leading_space = V, (), None, "letters", False

    def token_bytes(self, token: int) -> bytes:
        return chr(ord("0") + token).encode()

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(ord("0") + token) for token in ids)


class Observer(BaseShortlist):
    """Every id but three; keeps the rounds that it is shown."""

    name, budget, top_ids_wanted = "observer", V - 3, 2

    def __init__(self) -> None:
        self.rounds: list[Round] = []

    def select(self, context: Context) -> Tensor:
        return torch.arange(V - 3)

    def observe(self, finished: Round) -> None:
        self.rounds.append(finished)


@dataclass
class Pupil:
    """A learner that keeps what it is shown."""

    draft: ToyDraft = DRAFT
    invalidates_cache: bool = False
    top_ids_wanted: int = 3
    read: list[int] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)

    def start(self, continued: bool) -> None:
        self.read.clear()

    def on_prefill(self, ids: Tensor, aux_hidden_states: Tensor, hidden: Tensor) -> None:
        assert len(ids) == len(aux_hidden_states) == len(hidden)
        self.read += ids.tolist()

    def adjust_logits(self, logits: Tensor, ids: Tensor, context: Context, sampling: Any) -> Tensor:
        return logits

    def observe(self, finished: Round) -> LearnerUpdate:
        self.rounds.append(finished)
        return LearnerUpdate()


def run(
    stop: StopRule, verifier: str, prompt: Sequence[int] = PROMPT, **changes: Any
) -> tuple[list[Round], Observer, Pupil]:
    observer, pupil = Observer(), Pupil()
    settings: dict[str, Any] = {"rng": SeededRandom(5), "continued": False} | changes
    rounds = list(speculative(
        TARGET, DRAFT, observer, prompt, gamma=GAMMA, sampling=Sampling(1.0), stop=stop,
        tokenizer=Letters(), trace=True, verifier=VERIFIERS[verifier], learner=pupil, **settings,
    ))  # fmt: skip
    return rounds, observer, pupil


def tokens_of(rounds: Sequence[Round]) -> list[int]:
    return [token for finished in rounds for token in finished.tokens]


def list_sized(finished: Round) -> Iterator[tuple[str, Any]]:
    """The fields of a round and its evidence that have an entry for each position."""
    evidence = finished.evidence
    assert evidence is not None
    for part in (finished, evidence, evidence.proposal):
        for each in fields(part):
            value = getattr(part, each.name)
            if isinstance(value, tuple | Tensor):
                yield f"{type(part).__name__}.{each.name}", value


def equal(ours: Any, theirs: Any) -> bool:
    if hasattr(ours, "probs"):
        return torch.equal(ours.ids, theirs.ids) and torch.equal(ours.probs, theirs.probs)
    return torch.equal(ours, theirs) if isinstance(ours, Tensor) else bool(ours == theirs)


def check_prefix(stopped: Round, whole: Round) -> None:
    """The round that stopped shows the first of the other's entries, and no more than tokens."""
    count = len(stopped.tokens)
    assert stopped.tokens == whole.tokens[:count] and stopped.evidence and whole.evidence
    for (name, ours), (_, theirs) in zip(list_sized(stopped), list_sized(whole), strict=True):
        assert len(ours) <= count, f"{name} has {len(ours)} entries for {count} tokens"
        if name != "Evidence.draft_hidden":  # after a stop no bonus position is computed
            assert len(ours) == min(count, len(theirs)), name
        assert all(map(equal, ours, theirs[: len(ours)])), name
    if count < len(whole.tokens):
        assert stopped.evidence.next_distribution is None
    else:
        assert equal(stopped.evidence.next_distribution, whole.evidence.next_distribution)


def check_run(
    found: tuple[list[Round], Observer, Pupil], whole: Sequence[Round], length: int
) -> None:
    rounds, observer, pupil = found
    assert tokens_of(rounds) == tokens_of(whole)[:length]
    for shown in (observer.rounds, pupil.rounds, rounds):
        assert len(shown) == len(rounds)
        for ours, theirs in zip(shown[:-1], whole, strict=False):
            assert ours.tokens == theirs.tokens and ours.proposed == theirs.proposed
        check_prefix(shown[-1], whole[len(rounds) - 1])
    # A draft that stops does not read the tokens of its last round.
    assert pupil.read == [*PROMPT[1:], *tokens_of(rounds[:-1])]


@pytest.mark.parametrize("verifier", VERIFIERS)
@pytest.mark.parametrize("kind", ["eos", "stop string", "two letters"])
def test_nothing_after_a_stop_is_shown(kind: str, verifier: str) -> None:
    whole, _, _ = run(StopRule(LIMIT + GAMMA), verifier)
    tokens, inside = tokens_of(whole), 0
    for index in range(1, LIMIT):
        wanted = tokens[index - 1 : index + 1] if kind == "two letters" else [tokens[index]]
        starts = range(len(tokens) - len(wanted) + 1)
        length = next(i for i in starts if tokens[i : i + len(wanted)] == wanted) + len(wanted)
        text = Letters().decode(wanted)
        limit = LIMIT + GAMMA
        stop = StopRule(limit, tuple(wanted)) if kind == "eos" else StopRule(limit, (), (text,))
        found = run(stop, verifier)
        assert found[0][-1].stop == ("eos" if kind == "eos" else "stop_string")
        check_run(found, whole, length)
        inside += len(found[0][-1].tokens) < len(whole[len(found[0]) - 1].tokens)
    assert inside > 3  # stops inside an accepted run


@pytest.mark.parametrize("verifier", VERIFIERS)
def test_nothing_after_a_limit_is_shown(verifier: str) -> None:
    for limit in range(1, LIMIT):
        rounds, observer, pupil = run(StopRule(limit), verifier)
        assert rounds[-1].stop == "length" and len(tokens_of(rounds)) == limit
        for finished in (rounds[-1], observer.rounds[-1], pupil.rounds[-1]):
            for name, value in list_sized(finished):
                assert len(value) <= len(finished.tokens), name


def test_nothing_after_a_stop_is_shown_in_a_second_turn() -> None:
    """The second turn's prompt is what was emitted: its own rounds are those of a fresh run."""
    whole, _, _ = run(StopRule(LIMIT), "token")
    eos = tokens_of(whole)[5]
    first, observer, _ = run(StopRule(LIMIT, (eos,)), "token")
    prompt = [*PROMPT, *tokens_of(first), 7, 8]
    second, again, pupil = run(StopRule(3), "token", prompt, continued=True)
    assert pupil.read == [*prompt[1:], *tokens_of(second[:-1])]
    shown = itertools.chain(observer.rounds, again.rounds)
    assert tokens_of(list(shown)) == [*tokens_of(first), *tokens_of(second)]
    for finished in (second[-1], again.rounds[-1]):
        assert all(len(value) <= len(finished.tokens) for _, value in list_sized(finished))


def test_check_prefix_detects_one_entry_too_many() -> None:
    """The check can fail: evidence of one position after the stop."""
    whole, _, _ = run(StopRule(LIMIT), "token")
    finished = next(each for each in whole if len(each.path) > 2)
    evidence = finished.evidence
    assert evidence is not None
    cut = replace(
        finished, tokens=finished.tokens[:1], path=finished.path[:1],
        proposed=finished.proposed[:1], shortlist_sizes=finished.shortlist_sizes[:1],
        evidence=Evidence(
            evidence.proposal, evidence.target_distributions[:2], evidence.acceptance[:1], None
        ),
    )  # fmt: skip
    with pytest.raises(AssertionError, match="entries for 1 tokens"):
        check_prefix(cut, finished)
