"""Drafts of the package ``speculators`` compute its own logits, in all variants of the layer."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from helpers.eagle3_reference import FOLDER, STEPS, VARIANTS
from helpers.tiny_model import Tiny
from minispec.models.eagle3_draft import Eagle3Draft, ReducedHead
from minispec.models.lm_head import LinearHead
from minispec.tools.models import pretrained


def load(folder: Path, tiny: Tiny) -> Eagle3Draft:
    draft = pretrained.load_draft(folder, pretrained.load(str(tiny.folder)))
    assert isinstance(draft, Eagle3Draft)
    return draft


def compute_logits(draft: Eagle3Draft, ids: Tensor, aux: Tensor, position: int) -> list[Tensor]:
    """The logits (K,) of drafting from a position, on the tokens that follow it."""
    assert isinstance(draft.head, ReducedHead)
    cache, end = draft.new_cache(len(ids) + STEPS), position + 1
    states = draft.step(ids[:end], draft.fuse(aux[:end]), cache)
    found = []
    for token in [*ids[end : end + STEPS - 1], None]:
        hidden = draft.apply_final_norm(states[-1])
        found.append(draft.head.logits_of(hidden, draft.head.ids))
        if token is not None:
            states = draft.step(token[None], states[-1:], cache)
    return found


def measure_error(draft: Eagle3Draft, expected: dict[str, Tensor]) -> float:
    """The largest difference from the package's logits, over all positions and steps."""
    ids, aux = expected["ids"], expected["aux_hidden_states"]
    return max(
        float((logits - expected[f"logits.{step}"][position]).abs().max())
        for position in range(len(ids))
        for step, logits in enumerate(compute_logits(draft, ids, aux, position))
    )


@pytest.mark.filterwarnings("ignore::minispec.errors.FileWarning")
@pytest.mark.parametrize("name", VARIANTS)
def test_imported_draft_has_the_logits_of_its_own_package(name: str, tiny: Tiny) -> None:
    draft = load(FOLDER / name, tiny)
    expected = load_file(FOLDER / f"{name}.safetensors")
    assert measure_error(draft, expected) <= 1e-4
    draft.state_norm.weight.data *= 1.01  # a wrong weight is seen
    assert measure_error(draft, expected) > 1e-3


def test_reduced_head_agrees_with_the_rows_of_a_whole_one() -> None:
    generator = torch.Generator().manual_seed(1)
    rows, hidden = (torch.randn(n, 6, generator=generator) for n in (30, 4))
    ids = torch.tensor([2, 3, 9, 20, 29])
    whole, head = LinearHead(rows), ReducedHead(rows[ids], ids, 30)
    assert head.vocab_size == 30
    for selected in (ids, torch.tensor([3, 9]), torch.tensor([0, 3, 4, 29]), torch.tensor([1])):
        logits = head.logits_of(hidden, selected)
        known = torch.isin(selected, ids)
        assert torch.allclose(logits[:, known], whole.logits_of(hidden, selected)[:, known])
        assert (logits[:, ~known] == -torch.inf).all()
    every = head.logits(hidden)
    assert (every.isfinite().nonzero()[:, 1].view(4, -1) == ids).all()
    best, values = head.argmax(hidden)
    assert torch.equal(best, every.argmax(-1)) and torch.equal(values, every.amax(-1))
