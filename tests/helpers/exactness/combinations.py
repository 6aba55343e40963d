"""Everything that is certified: verifiers, shortlists, learners, backends, samplings.

A new part joins the certificate by one line here or in ``shortlists.py``.
"""

from collections.abc import Callable

import numpy as np
import torch

from fastpath.cpu.head import CpuHead
from helpers.exactness.continuations import CONTINUATIONS, decode_continuations
from helpers.exactness.learners import (
    HIDDEN_SIZE,
    build_learner,
    build_paper_learner,
    build_poisoned,
)
from helpers.exactness.shortlists import (
    SHORTLISTS,
    ShortlistFactory,
    build_evospec,
    build_frspec,
)
from minispec.certificate.cases import SAMPLINGS
from minispec.certificate.decodings import Backend, Decoding, ToyModels, decode_with
from minispec.models.lm_head import LinearHead
from minispec.sampling import Sampling
from minispec.types import Head, Learner
from minispec.verify import VERIFIERS as CHAIN_VERIFIERS

# Shortlists with a draft that learns between rounds.
LEARNING: dict[str, tuple[ShortlistFactory, Callable[[ToyModels], Learner]]] = {
    "evospec+adapt": (lambda vocab_size: build_evospec(vocab_size, HIDDEN_SIZE), build_learner),
    "evospec+adapt:paper": (
        lambda vocab_size: build_evospec(vocab_size, HIDDEN_SIZE), build_paper_learner,
    ),
    "frspec+adapt, poisoned": (build_frspec, build_poisoned),
}  # fmt: skip
DRAFTERS = (*SHORTLISTS, *LEARNING, *CONTINUATIONS)
VERIFIERS = (*CHAIN_VERIFIERS,)


def build_decoding(verifier: str, drafter: str) -> Decoding:
    """The decoding with a verifier and a shortlist, a shortlist and a learner, or continuations of
    the text, by name."""
    if drafter in CONTINUATIONS:
        return decode_continuations(drafter, CHAIN_VERIFIERS[verifier])
    if drafter in LEARNING:
        shortlist, learner = LEARNING[drafter]
        return decode_with(shortlist, CHAIN_VERIFIERS[verifier], learner)
    return decode_with(SHORTLISTS[drafter], CHAIN_VERIFIERS[verifier])


def build_cpu_head(weight: torch.Tensor) -> Head:
    return CpuHead(weight.float().numpy(), np.ones(len(weight), np.float32))


def build_cuda_head(weight: torch.Tensor) -> Head:
    from fastpath.cuda.backend import DeviceHead
    from fastpath.cuda.device import get_device
    from fastpath.cuda.head import DeviceRows

    head: Head = DeviceHead(DeviceRows(weight.float().to(get_device())))
    return head


# The LM head of each backend. Only the reference computes in fractions; compiled code has floats.
BACKENDS: dict[str, Callable[[torch.Tensor], Head]] = {
    "reference": LinearHead,
    "cpu": build_cpu_head,
    "compiled": LinearHead,
    "cuda": build_cuda_head,
}
# The largest total variation that each arithmetic may show.
ARITHMETICS = {"fraction": 0.0, "float64": 1e-12, "float32": 1e-6}


def explain_refusal(backend: str, arithmetic: str, verifier: str, drafter: str) -> str | None:
    """Why a combination cannot run, None if it can."""
    if backend == "compiled":
        return "compiled has the reference's heads, and toys have no layers to compile"
    if backend == "cuda" and not torch.cuda.is_available():
        return "cuda needs a GPU, and there is none here"
    if backend != "reference" and arithmetic == "fraction":
        return f"{backend} computes in floats, not in fractions"
    if backend != "reference" and arithmetic == "float64":
        return f"{backend} accumulates in float32"
    if drafter not in LEARNING:
        return None
    if backend != "reference":
        return "a draft that learns runs on the reference backend alone"
    if arithmetic == "fraction":
        return "a draft that learns has gradients, which are floats"
    return None


def describe(sampling: Sampling) -> str:
    """A sampling as the rows of the certificate name it."""
    parts = [f"temperature {sampling.temperature:g}"]
    parts += [f"top-k {sampling.top_k}"] if sampling.top_k else []
    parts += [f"top-p {sampling.top_p:g}"] if sampling.top_p < 1 else []
    return ", ".join(parts)


def build_backend(name: str, arithmetic: str) -> Backend:
    return Backend(arithmetic, BACKENDS[name])


SAMPLINGS_BY_NAME = {describe(sampling): sampling for sampling in SAMPLINGS}
