"""Planted defects of properties 10 to 15: stops, limits, shaping, ties, precision, batches."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch

from helpers.exactness import output_checks, sampling_checks
from helpers.exactness.planting import (
    SMALL_CASES,
    SOME_CASES,
    patch_attribute,
    plant,
    worst_tv,
)
from helpers.exactness.shortlists import build_frspec
from minispec import sampling as sampling_module
from minispec.certificate.decodings import ToyModels, decode_with
from minispec.certificate.exact_sampling import ExactSampling
from minispec.commit import Committed, Output
from minispec.sampling import Sampling
from minispec.types import Distribution, RandomSource, Round
from minispec.verify import verify

# --- 10 and 11: EOS, stop strings, limits ---------------------------------------------------


@plant(10, "an EOS id inside an accepted run is ignored")
def _() -> Any:
    right = Output.commit

    def commit_last(self: Output, tokens: Sequence[int]) -> Committed:
        self._count += len(tokens) - 1
        for token in tokens[:-1]:
            self._held += self._stream.feed([token]) if self._stream else ""
        done = right(self, tokens[-1:])
        return Committed((*tokens[:-1], *done.tokens), done.text, done.stop)

    with patch_attribute(Output, "commit", commit_last):
        return max(output_checks.text_distance(verify, case, ()) for case in SOME_CASES)


@plant(10, "a stop string is searched in one token at a time")
def _() -> Any:
    def search_token(self: Output, token: int) -> str | None:
        text = self._stream.feed([token]) if self._stream else ""
        self._held += text
        return "stop_string" if any(s in text for s in self._rule.stop_strings) else None

    with patch_attribute(Output, "_append_text", search_token):
        return max(output_checks.text_distance(verify, case, ("ba",)) for case in SOME_CASES)


@plant(11, "the limit is checked between rounds only")
def _() -> Any:
    return worst_tv(output_checks.limit_between_rounds, cases=SMALL_CASES)


# --- 12: every position is shaped -----------------------------------------------------------


@plant(12, "the bonus token ignores temperature and top-k", "Spec-Bench's copies of EAGLE")
def _() -> Any:
    def decode(models: ToyModels, source: RandomSource) -> Iterable[Round]:
        sampling = output_checks.PartlyShaped(
            models.sampling, ExactSampling(Sampling(1.0)), output_checks.is_bonus
        )
        return decode_with(build_frspec)(replace(models, sampling=sampling), source)

    return worst_tv(decode, Sampling(0.5, top_k=2))


@plant(12, "a logits processor does not see the drafted tokens")
def _() -> Any:
    return max(
        output_checks.processor_distance(case, verify, emitted_only=True) for case in SOME_CASES
    )


# --- 13 and 14: ties and precision ----------------------------------------------------------


@plant(13, "top-k keeps all ids that equal the k-th")
def _() -> Any:
    def keep_ties(logits: torch.Tensor, k: int) -> torch.Tensor:
        return logits >= logits.topk(k).values[-1]

    with patch_attribute(sampling_module, "_mask_top_k", keep_ties):
        return sampling_checks.tie_distance([1, 2, 2, 2], Sampling(1.0, top_k=2))


@plant(13, "top-p takes ties from the end")
def _() -> Any:
    right = sampling_module._mask_top_p
    with patch_attribute(
        sampling_module, "_mask_top_p", lambda probs, p: right(probs.flip(0), p).flip(0)
    ):
        return sampling_checks.tie_distance([1, 1, 1, 1], Sampling(1.0, top_p=0.5))


@plant(13, "greedy is a very low temperature, at which ties are shared", "romsto")
def _() -> Any:
    right = Sampling.distribution

    def almost_greedy(self: Sampling, logits: torch.Tensor, ids: torch.Tensor) -> Distribution:
        return right(Sampling(1e-9) if self.temperature == 0 else self, logits, ids)

    with patch_attribute(Sampling, "distribution", almost_greedy):
        return sampling_checks.tie_distance([1, 2, 2], Sampling(0.0))


@plant(14, "the softmax is computed in bfloat16", "gpt-fast")
def _() -> Any:
    def low_precision(self: Sampling, logits: torch.Tensor, ids: torch.Tensor) -> Distribution:
        return Distribution(ids, torch.softmax(logits / self.temperature, dim=0).float())

    with patch_attribute(Sampling, "distribution", low_precision):
        return sampling_checks.precision_distance([0.0, 1.0, 2.0, 2.5], 0.7, torch.bfloat16)


# --- 15: rows of a batch --------------------------------------------------------------------


@plant(15, "the rows of a batch share one random source")
def _() -> Any:
    sampling_checks.check_rows_independent([3, 7, 5], rows=2, temperatures=[8.0], shared=True)
    return 0
