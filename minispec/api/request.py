"""One request for text: the method, the way of sampling, and when to stop.

The options have the names that vLLM and transformers give them. All of them are checked here,
before any model is loaded. Knows nothing of models.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from minispec.commit import StopRule
from minispec.decode import check_gamma
from minispec.errors import ArgumentError
from minispec.sampling import Sampling
from minispec.tools.evaluation.methods import Method
from minispec.tools.evaluation.plugins import find_verifier
from minispec.types import Shortlist
from minispec.verify import Verifier

# A method by its spelling, or a shortlist of one's own: an instance, a class or a factory.
ShortlistLike = str | Method | Shortlist | Callable[..., Shortlist]
_LARGEST_SEED = 2**31 - 1


@dataclass(frozen=True)
class Request:
    """Checked options of a request. ``method``: None for the best that the model has. ``stop``
    lacks the model's end ids, which are added unless ``ignore_eos``. ``raw``: continue the prompt's
    text without a chat template; None for what suits the model."""

    method: Method | None
    gamma: int
    sampling: Sampling
    stop: StopRule
    verifier: str | Verifier
    seed: int
    adapt: bool
    ignore_eos: bool
    raw: bool | None

    @property
    def is_plain(self) -> bool:
        """Whether plain decoding was asked for, which needs no draft."""
        return self.method is not None and self.method.name == "autoregressive"

    @property
    def learns(self) -> bool:
        """Whether the draft learns while it decodes."""
        return self.adapt or (self.method is not None and self.method.adapt)

    def stop_rule(self, eos_ids: Sequence[int]) -> StopRule:
        """The stop rule of a model with these end ids."""
        return self.stop if self.ignore_eos else replace(self.stop, eos_ids=tuple(eos_ids))


def build_request(
    *,
    shortlist: ShortlistLike | None = None,
    gamma: int = 4,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: str | Sequence[str] = (),
    ignore_eos: bool = False,
    verifier: str | Verifier = "token",
    adapt: bool = False,
    raw: bool | None = None,
) -> Request:
    """Checks the options of ``Model.generate``, where they are explained. Raises ArgumentError."""
    method = None if shortlist is None else Method.of(shortlist)
    if method is not None:
        method.ranking_for(None)  # a single prompt has no domain that could be left out
        method = method.with_learning() if adapt and not method.adapt else method
    check_gamma(gamma)
    check_seed(seed)
    find_verifier(verifier)
    stop_strings = (stop,) if isinstance(stop, str) else tuple(stop)
    return Request(
        method=method,
        gamma=gamma,
        sampling=Sampling(temperature, top_k, top_p),
        stop=StopRule(max_new_tokens, (), stop_strings),
        verifier=verifier,
        seed=seed,
        adapt=adapt,
        ignore_eos=ignore_eos,
        raw=raw,
    )


def check_seed(seed: int) -> None:
    """Raises ArgumentError for a seed out of range."""
    if not 0 <= seed <= _LARGEST_SEED:
        raise ArgumentError(f"seed {seed} must lie in 0..{_LARGEST_SEED}")
