"""Planted defects of property 12: a shaping that is left out, or differs, at one place only.

All are measured on whole generations in float64 through the production ``Sampling``, against
plain decoding in fractions.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from helpers.exactness.output_checks import PartlyShaped, is_bonus
from helpers.exactness.planting import patch_attribute, plant
from helpers.exactness.shapings import ALONE, CHAIN_CASES, TOGETHER, shaping_distance
from minispec.certificate.cases import Case
from minispec.certificate.decodings import Decoding, decode_with
from minispec.logits_processor import History
from minispec.sampling import Sampling
from minispec.shortlists.full import FullShortlist
from minispec.types import Distribution, Head

Affects = Callable[[int, int], bool]  # of the row and the number of rows of a pass

SHORT_CHAINS = [case for case in CHAIN_CASES if case.gamma in (2, 3)]
LONG_CHAINS = [case for case in CHAIN_CASES if case.gamma >= 4]


def decode_shaped(build: Callable[[Any], Any]) -> Decoding:
    """Speculative decoding with the sampling that ``build`` makes of the right one."""
    decode = decode_with(FullShortlist)
    return lambda models, source: decode(replace(models, sampling=build(models.sampling)), source)


def measure_defect(
    build: Callable[[Any], Any], sampling: Sampling, cases: list[Case], enough: float = 1e-6
) -> float:
    """The largest total variation over some cases, up to the first that is large enough."""
    worst = 0.0
    for case in cases:
        worst = max(worst, shaping_distance(decode_shaped(build), sampling, case, "float64"))
        if worst > enough:
            break
    return worst


def leave_out(name: str, sampling: Sampling, affects: Affects) -> Callable[[Any], Any]:
    """``sampling`` without the shaping ``name`` in some rows."""
    neutral = 1.0 if name == "temperature" else getattr(Sampling(), name)
    return lambda right: PartlyShaped(right, replace(sampling, **{name: neutral}), affects)


def draw_bonus_without_top_p(least_rows: int) -> Any:
    """A patch: the last row of a pass of at least so many rows is shaped without top-p."""
    right = Sampling.target_distributions

    def shape_last_otherwise(
        self: Sampling, head: Head, hidden: torch.Tensor, history: History | None = None
    ) -> list[Distribution]:
        rows = right(self, head, hidden, history)
        if len(rows) < least_rows:
            return rows
        return [*rows[:-1], right(replace(self, top_p=1.0), head, hidden, history)[-1]]

    return patch_attribute(Sampling, "target_distributions", shape_last_otherwise)


@plant(12, "the bonus token is drawn without top-p", "public implementations")
def _() -> Any:
    with draw_bonus_without_top_p(1):
        return measure_defect(lambda right: right, ALONE["top_p"], SHORT_CHAINS)


@plant(12, "the bonus token is drawn without top-p, from five rows on")
def _() -> Any:
    with draw_bonus_without_top_p(5):
        return measure_defect(lambda right: right, ALONE["top_p"], LONG_CHAINS)


@plant(12, "a logit bias is left out at the bonus token", "vLLM, which warns")
def _() -> Any:
    sampling = ALONE["logit_bias"]
    return measure_defect(leave_out("logit_bias", sampling, is_bonus), sampling, SHORT_CHAINS)


class EmittedOnly:
    """A sampling whose penalties ignore the tokens drafted in a round."""

    def __init__(self, sampling: Any) -> None:
        self._sampling = sampling

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sampling, name)

    def target_distributions(
        self, head: Head, hidden: torch.Tensor, history: History
    ) -> list[Distribution]:
        emitted = history.without_last(len(hidden) - 1)
        return [self._sampling.target_distributions(head, row[None], emitted)[0] for row in hidden]


class RejectedToo(EmittedOnly):
    """A sampling whose penalties count drafted tokens that were rejected in earlier rounds."""

    def __init__(self, sampling: Any) -> None:
        super().__init__(sampling)
        self._drafted: tuple[int, ...] = ()  # the tokens of the last pass

    def target_distributions(
        self, head: Head, hidden: torch.Tensor, history: History
    ) -> list[Distribution]:
        tokens = tuple(history.tokens)
        emitted = tokens[: len(tokens) - len(hidden) + 1]
        rejected = tuple(t for i, t in enumerate(self._drafted) if emitted[i : i + 1] != (t,))
        self._drafted = tokens
        past = History((*emitted, *rejected, *tokens[len(emitted) :]), history.prompt_length)
        distributions: list[Distribution] = self._sampling.target_distributions(head, hidden, past)
        return distributions


@plant(12, "a penalty ignores the tokens drafted before a position")
def _() -> Any:
    return measure_defect(EmittedOnly, ALONE["frequency_penalty"], SHORT_CHAINS)


@plant(12, "a penalty counts rejected tokens")
def _() -> Any:
    return measure_defect(RejectedToo, ALONE["frequency_penalty"], SHORT_CHAINS)


@plant(12, "bad words are looked for among emitted tokens only")
def _() -> Any:
    return measure_defect(EmittedOnly, ALONE["bad_words"], CHAIN_CASES)


class MinPLast(Sampling):
    """Min-p after top-k and top-p."""

    def shape(self, logits: torch.Tensor, ids: torch.Tensor) -> Distribution:
        kept = replace(self, min_p=0.0)
        probs = Sampling.shape(kept, logits, ids).probs
        probs = torch.where(probs >= self.min_p * probs.max(), probs, 0)
        return Distribution(ids, probs / probs.sum())


@plant(12, "min-p comes after top-p at the bonus token only", "transformers, everywhere")
def _() -> Any:
    sampling = TOGETHER["top-p, min-p"]
    last = MinPLast(**sampling.to_json())
    return measure_defect(lambda right: PartlyShaped(right, last, is_bonus), sampling, SHORT_CHAINS)
