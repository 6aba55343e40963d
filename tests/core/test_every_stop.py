"""Every end id and every stop string of a rule ends an output, wherever it stands in the rule, and
a learner receives whether a text continues a conversation."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from minispec.certificate.toys import ToyDraft, ToyTarget, random_table
from minispec.commit import Output, StopRule
from minispec.decode import speculative
from minispec.sampling import Sampling, SeededRandom
from minispec.shortlists.full import FullShortlist
from minispec.types import LearnerUpdate

LETTERS = "abcdefgh"


class Letters:
    """A tokenizer whose tokens are the letters a to h."""

    vocab_size, eos_ids, bos_id, fingerprint, leading_space = 8, (), None, "letters", False

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        return [LETTERS.index(letter) for letter in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(LETTERS[i] for i in ids)

    def token_bytes(self, token: int) -> bytes:
        return LETTERS[token].encode()

    def chat(self, prompt: str, *, later: bool = False) -> list[int]:
        return self.encode(prompt)


@pytest.mark.parametrize("end", [5, 6, 7])
def test_commit_stops_at_every_end_id(end: int) -> None:
    for size in (1, 4):  # tokens committed at once
        output = Output(StopRule(20, (5, 6, 7)), Letters(), 20)
        tokens = [0, 1, 2, 3, end, 4, 0, 1]
        rounds = [output.commit(tokens[i : i + size]) for i in range(0, 5, size)]
        assert [token for r in rounds for token in r.tokens] == tokens[:5]
        assert rounds[-1].stop == "eos" and all(r.stop is None for r in rounds[:-1])


@pytest.mark.parametrize("found", ["bc", "de", "fg"])
def test_commit_stops_at_every_stop_string(found: str) -> None:
    for size in (1, 3):
        output = Output(StopRule(20, (), ("bc", "de", "fg")), Letters(), 20)
        tokens = Letters().encode(f"aha{found}ha")
        rounds = [output.commit(tokens[i : i + size]) for i in range(0, 5, size)]
        assert rounds[-1].stop == "stop_string"
        assert "".join(r.text for r in rounds) == "aha"
        assert sum(len(r.tokens) for r in rounds) == 5


@pytest.mark.parametrize("held", ["b", "d", "f"])
def test_commit_holds_back_the_start_of_every_stop_string(held: str) -> None:
    output = Output(StopRule(20, (), ("bc", "de", "fg")), Letters(), 20)
    assert output.commit(Letters().encode(f"a{held}")).text == "a"
    assert output.commit(Letters().encode("h")).text == f"{held}h"


def test_commit_names_the_stop_string_of_a_token_that_is_an_end_id_as_well() -> None:
    committed = Output(StopRule(3, (2,), ("bc",)), Letters(), 20).commit(Letters().encode("abc"))
    assert (committed.text, committed.stop) == ("a", "stop_string")


def test_each_output_ends_with_its_own_text() -> None:
    """In outputs made one after the other: what was held back comes with the last token."""
    for letter in "bdfbfd":
        output = Output(StopRule(1, (), ("bc", "de", "fg")), Letters(), 20)
        assert output.commit(Letters().encode(letter)).text == letter


@pytest.mark.parametrize("continued", [False, True])
def test_speculative_passes_on_whether_the_text_continues(continued: bool) -> None:
    calls: list[Any] = []
    table = random_table(8, 1)

    class RecordingShortlist(FullShortlist):
        def reset(self) -> None:
            calls.append("reset")

    class RecordingLearner:
        draft, invalidates_cache, top_ids_wanted = ToyDraft(8, table), False, 0

        def start(self, continued: bool) -> None:
            calls.append(continued)

        def on_prefill(self, *inputs: Tensor) -> None: ...

        def adjust_logits(self, logits: Tensor, *rest: Any) -> Tensor:
            assert isinstance(rest[-1], Sampling) and torch.equal(rest[0], torch.arange(8))
            return logits

        def observe(self, finished: Any) -> LearnerUpdate:
            return LearnerUpdate()

    learner = RecordingLearner()
    list(speculative(
        ToyTarget(8, table), learner.draft, RecordingShortlist(8), [0, 1], gamma=2,
        sampling=Sampling(1.0), rng=SeededRandom(0), stop=StopRule(5), continued=continued,
        learner=learner,
    ))  # fmt: skip
    assert calls == ([True] if continued else ["reset", False])
