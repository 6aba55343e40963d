"""Defects of exactness seen in public implementations: their total variation in fractions, their
right form, and what ``certify`` says of each. ``docs/in-the-wild.md`` is the page."""

from fractions import Fraction

import pytest
import torch

from helpers.exactness.in_the_wild import WILD, restore_tail, round_to_bfloat16
from helpers.pages import DOCS
from minispec.certificate.walker import fraction_distribution

TOTAL_VARIATION = {
    "q before top-k": Fraction(1, 4),
    "q in bfloat16": Fraction(1, 2560),
    "q at the drafted id alone": Fraction(1, 12),
    "a picked token and a soft q": Fraction(1, 3),
    "acceptance by match": Fraction(0),
    "length by the token's confidence": Fraction(1, 20),
    "pruned mass moved within p": Fraction(1, 4),
    "a bonus token without top-p": Fraction(1, 12),
    "a block's residual without w": Fraction(1, 64),
    "a shortlist in its own round": Fraction(3, 16),
}


@pytest.mark.parametrize("name", WILD)
def test_wild_case_has_its_total_variation_and_its_right_form_none(name: str) -> None:
    wrong, right = WILD[name].run_wrong(), WILD[name].run_right()
    assert wrong.tv == TOTAL_VARIATION[name]
    assert right.tv == 0 and right.accepted > 0
    assert sum(wrong.output.values()) == 1


@pytest.mark.parametrize("name", WILD)
def test_certify_names_the_wild_case(name: str) -> None:
    result = WILD[name].certify()
    assert result.exact is (TOTAL_VARIATION[name] == 0), result
    assert WILD[name].says in " ".join(str(result).split())


def test_acceptance_by_match_is_slower_than_verification() -> None:
    case = WILD["acceptance by match"]
    shares = zip(case.p.probs, case.q.probs, strict=True)
    assert case.run_wrong().accepted == sum(p * q for p, q in shares) == Fraction(5, 16)
    assert case.run_right().accepted == Fraction(3, 4)


def test_round_to_bfloat16_rounds_as_torch_does() -> None:
    rounded = round_to_bfloat16(fraction_distribution([5, 2]))
    assert rounded.probs.tolist() == [Fraction(183, 256), Fraction(73, 256)]
    expected = torch.tensor([5 / 7, 2 / 7]).bfloat16()
    assert [float(share) for share in rounded.probs] == expected.tolist()


def test_restore_tail_keeps_the_ratios_of_the_ids_that_were_kept() -> None:
    q, p = fraction_distribution([3, 1], [0, 2]), fraction_distribution([1, 1, 1])
    assert restore_tail(q, p).ids.tolist() == [0, 1, 2]
    assert restore_tail(q, p).probs.tolist() == [Fraction(3, 5), Fraction(1, 5), Fraction(1, 5)]


@pytest.mark.parametrize("name", WILD)
def test_page_shows_the_wild_case(name: str) -> None:
    page = (DOCS / "in-the-wild.md").read_text("utf-8")
    assert f'WILD["{name}"].show()' in page
    assert f"total variation {TOTAL_VARIATION[name]}, accepted" in page
