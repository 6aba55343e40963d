"""Every row of a pass becomes a distribution in the same way, whatever is in the rows beside it."""

import pytest
import torch

from minispec.logits_processor import History
from minispec.models.lm_head import LinearHead, PackedHead
from minispec.sampling import Sampling

V = 12
SAMPLINGS = {
    "greedy": Sampling(),
    "temperature": Sampling(0.7),
    "top-k": Sampling(1.0, top_k=3),
    "top-p": Sampling(1.0, top_p=0.6),
    "all": Sampling(0.5, top_k=5, top_p=0.8),
}


@pytest.mark.parametrize("head", [LinearHead, PackedHead])
@pytest.mark.parametrize("rows", [1, 2, 5, 6, 9, 17])
@pytest.mark.parametrize("name", SAMPLINGS)
def test_target_distributions_of_many_rows_are_those_of_each_alone(
    name: str, rows: int, head: type[LinearHead]
) -> None:
    """Up to the longest pass, 16 drafted tokens and the bonus token's row; in either order."""
    sampling = SAMPLINGS[name]
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randn(V, 8, generator=generator, dtype=torch.float64)
    states = torch.randn(rows, 8, generator=generator, dtype=torch.float64)
    for hidden in (states, states.flip(0)):
        history = History(tuple(range(rows)), 1)
        together = sampling.target_distributions(head(weight), hidden, history)
        assert len(together) == rows
        for row, ours in zip(hidden, together, strict=True):
            alone = sampling.target_distribution(weight @ row)
            assert torch.equal(ours.ids, alone.ids)
            assert torch.allclose(ours.probs, alone.probs, rtol=1e-12, atol=0)
            assert ours.probs.sum() == pytest.approx(1)
    assert rows == 1 or any(
        not torch.equal(p.ids, together[0].ids) or not torch.equal(p.probs, together[0].probs)
        for p in together
    )
