"""The plumbing by statistics: real laws, the production source, and tokens counted.

Walking proves the law that decisions would have if their numbers were ideal, over few ids. Here
the numbers are the production source's and the laws SmolLM2's own, target and draft, at 20
places of the project's prompts: the likeliest ids one by one, the rest as one. Each speculated
output has three tokens, of which two are counted; the law of the next is another of the 20,
chosen by the one before.

The statistic is G = 2 sum O ln(O / E) over the ids with E >= 10, the others as one cell, for the
first and the second tokens of each law, and of all laws together: at most 42 tests. Under the
right law G is close to chi-squared. The family's false-alarm probability is 1e-6; its power is
computed from the law that a planted bias gives, and asserted.
"""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from defects import patched
from minispec import verify as verification
from minispec.certificate.toys import ToyDraft, ToyTarget
from minispec.commit import StopRule
from minispec.decode import speculative
from minispec.io import draft_file
from minispec.sampling import Sampling, SeededRandom
from minispec.shortlists.frspec import FRSpecShortlist
from minispec.text.tokenizer import prompt_ids
from minispec.tools.data import corpus
from minispec.tools.models import pretrained
from minispec.types import Distribution
from minispec.verify import VERIFIERS

PLACES, V, EXPECTED = 20, 1024, 10
FALSE_ALARM = 1e-6
DRAWS, MANY, SHARE = 1000, 100_000, 0.1
LIST = torch.arange(0, V - 1, 2)  # half of the ids, the likeliest among them
Logits = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def logits(smollm2: pretrained.Pretrained) -> Logits:
    """Of target and draft at 20 places: (20, V) float64 each; the last id stands for the rest."""
    path = draft_file.find_draft("smollm2")
    assert path is not None
    draft = draft_file.load_draft(path, smollm2.target, smollm2.fingerprint)
    rows: list[list[Tensor]] = [[], []]
    prompts = [text for name in corpus.DOMAINS for text in corpus.prompts(name)[: PLACES // 4]]
    for text in prompts:
        ids = torch.tensor(prompt_ids(smollm2.tokenizer, text, raw=True)[:48])
        features = smollm2.target.step(ids[:-1], smollm2.target.new_cache(len(ids)))
        states = draft.step(
            ids[1:], draft.fuse(features.aux_hidden_states), draft.new_cache(len(ids))
        )
        whole = smollm2.target.step(ids, smollm2.target.new_cache(len(ids)))
        rows[0].append(smollm2.target.head.logits(whole.hidden[-1]).double())
        rows[1].append(draft.head.logits(draft.apply_final_norm(states[-1])).double())
    target, guess = torch.stack(rows[0]), torch.stack(rows[1])
    ranked = torch.softmax(target, -1).amax(0).argsort(descending=True)
    return pooled(target, ranked), pooled(guess, ranked)


def pooled(rows: Tensor, ranked: Tensor) -> Tensor:
    rest = rows[:, ranked[V - 1 :]].logsumexp(-1, keepdim=True)
    return torch.cat((rows[:, ranked[: V - 1]], rest), dim=-1)


class Identity:
    """Toys' hidden states are their logits."""

    vocab_size = V

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden.clone()

    def logits_of(self, hidden: Tensor, ids: Tensor) -> Tensor:
        return hidden[ids]

    def argmax(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        logits, ids = hidden.max(-1)
        return ids, logits


def row_of(tokens: tuple[int, ...]) -> int:
    """Which of the 20 laws follows: that of the place, then of the place and the first token."""
    return sum(tokens[1:3]) % PLACES


def drawn(logits: Logits, verifier: str, draws: int, seed: int) -> tuple[Counter[Any], ...]:
    """Counts of (law, token) of first and of second tokens."""
    head: Any = Identity()
    target = ToyTarget(V, lambda tokens: logits[0][row_of(tokens)], head=head)
    draft = ToyDraft(V, lambda tokens: logits[1][row_of(tokens)], head=head)
    listed = FRSpecShortlist(LIST, len(LIST), ())
    source, counts = SeededRandom(seed), (Counter[Any](), Counter[Any]())
    for number in range(draws):
        place = number % PLACES
        rounds = speculative(
            target, draft, listed, [0, place], gamma=2, sampling=Sampling(1.0), rng=source,
            stop=StopRule(3), verifier=VERIFIERS[verifier],
        )  # fmt: skip
        first, second, _ = (t for finished in rounds for t in finished.tokens)
        counts[0][place, first] += 1
        counts[1][row_of((0, place, first)), second] += 1
    return counts


def cells_of(distribution: Tensor, draws: float) -> Tensor:
    """Which ids (V,) are cells of their own; the others are one cell together."""
    return distribution * draws >= EXPECTED


def p_values(logits: Logits, counts: Counter[Any]) -> list[float]:
    """G-tests of each law, and of all together: the probability of a G as large by chance."""
    statistics, freedoms = [], []
    for row, distribution in enumerate(torch.softmax(logits[0], -1)):
        observed = torch.tensor([float(counts[row, token]) for token in range(V)]).double()
        own = cells_of(distribution, float(observed.sum()))
        seen, expected = (
            torch.cat((x[own], x[~own].sum()[None]))
            for x in (observed, distribution * observed.sum())
        )
        terms = torch.where(seen > 0, seen * (seen / expected).log(), 0)
        statistics.append(2 * float(terms.sum()))
        freedoms.append(float(own.sum()))
    pairs = [*zip(statistics, freedoms, strict=True), (sum(statistics), sum(freedoms))]
    return [beyond(g, freedom) for g, freedom in pairs if freedom]


def beyond(g: float, freedom: float) -> float:
    """P(chi-squared with ``freedom`` degrees > g)."""
    half = torch.tensor([freedom / 2, max(g, 0.0) / 2]).double()
    return float(torch.special.gammaincc(half[0], half[1]))


def smallest(logits: Logits, verifier: str, draws: int, seed: int = 0) -> float:
    """The family's smallest p-value, times the number of its tests (Bonferroni)."""
    values = [
        p for counts in drawn(logits, verifier, draws, seed) for p in p_values(logits, counts)
    ]
    assert len(values) > PLACES
    return min(values) * len(values)


def on_list(p: Distribution, q: Distribution, weight: Any = 1) -> Distribution:
    """The bias: what the list lacks is not given back after a rejection."""
    left = verification.excess(p, q, weight)
    kept = torch.zeros_like(left)
    kept[q.ids] = left[q.ids]
    return Distribution(p.ids, kept / kept.sum()) if kept.sum() > 0 else p


def power(logits: Logits, draws: int, bias: float = 1.0) -> float:
    """With what probability the test of all first tokens together sees a share of the bias.
    G is then near to normal, with mean f + l and variance 2 (f + 2 l), where f are the degrees
    of freedom and l = n sum (p' - p)^2 / p over the cells."""
    p, q = torch.softmax(logits[0], -1), torch.zeros_like(logits[0])
    q[:, LIST] = torch.softmax(logits[1][:, LIST], -1)
    kept = torch.minimum(p, q)
    left = (p - q).clamp(min=0) * (q > 0)
    biased = kept + (1 - kept.sum(-1, keepdim=True)) * left / left.sum(-1, keepdim=True)
    wrong = bias * (biased - p)
    freedom = shift = 0.0
    for right, change in zip(p, wrong, strict=True):
        own = cells_of(right, draws / PLACES)
        freedom += float(own.sum())
        shift += draws / PLACES * float((change[own] ** 2 / right[own]).sum())
        shift += draws / PLACES * float(change[~own].sum() ** 2 / right[~own].sum())
    threshold = freedom
    while beyond(threshold, freedom) * 42 > FALSE_ALARM:
        threshold += 1
    z = (freedom + shift - threshold) / (2 * (freedom + 2 * shift)) ** 0.5
    return float(torch.special.ndtr(torch.tensor(z).double()))


@pytest.mark.parametrize("verifier", VERIFIERS)
def test_real_laws_by_counting(logits: Logits, verifier: str) -> None:
    """Enough draws to see the planted bias with a probability above 0.999."""
    assert power(logits, DRAWS) > 0.999
    assert smallest(logits, verifier, DRAWS) > FALSE_ALARM
    with patched(verification, "residual", on_list):
        assert smallest(logits, verifier, DRAWS) < FALSE_ALARM


@pytest.mark.slow
@pytest.mark.parametrize("verifier", VERIFIERS)
def test_real_laws_by_counting_for_long(logits: Logits, verifier: str) -> None:
    """200,000 by the two verifiers: enough to see a tenth of that bias."""
    assert power(logits, MANY, bias=SHARE) > 0.999
    assert smallest(logits, verifier, MANY) > FALSE_ALARM
