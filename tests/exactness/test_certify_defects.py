"""``certify`` refuses the mistakes that are made most often, and its message names each."""

import pytest

from helpers.exactness.wrong_verifiers import MISTAKES
from minispec.certificate.cases import GRID
from minispec.certificate.certify import certify
from minispec.sampling import Sampling

UNSHAPED = [Sampling(1.0)]
# Short chains over few ids, with every kind of relation between draft and target.
CASES = [GRID[2], GRID[9]]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_certify_names_the_mistake_of_a_verifier(mistake: str) -> None:
    verifier, message = MISTAKES[mistake]
    result = certify(verifier=verifier, samplings=UNSHAPED, cases=CASES)
    assert not result.exact
    assert message in str(result), result
