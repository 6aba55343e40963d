"""What floating point does to a law: bounds that ``docs/exactness.md`` quotes, over random and
worst-case laws, and what a cut does where two passes differ in the last bits."""

import math

import pytest
import torch
from torch import Tensor

from helpers.toys import toy_transformer
from minispec.sampling import Sampling

IDS = torch.arange(4096)


def distributions(kind: str) -> Tensor:
    """(64, 4096) float64 logits: as models give them, flat, one id far ahead, or all but tied."""
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
            return 20 + rows * 2**-8  # closer than what bfloat16 can tell apart at 20


def variation(low: Tensor, exact: Tensor) -> float:
    return float((low.double() - exact).abs().sum(-1).max() / 2)


def shaped(logits: Tensor, sampling: Sampling) -> Tensor:
    return torch.stack([sampling.distribution(row, IDS).probs.double() for row in logits])


@pytest.mark.parametrize("kind", ["random", "flat", "peaked", "tied"])
@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_float32_laws_are_those_of_float64(kind: str, temperature: float) -> None:
    """Of the same logits, total variation at most 1e-6."""
    logits = distributions(kind).float()
    exact = shaped(logits.double(), Sampling(temperature))
    assert variation(shaped(logits, Sampling(temperature)), exact) < 1e-6


# Total variation by kind: what is lost when logits are rounded, and then, when the softmax is
# computed in that dtype as well. An upper bound for each, and a lower one: it is no small thing.
ROUNDED = {
    (torch.float16, "random"): 4e-3, (torch.float16, "tied"): 1e-2,
    (torch.bfloat16, "random"): 4e-2, (torch.bfloat16, "tied"): 5e-2,
}  # fmt: skip


@pytest.mark.parametrize(("dtype", "kind"), ROUNDED, ids=str)
def test_what_rounded_logits_do(dtype: torch.dtype, kind: str) -> None:
    """The law that is decided by is exact for the logits as they are; but these are other
    logits than float32 would have computed."""
    logits = distributions(kind)
    exact = torch.softmax(logits, -1)
    lost = variation(shaped(logits.to(dtype), Sampling(1.0)), exact)
    assert 1e-5 < lost < ROUNDED[dtype, kind]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_why_laws_are_not_computed_in_half_precision(dtype: torch.dtype) -> None:
    """From the very same half-precision logits."""
    logits = distributions("random").to(dtype)
    exact = torch.softmax(logits.double(), -1)
    ours = variation(shaped(logits, Sampling(1.0)), exact)
    theirs = variation(torch.softmax(logits, -1), exact)
    assert ours < 1e-6 and theirs > 100 * ours


def test_two_passes_differ_in_the_last_bits_and_a_cut_makes_more_of_it() -> None:
    """A verify pass reads several places at once, plain decoding one: in float32 the logits
    differ in the last bits, the law at temperature 1 by about as much. At a top-p cut that falls
    between the two, an id more or less is kept, and the law differs by that id's share."""
    target = toy_transformer(seed=3).float()
    ids = torch.tensor([(11 * i) % 50 for i in range(24)])
    together = target.head.logits(target.step(ids, target.new_cache(32)).hidden)
    cache = target.new_cache(32)
    alone = torch.cat([target.head.logits(target.step(i[None], cache).hidden) for i in ids])
    apart = float((together - alone).abs().max())
    assert apart < 1e-4
    smooth = Sampling(20.0)
    vocabulary = torch.arange(50)
    distributions = [
        torch.stack([smooth.distribution(row, vocabulary).probs for row in x])
        for x in (together, alone)
    ]
    assert variation(distributions[0], distributions[1].double()) < 1e-5
    # A cut placed on the border itself: the mass of the first k ids in one of the passes.
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
    assert variation(low[None], high[None]) > 0.5 * float(ranked[9])
