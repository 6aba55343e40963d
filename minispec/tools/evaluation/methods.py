"""Methods by name: the spelling of a way of decoding, and its assembly from parts.

    NAME[@BUDGET][:RANKING][+adapt]   autoregressive  frspec@0.25  evospec@1536+adapt
    MODULE:CLASS[@BUDGET][+adapt]     my_module:MyShortlist@1536

The budget is a number of ids or a share of the vocabulary; without one, the method's default, or
all ids of a token map. The ranking is a shipped one, a file, or ``without-own``, the mix of all
domains except the prompt's. With ``+adapt`` the draft learns while it decodes a prompt or
conversation. ``MODULE:CLASS`` is a shortlist of one's own (``plugins``).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from minispec.commit import StopRule
from minispec.decode import autoregressive, check_gamma, speculative
from minispec.errors import ArgumentError
from minispec.io.artifacts import find_artifact
from minispec.learning.learner import OnlineLearner
from minispec.models.eagle_draft import EagleDraft
from minispec.sampling import Sampling
from minispec.shortlists.dynaspec import RoutedShortlist
from minispec.shortlists.evospec import EvoSpecShortlist
from minispec.shortlists.frspec import FRSpecShortlist
from minispec.shortlists.full import FullShortlist
from minispec.shortlists.microspec import InContextShortlist
from minispec.tools.data import ranking
from minispec.tools.data.corpus import DOMAINS
from minispec.tools.evaluation import plugins, shortlist_files
from minispec.tools.models.backend import LEARNING_BACKENDS
from minispec.tools.models.pretrained import Pretrained
from minispec.types import Draft, RandomSource, Round, Shortlist
from minispec.verify import Verifier

_OWN_SHARE = 1 / 32  # of the vocabulary: the default budget of context-dependent shortlists
# The built-in methods and the default share of the vocabulary that each drafts from.
_SHARES = {"autoregressive": None, "full": None, "frspec": 0.25} | dict.fromkeys(
    ("evospec", "in_context", "routed"), _OWN_SHARE
)
NAMES = tuple(_SHARES)
_RANKING, _WITHOUT_OWN = "general", "without-own"  # the default, and that by the prompt's domain


class Decoder(Protocol):
    """A method ready to decode; ``continued``: the prompt continues the conversation of the call
    before, so shortlist and learner keep their state (see ``speculative``)."""

    def __call__(
        self, prompt: Sequence[int], rng: RandomSource, *, continued: bool = False
    ) -> Iterator[Round]: ...


@runtime_checkable
class LearnableDraft(Protocol):
    """A draft on a fast path that can run with another draft's weights, even as they change."""

    reference: EagleDraft

    def with_weights_of(self, draft: EagleDraft) -> Draft:
        """This draft's kernels with the weights of ``draft``."""
        ...


@dataclass(frozen=True)
class Method:
    """A method. ``budget`` is a share of V if it is a float, and None with a ranking's file for its
    default; ``part`` a shortlist of one's own, an instance, class or factory. ``spelled`` is the
    text that the user gave, for display."""

    name: str
    budget: int | float | None = None
    ranking: str | None = None
    spelled: str = field(default="", compare=False)
    adapt: bool = False
    part: Any = field(default=None, compare=False, repr=False)

    @staticmethod
    def parse(text: str) -> "Method":
        """Reads ``NAME[@BUDGET][:RANKING][+adapt]`` or ``MODULE:CLASS[@BUDGET][+adapt]``, and
        imports the latter. Raises ArgumentError."""
        if text.endswith("+adapt"):
            return replace(Method.parse(text.removesuffix("+adapt")).with_learning(), spelled=text)
        head, colon, ranking_name = text.partition(":")
        name, at, budget = head.partition("@")
        if name not in NAMES:
            return _parse_own(text, name)
        share = _SHARES[name]
        if share is None and (at or colon):
            raise ArgumentError(f"method {name} takes neither a budget nor a ranking: {text!r}")
        if colon and not ranking_name:
            raise ArgumentError(f"method {text!r} names no ranking after the colon")
        if share is None:
            return Method(name)
        ranking_name = ranking_name or _RANKING
        default = share if ranking_name in (*ranking.NAMES, _WITHOUT_OWN) else None
        return Method(name, _parse_budget(budget) if at else default, ranking_name, spelled=text)

    @staticmethod
    def of(method: Any) -> "Method":
        """A method given as one, by its spelling, or as a shortlist of one's own (an instance,
        class or factory). Raises ArgumentError."""
        if isinstance(method, Method):
            return method
        if isinstance(method, str):
            return Method.parse(method)
        name = plugins.name_of(method)
        plugins.check_part("shortlist", method, name)
        return Method(f"{name} (own)" if name in NAMES else name, part=method)

    def with_learning(self) -> "Method":
        """The same method with a draft that learns. Raises ArgumentError for plain decoding."""
        if self.name == "autoregressive":
            raise ArgumentError("method autoregressive has no draft that could learn: drop +adapt")
        return replace(self, spelled=f"{self}+adapt", adapt=True)

    def __str__(self) -> str:
        at = "" if self.budget is None else f"@{self.budget}"
        return self.spelled or f"{self.name}{at}{f':{self.ranking}' if self.ranking else ''}"

    def ids(self, vocab_size: int) -> int | None:
        """The budget as a number of ids, None without one; that of a ranking's file may be in it.
        Raises ArgumentError, FileError."""
        if self.budget is None:
            share = _SHARES.get(self.name)
            if share is None or self.ranking is None:
                return None
            usual = max(1, round(share * vocab_size))
            return ranking.default_budget(Path(self.ranking), usual, vocab_size)
        is_share = isinstance(self.budget, float)
        ids = round(self.budget * vocab_size) if is_share else int(self.budget)
        if not 1 <= ids <= vocab_size:
            raise ArgumentError(
                f"budget {self.budget} of {self} must be 1 to {vocab_size} ids, "
                "or a share of the vocabulary above 0 and at most 1.0"
            )
        return ids

    def ranking_for(self, domain: str | None) -> str | None:
        """The name of the ranking for a prompt of a domain. Raises ArgumentError."""
        if self.ranking != _WITHOUT_OWN:
            return self.ranking
        if domain not in DOMAINS:
            raise ArgumentError(
                f"method {self} leaves out the domain of the prompts, which is unknown for "
                + (f"stream {domain!r}" if domain else "a single prompt")
                + f": domains are {', '.join(DOMAINS)}"
            )
        return f"without-{domain}"


def _parse_own(text: str, name: str) -> Method:
    """A method ``MODULE:CLASS[@BUDGET]``. Raises ArgumentError."""
    path, at, budget = text.partition("@")
    if not plugins.is_import_path(path):
        raise ArgumentError(
            f"unknown method {name!r}: choose from {', '.join(NAMES)}, or name a shortlist of "
            "your own as MODULE:CLASS"
        )
    part = plugins.import_part(path)
    plugins.check_part("shortlist", part, path)
    return Method(path, _parse_budget(budget) if at else None, spelled=text, part=part)


def _parse_budget(text: str) -> int | float:
    try:
        value = float(text) if "." in text or "e" in text.lower() else int(text)
    except ValueError:
        raise ArgumentError(
            f"budget {text!r} is not a number: give a number of ids or a share of V"
        ) from None
    if value < 1 if isinstance(value, int) else not 0 < value <= 1:
        raise ArgumentError(
            f"budget {text} must be 1 id or more, or a share of the vocabulary above 0 and at "
            "most 1.0"
        )
    return value


def default_method(model: Pretrained, has_draft: bool) -> Method:
    """The best method whose parts the model has: EvoSpec with a draft, a ranking and an index of
    the LM head; FR-Spec without the index; the full vocabulary without a ranking; plain decoding
    without a draft."""
    if not has_draft:
        return Method("autoregressive")
    if not ranking.find_shipped_ranking(model.name, _RANKING):
        return Method("full")
    has_index = model.index or find_artifact(model.name, "index")
    return Method.parse("evospec" if has_index else "frspec")


def build_shortlist(method: Method, model: Pretrained, domain: str | None) -> Shortlist:
    """The shortlist that a method drafts from, for prompts of a domain; one of the user's own is
    built with ``plugins.build_part``. Raises ArgumentError, FileError, FingerprintError."""
    size, name = model.target.head.vocab_size, method.ranking_for(domain)
    if method.part is not None:
        inputs = {
            "vocab_size": lambda: size,
            "budget": lambda: max(1, round(_OWN_SHARE * size)),
            "eos_ids": lambda: model.tokenizer.eos_ids,
            "ranking": lambda: shortlist_files.read_ranking(model, _RANKING)[0],
            "clusters": lambda: shortlist_files.read_clusters(model),
            "rows": lambda: model.reference.head.weight.cpu(),
            "tokenizer": lambda: model.tokenizer,
            "model": lambda: model,
        }
        given = {} if method.budget is None else {"budget": method.ids(size)}
        return plugins.build_part("shortlist", method.part, inputs, method.name, **given)
    if name is None:
        return FullShortlist(size)
    (ids, file), eos_ids = shortlist_files.read_ranking(model, name), model.tokenizer.eos_ids
    budget = method.ids(size)
    assert budget is not None  # a method with a ranking has one
    if budget > len(ids):
        raise ArgumentError(
            f"budget {budget} of {method} is more than the {len(ids)} ids that {file} ranks"
        )
    ranking.check_order(ids, budget if method.name == "frspec" else 0, file)
    if method.name == "frspec":
        whole = method.budget is None and ranking.is_token_map(file)
        return FRSpecShortlist(ids, budget, () if whole else eos_ids)
    if method.name == "in_context":
        return InContextShortlist(ids, budget, eos_ids)
    rows = model.reference.head.weight.cpu()  # shortlists are on the CPU, as are distributions
    if method.name == "evospec":
        clusters = shortlist_files.read_clusters(model)
        return EvoSpecShortlist(ids, budget, eos_ids, clusters, rows)
    clusters, router = shortlist_files.read_router(model)
    return RoutedShortlist(ids, budget, eos_ids, clusters, router.to(rows.dtype))


def build_learner(draft: Draft, *, carry: bool = False) -> tuple[OnlineLearner, Draft]:
    """A learner for a draft, and the draft to decode with; with ``carry`` it keeps what it learnt
    from one text to the next. Raises ArgumentError for a draft that cannot learn."""
    if isinstance(draft, EagleDraft):
        if (at := draft.fusion.weight.device.type) != "cpu":
            raise ArgumentError(f"+adapt needs a draft on the CPU, not on {at}: use --device cpu")
        learner = OnlineLearner(draft, carry=carry)
        return learner, learner.draft
    if isinstance(draft, LearnableDraft):
        learner = OnlineLearner(draft.reference, carry=carry)
        return learner, draft.with_weights_of(learner.draft)
    where = " or ".join(LEARNING_BACKENDS)
    raise ArgumentError(f"+adapt needs an EAGLE draft on backend {where}: this draft cannot learn")


def build_decoder(
    method: Method,
    model: Pretrained,
    draft: Draft | None,
    domain: str | None,
    *,
    gamma: int,
    sampling: Sampling,
    stop: StopRule,
    trace: bool = False,
    verifier: str | Verifier = "token",
    shortlist: Shortlist | None = None,
) -> Decoder:
    """A method ready to decode prompts of a domain: (ids, random source) -> rounds.
    ``shortlist`` replaces the method's own.

    Raises as ``build_shortlist``, and ArgumentError for gamma out of range, an unknown verifier
    or a missing draft.
    """
    target, tokenizer = model.target, model.tokenizer
    if method.name == "autoregressive":
        return lambda prompt, rng, *, continued=False: autoregressive(
            target, prompt, sampling=sampling, rng=rng, stop=stop,
            tokenizer=tokenizer, trace=trace,
        )  # fmt: skip
    check_gamma(gamma)
    verify = plugins.find_verifier(verifier)
    if draft is None:
        raise ArgumentError(
            f"method {method} needs a draft, and model {model.name} has none: use autoregressive, "
            "or train a draft and give it with --draft"
        )
    chosen = shortlist or build_shortlist(method, model, domain)
    drafting = draft.with_own_head()
    learner = None
    if method.adapt:
        learner, drafting = build_learner(drafting)
    return lambda prompt, rng, *, continued=False: speculative(
        target, drafting, chosen, prompt, gamma=gamma, sampling=sampling, rng=rng, stop=stop,
        tokenizer=tokenizer, trace=trace, continued=continued, verifier=verify, learner=learner,
    )  # fmt: skip
