"""Methods by name: how a way of decoding is spelled, and how it is put together.

    NAME[@BUDGET][:RANKING][+adapt]   autoregressive  frspec@0.25  evospec@1536+adapt

The budget is a number of ids or a share of the vocabulary. The ranking is one of the shipped
ones, ``without-own`` (the mix of all domains but that of the prompt), or a file. With ``+adapt``
the draft learns while it serves, from each prompt or conversation anew.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

from minispec.commit import StopRule
from minispec.decode import autoregressive, check_gamma, speculative
from minispec.errors import ArgumentError
from minispec.io import index_file
from minispec.io.artifacts import find_artifact
from minispec.learning.learner import Aligner
from minispec.models.eagle_draft import EagleDraft
from minispec.sampling import Sampling
from minispec.shortlists.dynaspec import RoutedShortlist
from minispec.shortlists.evospec import EvoSpecShortlist
from minispec.shortlists.frspec import FRSpecShortlist
from minispec.shortlists.full import FullShortlist
from minispec.shortlists.microspec import InContextShortlist
from minispec.tools.data import ranking
from minispec.tools.data.corpus import DOMAINS
from minispec.tools.models.backend import LEARNING_BACKENDS
from minispec.tools.models.pretrained import Pretrained
from minispec.types import Draft, RandomSource, Round, Shortlist
from minispec.verify import VERIFIERS

# Methods, and the share of the vocabulary that they draft from where a budget is not given.
_SHARES = {"autoregressive": None, "full": None, "frspec": 0.25} | dict.fromkeys(
    ("evospec", "in_context", "routed"), 1 / 32
)
NAMES = tuple(_SHARES)
_RANKING = "general"  # where a method names none


class Decoder(Protocol):
    """A method that is ready to decode; a ``continued`` prompt goes on with the conversation
    before it (see ``speculative``)."""

    def __call__(
        self, prompt: Sequence[int], rng: RandomSource, *, continued: bool = False
    ) -> Iterator[Round]: ...


@runtime_checkable
class LearnableDraft(Protocol):
    """A draft on a fast path that can draft with the weights of another, however these change."""

    reference: EagleDraft

    def learning(self, draft: EagleDraft) -> Draft:
        """This draft with the weights of a learner's."""
        ...


@dataclass(frozen=True)
class Method:
    """A method; ``budget`` is a share of V where it is a float. ``spelled`` is how it was asked
    for, which is how it is shown, and makes no other method of it."""

    name: str
    budget: int | float | None = None
    ranking: str | None = None
    spelled: str = field(default="", compare=False)
    adapt: bool = False

    @staticmethod
    def parse(text: str) -> "Method":
        """Reads ``NAME[@BUDGET][:RANKING][+adapt]``. Raises ArgumentError."""
        if text.endswith("+adapt"):
            frozen = Method.parse(text.removesuffix("+adapt"))
            if frozen.name == "autoregressive":
                raise ArgumentError(f"method {text!r}: plain decoding has no draft to adapt")
            return replace(frozen, spelled=text, adapt=True)
        head, colon, ranking_name = text.partition(":")
        name, at, budget = head.partition("@")
        if name not in NAMES:
            raise ArgumentError(f"unknown method {name!r}: known are {', '.join(NAMES)}")
        share = _SHARES[name]
        if share is None and (at or colon):
            raise ArgumentError(f"method {name} takes neither a budget nor a ranking: {text!r}")
        if colon and not ranking_name:
            raise ArgumentError(f"method {text!r} names no ranking after the colon")
        if share is None:
            return Method(name)
        budget_or_share = _budget(budget) if at else share
        return Method(name, budget_or_share, ranking_name or _RANKING, spelled=text)

    def __str__(self) -> str:
        if self.spelled or self.budget is None:
            return self.spelled or self.name
        return f"{self.name}@{self.budget}:{self.ranking}"

    def ids(self, vocab_size: int) -> int | None:
        """The budget as a number of ids, None without one. Raises ArgumentError."""
        if self.budget is None:
            return None
        ids = self.budget
        if isinstance(ids, float):
            ids = round(ids * vocab_size)
        if not 1 <= ids <= vocab_size:
            raise ArgumentError(
                f"budget {self.budget} of {self} must be 1 to {vocab_size} ids, "
                "or a share of the vocabulary above 0 and at most 1.0"
            )
        return ids

    def ranking_for(self, domain: str | None) -> str | None:
        """The ranking's name for a prompt of some domain. Raises ArgumentError."""
        if self.ranking != "without-own":
            return self.ranking
        if domain not in DOMAINS:
            raise ArgumentError(
                f"method {self} leaves out the domain of the prompts, which is not known of "
                + (f"stream {domain!r}" if domain else "a single prompt")
                + f": known are {', '.join(DOMAINS)}"
            )
        return f"without-{domain}"


def _budget(text: str) -> int | float:
    try:
        value = float(text) if "." in text or "e" in text.lower() else int(text)
    except ValueError:
        raise ArgumentError(f"budget {text!r} is no number: give ids or a share of V") from None
    if value < 1 if isinstance(value, int) else not 0 < value <= 1:
        raise ArgumentError(
            f"budget {text} must be 1 id or more, or a share of the vocabulary above 0 and at "
            "most 1.0"
        )
    return value


def default(model: str, has_draft: bool) -> str:
    """The fastest method that there is all for: a draft, and the model's own ranking."""
    if not has_draft:
        return "autoregressive"
    return "frspec" if ranking.find_shipped_ranking(model, _RANKING) else "full"


def shortlist(method: Method, model: Pretrained, domain: str | None) -> Shortlist:
    """The list that a method drafts from. Raises ArgumentError, FileError, FingerprintError."""
    size = model.target.head.vocab_size
    budget, name = method.ids(size), method.ranking_for(domain)
    if budget is None or name is None:
        return FullShortlist(size)
    file = ranking.find_ranking(model.name, name)
    ids = ranking.read_ranking(file, model.tokenizer.fingerprint, size)
    if budget > len(ids):
        raise ArgumentError(
            f"budget {budget} of {method} is more than the {len(ids)} ids that {file} ranks"
        )
    eos_ids = model.tokenizer.eos_ids
    if method.name == "frspec":
        return FRSpecShortlist(ids, budget, eos_ids)
    if method.name == "in_context":
        return InContextShortlist(ids, budget, eos_ids)
    rows, index = model.reference.head.weight, model.index
    if method.name == "routed" and index is None:  # routes to the clusters that it was trained to
        index = find_artifact(model.name, "router")
    file = index_file.find_index(model.name, index)
    clusters, router = index_file.read_index(
        file, size, model.fingerprint, model.tokenizer.fingerprint
    )
    if method.name == "evospec":
        return EvoSpecShortlist(ids, budget, eos_ids, clusters, rows)
    trained = index_file.build_router(router, rows.shape[1], int(clusters.max()) + 1, str(file))
    return RoutedShortlist(ids, budget, eos_ids, clusters, trained.to(rows.dtype))


def learner_of(draft: Draft, *, carry: bool = False) -> tuple[Aligner, Draft]:
    """A learner for a draft, which remembers from text to text if it is to ``carry``, and the draft
    to hand in with it. Raises ArgumentError for a draft that cannot learn where it is."""
    if isinstance(draft, EagleDraft):
        learner = Aligner(draft, carry=carry)
        return learner, learner.draft
    if isinstance(draft, LearnableDraft):
        learner = Aligner(draft.reference, carry=carry)
        return learner, draft.learning(learner.draft)
    raise ArgumentError(f"+adapt: a draft learns on --backend {' or '.join(LEARNING_BACKENDS)} only")


def decoder(
    method: Method,
    model: Pretrained,
    draft: Draft | None,
    domain: str | None,
    *,
    gamma: int,
    sampling: Sampling,
    stop: StopRule,
    trace: bool = False,
    verifier: str = "token",
    watched: Shortlist | None = None,
) -> Decoder:
    """A method ready to decode prompts: (ids, random source) -> rounds. ``watched`` stands in
    the place of its list.

    Raises as ``shortlist``, and ArgumentError for gamma out of range, an unknown verifier or a
    missing draft.
    """
    target, tokenizer = model.target, model.tokenizer
    if method.name == "autoregressive":
        return lambda prompt, rng, *, continued=False: autoregressive(
            target, prompt, sampling=sampling, rng=rng, stop=stop,
            tokenizer=tokenizer, trace=trace,
        )  # fmt: skip
    check_gamma(gamma)
    if verifier not in VERIFIERS:
        raise ArgumentError(f"unknown verifier {verifier!r}: known are {', '.join(VERIFIERS)}")
    if draft is None:
        raise ArgumentError(
            f"method {method} needs a draft, and none is known for model {model.name}: "
            "use autoregressive, or train one and give it with --draft"
        )
    ids_of, own = watched or shortlist(method, model, domain), draft.with_own_head()
    learner = None
    if method.adapt:
        learner, own = learner_of(own)
    return lambda prompt, rng, *, continued=False: speculative(
        target, own, ids_of, prompt, gamma=gamma, sampling=sampling, rng=rng, stop=stop,
        tokenizer=tokenizer, trace=trace, continued=continued, verifier=VERIFIERS[verifier],
        learner=learner,
    )  # fmt: skip
