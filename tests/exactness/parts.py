"""What is certified: lists, verifiers, samplings, backends. A further one is one line here."""

import random
from collections.abc import Callable, Iterable
from functools import cache

import numpy as np
import torch

from fastpath.rows import CpuHead
from minispec.certify import SAMPLINGS, Backend, Decoding, Toys, speculation
from minispec.commit import Output
from minispec.head import LinearHead
from minispec.propose import likeliest
from minispec.sampling import Sampling
from minispec.shortlist.full import FullList
from minispec.shortlist.static import StaticList
from minispec.types import Context, Evidence, Head, Proposal, RandomSource, Round, Shortlist
from minispec.verify import verify, verify_block, verify_siblings

ListOf = Callable[[int], Shortlist]


class RestlessList:
    """Another list at every position, of every size but the whole."""

    name, per_round = "restless", False

    def __init__(self, size: int) -> None:
        self.budget, self._size = max(1, size - 1), size

    def select(self, context: Context) -> torch.Tensor:
        luck = random.Random(f"{context.tokens} {context.depth}")
        return torch.tensor(sorted(luck.sample(range(self._size), luck.randint(1, self.budget))))

    def observe(self, round: Round) -> None:
        """Learns nothing."""

    def reset(self) -> None:
        """Has learnt nothing."""


class LearningList:
    """Remembers all that a list may: rejected drafts, laws, acceptance. It proposes what was
    rejected before, and one id that hangs on everything else."""

    name, per_round = "learning", False

    def __init__(self, size: int) -> None:
        self.budget = max(2, size - 1)
        self._size = size
        self.reset()

    def select(self, context: Context) -> torch.Tensor:
        luck = random.Random(f"{self._past} {context.tokens}")
        ids = {luck.randrange(self._size), *self._rejected[1 - self.budget :]}
        return torch.tensor(sorted(ids))

    def observe(self, round: Round) -> None:
        assert round.evidence is not None
        self._rejected += round.proposed[len(round.path) :]
        # As numbers that are the same in every arithmetic.
        acceptance = [round.evidence.acceptance, *(law.probs for law in round.evidence.laws)]
        shares = [f"{float(share):.3f}" for row in acceptance for share in row]
        self._past = (*self._past, (round.tokens, *shares))

    def reset(self) -> None:
        self._past: tuple[object, ...] = ()
        self._rejected: tuple[int, ...] = ()


def static(size: int) -> Shortlist:
    """The upper half of the ids, ends included."""
    return StaticList(torch.arange(size).flip(0), (size + 1) // 2, (size - 1,))


LISTS: dict[str, ListOf] = {
    "full": FullList,
    "static": static,
    "restless": RestlessList,
    "learning": LearningList,
}


def candidates(shortlist: ListOf) -> Decoding:
    """Two candidates for the next token in the place of a chain: the first level of a tree."""

    made = cache(shortlist)

    def decode(toys: Toys, source: RandomSource) -> Iterable[Round]:
        case, sampling, head = toys.case, toys.sampling, toys.target.head
        vocabulary, listed = torch.arange(case.vocabulary), made(case.vocabulary)
        listed.reset()
        output, tokens, stop = Output(case.stop, None, case.limit), list(case.prompt), None

        def law(*following: int):  # type: ignore[no-untyped-def]
            hidden = toys.target.after((*tokens, *following))
            return sampling.law(head.full(hidden), vocabulary)

        while stop is None:
            tried, target_laws = Proposal((), ()), [law()]
            if output.remaining > 1:
                hidden = toys.draft.after(tuple(tokens))
                ids = listed.select(Context(tuple(tokens), hidden, 0))
                tried = likeliest(sampling.law(head.rows(hidden, ids), ids), 2)
                target_laws += [law(token) for token in tried.tokens]
            verdict = verify_siblings(tried, target_laws, source)
            accepted = [tried.tokens[node] for node in verdict.path]
            committed = output.commit([*accepted, verdict.next_token])
            tokens += committed.tokens
            stop = committed.stop
            # As a chain would report it: the accepted candidate, or else the last one tried.
            last = slice(*verdict.path, verdict.path[0] + 1) if verdict.path else slice(-1, None)
            laws = [target_laws[0], *(target_laws[1 + node] for node in verdict.path)]
            complete = len(committed.tokens) > len(accepted)
            evidence = Evidence(
                Proposal(tried.tokens[last], tried.laws[last]),
                tuple(laws[: len(committed.tokens)]),
                verdict.acceptance,
                verdict.next_law if complete else None,
            )
            round = Round(
                tokens=committed.tokens, text="", path=tuple(range(len(accepted))),
                proposed=tried.tokens[last], shortlist_sizes=(), seconds={}, stop=stop,
                evidence=evidence,
            )  # fmt: skip
            listed.observe(round)
            yield round

    return decode


VERIFIERS: dict[str, Callable[[ListOf], Decoding]] = {
    "token": lambda shortlist: speculation(shortlist, verify),
    "block": lambda shortlist: speculation(shortlist, verify_block),
    "candidates": candidates,
}


def numba_head(weight: torch.Tensor) -> Head:
    return CpuHead(weight.float().numpy(), np.ones(len(weight), np.float32))


# Whose head multiplies. The reference proves in fractions; compiled code has only floats.
BACKENDS: dict[str, Callable[[torch.Tensor], Head]] = {"reference": LinearHead, "cpu": numba_head}
ARITHMETICS = {"fraction": 0.0, "float64": 1e-12, "float32": 1e-6}  # with the worst allowed


def named(sampling: Sampling) -> str:
    """How a row calls a way of sampling."""
    parts = [f"temperature {sampling.temperature:g}"]
    parts += [f"top-k {sampling.top_k}"] if sampling.top_k else []
    parts += [f"top-p {sampling.top_p:g}"] if sampling.top_p < 1 else []
    return ", ".join(parts)


def impossible(backend: str, arithmetic: str) -> str | None:
    """Why a combination cannot be, None if it can."""
    if arithmetic == "fraction" and backend != "reference":
        return f"{backend} multiplies in floats and knows no fractions"
    if arithmetic == "float64" and backend == "cpu":
        return "cpu adds up in float32"
    return None


def backend_of(name: str, arithmetic: str) -> Backend:
    return Backend(arithmetic, BACKENDS[name])


SAMPLING = {named(sampling): sampling for sampling in SAMPLINGS}
