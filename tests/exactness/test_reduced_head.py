"""A draft whose LM head has a part of the vocabulary keeps the target's distribution: every branch,
in fractions, with its whole head and with shortlists that choose among its ids."""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import cache

import pytest
import torch

from helpers.exactness.shortlists import SHORTLISTS
from minispec.certificate.cases import GRID, SAMPLINGS, Case
from minispec.certificate.decodings import Decoding, ToyModels
from minispec.certificate.enumeration import certify_decoding
from minispec.certificate.toys import ToyDraft
from minispec.decode import speculative
from minispec.models.eagle3_draft import ReducedHead
from minispec.sampling import Sampling
from minispec.tools.evaluation.draft_vocabulary import reduce_shortlist
from minispec.types import RandomSource, Round, Shortlist
from minispec.verify import VERIFIERS


def head_ids(vocab_size: int) -> torch.Tensor:
    """Every other id, so that what the head lacks is among the likeliest too."""
    return torch.arange(1, vocab_size, 2)


def build_reduced(shortlist: str, verifier: str, drafted: set[int]) -> Decoding:
    """Speculative decoding with a draft on a reduced head; adds what it drafts to ``drafted``."""

    @cache
    def build(size: int) -> tuple[ReducedHead, Shortlist]:
        ids = head_ids(size)
        head = ReducedHead(torch.eye(size, dtype=torch.float64)[ids], ids, size)
        return head, reduce_shortlist(SHORTLISTS[shortlist](size), ids, size)

    def decode(models: ToyModels, source: RandomSource) -> Iterable[Round]:
        case = models.case
        head, reduced = build(case.vocab_size)
        draft = ToyDraft(case.vocab_size, models.draft.logits_after, head=head)
        for finished in speculative(
            models.target, draft, reduced, case.prompt, gamma=case.gamma, stop=case.stop,
            sampling=models.sampling, rng=source, verifier=VERIFIERS[verifier], trace=True,
        ):  # fmt: skip
            drafted.update(finished.proposed)
            yield finished

    return decode


def check_reduced_head(
    shortlist: str, verifier: str, samplings: Sequence[Sampling], cases: Sequence[Case]
) -> None:
    drafted: set[int] = set()
    decode, emitted = build_reduced(shortlist, verifier, drafted), 0
    for sampling in samplings:
        certificate = certify_decoding(decode, sampling, cases)
        assert isinstance(certificate.worst_tv, Fraction | int) and certificate.worst_tv == 0
        emitted += certificate.kinds["residual_off_list"]
    assert emitted, "no token outside the head was emitted after a rejection"
    assert drafted and drafted <= set(head_ids(6).tolist())


@pytest.mark.parametrize("shortlist", ["full", "evospec"])
def test_reduced_head_keeps_the_target_distribution(shortlist: str) -> None:
    check_reduced_head(shortlist, "token", (Sampling(0.0), Sampling(1.0)), (GRID[2], GRID[13]))


@pytest.mark.slow
@pytest.mark.parametrize("verifier", VERIFIERS)
@pytest.mark.parametrize("shortlist", ["full", "history", "evospec", "microspec"])
def test_reduced_head_is_exact_at_every_sampling(shortlist: str, verifier: str) -> None:
    cases = [GRID[i] for i in (2, 8, 11, 13, 18)]
    check_reduced_head(shortlist, verifier, SAMPLINGS, cases)
