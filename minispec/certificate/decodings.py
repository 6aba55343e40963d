"""Plain and speculative decoding of a case, through the production loop.

A ``Decoding`` is a function of toy models and a random source that yields rounds. Speculative
decodings differ in their shortlist, verifier and learner. Knows toy models only.
"""

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from minispec.certificate.cases import Case
from minispec.certificate.exact_sampling import ExactSampling
from minispec.certificate.toys import Table, ToyDraft, ToyTarget
from minispec.decode import autoregressive, speculative
from minispec.growth import TreeShape
from minispec.logits_processor import History
from minispec.models.lm_head import LinearHead
from minispec.sampling import Sampling
from minispec.types import Distribution, Head, Learner, RandomSource, Round, Shortlist
from minispec.verify import Verifier, verify

_LOGIT_OF_ZERO = -1e4  # its probability is exactly 0 in every dtype


@dataclass(frozen=True)
class Backend:
    """The arithmetic ("fraction", "float64" or "float32") and the LM head of the toy models."""

    arithmetic: str = "fraction"
    head: Callable[[Tensor], Head] = LinearHead


FRACTIONS = Backend()


class _CachedSampling:
    """A ``Sampling`` that computes the distributions of each hidden state once: an enumeration
    comes to the same state in many branches."""

    def __init__(self, sampling: Any) -> None:
        self.process = sampling.process
        if sampling.changes_logits:
            self.process = _cache_by_value(sampling.process)
        self.shape = _cache_by_value(sampling.shape)
        self.soften = _cache_by_value(sampling.soften)
        self.distribution = _cache_by_value(sampling.distribution)
        self._target_distributions = _cache_by_value(sampling.target_distributions)
        self._sampling = sampling

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sampling, name)

    def target_distributions(
        self, head: Head, hidden: Tensor, history: History | None = None
    ) -> list[Distribution]:
        return list(self._target_distributions(head, hidden, history))


def _cache_by_value(function: Callable[..., Any]) -> Callable[..., Any]:
    """Cache a function by the values of its tensors, weights and histories, and the identity of
    its other arguments."""
    results: dict[Hashable, Any] = {}

    def call(*arguments: Any) -> Any:
        key = tuple(map(_key, arguments))
        if key not in results:
            results[key] = function(*arguments)
        return results[key]

    return call


def _key(argument: Any) -> Hashable:
    if isinstance(argument, Tensor):
        return argument.numpy().tobytes()
    if isinstance(argument, History):
        return tuple(argument.tokens), argument.prompt_length, tuple(argument.parents)
    argument = getattr(argument, "wrapped", argument)  # a head that also ranks
    return tuple(argument) if isinstance(argument, list) else id(argument)


@dataclass(frozen=True)
class ToyModels:
    """The models and the sampling of a case, in a backend's arithmetic."""

    case: Case
    target: ToyTarget
    draft: ToyDraft
    sampling: Any

    @staticmethod
    def build(case: Case, sampling: Sampling, backend: Backend) -> "ToyModels":
        """Raises ArgumentError if a temperature is not exact in fractions."""
        dtype = torch.float32 if backend.arithmetic == "float32" else torch.float64
        exact = backend.arithmetic == "fraction"

        def table(model: int) -> Table:
            def logits(tokens: tuple[int, ...]) -> Tensor:
                weights = torch.tensor(case.weights(tokens)[model], dtype=dtype)  # (V,)
                return weights if exact else weights.log().clamp(min=_LOGIT_OF_ZERO)

            return cache(logits)

        head = backend.head(torch.eye(case.vocab_size, dtype=dtype))
        target = ToyTarget(case.vocab_size, table(0), head=head)
        draft = ToyDraft(case.vocab_size, table(1), head=head)
        shaped = ExactSampling(sampling) if exact else sampling
        return ToyModels(case, target, draft, _CachedSampling(shaped))


Decoding = Callable[[ToyModels, RandomSource], Iterable[Round]]


def decode_plain(models: ToyModels, source: RandomSource) -> Iterable[Round]:
    """Autoregressive decoding of a case."""
    case = models.case
    return autoregressive(
        models.target, case.prompt, sampling=models.sampling, rng=source, stop=case.stop
    )


def decode_with(
    shortlist: Callable[[int], Shortlist],
    verifier: Verifier = verify,
    learner: Callable[[ToyModels], Learner] | None = None,
    tree: TreeShape | None = None,
) -> Decoding:
    """Speculative decoding with a shortlist, a verifier, a learner, and a tree in place of a chain.

    ``shortlist``: a function of the vocabulary size, called once per size. ``learner``: a function
    of the toy models, called once for each; its draft replaces the toy draft. Gradients are
    floats, so a learner needs a float64 or float32 backend.
    """
    build_shortlist = cache(shortlist)
    build_learner: Callable[[ToyModels], Learner | None] = (
        cache(learner) if learner else lambda models: None
    )

    def decode(models: ToyModels, source: RandomSource) -> Iterable[Round]:
        case, trained = models.case, build_learner(models)
        return speculative(
            models.target, trained.draft if trained else models.draft,
            build_shortlist(case.vocab_size), case.prompt, gamma=case.gamma,
            sampling=models.sampling, rng=source, stop=case.stop, verifier=verifier, trace=True,
            learner=trained, tree=tree,
        )  # fmt: skip

    return decode
