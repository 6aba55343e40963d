"""What is certified: lists, learners, verifiers, samplings, backends. A further one is one line."""

import importlib
from collections.abc import Callable, Iterable
from functools import cache

import numpy as np
import torch

from fastpath.cpu.head import CpuHead
from learners import WIDTH, adapting, poisoned
from lists import LISTS, ListOf, evolving, static
from minispec.certificate.certify import SAMPLINGS, Backend, Decoding, Toys, speculation
from minispec.commit import Output
from minispec.models.lm_head import LinearHead
from minispec.propose import top_k_candidates
from minispec.sampling import Sampling
from minispec.types import Context, Evidence, Head, Learner, Proposal, RandomSource, Round
from minispec.verify import verify, verify_block, verify_siblings

# Lists with drafts that learn between rounds.
LEARNING: dict[str, tuple[ListOf, Callable[[Toys], Learner]]] = {
    "evospec+adapt": (lambda size: evolving(size, WIDTH), adapting),
    "static+adapt, lied to": (static, poisoned),
}
DRAFTING = (*LISTS, *LEARNING)


def candidates(shortlist: ListOf) -> Decoding:
    """Two candidates for the next token in the place of a chain: the first level of a tree."""

    made = cache(shortlist)

    def decode(toys: Toys, source: RandomSource) -> Iterable[Round]:
        case, sampling, head = toys.case, toys.sampling, toys.target.head
        vocabulary, listed = torch.arange(case.vocabulary), made(case.vocabulary)
        listed.reset()
        output, tokens, stop = Output(case.stop, None, case.limit), list(case.prompt), None

        def distribution(*following: int):  # type: ignore[no-untyped-def]
            hidden = toys.target.after((*tokens, *following))
            return sampling.distribution(head.logits(hidden), vocabulary)

        while stop is None:
            tried, target_distributions = Proposal((), ()), [distribution()]
            if output.remaining > 1:
                hidden = toys.draft.after(tuple(tokens))
                ids = listed.select(Context(tuple(tokens), hidden, 0))
                tried = top_k_candidates(sampling.distribution(head.logits_of(hidden, ids), ids), 2)
                target_distributions += [distribution(token) for token in tried.tokens]
            verdict = verify_siblings(tried, target_distributions, source)
            accepted = [tried.tokens[node] for node in verdict.path]
            committed = output.commit([*accepted, verdict.next_token])
            tokens += committed.tokens
            stop = committed.stop
            # As a chain would report it: the accepted candidate, or else the last one tried.
            last = slice(*verdict.path, verdict.path[0] + 1) if verdict.path else slice(-1, None)
            distributions = [
                target_distributions[0],
                *(target_distributions[1 + node] for node in verdict.path),
            ]
            complete = len(committed.tokens) > len(accepted)
            evidence = Evidence(
                Proposal(tried.tokens[last], tried.draft_distributions[last]),
                tuple(distributions[: len(committed.tokens)]),
                verdict.acceptance,
                verdict.next_distribution if complete else None,
            )
            finished = Round(
                tokens=committed.tokens, text="", path=tuple(range(len(accepted))),
                proposed=tried.tokens[last], shortlist_sizes=(), seconds={}, stop=stop,
                evidence=evidence,
            )  # fmt: skip
            listed.observe(finished)
            yield finished

    return decode


CHAINS = {"token": verify, "block": verify_block}
VERIFIERS = (*CHAINS, "candidates")


def decoding(verifier: str, drafting: str) -> Decoding:
    """What a verifier and a list, or a list and a learner, by name are together."""
    if verifier == "candidates":
        return candidates(LISTS[drafting])
    if drafting in LEARNING:
        shortlist, learner = LEARNING[drafting]
        return speculation(shortlist, CHAINS[verifier], learner)
    return speculation(LISTS[drafting], CHAINS[verifier])


def numba_head(weight: torch.Tensor) -> Head:
    return CpuHead(weight.float().numpy(), np.ones(len(weight), np.float32))


def device_head(weight: torch.Tensor) -> Head:
    cuda, rows, device = map(
        importlib.import_module,
        ("fastpath.cuda.backend", "fastpath.cuda.head", "fastpath.cuda.device"),
    )
    head: Head = cuda.DeviceHead(rows.DeviceRows(weight.float().to(device.home())))
    return head


# Whose head multiplies. The reference proves in fractions; compiled code has only floats.
BACKENDS: dict[str, Callable[[torch.Tensor], Head]] = {
    "reference": LinearHead,
    "cpu": numba_head,
    "compiled": LinearHead,
    "cuda": device_head,
}
ARITHMETICS = {"fraction": 0.0, "float64": 1e-12, "float32": 1e-6}  # with the worst allowed


def impossible(backend: str, arithmetic: str, verifier: str, drafting: str) -> str | None:
    """Why a combination cannot be, None if it can."""
    if backend == "compiled":
        return "compiled has the reference's heads, and toys have no layers to compile"
    if backend == "cuda" and not torch.cuda.is_available():
        return "cuda needs a GPU, and there is none here"
    if backend != "reference" and arithmetic == "fraction":
        return f"{backend} multiplies in floats and knows no fractions"
    if backend != "reference" and arithmetic == "float64":
        return f"{backend} adds up in float32"
    if drafting not in LEARNING:
        return None
    if backend != "reference":
        return "a draft that learns runs on the reference backend alone"
    if arithmetic == "fraction":
        return "a draft that learns has gradients, which are floats"
    if verifier == "candidates":
        return "candidates are tried by a loop of the suite's own, in which no draft learns"
    return None


def named(sampling: Sampling) -> str:
    """How a row calls a way of sampling."""
    parts = [f"temperature {sampling.temperature:g}"]
    parts += [f"top-k {sampling.top_k}"] if sampling.top_k else []
    parts += [f"top-p {sampling.top_p:g}"] if sampling.top_p < 1 else []
    return ", ".join(parts)


def backend_of(name: str, arithmetic: str) -> Backend:
    return Backend(arithmetic, BACKENDS[name])


SAMPLING = {named(sampling): sampling for sampling in SAMPLINGS}
