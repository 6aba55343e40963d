"""Evolving shortlists over a long stream: memory and the time of an update stay as they are."""

import pickle
import statistics
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch

from minispec.shortlists.bigrams import build_graph, count_bigrams
from minispec.shortlists.evospec import EvoSpecShortlist
from minispec.shortlists.evospec_paper import Candidates, EvoSpecPaperShortlist
from minispec.shortlists.microspec import MicroSpecShortlist
from minispec.types import BaseShortlist, Evidence, Proposal, Round

V, D, CORE, EMITTED = 5_000, 8, 500, 16  # ids, hidden size, static ids, tokens of a round


class _Rows:
    """Ten ids that a hidden state stands for."""

    def find_nearest(self, hidden: torch.Tensor, count: int) -> np.ndarray:
        return (np.arange(count) + int(hidden[0].abs() * 1000)) % V


class _Done:
    """A retrieval that is finished, and can be pickled."""

    def __init__(self, retrieve: Callable[[], Candidates]) -> None:
        self.candidates = retrieve()

    def __call__(self) -> Candidates:
        return self.candidates


def _build_paper(delay: int) -> EvoSpecPaperShortlist:
    text = (np.random.default_rng(0).zipf(1.2, 40_000) % V).tolist()
    graph = build_graph(*count_bigrams([text], V), V)
    return EvoSpecPaperShortlist(torch.arange(V), CORE, (), _Rows(), graph, delay=delay, run=_Done)


BUILDERS: dict[str, Callable[[], BaseShortlist]] = {
    "evospec": lambda: EvoSpecShortlist(
        torch.arange(V), 256, (), torch.arange(V) // 20, torch.randn(V, D)
    ),
    "evospec-paper": lambda: _build_paper(1),
    "evospec-paper, delayed": lambda: _build_paper(3),
    "microspec": lambda: MicroSpecShortlist(V),
}


def _draw_rounds(draws: np.random.Generator, count: int) -> list[Round]:
    """Rounds of which all drafted tokens but one are accepted, with ids as frequent as in text."""
    emitted = draws.zipf(1.2, (count, EMITTED)) % V
    emitted[:, :-1] %= CORE  # accepted, so they were on the shortlist
    top = torch.from_numpy(draws.zipf(1.2, (count, EMITTED, 10)) % V)
    hidden = torch.from_numpy(draws.standard_normal((count, EMITTED, D))).float()
    rounds = []
    for tokens, top_ids, states in zip(emitted.tolist(), top, hidden, strict=True):
        proposed = (*tokens[: EMITTED - 1], (tokens[-1] + 1) % V)
        evidence = Evidence(
            Proposal(proposed, ()), (), (), None, top_ids=top_ids, draft_hidden=states
        )
        path = tuple(range(EMITTED - 1))
        rounds.append(Round(tuple(tokens), "", path, proposed, (), {}, None, evidence))
    return rounds


def _observe_all(shortlist: BaseShortlist, rounds: list[Round]) -> float:
    started = time.process_time()
    for finished in rounds:
        shortlist.observe(finished)
    return time.process_time() - started


@pytest.mark.parametrize("name", list(BUILDERS))
@pytest.mark.parametrize(
    ("tokens", "limit"), [(16_000, 1.5), pytest.param(1_000_000, 1.3, marks=pytest.mark.slow)]
)
def test_memory_and_time_of_an_update_stay_flat(name: str, tokens: int, limit: float) -> None:
    """The state's size from a fifth of the stream to its end. Time relative to a shortlist that has
    seen the end of that fifth alone, measured alternately, so that other load slows both."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        trained, fresh = BUILDERS[name](), BUILDERS[name]()
    draws, rounds = np.random.default_rng(1), tokens // EMITTED
    for finished in (start := _draw_rounds(draws, rounds // 5)):
        trained.observe(finished)
    early = len(pickle.dumps(trained))
    for _ in range(10):
        _observe_all(trained, _draw_rounds(draws, rounds * 4 // 50))
    assert len(pickle.dumps(trained)) < 1.05 * early
    _observe_all(fresh, start[-2_000:])
    ratios = []
    for turn in range(16):
        batch, seconds = _draw_rounds(draws, 200), {}
        for is_trained in (True, False) if turn % 2 else (False, True):
            seconds[is_trained] = _observe_all(trained if is_trained else fresh, batch)
        ratios.append(seconds[True] / seconds[False])
    # Each ratio has one batch and one moment on both sides: other load on the machine cancels out.
    assert statistics.median(ratios) < limit
