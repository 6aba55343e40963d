"""Drafting and verification in exact fractions: the total variation is 0, not merely small."""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from minispec.certificate.toys import ToyDraft, ToyTarget
from minispec.certificate.walker import (
    BranchingSource,
    distribution_of,
    fraction_distribution,
    total_variation,
)
from minispec.errors import ArgumentError
from minispec.growth import pick_candidates
from minispec.propose import Drafter
from minispec.sampling import Sampling
from minispec.stopwatch import Stopwatch
from minispec.types import Context, Distribution, Proposal
from minispec.verify import (
    Verdict,
    acceptance_probability,
    positive_part,
    residual,
    verify,
    verify_block,
)

PROMPT = (0, 1)
Verifier = Callable[[Proposal, Sequence[Distribution], BranchingSource], Verdict]
Table = Callable[[tuple[int, ...]], Distribution]  # the distribution after each prefix


class WeightSampling(Sampling):
    """A ``Sampling`` whose logits are whole weights, so that the distributions that ``Drafter``
    draws from are exact fractions."""

    def shape(self, logits: torch.Tensor, ids: torch.Tensor) -> Distribution:
        return fraction_distribution([int(weight) for weight in logits], ids.tolist())


class SupportShortlist:
    """Selects the ids that q lists at each position."""

    name, budget, per_round = "support", 99, False

    def __init__(self, q: Table) -> None:
        self.q = q

    def select(self, context: Context) -> torch.Tensor:
        return torch.tensor(self.q(context.tokens[len(PROMPT) :]).ids)


def speculative_distribution(
    verifier: Verifier, p: Table, q: Table, vocab_size: int, gamma: int
) -> dict[object, Fraction]:
    """The distribution of the first gamma + 1 tokens when the production code drafts a chain
    from q and verifies it against p; after a rejection the rest is drawn from p itself."""

    def weights(tokens: tuple[int, ...]) -> torch.Tensor:
        row = torch.zeros(vocab_size, dtype=torch.float64)
        distribution = q(tokens[len(PROMPT) :])
        scale = math.lcm(*(prob.denominator for prob in distribution.probs))
        for token, prob in zip(distribution.ids, distribution.probs, strict=True):
            row[token] = int(prob * scale)
        return row

    draft, target = ToyDraft(vocab_size, weights), ToyTarget(vocab_size, weights)
    aux_hidden_states = target.step(torch.tensor(PROMPT[:1]), target.new_cache(1)).aux_hidden_states

    def program(rng: BranchingSource) -> tuple[int, ...]:
        drafter = Drafter(draft, SupportShortlist(q), len(PROMPT) + gamma)
        drafter.resync(torch.tensor(PROMPT[1:]), aux_hidden_states)
        proposal = drafter.propose(PROMPT, gamma, WeightSampling(), rng, Stopwatch())
        target_distributions = [p(proposal.tokens[:i]) for i in range(gamma + 1)]
        verdict = verifier(proposal, target_distributions, rng)
        output = (*proposal.tokens[: len(verdict.path)], verdict.next_token)
        while len(output) <= gamma:
            output += (rng.choose(p(output).probs),)
        return output

    return distribution_of(program)


def plain_distribution(p: Table, length: int) -> dict[object, Fraction]:
    def program(rng: BranchingSource) -> tuple[int, ...]:
        output: tuple[int, ...] = ()
        while len(output) < length:
            output += (rng.choose(p(output).probs),)
        return output

    return distribution_of(program)


@st.composite
def tables(draw: st.DrawFn, vocab_size: int, pruned: bool) -> Table:
    """An arbitrary distribution for each prefix; if ``pruned``, over an arbitrary shortlist."""
    seed = draw(st.integers(0, 2**32))
    largest = draw(st.sampled_from([1, 2, 9]))

    @cache
    def distribution(tokens: tuple[int, ...]) -> Distribution:
        generator = np.random.default_rng([seed, *tokens])
        size = int(generator.integers(1, vocab_size + 1)) if pruned else vocab_size
        ids = sorted(generator.choice(vocab_size, size, replace=False).tolist())
        weights = generator.integers(0, largest, size, endpoint=True).tolist()
        return fraction_distribution(weights if any(weights) else [1] * size, ids)

    return distribution


@given(data=st.data(), vocab_size=st.integers(2, 4), gamma=st.integers(1, 3))
def test_verify_keeps_the_target_distribution(
    data: st.DataObject, vocab_size: int, gamma: int
) -> None:
    """For any p with zeros and ties, and any q over shortlists that change at every position."""
    if gamma == 3:
        vocab_size = min(vocab_size, 3)
    p = data.draw(tables(vocab_size, pruned=False))
    q = data.draw(tables(vocab_size, pruned=True))
    ours = speculative_distribution(verify, p, q, vocab_size, gamma)
    assert total_variation(ours, plain_distribution(p, gamma + 1)) == 0


def residual_without_subtraction(p: Distribution, q: Distribution) -> Distribution:
    return p


def scaled_acceptance(p: Distribution, q: Distribution, token: int) -> Fraction:
    return acceptance_probability(p, q, token) * Fraction(9, 10)


@pytest.mark.parametrize(
    ("name", "defect"),
    [("residual", residual_without_subtraction), ("acceptance_probability", scaled_acceptance)],
)
def test_verify_with_a_planted_defect_changes_the_distribution(
    name: str, defect: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above can fail: where the shortlist misses mass of p, either defect shows."""
    monkeypatch.setattr("minispec.verify." + name, defect)

    def p(tokens: tuple[int, ...]) -> Distribution:
        return fraction_distribution([1, 2, 3])

    def q(tokens: tuple[int, ...]) -> Distribution:
        return fraction_distribution([3, 1], ids=[0, 2])

    ours = speculative_distribution(verify, p, q, 3, 1)
    assert total_variation(ours, plain_distribution(p, 2)) > Fraction(1, 100)


def test_residual_of_equal_distributions_is_p() -> None:
    """A rejection then has probability 0; if rounding causes one, the next token comes from p:
    no NaN, and no id that p excludes."""
    p = Distribution(torch.arange(4), torch.tensor([0.0, 0.25, 0.75, 0.0]))
    assert torch.equal(residual(p, p).probs, p.probs)


def test_residual_includes_tokens_outside_the_shortlist() -> None:
    p = fraction_distribution([1, 1, 2])
    q = fraction_distribution([1], ids=[2])
    assert list(residual(p, q).probs) == [Fraction(1, 2), Fraction(1, 2), 0]
    assert list(p.probs) == [Fraction(1, 4), Fraction(1, 4), Fraction(1, 2)]  # unchanged


def test_verify_never_accepts_a_token_that_the_target_excludes() -> None:
    class ZeroUniform:
        """The source that accepts most: every uniform is exactly 0."""

        def bernoulli(self, probability: float) -> bool:
            return probability > 0.0

        def choose(self, probs: torch.Tensor) -> int:
            return int(probs.argmax())

    p = Distribution(torch.arange(2), torch.tensor([0.0, 1.0]))
    q = Distribution(torch.tensor([0]), torch.tensor([1.0]))
    verdict = verify(Proposal((0,), (q,)), [p, p], ZeroUniform())
    assert verdict.path == () and verdict.next_token == 1


@pytest.mark.parametrize("verifier", [verify, verify_block])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_verify_rejects_a_wrong_number_of_distributions(count: int, verifier: Verifier) -> None:
    distribution = fraction_distribution([1, 1])
    with pytest.raises(ArgumentError, match="need 2 target distributions, got"):
        verifier(Proposal((0,), (distribution,)), [distribution] * count, BranchingSource([]))


@pytest.mark.parametrize("verifier", [verify, verify_block])
def test_verify_rejects_a_token_of_probability_0_under_q(verifier: Verifier) -> None:
    distribution = fraction_distribution([1, 1])
    with pytest.raises(ArgumentError, match="token 1 has probability 0 under its recorded draft"):
        verifier(
            Proposal((1,), (fraction_distribution([1], ids=[0]),)),
            [distribution] * 2,
            BranchingSource([]),
        )


@pytest.mark.parametrize("verifier", [verify, verify_block])
def test_verify_rejects_a_token_without_a_distribution(verifier: Verifier) -> None:
    distribution = fraction_distribution([1, 1])
    with pytest.raises(ArgumentError, match="1 drafted tokens have 0 draft distributions"):
        verifier(Proposal((0,), ()), [distribution] * 2, BranchingSource([]))


def test_pick_candidates_are_point_masses_on_the_most_likely_ids() -> None:
    distribution = Distribution(torch.tensor([2, 3, 5, 7]), torch.tensor([0.2, 0.3, 0.2, 0.3]))
    for count, tokens in [(1, (3,)), (3, (3, 7, 2)), (9, (3, 7, 2, 5))]:
        found = pick_candidates(distribution, count)
        assert tuple(candidate.token for candidate in found) == tokens
        for candidate in found:
            point_mass = candidate.distribution
            assert point_mass.probability(candidate.token) == 1 == point_mass.probs.sum()
            assert candidate.confidence == float(distribution.probability(candidate.token))
    # Of many equal ones the lowest: an unstable sort would mix them.
    ties = Distribution(torch.arange(99), torch.tensor([0.25, 0.5, 0.25] * 33))
    found = pick_candidates(ties, 36)
    assert tuple(candidate.token for candidate in found) == (*range(1, 99, 3), 0, 2, 3)


def test_verdict_records_the_acceptance_of_each_examined_token() -> None:
    """p/q is 1/2 at both positions. Token by token, the second acceptance is conditional on the
    first; as a block it is not."""
    p, q = fraction_distribution([1, 3]), fraction_distribution([1, 1])
    chain = Proposal((0, 0), (q, q))

    class ScriptedSource:
        def __init__(self, *accepted: bool) -> None:
            self._accepted = list(accepted)

        def bernoulli(self, probability: Fraction) -> bool:
            return self._accepted.pop(0)

        def choose(self, probs: object) -> int:
            return 1

    half = Fraction(1, 2)
    rejected = verify(chain, [p] * 3, ScriptedSource(False))
    assert rejected.path == () and rejected.acceptance == (half,)
    assert verify(chain, [p] * 3, ScriptedSource(True, False)).acceptance == (half, half)
    block = verify_block(chain, [p] * 3, ScriptedSource(False, False))
    assert block.path == () and block.acceptance == (half, half / 2)
    assert verify_block(chain, [p] * 3, ScriptedSource(False, True)).path == (0,)
    complete = verify_block(chain, [p] * 3, ScriptedSource(True))
    assert complete.path == (0, 1) and complete.next_distribution is p
    siblings = Proposal((0, 0), (q, q), (-1, -1))
    second = verify(siblings, [p] * 3, ScriptedSource(False, True))
    assert second.path == (1,) and second.acceptance == (half, 0)
    assert verify(siblings, [p] * 3, ScriptedSource(False, False)).path == ()
    tree = Proposal((0, 0, 0), (q,) * 3, (-1, -1, 1))
    assert verify(tree, [p] * 4, ScriptedSource(True)).acceptance == (half,)
    assert verify_block(tree, [p] * 4, ScriptedSource(False, True)).path == (1, 2)
    skipping = Proposal((0, 0, 1), (q,) * 3, (-1, 0, -1))
    found = verify(skipping, [p] * 4, ScriptedSource(False, True))
    assert found.path == (2,) and found.acceptance == (half, None, 1)


def test_verify_block_matches_a_computation_by_hand() -> None:
    """w_1 = 1/2 and R_1 = (1/2 * 3/4 - 1/4)+ = 1/8 give 1/8 / (1/8 + 1/2) = 1/5."""
    p1, q1 = fraction_distribution([1, 1]), fraction_distribution([1], ids=[0])
    p2, q2 = fraction_distribution([1, 3]), fraction_distribution([3, 1])
    probabilities: list[Fraction] = []

    class RecordingSource:
        def bernoulli(self, probability: Fraction) -> bool:
            probabilities.append(probability)
            return len(probabilities) == 2

        def choose(self, probs: object) -> int:
            return int(np.argmax(probs))  # type: ignore[call-overload]

    verdict = verify_block(Proposal((0, 0), (q1, q2)), [p1, p2, p2], RecordingSource())
    assert probabilities == [Fraction(1, 6), Fraction(1, 5)]
    assert verdict.path == (0,) and verdict.next_token == 1
    assert list(verdict.next_distribution.probs) == [0, 1]


def test_verify_block_of_equal_distributions_rejected_by_rounding_draws_from_p() -> None:
    """No prefix is kept then, since its residual is empty."""
    distribution = fraction_distribution([1, 1])

    class RejectingSource:
        def bernoulli(self, probability: Fraction) -> bool:
            return False

        def choose(self, probs: object) -> int:
            return 1

    verdict = verify_block(
        Proposal((0, 1), (distribution, distribution)), [distribution] * 3, RejectingSource()
    )
    assert verdict.path == () and verdict.next_distribution is distribution


def test_positive_part_subtracts_q_where_both_list_an_id() -> None:
    p, q = fraction_distribution([1, 1, 2]), fraction_distribution([1, 1], ids=[0, 2])
    assert list(positive_part(p, q)) == [0, Fraction(1, 4), 0]
    assert list(residual(p, q).probs) == [0, 1, 0]
    assert list(positive_part(p, q, Fraction(1, 2))) == [0, Fraction(1, 8), 0]
