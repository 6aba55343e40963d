"""LoRA adapters: exact while untrained, removable, stored with fingerprints."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helpers.drafts import caches_equal, record_caches, toy_draft
from helpers.online_learning import DRAFT, EXTREME, TARGET, run, tokens_of
from minispec.commit import StopRule
from minispec.decode import speculative
from minispec.errors import ArgumentError, FileError, FingerprintError
from minispec.io import adapter_file
from minispec.learning import lora
from minispec.learning.learner import OnlineLearner
from minispec.sampling import Sampling, SeededRandom
from minispec.shortlists.full import FullShortlist

IDLE = replace(EXTREME, learning_rate=0.0, retrieval=False)


def test_untrained_adapters_change_no_bit() -> None:
    """Updates run at learning rate 0, with and without the guard. Distributions and draws stay
    the same."""
    frozen = run(None)
    for guard in (True, False):
        rounds = run(OnlineLearner(DRAFT, replace(IDLE, guard=guard)))
        assert tokens_of(rounds) == tokens_of(frozen)
        assert sum(finished.events.get("changed", 0) for finished in rounds) > 2
        for ours, theirs in zip(rounds, frozen, strict=True):
            assert ours.evidence is not None and theirs.evidence is not None
            for p, q in zip(
                ours.evidence.proposal.draft_distributions,
                theirs.evidence.proposal.draft_distributions,
                strict=True,
            ):
                assert torch.equal(p.probs, q.probs)


def test_add_adapters_never_changes_the_given_draft() -> None:
    before = {name: value.clone() for name, value in DRAFT.state_dict().items()}
    learner = OnlineLearner(DRAFT, EXTREME)
    run(learner)
    assert any(bool(m.lora_b.any()) for m in lora.find_adapters(learner.draft).values())
    assert all(torch.equal(value, DRAFT.state_dict()[name]) for name, value in before.items())
    assert not lora.find_adapters(DRAFT) and learner.draft.embedding is DRAFT.embedding
    assert learner.draft.mlp.up.base.weight is DRAFT.mlp.up.weight  # type: ignore[union-attr]


def test_lora_weight_equals_the_forward_pass() -> None:
    learner = OnlineLearner(DRAFT, EXTREME)
    version = learner.draft.version
    run(learner)
    assert learner.draft.version > version
    x = torch.randn(5, 24, dtype=torch.float64)
    gate = learner.draft.mlp.gate
    assert torch.allclose(gate(x), x @ gate.weight.T, rtol=0, atol=1e-12)
    untrained = lora.get_adapter_state(OnlineLearner(DRAFT, EXTREME).draft)
    lora.set_adapter_state(learner.draft, untrained)
    assert torch.equal(gate(x), DRAFT.mlp.gate(x))
    assert torch.equal(gate.weight, DRAFT.mlp.gate.weight)


def test_adapter_files_check_fingerprints_and_shapes(tmp_path: Path) -> None:
    learner, fingerprint = OnlineLearner(DRAFT, EXTREME), TARGET.head.fingerprint()
    run(learner)
    path = tmp_path / "adapter.safetensors"
    adapter_file.save_adapters(path, learner.draft, fingerprint)
    loaded = lora.add_adapters(DRAFT, lora.TARGETS, 8, seed=5)
    adapter_file.load_adapters(path, loaded, fingerprint)
    saved = lora.get_adapter_state(learner.draft)
    state = lora.get_adapter_state(loaded)
    assert all(torch.equal(value, saved[name]) for name, value in state.items())
    with pytest.raises(FingerprintError, match="made for model"):
        adapter_file.load_adapters(path, loaded, "0" * 64)
    other_draft = lora.add_adapters(toy_draft(TARGET, seed=1), lora.TARGETS, 8, seed=0)
    with pytest.raises(FingerprintError, match="made for draft"):
        adapter_file.load_adapters(path, other_draft, fingerprint)
    other_rank = lora.add_adapters(DRAFT, lora.TARGETS, 4, seed=0)
    with pytest.raises(FileError, match="shape"):
        adapter_file.load_adapters(path, other_rank, fingerprint)
    fewer = lora.add_adapters(DRAFT, ("mlp.up",), 8, seed=0)
    with pytest.raises(FileError, match="unexpected tensors"):
        adapter_file.load_adapters(path, fewer, fingerprint)


def test_adapter_state_keeps_its_names_on_disk() -> None:
    """A is ``down`` and B is ``up``, so that earlier files can be read."""
    draft = lora.add_adapters(DRAFT, ("mlp.up",), 2, seed=0)
    shapes = {name: tuple(value.shape) for name, value in lora.get_adapter_state(draft).items()}
    assert shapes == {"mlp.up.down": (2, 24), "mlp.up.up": (32, 2)}


@pytest.mark.parametrize(
    ("targets", "rank"), [((), 8), (("mlp.left",), 8), (("mlp.up", "mlp.up"), 8), (("mlp.up",), 0)]
)
def test_add_adapters_refuses_bad_targets_and_ranks(targets: tuple[str, ...], rank: int) -> None:
    with pytest.raises(ArgumentError):
        lora.add_adapters(DRAFT, targets, rank, 0)


@pytest.mark.parametrize("targets", [lora.TARGETS, ("attention.output", "mlp.down")], ids=len)
def test_draft_cache_is_fresh_after_every_update(
    targets: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = OnlineLearner(DRAFT, replace(EXTREME, targets=targets))
    caches = record_caches(learner.draft, monkeypatch)
    tokens, num_changes = [1, 2, 3], 0
    for finished in speculative(
        TARGET, learner.draft, FullShortlist(50), tokens, gamma=3, sampling=Sampling(1.0),
        rng=SeededRandom(1), stop=StopRule(40), learner=learner,
    ):  # fmt: skip
        tokens = [*tokens, *finished.tokens]
        if finished.stop:
            break
        num_changes += finished.events.get("changed", 0)
        used, ids = caches[-1], torch.tensor(tokens)
        fresh = learner.draft.new_cache(512)
        aux_hidden_states = TARGET.step(ids[:-1], TARGET.new_cache(64)).aux_hidden_states
        learner.draft.step(ids[1:], learner.draft.fuse(aux_hidden_states), fresh)
        assert caches_equal(used, fresh)
        caches.remove(fresh)
    assert num_changes > 3
