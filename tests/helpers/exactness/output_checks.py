"""Checks of the properties of whole outputs: 8 and 9 (the shortlist contract), 10 and 11 (EOS,
stop strings, limits) and 12 (every position is shaped alike). See ``round_checks.py``.
"""

import codecs
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from helpers.exactness.shortlists import build_frspec
from helpers.exactness.strategies import output_distance
from minispec.certificate.decodings import Backend, ToyModels, decode_plain, decode_with
from minispec.certificate.toys import ToyDraft, ToyTarget, random_table
from minispec.certificate.walker import distribution_of, total_variation
from minispec.commit import StopRule
from minispec.decode import autoregressive, speculative
from minispec.errors import ShortlistError
from minispec.logits_processor import History
from minispec.sampling import Sampling, SeededRandom
from minispec.types import BaseShortlist, Context, Distribution, Head, RandomSource, Round
from minispec.verify import Verifier

# --- 8 and 9: the shortlist contract --------------------------------------------------------


class FixedShortlist(BaseShortlist):
    """A shortlist of the ids that it is given, legal or not."""

    name = "fixed"

    def __init__(self, ids: torch.Tensor, budget: int) -> None:
        self._ids, self.budget = ids, budget

    def select(self, context: Context) -> torch.Tensor:
        return self._ids


def check_refused(ids: torch.Tensor, vocab_size: int = 4, budget: int = 3) -> float:
    """A shortlist that breaks its contract is refused by name, before a token is drawn."""
    target = ToyTarget(vocab_size, random_table(vocab_size, 1))
    draft = ToyDraft(vocab_size, random_table(vocab_size, 2))
    rounds = speculative(
        target, draft, FixedShortlist(ids, budget), [0, 1], gamma=2, sampling=Sampling(1.0),
        rng=SeededRandom(0), stop=StopRule(4),
    )  # fmt: skip
    with pytest.raises(ShortlistError, match="fixed"):
        list(rounds)
    return 0.0


# --- 10 and 11: EOS, stop strings, limits ---------------------------------------------------


class Letters:
    """A tokenizer of up to six tokens; two are the halves of one character, the last is EOS."""

    bos_id, fingerprint, leading_space = None, "letters", False
    _bytes = (b"a", b"b", b"ab", b"\xc3", b"\xa4", b"")

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size, self.eos_ids = vocab_size, (vocab_size - 1,)

    def token_bytes(self, token: int) -> bytes:
        return b"" if token in self.eos_ids else self._bytes[token]

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(map(self.token_bytes, ids)).decode(errors="replace")

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        raise NotImplementedError

    def chat(self, prompt: str) -> list[int]:
        raise NotImplementedError


def text_distance(verifier: Verifier, case: Any, stop_strings: tuple[str, ...]) -> Any:
    """Total variation over (tokens, text, stop reason): speculative decoding against plain
    decoding without stops, whose outputs are cut afterwards by the simplest rule."""
    models = ToyModels.build(case, Sampling(1.0), Backend())
    letters = Letters(case.vocab_size)
    rule = StopRule(case.max_new_tokens, case.stop.eos_ids, stop_strings)
    shortlist = build_frspec(case.vocab_size)

    def speculate(source: RandomSource) -> Any:
        rounds = list(speculative(
            models.target, models.draft, shortlist, case.prompt, gamma=case.gamma,
            sampling=models.sampling, rng=source, stop=rule, tokenizer=letters, verifier=verifier,
        ))  # fmt: skip
        tokens = tuple(t for finished in rounds for t in finished.tokens)
        return tokens, "".join(finished.text for finished in rounds), rounds[-1].stop

    def decode_and_cut(source: RandomSource) -> Any:
        rounds = autoregressive(
            models.target, case.prompt, sampling=models.sampling, rng=source,
            stop=StopRule(case.max_new_tokens),
        )  # fmt: skip
        return cut_output([t for finished in rounds for t in finished.tokens], rule, letters)

    return total_variation(distribution_of(speculate), distribution_of(decode_and_cut))


def cut_output(tokens: list[int], rule: StopRule, letters: Letters) -> Any:
    """(tokens, text, stop reason) of a whole output, token by token from the start."""
    for length in range(1, len(tokens) + 1):
        kept = tuple(tokens[:length])
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        text = decoder.decode(b"".join(map(letters.token_bytes, kept)))
        indices = [text.index(stop) for stop in rule.stop_strings if stop in text]
        if indices:
            return kept, text[: min(indices)], "stop_string"
        if kept[-1] in rule.eos_ids:
            return kept, letters.decode(kept), "eos"
    return kept, letters.decode(kept), "length"


def limit_between_rounds(models: ToyModels, source: RandomSource) -> Iterable[Round]:
    """Speculation that checks the limit between rounds only."""
    case = models.case
    rule = replace(case.stop, max_new_tokens=case.max_new_tokens + case.gamma)
    emitted = 0
    for finished in speculative(
        models.target, models.draft, build_frspec(case.vocab_size), case.prompt, gamma=case.gamma,
        sampling=models.sampling, rng=source, stop=rule, trace=True,
    ):  # fmt: skip
        emitted += len(finished.tokens)
        over = emitted >= case.max_new_tokens and finished.stop != "eos"
        yield replace(finished, stop="length") if over else finished
        if over:
            return


# --- 12: every position is shaped -----------------------------------------------------------


class NoRepeatTarget(ToyTarget):
    """A target with a logits processor that excludes the last token. With ``emitted_only`` the
    processor ignores drafted tokens: it excludes the last *emitted* token at every position."""

    def __init__(self, vocab_size: int, table: Any, emitted_only: bool, head: Any) -> None:
        super().__init__(vocab_size, self._process, head=head)
        self._unprocessed, self._emitted_only, self._emitted = table, emitted_only, -1

    def step(self, ids: torch.Tensor, cache: Any) -> Any:
        self._emitted = int(ids[0])
        return super().step(ids, cache)

    def _process(self, tokens: tuple[int, ...]) -> torch.Tensor:
        weights = self._unprocessed(tokens).clone()  # (V,)
        weights[self._emitted if self._emitted_only else tokens[-1]] = 0
        return weights


def processor_distance(case: Any, verifier: Verifier, emitted_only: bool) -> Any:
    """Total variation with a logits processor at every drafted position, against plain decoding
    with a processor that sees all tokens."""

    def add_processor(models: ToyModels, emitted_only: bool) -> ToyModels:
        logits_after, head = models.target.logits_after, models.target.head
        target = NoRepeatTarget(case.vocab_size, logits_after, emitted_only, head)
        return replace(models, target=target)

    def decode(models: ToyModels, source: RandomSource) -> Iterable[Round]:
        return decode_with(build_frspec, verifier)(add_processor(models, emitted_only), source)

    def reference(models: ToyModels, source: RandomSource) -> Iterable[Round]:
        return decode_plain(add_processor(models, False), source)

    return output_distance(decode, case, reference=reference)


class PartlyShaped:
    """A sampling whose target distributions are ``other``'s in some rows of a pass: those for
    which ``affects``, a function of the row and the number of rows, is true."""

    def __init__(self, sampling: Any, other: Any, affects: Callable[[int, int], bool]) -> None:
        self._sampling, self._other, self._affects = sampling, other, affects

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sampling, name)

    def target_distributions(
        self, head: Head, hidden: torch.Tensor, history: History | None = None
    ) -> list[Distribution]:
        ours = self._sampling.target_distributions(head, hidden, history)
        others = self._other.target_distributions(head, hidden, history)
        return [
            others[row] if self._affects(row, len(ours)) else ours[row] for row in range(len(ours))
        ]


def is_bonus(row: int, rows: int) -> bool:
    """Whether a row of a pass is that after the last drafted token."""
    return row == rows - 1 > 0
