"""Propose and verify in exact fractions: total variation 0, not small."""

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
    Branching,
    distribution_of,
    fraction_distribution,
    total_variation,
)
from minispec.errors import ArgumentError
from minispec.propose import Drafter, top_k_candidates
from minispec.stopwatch import Stopwatch
from minispec.types import Context, Distribution, Proposal, Verdict
from minispec.verify import (
    acceptance_probability,
    excess,
    residual,
    verify,
    verify_block,
    verify_siblings,
)

PROMPT = (0, 1)
Verifier = Callable[[Proposal, Sequence[Distribution], Branching], Verdict]
LawAfter = Callable[[tuple[int, ...]], Distribution]


class Weights:
    """In the place of ``Sampling``: logits are whole numbers, read as weights, so that the laws
    that ``Drafter`` draws from are exact."""

    def distribution(self, logits: torch.Tensor, ids: torch.Tensor) -> Distribution:
        return fraction_distribution([int(weight) for weight in logits], ids.tolist())


class Listed:
    """The ids of q's own law at each place."""

    name, budget, per_round = "listed", 99, False

    def __init__(self, q: LawAfter) -> None:
        self.q = q

    def select(self, context: Context) -> torch.Tensor:
        return torch.tensor(self.q(context.tokens[len(PROMPT) :]).ids)


def spoken(
    verifier: Verifier, p: LawAfter, q: LawAfter, vocabulary: int, gamma: int
) -> dict[object, Fraction]:
    """The law of the first gamma + 1 tokens when the production code drafts a chain from q and
    verifies it against p; where it was cut short, p itself goes on."""

    def weights(tokens: tuple[int, ...]) -> torch.Tensor:
        row = torch.zeros(vocabulary, dtype=torch.float64)
        distribution = q(tokens[len(PROMPT) :])
        whole = math.lcm(*(share.denominator for share in distribution.probs))
        for token, share in zip(distribution.ids, distribution.probs, strict=True):
            row[token] = int(share * whole)
        return row

    draft, target = ToyDraft(vocabulary, weights), ToyTarget(vocabulary, weights)
    aux_hidden_states = target.step(torch.tensor(PROMPT[:1]), target.new_cache(1)).aux_hidden_states

    def program(rng: Branching) -> tuple[int, ...]:
        drafter = Drafter(draft, Listed(q), len(PROMPT) + gamma)
        drafter.resync(torch.tensor(PROMPT[1:]), aux_hidden_states)
        proposal = drafter.propose(PROMPT, gamma, Weights(), rng, Stopwatch())
        target_distributions = [p(proposal.tokens[:i]) for i in range(gamma + 1)]
        verdict = verifier(proposal, target_distributions, rng)
        output = (*proposal.tokens[: len(verdict.path)], verdict.next_token)
        while len(output) <= gamma:
            output += (rng.choose(p(output).probs),)
        return output

    return distribution_of(program)


def plain(p: LawAfter, length: int) -> dict[object, Fraction]:
    def program(rng: Branching) -> tuple[int, ...]:
        output: tuple[int, ...] = ()
        while len(output) < length:
            output += (rng.choose(p(output).probs),)
        return output

    return distribution_of(program)


@st.composite
def tables(draw: st.DrawFn, vocabulary: int, support: bool) -> LawAfter:
    """An arbitrary law for each prefix; with ``support`` over an arbitrary list of ids."""
    seed = draw(st.integers(0, 2**32))
    spread = draw(st.sampled_from([1, 2, 9]))

    @cache
    def distribution(tokens: tuple[int, ...]) -> Distribution:
        generator = np.random.default_rng([seed, *tokens])
        size = int(generator.integers(1, vocabulary + 1)) if support else vocabulary
        ids = sorted(generator.choice(vocabulary, size, replace=False).tolist())
        weights = generator.integers(0, spread, size, endpoint=True).tolist()
        return fraction_distribution(weights if any(weights) else [1] * size, ids)

    return distribution


@given(data=st.data(), vocabulary=st.integers(2, 4), gamma=st.integers(1, 3))
def test_the_output_has_exactly_the_targets_law(
    data: st.DataObject, vocabulary: int, gamma: int
) -> None:
    """Any p with zeros and ties, any q over any list that changes at every position."""
    if gamma == 3:
        vocabulary = min(vocabulary, 3)
    p = data.draw(tables(vocabulary, support=False))
    q = data.draw(tables(vocabulary, support=True))
    assert total_variation(spoken(verify, p, q, vocabulary, gamma), plain(p, gamma + 1)) == 0


def forgets_to_subtract(p: Distribution, q: Distribution) -> Distribution:
    return p


def scales_acceptance(p: Distribution, q: Distribution, token: int) -> Fraction:
    return acceptance_probability(p, q, token) * Fraction(9, 10)


@pytest.mark.parametrize(
    ("name", "defect"),
    [("residual", forgets_to_subtract), ("acceptance_probability", scales_acceptance)],
)
def test_a_planted_defect_is_seen(
    name: str, defect: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison above can fail: with p off the list, either defect shifts the law."""
    monkeypatch.setattr("minispec.verify." + name, defect)

    def p(tokens: tuple[int, ...]) -> Distribution:
        return fraction_distribution([1, 2, 3])

    def q(tokens: tuple[int, ...]) -> Distribution:
        return fraction_distribution([3, 1], ids=[0, 2])

    assert total_variation(spoken(verify, p, q, 3, 1), plain(p, 2)) > Fraction(1, 100)


def test_the_residual_of_equal_laws_is_the_law_itself() -> None:
    """A rejection has probability 0 then; if rounding brings one about, p answers, and
    neither NaN nor an id that p excludes."""
    p = Distribution(torch.arange(4), torch.tensor([0.0, 0.25, 0.75, 0.0]))
    assert torch.equal(residual(p, p).probs, p.probs)


def test_the_residual_gives_back_what_the_list_lacks() -> None:
    p = fraction_distribution([1, 1, 2])
    q = fraction_distribution([1], ids=[2])
    assert list(residual(p, q).probs) == [Fraction(1, 2), Fraction(1, 2), 0]
    assert list(p.probs) == [Fraction(1, 4), Fraction(1, 4), Fraction(1, 2)]  # untouched


def test_a_token_that_the_target_excludes_is_never_accepted() -> None:
    class Eager:
        """The most accepting source that there can be: a uniform of exactly 0."""

        def bernoulli(self, probability: float) -> bool:
            return probability > 0.0

        def choose(self, probs: torch.Tensor) -> int:
            return int(probs.argmax())

    p = Distribution(torch.arange(2), torch.tensor([0.0, 1.0]))
    q = Distribution(torch.tensor([0]), torch.tensor([1.0]))
    verdict = verify(Proposal((0,), (q,)), [p, p], Eager())
    assert verdict.path == () and verdict.next_token == 1


@pytest.mark.parametrize("verifier", [verify, verify_block, verify_siblings])
@pytest.mark.parametrize("distributions", [0, 1, 3])
def test_the_number_of_laws_must_match(distributions: int, verifier: Verifier) -> None:
    distribution = fraction_distribution([1, 1])
    with pytest.raises(ArgumentError, match="need 2 target laws"):
        verifier(Proposal((0,), (distribution,)), [distribution] * distributions, Branching([]))


@pytest.mark.parametrize("verifier", [verify, verify_block, verify_siblings])
def test_a_token_that_its_law_excludes_is_refused(verifier: Verifier) -> None:
    distribution = fraction_distribution([1, 1])
    with pytest.raises(ArgumentError, match="probability 0"):
        verifier(
            Proposal((1,), (fraction_distribution([1], ids=[0]),)),
            [distribution] * 2,
            Branching([]),
        )


def test_candidates_are_the_likeliest_ids() -> None:
    distribution = Distribution(torch.tensor([2, 3, 5, 7]), torch.tensor([0.2, 0.3, 0.2, 0.3]))
    for count, tokens in [(1, (3,)), (3, (3, 7, 2)), (9, (3, 7, 2, 5))]:
        proposal = top_k_candidates(distribution, count)
        assert proposal.tokens == tokens
        for token, point in zip(tokens, proposal.draft_distributions, strict=True):
            assert point.probability(token) == 1 == point.probs.sum()


def test_acceptance_is_said_for_each_examined_node() -> None:
    """p/q is 1/2 at both places: token by token the second is given the first; as a block not."""
    p, q = fraction_distribution([1, 3]), fraction_distribution([1, 1])
    chain = Proposal((0, 0), (q, q))

    class Script:
        def __init__(self, *coins: bool) -> None:
            self._coins = list(coins)

        def bernoulli(self, probability: Fraction) -> bool:
            return self._coins.pop(0)

        def choose(self, probs: object) -> int:
            return 1

    half = Fraction(1, 2)
    rejected = verify(chain, [p] * 3, Script(False))
    assert rejected.path == () and rejected.acceptance == (half,)
    assert verify(chain, [p] * 3, Script(True, False)).acceptance == (half, half)
    block = verify_block(chain, [p] * 3, Script(False, False))
    assert block.path == () and block.acceptance == (half, half / 2)
    assert verify_block(chain, [p] * 3, Script(False, True)).path == (0,)
    whole = verify_block(chain, [p] * 3, Script(True))
    assert whole.path == (0, 1) and whole.next_distribution is p
    siblings = verify_siblings(chain, [p] * 3, Script(False, True))
    assert siblings.path == (1,) and siblings.acceptance == (half, 0)
    assert verify_siblings(chain, [p] * 3, Script(False, False)).path == ()


def test_a_block_by_hand() -> None:
    """w_1 = 1/2, R_1 = (1/2 * 3/4 - 1/4)+ = 1/8: a coin of 1/8 / (1/8 + 1/2) = 1/5."""
    p1, q1 = fraction_distribution([1, 1]), fraction_distribution([1], ids=[0])
    p2, q2 = fraction_distribution([1, 3]), fraction_distribution([3, 1])
    asked: list[Fraction] = []

    class Asked:
        def bernoulli(self, probability: Fraction) -> bool:
            asked.append(probability)
            return len(asked) == 2

        def choose(self, probs: object) -> int:
            return int(np.argmax(probs))  # type: ignore[call-overload]

    verdict = verify_block(Proposal((0, 0), (q1, q2)), [p1, p2, p2], Asked())
    assert asked == [Fraction(1, 6), Fraction(1, 5)]
    assert verdict.path == (0,) and verdict.next_token == 1
    assert list(verdict.next_distribution.probs) == [0, 1]


@pytest.mark.parametrize("verifier", [verify, verify_block, verify_siblings])
def test_a_token_without_a_law_is_refused(verifier: Verifier) -> None:
    distribution = fraction_distribution([1, 1])
    with pytest.raises(ValueError, match="zip"):
        verifier(Proposal((0,), ()), [distribution] * 2, Branching([]))


def test_a_block_of_equal_laws_may_be_rejected_by_rounding_alone() -> None:
    """No prefix is then kept, since nothing is left that could follow it, and p answers."""
    distribution = fraction_distribution([1, 1])

    class Stubborn:
        def bernoulli(self, probability: Fraction) -> bool:
            return False

        def choose(self, probs: object) -> int:
            return 1

    verdict = verify_block(
        Proposal((0, 1), (distribution, distribution)), [distribution] * 3, Stubborn()
    )
    assert verdict.path == () and verdict.next_distribution is distribution


def test_what_p_exceeds_q_by() -> None:
    p, q = fraction_distribution([1, 1, 2]), fraction_distribution([1, 1], ids=[0, 2])
    assert list(excess(p, q)) == [0, Fraction(1, 4), 0]
    assert list(residual(p, q).probs) == [0, 1, 0]
    assert list(excess(p, q, Fraction(1, 2))) == [0, Fraction(1, 8), 0]
