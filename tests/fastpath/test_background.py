import threading
import time

import pytest
import torch

from fastpath.background import BackgroundRunner
from helpers.exactness.shortlists import FewNearest
from minispec.certificate.toys import ToyDraft, ToyTarget, random_table
from minispec.commit import StopRule
from minispec.decode import speculative
from minispec.sampling import Sampling, SeededRandom
from minispec.shortlists.bigrams import build_graph, count_bigrams
from minispec.shortlists.evospec_paper import EvoSpecPaperShortlist

V = 24
_THREADS: set[int] = set()  # that retrieved


class _SlowNearest(FewNearest):
    """Takes longer than a round of toys."""

    def find_nearest(self, hidden, count):
        time.sleep(0.002)
        _THREADS.add(threading.get_ident())
        return super().find_nearest(hidden, count)


def _decode(delay, **options):
    text = [*range(V), *range(V)]
    graph = build_graph(*count_bigrams([text], V), V, min_count=1)
    shortlist = EvoSpecPaperShortlist(
        torch.arange(V),
        4,
        (),
        _SlowNearest(V),
        graph,
        buffer=8,
        delay=delay,
        residence=0,
        **options,
    )
    rounds = speculative(
        ToyTarget(V, random_table(V, 1)), ToyDraft(V, random_table(V, 2)), shortlist, [0, 1],
        gamma=3, sampling=Sampling(1.0), rng=SeededRandom(0), stop=StopRule(50), trace=True,
    )  # fmt: skip
    return [
        [q.ids.tolist() for q in finished.evidence.proposal.draft_distributions]
        for finished in rounds
    ]


@pytest.mark.parametrize("delay", [1, 2, 4])
def test_background_runner_gives_the_ids_of_the_reference(delay):
    reference = _decode(delay)
    _THREADS.clear()
    assert _decode(delay, run=BackgroundRunner()) == reference
    assert threading.get_ident() not in _THREADS
    assert len({str(ids) for finished in reference for ids in finished}) > 3  # they change


def test_background_runner_raises_what_was_raised():
    def fail():
        raise RuntimeError("damaged")

    result = BackgroundRunner()(fail)
    with pytest.raises(RuntimeError, match="damaged"):
        result()
