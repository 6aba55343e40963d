"""Methods by name: how a way of decoding is spelled, and how it is put together.

    NAME[@BUDGET][:RANKING][+adapt]     autoregressive  full  frspec@0.25  frspec@4096:mix

The budget is a number of ids or a share of the vocabulary. The ranking is one of the shipped
ones, ``without-own`` (the mix of all domains but that of the prompt), or a file. With ``+adapt``
the draft learns while it serves, from each prompt anew.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from minispec import ranking
from minispec.align import Aligner
from minispec.commit import StopRule
from minispec.corpus import DOMAINS
from minispec.decode import autoregressive, check_gamma, speculative
from minispec.draft import EagleDraft
from minispec.errors import ArgumentError
from minispec.pretrained import Pretrained
from minispec.sampling import Sampling
from minispec.shortlist.full import FullList
from minispec.shortlist.static import StaticList
from minispec.types import RandomSource, Round, Shortlist

NAMES = ("autoregressive", "full", "frspec")
_SHARE, _RANKING = 0.25, "general"  # where a method names none
Decoder = Callable[[Sequence[int], RandomSource], Iterator[Round]]


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
        """Reads NAME[@BUDGET][:RANKING][+adapt]. Raises ArgumentError."""
        if text.endswith("+adapt"):
            frozen = Method.parse(text.removesuffix("+adapt"))
            if frozen.name == "autoregressive":
                raise ArgumentError(f"method {text!r}: plain decoding has no draft to adapt")
            return replace(frozen, spelled=text, adapt=True)
        head, colon, ranking_name = text.partition(":")
        name, at, budget = head.partition("@")
        if name not in NAMES:
            raise ArgumentError(f"unknown method {name!r}: known are {', '.join(NAMES)}")
        if name != "frspec" and (at or colon):
            raise ArgumentError(f"method {name} takes neither a budget nor a ranking: {text!r}")
        if colon and not ranking_name:
            raise ArgumentError(f"method {text!r} names no ranking after the colon")
        if name != "frspec":
            return Method(name)
        budget_or_share = _budget(budget) if at else _SHARE
        return Method(name, budget_or_share, ranking_name or _RANKING, spelled=text)

    def __str__(self) -> str:
        if self.spelled or self.name != "frspec":
            return self.spelled or self.name
        return f"frspec@{self.budget}:{self.ranking}"

    def ids(self, vocabulary_size: int) -> int | None:
        """The budget as a number of ids, None without one. Raises ArgumentError."""
        if self.budget is None:
            return None
        ids = self.budget
        if isinstance(ids, float):
            ids = round(ids * vocabulary_size)
        if not 1 <= ids <= vocabulary_size:
            raise ArgumentError(
                f"budget {self.budget} of {self} must be 1 to {vocabulary_size} ids, "
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
    return "frspec" if ranking.shipped(model, _RANKING) else "full"


def shortlist(method: Method, model: Pretrained, domain: str | None) -> Shortlist:
    """The list that a method drafts from. Raises ArgumentError, FileError, FingerprintError."""
    size = model.target.head.vocabulary_size
    budget, name = method.ids(size), method.ranking_for(domain)
    if budget is None or name is None:
        return FullList(size)
    file = ranking.find(model.name, name)
    ids = ranking.read_ranking(file, model.tokenizer.fingerprint, size)
    if budget > len(ids):
        raise ArgumentError(
            f"budget {budget} of {method} is more than the {len(ids)} ids that {file} ranks"
        )
    return StaticList(ids, budget, model.tokenizer.eos_ids)


def decoder(
    method: Method,
    model: Pretrained,
    draft: EagleDraft | None,
    domain: str | None,
    *,
    gamma: int,
    sampling: Sampling,
    stop: StopRule,
) -> Decoder:
    """A method ready to decode prompts: (ids, random source) -> rounds.

    Raises as ``shortlist``, and ArgumentError for gamma out of range or a missing draft.
    """
    target, tokenizer = model.target, model.tokenizer
    if method.name == "autoregressive":
        return lambda prompt, random: autoregressive(
            target, prompt, sampling=sampling, random=random, stop=stop,
            tokenizer=tokenizer,
        )  # fmt: skip
    check_gamma(gamma)
    if draft is None:
        raise ArgumentError(
            f"method {method} needs a draft, and none is known for model {model.name}: "
            "use autoregressive, or train one and give it with --draft"
        )
    ids_of, own = shortlist(method, model, domain), draft.with_own_head()
    learner = Aligner(own) if method.adapt else None
    own = learner.draft if learner else own
    return lambda prompt, random: speculative(
        target, own, ids_of, prompt, gamma=gamma, sampling=sampling, random=random, stop=stop,
        tokenizer=tokenizer, learner=learner,
    )  # fmt: skip
