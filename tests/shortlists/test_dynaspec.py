"""DynaSpec's routed clusters: how they fill the budget, and how the router is trained."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helpers.shortlists import build_index
from helpers.tiny_model import Tiny
from minispec.io.files import write_tensors
from minispec.io.index_file import read_index
from minispec.shortlists.dynaspec import DynaSpecShortlist, Router
from minispec.tools.cli import main
from minispec.tools.data.shards import AUX_KEY
from minispec.tools.evaluation.assembly import build_shortlist
from minispec.tools.evaluation.methods import Method
from minispec.types import Context


def test_select_weighs_a_clusters_probability_by_its_size() -> None:
    """Of two clusters of the same probability, the one with fewer rows comes first."""
    router = Router(4, 2).requires_grad_(False)
    for weight in router.parameters():
        weight.zero_()
    clusters = torch.tensor([0] * 6 + [1] * 2)
    shortlist = DynaSpecShortlist(torch.arange(8), 3, (5,), clusters, router)
    context = Context((1, 2), torch.zeros(4), 0)
    assert shortlist.select(context).tolist() == [5, 6, 7]
    assert len(shortlist.select(Context((1, 2), torch.zeros(4), 2))) == 2  # 3 / 2, rounded
    router.outer.bias[0] = 2.0  # e^2 times as likely outweighs three times the rows
    assert shortlist.select(context).tolist() == [0, 1, 5]


def test_router_has_one_hidden_layer_of_silu() -> None:
    router = Router(3, 2).double().requires_grad_(False)
    hidden = torch.tensor([[0.5, -1.0, 2.0], [1.0, 0.0, -3.0]], dtype=torch.float64)
    inner = hidden @ router.inner.weight.T + router.inner.bias
    expected = (inner / (1 + (-inner).exp())) @ router.outer.weight.T + router.outer.bias
    assert torch.allclose(router(hidden), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_select_takes_states_of_any_precision_and_no_end_ids(dtype: torch.dtype) -> None:
    """A ranking of a few ids alone orders a cluster: the others follow."""
    router = Router(4, 2).requires_grad_(False)
    for weight in router.parameters():
        weight.zero_()
    router.outer.bias[1] = 2.0
    clusters = torch.tensor([0, 1] * 5)
    shortlist = DynaSpecShortlist(torch.tensor([9, 2]), 4, (), clusters, router.to(dtype))
    for hidden in (torch.zeros(4), torch.zeros(4, dtype=torch.float64)):
        ids = shortlist.select(Context((1, 2), hidden, 0))
        assert isinstance(ids, torch.Tensor) and ids.dtype == torch.int64
        assert ids.tolist() == [1, 3, 5, 9]


def test_train_router_routes_to_the_clusters_of_following_tokens(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """After a few thousand tokens better than by chance."""
    shard, out = tmp_path / "general-0000.safetensors", tmp_path / "routed.safetensors"
    generator, hidden_size, sequences, length = torch.Generator().manual_seed(0), 32, 24, 30
    steps = torch.arange(sequences * length)
    aux_hidden_states = torch.randn(len(steps), 3 * hidden_size, generator=generator)
    tokens = 100 + steps % 7  # an easy text: a cycle of seven ids
    write_tensors(
        shard,
        {
            "tokens": tokens,
            "hidden": torch.zeros(len(steps), hidden_size, dtype=torch.bfloat16),
            AUX_KEY: aux_hidden_states.bfloat16(),
            "starts": steps[::length],
            "answers": steps[::length] + 4,
            "ends": steps[::length] + length,
        },
        {},
    )
    index = build_index(tiny)
    command = ["train", "router", "--model", str(tiny.folder), "--draft", str(tiny.draft_path)]
    command += ["--index", str(index), "--out", str(out), "--tokens", "3000"]
    assert main.main([*command, "--written", str(tmp_path / "none")]) == 2
    assert "holds no generated text" in capsys.readouterr().err
    assert main.main([*command, "--written", str(tmp_path)]) == 0
    model = replace(tiny.model, index=out)
    shortlist = build_shortlist(Method.parse(f"dynaspec@60:{tiny.ranking('general')}"), model, None)
    ids = shortlist.select(Context((1, 2), torch.randn(hidden_size, generator=generator), 0))
    # By chance, one or two of those seven ids would be among them.
    assert len(ids) == 60 and len(set(range(100, 107)) & set(ids.tolist())) >= 4
    # The clusters are those of the index before.
    fingerprints = (model.fingerprint, model.tokenizer.fingerprint)
    after, before = (read_index(path, 320, *fingerprints)[0] for path in (out, index))
    assert torch.equal(after, before)
