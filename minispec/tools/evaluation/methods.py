"""Methods by name: the spelling of a way of decoding.

    NAME[@BUDGET][:RANKING][+adapt]   autoregressive  frspec@0.25  evospec@1536+adapt
    suffix  METHOD+suffix             suffix  evospec@1536+suffix
    evospec-paper[@CORE[/BUFFER[/DELAY]]]   evospec-paper@0.25/256  evospec-paper@32000/256/2
    microspec[@WINDOW]                microspec  microspec@2048
    MODULE:CLASS[@BUDGET][+adapt]     my_module:MyShortlist@1536

The budget is a number of ids or a share of the vocabulary; without one, the method's default, or
all ids of a token map. The ranking is a shipped one, a file, or ``without-own``, the mix of all
domains except the prompt's. With ``+adapt`` the draft learns while it decodes a prompt or
conversation, with ``+adapt:paper`` as EvoSpec's paper has it. ``suffix`` proposes continuations of
the text so far (SuffixDecoding), without a draft; ``+suffix`` adds them to what a draft proposes.
``MODULE:CLASS`` is a shortlist of one's own (``plugins``).
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from minispec.errors import ArgumentError
from minispec.shortlists import evospec_paper, microspec
from minispec.tools.data import ranking
from minispec.tools.data.corpus import DOMAINS
from minispec.tools.evaluation import plugins

OWN_SHARE = 1 / 32  # of the vocabulary: the default budget of context-dependent shortlists
# The built-in methods and the default share of the vocabulary that each drafts from.
_SHARES = {
    "autoregressive": None, "suffix": None, "full": None, "microspec": None, "frspec": 0.25,
    "evospec": OWN_SHARE, "dynaspec": OWN_SHARE, "lowrank": OWN_SHARE,
    "evospec-paper": 0.25,  # of its core; the buffer has a number of ids
}  # fmt: skip
NAMES = tuple(_SHARES)
_RENAMED = {"in_context": "microspec", "routed": "dynaspec"}
RANKING, _WITHOUT_OWN = "general", "without-own"  # the default, and that by the prompt's domain
_ADAPT, _ADAPT_PAPER, _SUFFIX = "+adapt", "+adapt:paper", "+suffix"


@dataclass(frozen=True)
class Method:
    """A method. ``budget`` is a share of V if it is a float, and None with a ranking's file for its
    default; ``buffer``: the ids of ``evospec-paper`` beside this budget, ``delay``: the rounds
    after which they change; ``adapt``: how the draft learns, "+adapt", "+adapt:paper" or "" for a
    frozen one; ``suffix``: whether continuations of the text are proposed beside the draft's
    tokens; ``part``: a shortlist of one's own, an
    instance, class or factory. ``spelled`` is the text that the user gave, for display."""

    name: str
    budget: int | float | None = None
    ranking: str | None = None
    spelled: str = field(default="", compare=False)
    adapt: str = ""
    buffer: int | None = None
    delay: int | None = None
    suffix: bool = False
    part: Any = field(default=None, compare=False, repr=False)

    @staticmethod
    def parse(text: str) -> "Method":
        """Reads ``NAME[@BUDGET][:RANKING]`` or ``MODULE:CLASS[@BUDGET]``, with ``+adapt`` and
        ``+suffix`` in any order, and imports the latter. Raises ArgumentError."""
        if text.endswith(_SUFFIX):
            method = Method.parse(text.removesuffix(_SUFFIX))
            return replace(method.with_suffix(), spelled=text)
        for adapt in (_ADAPT, _ADAPT_PAPER):
            if text.endswith(adapt):
                method = Method.parse(text.removesuffix(adapt))
                return replace(method.with_learning(adapt), spelled=text)
        head, colon, ranking_name = text.partition(":")
        name, at, budget = head.partition("@")
        if name not in NAMES:
            return _parse_own(text, name)
        share = _SHARES[name]
        if name in ("microspec", "lowrank"):
            if colon:
                raise ArgumentError(f"method {name} takes no ranking: {text!r}")
            default = microspec.WINDOW if name == "microspec" else share
            return Method(name, _parse_budget(budget) if at else default, spelled=text)
        if share is None and (at or colon):
            raise ArgumentError(f"method {name} takes neither a budget nor a ranking: {text!r}")
        if colon and not ranking_name:
            raise ArgumentError(f"method {text!r} names no ranking after the colon")
        if share is None:
            return Method(name)
        ranking_name, buffer, delay = ranking_name or RANKING, None, None
        if name == "evospec-paper":
            budget, *numbers = budget.split("/", 2)
            buffer = _parse_count(numbers[0], "buffer") if numbers else evospec_paper.BUFFER
            delay = _parse_count(numbers[1], "delay") if len(numbers) > 1 else 1
        default = share if ranking_name in (*ranking.NAMES, _WITHOUT_OWN) else None
        chosen = _parse_budget(budget) if at else default
        return Method(name, chosen, ranking_name, spelled=text, buffer=buffer, delay=delay)

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

    @property
    def needs_draft(self) -> bool:
        """Whether a draft proposes tokens."""
        return self.name not in ("autoregressive", "suffix")

    def with_learning(self, adapt: str = _ADAPT) -> "Method":
        """The same method with a draft that learns. Raises ArgumentError without a draft."""
        if not self.needs_draft:
            raise ArgumentError(f"method {self.name} has no draft that could learn: drop {adapt}")
        return replace(self, spelled=f"{self}{adapt}", adapt=adapt)

    def with_suffix(self) -> "Method":
        """The same method with continuations of the text beside the draft's tokens. Raises
        ArgumentError without a draft, and where it has them."""
        if not self.needs_draft or self.suffix:
            raise ArgumentError(
                f"method {self} takes no {_SUFFIX}: give it once, to a method with a draft, or "
                "suffix alone"
            )
        return replace(self, spelled=f"{self}{_SUFFIX}", suffix=True)

    def __str__(self) -> str:
        at = "" if self.budget is None else f"@{self.budget}"
        buffer = "" if self.buffer is None else f"/{self.buffer}/{self.delay or 1}"
        ranking_name = f":{self.ranking}" if self.ranking else ""
        return self.spelled or f"{self.name}{at}{buffer}{ranking_name}"

    def ids(self, vocab_size: int) -> int | None:
        """The budget as a number of ids, without a buffer, None without one; that of a ranking's
        file may be in it. Raises ArgumentError, FileError."""
        if self.budget is None:
            share = _SHARES.get(self.name)
            if share is None or self.ranking is None:
                return None
            usual = max(1, round(share * vocab_size))
            return ranking.default_budget(Path(self.ranking), usual, vocab_size)
        is_share = isinstance(self.budget, float)
        ids = round(self.budget * vocab_size) if is_share else int(self.budget)
        if self.name == "microspec" and ids >= 1:
            return min(ids, vocab_size)  # a window may be longer than the vocabulary
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
    if name in _RENAMED:
        raise ArgumentError(f"method {name} is called {_RENAMED[name]} now")
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


def _parse_count(text: str, what: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) >= 1):
        unit = "rounds" if what == "delay" else "ids"
        raise ArgumentError(
            f"{what} {text!r} is not a number of {unit}: give 1 or more after the slash"
        )
    return int(text)
