"""Rounding errors of distributions: the bounds that ``docs/exactness.md`` quotes, over random and
worst-case logits, and top-p where two passes differ in the last bits."""

import math

import pytest
import torch
from torch import Tensor

from helpers.toys import toy_transformer
from minispec.sampling import Sampling

IDS = torch.arange(4096)


def draw_logits(kind: str) -> Tensor:
    """(64, 4096) float64 logits: random, nearly flat, with one peak, or nearly tied."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(64, len(IDS), generator=generator, dtype=torch.float64)
    match kind:
        case "random":
            return 4 * rows
        case "flat":
            return 1e-3 * rows
        case "peaked":
            rows[:, 7] = 30.0
            return rows
        case _:
            return 20 + rows * 2**-8  # closer than bfloat16 can resolve at 20


def largest_variation(low: Tensor, exact: Tensor) -> float:
    """The largest total variation between two rows."""
    return float((low.double() - exact).abs().sum(-1).max() / 2)


def sample_probs(logits: Tensor, sampling: Sampling) -> Tensor:
    """Logits (N, V) -> probabilities (N, V) of the production code."""
    return torch.stack([sampling.distribution(row, IDS).probs.double() for row in logits])


@pytest.mark.parametrize("kind", ["random", "flat", "peaked", "tied"])
@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_distribution_in_float32_equals_float64(kind: str, temperature: float) -> None:
    """For the same logits, the total variation is at most 1e-6."""
    logits = draw_logits(kind).float()
    exact = sample_probs(logits.double(), Sampling(temperature))
    assert largest_variation(sample_probs(logits, Sampling(temperature)), exact) < 1e-6


# The largest total variation after rounding the logits, by dtype and kind.
ROUNDED = {
    (torch.float16, "random"): 4e-3, (torch.float16, "tied"): 1e-2,
    (torch.bfloat16, "random"): 4e-2, (torch.bfloat16, "tied"): 5e-2,
}  # fmt: skip


@pytest.mark.parametrize(("dtype", "kind"), ROUNDED, ids=str)
def test_rounded_logits_change_the_distribution(dtype: torch.dtype, kind: str) -> None:
    """The distribution is right for the rounded logits, but these differ from float32 logits by
    an amount that is not negligible."""
    logits = draw_logits(kind)
    exact = torch.softmax(logits, -1)
    error = largest_variation(sample_probs(logits.to(dtype), Sampling(1.0)), exact)
    assert 1e-5 < error < ROUNDED[dtype, kind]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_softmax_in_half_precision_is_less_exact(dtype: torch.dtype) -> None:
    """For the same half-precision logits."""
    logits = draw_logits("random").to(dtype)
    exact = torch.softmax(logits.double(), -1)
    ours = largest_variation(sample_probs(logits, Sampling(1.0)), exact)
    half = largest_variation(torch.softmax(logits, -1), exact)
    assert ours < 1e-6 and half > 100 * ours


def test_top_p_amplifies_the_difference_of_two_passes() -> None:
    """A verify pass computes several positions at once, plain decoding one. In float32 their
    logits differ in the last bits, and so do the distributions at temperature 1. If the top-p
    border lies between the two, one keeps an id that the other excludes, and the distributions
    differ by that id's share."""
    target = toy_transformer(seed=3).float()
    ids = torch.tensor([(11 * i) % 50 for i in range(24)])
    together = target.head.logits(target.step(ids, target.new_cache(32)).hidden)
    cache = target.new_cache(32)
    alone = torch.cat([target.head.logits(target.step(i[None], cache).hidden) for i in ids])
    difference = float((together - alone).abs().max())
    assert difference < 1e-4
    high_temperature = Sampling(20.0)
    vocabulary = torch.arange(50)
    distributions = [
        torch.stack([high_temperature.distribution(row, vocabulary).probs for row in x])
        for x in (together, alone)
    ]
    assert largest_variation(distributions[0], distributions[1].double()) < 1e-5
    # A top-p on the border itself: the mass of the first nine ids in one of the passes.
    ranked = distributions[0][0].double().sort(descending=True).values
    border = float(ranked[:9].sum())
    kept = [
        int((Sampling(20.0, top_p=p).distribution(together[0], vocabulary).probs > 0).sum())
        for p in (math.nextafter(border, 0) - 1e-9, border + 1e-6)
    ]
    assert kept == [9, 10]
    low, high = (
        Sampling(20.0, top_p=p).distribution(together[0], vocabulary).probs.double()
        for p in (border - 1e-9, border + 1e-6)
    )
    assert largest_variation(low[None], high[None]) > 0.5 * float(ranked[9])
