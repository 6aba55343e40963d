"""The checks behind the fifteen properties: each runs production code on one case.

A check returns how far the law is off, or raises where something happens that never may. The
same checks are passed with our parts and failed with the planted defects (``defects.py``).
"""

import codecs
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch

from drawn import distance
from helpers.toys import toy_transformer
from lists import static
from minispec import sampling as sampling_module
from minispec.certificate.certify import Backend, Decoding, Toys, plain, speculation
from minispec.certificate.exact_sampling import ExactSampling
from minispec.certificate.toys import ToyDraft, ToyTarget, random_table
from minispec.certificate.walker import distribution_of, total_variation
from minispec.commit import StopRule
from minispec.decode import autoregressive, speculative
from minispec.errors import ShortlistError
from minispec.models.lm_head import LinearHead
from minispec.sampling import Sampling, SeededRandom
from minispec.tools.data.batched_decode import decode_batch
from minispec.types import Context, Distribution, Proposal, RandomSource, Round, Verdict
from minispec.verify import Verifier

LAST_BELOW_ONE = 1 - 2**-53

# --- 1 and 2: residuals without mass, tokens without probability ----------------------------


class Stubborn:
    """A source that rejects whatever it is asked about, as rounding might, and then takes the
    first or the last id that is possible at all."""

    def __init__(self, last: bool) -> None:
        self._last = last

    def bernoulli(self, probability: Any) -> bool:
        return False

    def choose(self, probs: Any) -> int:
        possible = [i for i, share in enumerate(probs) if share > 0]
        return possible[-1 if self._last else 0]


def zero_mass(verifier: Verifier, weights: Sequence[int], nudges: Sequence[int]) -> float:
    """p against a q that is the same up to some units in the last place, in float64."""
    shares = torch.tensor(weights, dtype=torch.float64)
    p = Distribution(torch.arange(len(weights)), shares / shares.sum())
    q = Distribution(p.ids, p.probs * (1 + torch.tensor(nudges) * 2.0**-52))

    def first(source: RandomSource) -> int:
        drafted = int(q.ids[source.choose(q.probs)])
        verdict = verifier(Proposal((drafted,), (q,)), [p, p], source)
        assert torch.isfinite(verdict.next_distribution.probs).all(), "a law that is not finite"
        assert p.probability(verdict.next_token) > 0, f"id {verdict.next_token} came of nothing"
        return drafted if verdict.path else verdict.next_token

    for last in (False, True):
        first(Stubborn(last))
    expected = {i: float(share) for i, share in enumerate(p.probs) if share > 0}
    return float(total_variation(distribution_of(first), expected))


def nothing_impossible(
    verifier: Verifier, p: Sequence[int], q: Sequence[int], source: type[SeededRandom]
) -> None:
    """Neither a uniform of 0 nor the last below 1 lets a token of probability 0 through."""
    distributions = [
        Sampling(1.0).distribution(torch.tensor(w).float().log(), torch.arange(len(w)))
        for w in (p, q)
    ]
    for uniform in (0.0, LAST_BELOW_ONE):
        fixed = type("Fixed", (source,), {"uniform": lambda self, u=uniform: u})(0)
        for token in range(len(q)):
            if q[token]:
                verdict = verifier(
                    Proposal((token,), (distributions[1],)), [distributions[0]] * 2, fixed
                )
                said = [token] * len(verdict.path) + [verdict.next_token]
                assert all(p[t] for t in said), f"{said} at u = {uniform}, p {p}, q {q}"


# --- 3: laws that were recorded -------------------------------------------------------------


def permuted(verifier: Verifier, order: Callable[[int], list[int]]) -> Verifier:
    """The same laws with their ids in another order."""

    def verify(
        proposal: Proposal, distributions: Sequence[Distribution], rng: RandomSource
    ) -> Verdict:
        orders = [order(len(q.ids)) for q in proposal.draft_distributions]
        apply_rope = [
            Distribution(q.ids[o], q.probs[o])
            for q, o in zip(proposal.draft_distributions, orders, strict=True)
        ]
        return verifier(Proposal(proposal.tokens, tuple(apply_rope)), distributions, rng)

    return verify


class OneBuffer(LinearHead):
    """A head that answers every question in the same piece of memory."""

    def logits_of(self, hidden: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        if not hasattr(self, "_buffer"):
            self._buffer = torch.empty(self.vocab_size, dtype=self.weight.dtype)
        return self._buffer[: len(ids)].copy_(super().logits_of(hidden, ids))


def one_buffer(decode: Decoding) -> Decoding:
    def decoded(toys: Toys, source: RandomSource) -> Iterable[Round]:
        head = OneBuffer(toys.target.head.weight)
        draft = ToyDraft(toys.case.vocabulary, toys.draft.after, head=head)
        return decode(replace(toys, draft=draft), source)

    return decoded


# --- 6: a draft that learns at the worst moment ---------------------------------------------


def changing_draft(verifier: Verifier, again: bool = False) -> Decoding:
    """The draft becomes another one after each proposal, before it is judged; with ``again``
    the judge asks the new one for q."""

    def decode(toys: Toys, source: RandomSource) -> Iterable[Round]:
        version: list[int] = []
        asked: list[tuple[int, ...]] = []

        def after(tokens: tuple[int, ...]) -> torch.Tensor:
            asked.append(tokens)
            return toys.draft.after((*tokens, *version))

        def learnt(
            proposal: Proposal, distributions: Sequence[Distribution], rng: RandomSource
        ) -> Verdict:
            contexts = asked[-len(proposal) :] if len(proposal) else []
            version.append(-1)
            if again:
                proposal = asked_again(proposal, contexts)
                distributions = distributions[: len(proposal) + 1]
            return verifier(proposal, distributions, rng)

        def asked_again(proposal: Proposal, contexts: list[tuple[int, ...]]) -> Proposal:
            fresh = []
            for token, q, tokens in zip(
                proposal.tokens, proposal.draft_distributions, contexts, strict=True
            ):
                ids = torch.as_tensor(q.ids)
                fresh.append(
                    toys.sampling.distribution(toys.draft.head.logits_of(after(tokens), ids), ids)
                )
                if not fresh[-1].probability(token) > 0:
                    fresh.pop()
                    break
            return Proposal(proposal.tokens[: len(fresh)], tuple(fresh))

        draft = ToyDraft(toys.case.vocabulary, after, head=toys.draft.head)
        return speculation(static, learnt)(replace(toys, draft=draft), source)

    return decode


# --- 7: what a list may know ----------------------------------------------------------------


class Peeked:
    """A source that can be asked beforehand in which half its next coin's uniform will lie."""

    def __init__(self, source: RandomSource, honest: bool) -> None:
        self._source, self._honest = source, honest
        self._low: bool | None = None

    def low(self) -> bool:
        low = self._source.bernoulli(Fraction(1, 2))
        self._low = None if self._honest else low
        return low

    def bernoulli(self, probability: Any) -> bool:
        low, self._low = self._low, None
        if low is not None:
            probability = min(1, 2 * probability) if low else max(0, 2 * probability - 1)
        return self._source.bernoulli(probability)

    def choose(self, probs: Any) -> int:
        return self._source.choose(probs)


class PeekingList:
    """The lower ids where the coin will be kind, the upper ones where it will not."""

    name, per_round = "peeking", True

    def __init__(self, size: int, source: Peeked) -> None:
        self.budget, self._size, self._source = size, size, source

    def select(self, context: Context) -> torch.Tensor:
        half = (self._size + 1) // 2
        return torch.arange(half) if self._source.low() else torch.arange(half - 1, self._size)

    def observe(self, finished: Round) -> None:
        """Learns nothing."""

    def reset(self) -> None:
        """Has learnt nothing."""


def peeking(verifier: Verifier, honest: bool) -> Decoding:
    """A list that tosses coins: its own, or the very ones that will judge its tokens."""

    def decode(toys: Toys, source: RandomSource) -> Iterable[Round]:
        peeked = Peeked(source, honest)
        return speculation(lambda size: PeekingList(size, peeked), verifier)(toys, peeked)

    return decode


def cut_short(verifier: Verifier, keep: bool) -> Verifier:
    """A chain that ends where the draft was not sure: behind that token, or before it."""

    def verify(
        proposal: Proposal, distributions: Sequence[Distribution], rng: RandomSource
    ) -> Verdict:
        length = len(proposal)
        for node, (token, q) in enumerate(
            zip(proposal.tokens, proposal.draft_distributions, strict=True)
        ):
            if q.probability(token) < 0.5:
                length = min(length, node + keep)
        truncate_ranking = Proposal(proposal.tokens[:length], proposal.draft_distributions[:length])
        return verifier(truncate_ranking, distributions[: length + 1], rng)

    return verify


# --- 8 and 9: the door ----------------------------------------------------------------------


class Told:
    """A list that says what it is told to."""

    name, per_round = "told", False

    def __init__(self, ids: torch.Tensor, budget: int) -> None:
        self._ids, self.budget = ids, budget

    def select(self, context: Context) -> torch.Tensor:
        return self._ids

    def observe(self, finished: Round) -> None:
        """Learns nothing."""

    def reset(self) -> None:
        """Has learnt nothing."""


def refused(ids: torch.Tensor, size: int = 4, budget: int = 3) -> float:
    """A list that breaks its contract is refused by name, before anything is drawn from it."""
    model = ToyTarget(size, random_table(size, 1)), ToyDraft(size, random_table(size, 2))
    rounds = speculative(
        *model, Told(ids, budget), [0, 1], gamma=2, sampling=Sampling(1.0), rng=SeededRandom(0),
        stop=StopRule(4),
    )  # fmt: skip
    with pytest.raises(ShortlistError, match="told"):
        list(rounds)
    return 0.0


# --- 10 and 11: ends ------------------------------------------------------------------------


class Letters:
    """A tokenizer of up to six tokens; two are the halves of one character, the last ends."""

    bos_id, fingerprint, leading_space = None, "letters", False
    _bytes = (b"a", b"b", b"ab", b"\xc3", b"\xa4", b"")

    def __init__(self, size: int) -> None:
        self.vocab_size, self.eos_ids = size, (size - 1,)

    def token_bytes(self, token: int) -> bytes:
        return b"" if token in self.eos_ids else self._bytes[token]

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(map(self.token_bytes, ids)).decode(errors="replace")

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        raise NotImplementedError

    def chat(self, prompt: str) -> list[int]:
        raise NotImplementedError


def text_distance(verifier: Verifier, case: Any, stops: tuple[str, ...]) -> Any:
    """Of (tokens, text, reason of the end): speculative decoding against endless plain
    decoding that is cut afterwards, by the plainest rule that there is."""
    toys, letters = Toys.of(case, Sampling(1.0), Backend()), Letters(case.vocabulary)
    rule = StopRule(case.limit, case.stop.eos_ids, stops)
    shortlist = static(case.vocabulary)

    def said(source: RandomSource) -> Any:
        rounds = list(speculative(
            toys.target, toys.draft, shortlist, case.prompt, gamma=case.gamma,
            sampling=toys.sampling, rng=source, stop=rule, tokenizer=letters, verifier=verifier,
        ))  # fmt: skip
        tokens = tuple(t for finished in rounds for t in finished.tokens)
        return tokens, "".join(finished.text for finished in rounds), rounds[-1].stop

    def endless(source: RandomSource) -> Any:
        rounds = autoregressive(
            toys.target, case.prompt, sampling=toys.sampling, rng=source,
            stop=StopRule(case.limit),
        )  # fmt: skip
        return cut_afterwards([t for finished in rounds for t in finished.tokens], rule, letters)

    return total_variation(distribution_of(said), distribution_of(endless))


def cut_afterwards(tokens: list[int], rule: StopRule, letters: Letters) -> Any:
    """What is left of a whole output: token by token, from the front."""
    for length in range(1, len(tokens) + 1):
        kept = tuple(tokens[:length])
        sure = codecs.getincrementaldecoder("utf-8")("replace")
        text = sure.decode(b"".join(map(letters.token_bytes, kept)))
        places = [text.index(stop) for stop in rule.stop_strings if stop in text]
        if places:
            return kept, text[: min(places)], "stop_string"
        if kept[-1] in rule.eos_ids:
            return kept, letters.decode(kept), "eos"
    return kept, letters.decode(kept), "length"


def late_limit(toys: Toys, source: RandomSource) -> Iterable[Round]:
    """Speculation that looks at the limit between rounds only."""
    case = toys.case
    rule = replace(case.stop, max_new_tokens=case.limit + case.gamma)
    emitted = 0
    for finished in speculative(
        toys.target, toys.draft, static(case.vocabulary), case.prompt, gamma=case.gamma,
        sampling=toys.sampling, rng=source, stop=rule, trace=True,
    ):  # fmt: skip
        emitted += len(finished.tokens)
        late = emitted >= case.limit and finished.stop != "eos"
        yield replace(finished, stop="length") if late else finished
        if late:
            return


# --- 12: every position ---------------------------------------------------------------------


class Processed(ToyTarget):
    """A target that never says the same id twice in a row, a processor of the past. A blind
    one knows the last *emitted* token only, at the drafted places too."""

    def __init__(self, size: int, table: Any, blind: bool, head: Any) -> None:
        super().__init__(size, self._masked, head=head)
        self._plain, self._blind, self._last = table, blind, -1

    def step(self, ids: torch.Tensor, cache: Any) -> Any:
        self._last = int(ids[0])
        return super().step(ids, cache)

    def _masked(self, tokens: tuple[int, ...]) -> torch.Tensor:
        weights = self._plain(tokens).clone()
        last = self._last if self._blind else tokens[-1]
        weights[last] = 0
        return weights


def processed(case: Any, verifier: Verifier, blind: bool) -> Any:
    """A law that depends on the past in a way of its own, at every drafted place."""

    def decode(toys: Toys, source: RandomSource, blind: bool = blind) -> Iterable[Round]:
        target = Processed(case.vocabulary, toys.target.after, blind, toys.target.head)
        return speculation(static, verifier)(replace(toys, target=target), source)

    def expected(toys: Toys, source: RandomSource) -> Iterable[Round]:
        target = Processed(case.vocabulary, toys.target.after, False, toys.target.head)
        return plain(replace(toys, target=target), source)

    return distance(decode, case, against=expected)


class BonusUnshaped:
    """Shapes every law but that of the place after the last drafted token."""

    def __init__(self, toys: Toys) -> None:
        self._toys, self._drafted, self._judged = toys, 0, 0

    target_distributions = ExactSampling.target_distributions

    def distribution(self, logits: torch.Tensor, ids: torch.Tensor) -> Distribution:
        if len(ids) < self._toys.case.vocabulary:  # the list is never the whole
            self._drafted, self._judged = self._drafted + 1, 0
            return self._toys.sampling.distribution(logits, ids)
        self._judged += 1
        if self._judged <= self._drafted or not self._drafted:
            return self._toys.sampling.distribution(logits, ids)
        self._drafted = 0
        return ExactSampling(Sampling(1.0)).distribution(logits, ids)


# --- 13 and 14: ties and precision ----------------------------------------------------------


def tied(weights: Sequence[int], sampling: Sampling) -> float:
    """The production law against the one in fractions, which breaks ties by (-weight, id)."""
    ids = torch.arange(len(weights))
    logits = torch.tensor(weights, dtype=torch.float64).log()  # -inf where the weight is 0
    found = sampling_module.Sampling.distribution(sampling, logits, ids)
    exact = ExactSampling(sampling).distribution(torch.tensor(weights), ids)
    pairs = list(zip(found.probs.tolist(), exact.probs, strict=True))
    apart = sum(abs(share - float(right)) for share, right in pairs) / 2
    # What is left out has probability exactly 0, not almost.
    assert apart > 1e-12 or all((share == 0) == (right == 0) for share, right in pairs)
    return apart


def precise(logits: Sequence[float], temperature: float, dtype: torch.dtype) -> float:
    """The law of low-precision logits against the float64 law of the very same numbers."""
    low = torch.tensor(logits).to(dtype)
    found = Sampling(temperature).distribution(low, torch.arange(len(logits)))
    exact = torch.softmax(low.double() / temperature, dim=0)
    return float((found.probs.double() - exact).abs().sum() / 2)


# --- 15: rows -------------------------------------------------------------------------------

TOY = toy_transformer()


def rows_as_alone(
    lengths: Sequence[int], rows: int, temperatures: Sequence[float], shared: bool = False
) -> None:
    """Each row says what it would say alone: other lengths, seeds and laws beside it."""
    prompts = [[(7 * i + j) % 50 for j in range(length)] for i, length in enumerate(lengths)]
    samplings = [Sampling(temperatures[i % len(temperatures)]) for i in range(len(lengths))]
    one = SeededRandom(0)
    randoms = [one if shared else SeededRandom(i) for i in range(len(lengths))]
    options: Any = {"max_new_tokens": 6, "eos_ids": (0, 1, 2)}
    written = decode_batch(TOY, prompts, samplings, randoms, rows=rows, **options)
    found = {row.index: row.tokens for row in written}
    for i, prompt in enumerate(prompts):
        source = SeededRandom(0 if shared else i)
        [alone] = decode_batch(TOY, [prompt], [samplings[i]], [source], rows=1, **options)
        assert found[i] == alone.tokens, f"row {i}: {found[i]}, alone {alone.tokens}"
        stop = StopRule(options["max_new_tokens"], options["eos_ids"])
        plainly = autoregressive(
            TOY, prompt, sampling=samplings[i], rng=SeededRandom(0 if shared else i), stop=stop
        )
        assert found[i] == tuple(t for finished in plainly for t in finished.tokens)
