"""Statistical tests of the whole path: real distributions, the production random source, counts.

Enumeration proves exactness for ideal probabilities over a few ids. Here the random source is the
production one and the distributions are SmolLM2's own, of target and draft, after 20 contexts from
the project's prompts: the likeliest ids as they are, the rest as one id. Each output has three
tokens, of which two are counted; the first token selects the distributions of the second.

The statistic is G = 2 sum O ln(O / E) over the ids with E >= 10, the others as one cell, for the
first and the second tokens of each context and of all contexts together: at most 42 tests. Under
the right distribution G is close to chi-squared. The false-alarm probability of all tests together
is 1e-6; their power is computed from the distribution that a planted bias causes, and asserted.
"""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.exactness.planting import patch_attribute, restrict_residual
from minispec import verify as verification
from minispec.certificate.toys import ToyDraft, ToyTarget
from minispec.commit import StopRule
from minispec.decode import speculative
from minispec.io import draft_file
from minispec.sampling import Sampling, SeededRandom
from minispec.shortlists.frspec import FRSpecShortlist
from minispec.text.tokenizer import encode_prompt
from minispec.tools.data import corpus
from minispec.tools.models import pretrained
from minispec.verify import VERIFIERS

CONTEXTS, V, MIN_EXPECTED = 20, 1024, 10
FALSE_ALARM = 1e-6
DRAWS, MANY_DRAWS, SHARE = 1000, 100_000, 0.1
SHORTLIST = torch.arange(0, V - 1, 2)  # half of the ids, the likeliest among them
Logits = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def logits(smollm2: pretrained.Pretrained) -> Logits:
    """Of target and draft after 20 contexts: (20, V) float64 each; the last id is the rest."""
    path = draft_file.find_draft("smollm2")
    assert path is not None
    draft = draft_file.load_draft(path, smollm2.target, smollm2.fingerprint)
    rows: list[list[Tensor]] = [[], []]
    count = CONTEXTS // 4
    prompts = [text for name in corpus.DOMAINS for text in corpus.load_prompts(name)[:count]]
    for text in prompts:
        ids = torch.tensor(encode_prompt(smollm2.tokenizer, text, raw=True)[:48])
        features = smollm2.target.step(ids[:-1], smollm2.target.new_cache(len(ids)))
        states = draft.step(
            ids[1:], draft.fuse(features.aux_hidden_states), draft.new_cache(len(ids))
        )
        complete = smollm2.target.step(ids, smollm2.target.new_cache(len(ids)))
        rows[0].append(smollm2.target.head.logits(complete.hidden[-1]).double())
        rows[1].append(draft.head.logits(draft.apply_final_norm(states[-1])).double())
    target_logits, draft_logits = torch.stack(rows[0]), torch.stack(rows[1])  # (20, vocabulary)
    ranked = torch.softmax(target_logits, -1).amax(0).argsort(descending=True)
    return pool_rare_ids(target_logits, ranked), pool_rare_ids(draft_logits, ranked)


def pool_rare_ids(logits: Tensor, ranked: Tensor) -> Tensor:
    """(20, vocabulary) -> (20, V): all ids after the first V - 1 of a ranking become one."""
    rest = logits[:, ranked[V - 1 :]].logsumexp(-1, keepdim=True)
    return torch.cat((logits[:, ranked[: V - 1]], rest), dim=-1)


class IdentityHead:
    """The head of toys, whose hidden states are their logits."""

    vocab_size = V

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden.clone()

    def logits_of(self, hidden: Tensor, ids: Tensor) -> Tensor:
        return hidden[ids]

    def argmax(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        logits, ids = hidden.max(-1)
        return ids, logits


def select_row(tokens: tuple[int, ...]) -> int:
    """The row of logits after a text: given by the second token, then by the sum of it and the
    first emitted one."""
    return sum(tokens[1:3]) % CONTEXTS


def count_tokens(logits: Logits, verifier: str, draws: int, seed: int) -> tuple[Counter[Any], ...]:
    """Counts of (row, token) of first and of second tokens."""
    head: Any = IdentityHead()
    target = ToyTarget(V, lambda tokens: logits[0][select_row(tokens)], head=head)
    draft = ToyDraft(V, lambda tokens: logits[1][select_row(tokens)], head=head)
    shortlist = FRSpecShortlist(SHORTLIST, len(SHORTLIST), ())
    source, counts = SeededRandom(seed), (Counter[Any](), Counter[Any]())
    for index in range(draws):
        row = index % CONTEXTS
        rounds = speculative(
            target, draft, shortlist, [0, row], gamma=2, sampling=Sampling(1.0), rng=source,
            stop=StopRule(3), verifier=VERIFIERS[verifier],
        )  # fmt: skip
        first, second, _ = (t for finished in rounds for t in finished.tokens)
        counts[0][row, first] += 1
        counts[1][select_row((0, row, first)), second] += 1
    return counts


def select_cells(probs: Tensor, draws: float) -> Tensor:
    """Which ids (V,) are a cell of their own; the others form one cell."""
    return probs * draws >= MIN_EXPECTED


def compute_p_values(logits: Logits, counts: Counter[Any]) -> list[float]:
    """G-tests of each row, and of all rows together: the probability of so large a G by chance."""
    statistics, freedoms = [], []
    for row, probs in enumerate(torch.softmax(logits[0], -1)):
        counted = torch.tensor([float(counts[row, token]) for token in range(V)]).double()
        cells = select_cells(probs, float(counted.sum()))
        observed, expected = (
            torch.cat((x[cells], x[~cells].sum()[None])) for x in (counted, probs * counted.sum())
        )
        terms = torch.where(observed > 0, observed * (observed / expected).log(), 0)
        statistics.append(2 * float(terms.sum()))
        freedoms.append(float(cells.sum()))
    pairs = [*zip(statistics, freedoms, strict=True), (sum(statistics), sum(freedoms))]
    return [chi_squared_tail(g, freedom) for g, freedom in pairs if freedom]


def chi_squared_tail(g: float, freedom: float) -> float:
    """P(chi-squared with ``freedom`` degrees of freedom > g)."""
    half = torch.tensor([freedom / 2, max(g, 0.0) / 2]).double()
    return float(torch.special.gammaincc(half[0], half[1]))


def smallest_p_value(logits: Logits, verifier: str, draws: int, seed: int = 0) -> float:
    """The smallest p-value of all tests, times their number (Bonferroni)."""
    values = [
        p
        for counts in count_tokens(logits, verifier, draws, seed)
        for p in compute_p_values(logits, counts)
    ]
    assert len(values) > CONTEXTS
    return min(values) * len(values)


def compute_power(logits: Logits, draws: int, bias: float = 1.0) -> float:
    """The probability that the test of all first tokens detects a share of the bias.

    G is then nearly normal, with mean f + l and variance 2 (f + 2 l), where f are the degrees of
    freedom and l = n sum (p' - p)^2 / p over the cells.
    """
    p, q = torch.softmax(logits[0], -1), torch.zeros_like(logits[0])
    q[:, SHORTLIST] = torch.softmax(logits[1][:, SHORTLIST], -1)
    accepted = torch.minimum(p, q)
    restricted = (p - q).clamp(min=0) * (q > 0)
    rejected = 1 - accepted.sum(-1, keepdim=True)
    biased = accepted + rejected * restricted / restricted.sum(-1, keepdim=True)
    errors = bias * (biased - p)
    freedom = shift = 0.0
    for probs, error in zip(p, errors, strict=True):
        cells = select_cells(probs, draws / CONTEXTS)
        freedom += float(cells.sum())
        shift += draws / CONTEXTS * float((error[cells] ** 2 / probs[cells]).sum())
        shift += draws / CONTEXTS * float(error[~cells].sum() ** 2 / probs[~cells].sum())
    threshold = freedom
    while chi_squared_tail(threshold, freedom) * 42 > FALSE_ALARM:
        threshold += 1
    z = (freedom + shift - threshold) / (2 * (freedom + 2 * shift)) ** 0.5
    return float(torch.special.ndtr(torch.tensor(z).double()))


@pytest.mark.parametrize("verifier", VERIFIERS)
def test_speculative_counts_follow_the_target_distribution(logits: Logits, verifier: str) -> None:
    """With enough draws to detect the planted bias (after a rejection only tokens of the shortlist
    are sampled) with a probability above 0.999."""
    assert compute_power(logits, DRAWS) > 0.999
    assert smallest_p_value(logits, verifier, DRAWS) > FALSE_ALARM
    with patch_attribute(verification, "residual", restrict_residual):
        assert smallest_p_value(logits, verifier, DRAWS) < FALSE_ALARM


@pytest.mark.slow
@pytest.mark.parametrize("verifier", VERIFIERS)
def test_speculative_counts_follow_the_target_distribution_over_many_draws(
    logits: Logits, verifier: str
) -> None:
    """100,000 draws per verifier: enough to detect a tenth of the bias."""
    assert compute_power(logits, MANY_DRAWS, bias=SHARE) > 0.999
    assert smallest_p_value(logits, verifier, MANY_DRAWS) > FALSE_ALARM
