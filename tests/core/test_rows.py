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
    "penalties": Sampling(0.7, frequency_penalty=0.5, repetition_penalty=1.4, bad_words=[[3, 4]]),
    "greedy with penalties": Sampling(0.0, frequency_penalty=1.5),
}


@pytest.mark.parametrize("head", [LinearHead, PackedHead])
@pytest.mark.parametrize("rows", [1, 2, 5, 6, 9, 17])
@pytest.mark.parametrize("name", SAMPLINGS)
def test_target_distributions_of_many_rows_are_those_of_each_alone(
    name: str, rows: int, head: type[LinearHead]
) -> None:
    """Up to the longest pass, 16 drafted tokens and the bonus token's row; in either order. Each
    row's penalties count the tokens before it."""
    sampling = SAMPLINGS[name]
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randn(V, 8, generator=generator, dtype=torch.float64)
    states = torch.randn(rows, 8, generator=generator, dtype=torch.float64)
    for hidden in (states, states.flip(0)):
        history = History(tuple(i % V for i in range(rows + 2)), 1)
        together = sampling.target_distributions(head(weight), hidden, history)
        assert len(together) == rows
        for index, (row, ours) in enumerate(zip(hidden, together, strict=True)):
            before = history.without_last(rows - 1 - index)
            alone = sampling.target_distribution(weight @ row, before)
            assert torch.equal(ours.ids, alone.ids)
            assert torch.allclose(ours.probs, alone.probs, rtol=1e-12, atol=0)
            assert ours.probs.sum() == pytest.approx(1)
    assert rows <= 2 or any(
        not torch.equal(p.ids, together[0].ids) or not torch.equal(p.probs, together[0].probs)
        for p in together
    )


def test_target_distributions_of_a_head_that_loses_a_row_are_refused() -> None:
    class ShortHead(LinearHead):
        def logits(self, hidden: torch.Tensor) -> torch.Tensor:
            return super().logits(hidden)[1:]

    hidden = torch.ones(3, 8, dtype=torch.float64)
    with pytest.raises(ValueError, match="longer than"):
        Sampling(1.0).target_distributions(ShortHead(torch.eye(8, dtype=torch.float64)), hidden)


def test_greedy_rows_without_changes_of_logits_need_the_largest_alone() -> None:
    class ArgmaxHead(LinearHead):
        def logits(self, hidden: torch.Tensor) -> torch.Tensor:
            raise AssertionError("all logits were computed")

        def argmax(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return hidden.argmax(-1), hidden.amax(-1)

    hidden = torch.eye(8, dtype=torch.bfloat16).flip(0)[:6]
    found = Sampling().target_distributions(ArgmaxHead(torch.eye(8)), hidden)
    assert [int(p.ids) for p in found] == [7, 6, 5, 4, 3, 2]
    for p in found:
        assert p.probs.dtype == torch.float32 and p.probs.tolist() == [1.0]
