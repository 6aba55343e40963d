"""Alignment: it learns, it can be undone, it changes no law, and it is switched off if it hurts."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.memory import LiveBytes
from benchmarks.replay import Recording
from benchmarks.rival import Rival
from helpers.drafts import caches_equal, record_caches, toy_draft
from helpers.toys import TOY, toy_transformer
from minispec.certificate.walker import Branching, distribution_of, total_variation
from minispec.commit import StopRule
from minispec.decode import autoregressive, speculative
from minispec.errors import ArgumentError, FileError, FingerprintError
from minispec.io import adapter_file
from minispec.learning import curriculum, lora
from minispec.learning.guard import Floor
from minispec.learning.learner import AdaptConfig, Aligner
from minispec.learning.losses import OBJECTIVES, overlap, support
from minispec.learning.replay_buffer import TRAIL, ReplayBuffer
from minispec.learning.retrieval import interpolate_neighbours
from minispec.sampling import Sampling, SeededRandom
from minispec.shortlists.frspec import FRSpecShortlist
from minispec.shortlists.full import FullShortlist
from minispec.tools.evaluation.methods import Method
from minispec.types import Distribution, Evidence, Learner, Proposal, Round
from minispec.verify import verify

TARGET = toy_transformer(context_limit=512)
DRAFT = toy_draft(TARGET)
EAGER = AdaptConfig(interval=4, window=4, windows=4, rate=0.05, others=8, targets=lora.TARGETS)
IDLE = replace(EAGER, rate=0.0, recall=False)


def run(
    learner: Learner | None, *, prompt: tuple[int, ...] = (1, 2, 3), limit: int = 40, seed: int = 0,
    temperature: float = 1.0, gamma: int = 3, target: Any = TARGET,
) -> list[Round]:  # fmt: skip
    return list(speculative(
        target, learner.draft if learner else DRAFT, FullShortlist(50), prompt, gamma=gamma,
        sampling=Sampling(temperature), rng=SeededRandom(seed), stop=StopRule(limit),
        learner=learner, trace=True,
    ))  # fmt: skip


def tokens_of(rounds: list[Round]) -> tuple[int, ...]:
    return tuple(token for finished in rounds for token in finished.tokens)


# ------------------------------------------------------------------ adapters


def test_an_adapter_that_has_learnt_nothing_changes_no_bit() -> None:
    """Updates run (at rate 0), with the floor and without, and laws and draws are the same."""
    plain = run(None)
    for floor in (True, False):
        rounds = run(Aligner(DRAFT, replace(IDLE, floor=floor)))
        assert tokens_of(rounds) == tokens_of(plain)
        assert sum(finished.events.get("changed", 0) for finished in rounds) > 2
        for ours, theirs in zip(rounds, plain, strict=True):
            assert ours.evidence is not None and theirs.evidence is not None
            for p, q in zip(
                ours.evidence.proposal.draft_distributions,
                theirs.evidence.proposal.draft_distributions,
                strict=True,
            ):
                assert torch.equal(p.probs, q.probs)


def test_the_draft_itself_is_never_written_to() -> None:
    before = {name: value.clone() for name, value in DRAFT.state_dict().items()}
    learner = Aligner(DRAFT, EAGER)
    run(learner)
    assert any(bool(m.up.any()) for m in lora.adapters(learner.draft).values())
    assert all(torch.equal(value, DRAFT.state_dict()[name]) for name, value in before.items())
    assert not lora.adapters(DRAFT) and learner.draft.embedding is DRAFT.embedding
    assert learner.draft.mlp.up.base.weight is DRAFT.mlp.up.weight  # type: ignore[union-attr]


def test_what_a_backend_packs_is_what_the_draft_computes() -> None:
    learner = Aligner(DRAFT, EAGER)
    version = learner.draft.version
    run(learner)
    assert learner.draft.version > version
    x = torch.randn(5, 24, dtype=torch.float64)
    gate = learner.draft.mlp.gate
    assert torch.allclose(gate(x), x @ gate.weight.T, rtol=0, atol=1e-12)
    lora.restore(learner.draft, lora.state(Aligner(DRAFT, EAGER).draft))
    assert torch.equal(gate(x), DRAFT.mlp.gate(x)) and torch.equal(
        gate.weight, DRAFT.mlp.gate.weight
    )


def test_adapters_are_kept_with_their_fingerprints(tmp_path: Path) -> None:
    learner, fingerprint = Aligner(DRAFT, EAGER), TARGET.head.fingerprint()
    run(learner)
    path = tmp_path / "adapter.safetensors"
    adapter_file.save_adapters(path, learner.draft, fingerprint)
    other = lora.adapted(DRAFT, lora.TARGETS, 8, seed=5)
    adapter_file.load_adapters(path, other, fingerprint)
    kept = lora.state(learner.draft)
    assert all(torch.equal(value, kept[name]) for name, value in lora.state(other).items())
    with pytest.raises(FingerprintError, match="made for model"):
        adapter_file.load_adapters(path, other, "0" * 64)
    stranger = lora.adapted(toy_draft(TARGET, seed=1), lora.TARGETS, 8, seed=0)
    with pytest.raises(FingerprintError, match="made for draft"):
        adapter_file.load_adapters(path, stranger, fingerprint)
    with pytest.raises(FileError, match="shape"):
        adapter_file.load_adapters(path, lora.adapted(DRAFT, lora.TARGETS, 4, seed=0), fingerprint)
    with pytest.raises(FileError, match="too many"):
        adapter_file.load_adapters(path, lora.adapted(DRAFT, ("mlp.up",), 8, seed=0), fingerprint)


@pytest.mark.parametrize(
    ("targets", "rank"), [((), 8), (("mlp.left",), 8), (("mlp.up", "mlp.up"), 8), (("mlp.up",), 0)]
)
def test_adapters_of_nothing_are_refused(targets: tuple[str, ...], rank: int) -> None:
    with pytest.raises(ArgumentError):
        lora.adapted(DRAFT, targets, rank, 0)


@pytest.mark.parametrize("targets", [lora.TARGETS, ("attention.output", "mlp.down")], ids=len)
def test_after_any_round_the_cache_is_that_of_the_weights_at_hand(
    targets: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = Aligner(DRAFT, replace(EAGER, targets=targets))
    caches = record_caches(learner.draft, monkeypatch)
    tokens, changes = [1, 2, 3], 0
    for finished in speculative(
        TARGET, learner.draft, FullShortlist(50), tokens, gamma=3, sampling=Sampling(1.0),
        rng=SeededRandom(1), stop=StopRule(40), learner=learner,
    ):  # fmt: skip
        tokens = [*tokens, *finished.tokens]
        if finished.stop:
            break
        changes += finished.events.get("changed", 0)
        used, ids = caches[-1], torch.tensor(tokens)
        fresh = learner.draft.new_cache(512)
        aux_hidden_states = TARGET.step(ids[:-1], TARGET.new_cache(64)).aux_hidden_states
        learner.draft.step(ids[1:], learner.draft.fuse(aux_hidden_states), fresh)
        assert caches_equal(used, fresh)
        caches.remove(fresh)
    assert changes > 3


# ------------------------------------------------------------------ exactness

FEW = toy_transformer(vocab_size=4)
FEW_DRAFT = toy_draft(FEW)


def few_law(learning: bool, verifier: Any = verify, limit: int = 3) -> dict[object, float]:
    """The law over whole outputs of four ids, with updates after every round."""
    config = replace(EAGER, interval=1, window=1, windows=2, others=2, rank=1, rate=0.5)

    def program(rng: Branching) -> tuple[int, ...]:
        stop, sampling = StopRule(limit, (3,)), Sampling(8.0)
        if not learning:
            return tokens_of(
                list(autoregressive(FEW, [0, 1], sampling=sampling, rng=rng, stop=stop))
            )
        learner = Aligner(FEW_DRAFT, config)
        return tokens_of(list(speculative(
            FEW, learner.draft, FRSpecShortlist(torch.tensor([1, 2, 0, 3]), 3, ()), [0, 1], gamma=1,
            sampling=sampling, rng=rng, stop=stop, learner=learner, verifier=verifier,
        )))  # fmt: skip

    return distribution_of(program)


def test_a_draft_that_learns_between_rounds_keeps_the_law() -> None:
    assert total_variation(few_law(True), few_law(False)) < 1e-10


def test_a_law_that_is_not_the_one_drawn_from_is_seen() -> None:
    """The planted defect: verification is told what the draft would say by now."""

    def told(proposal: Proposal, *rest: Any) -> Any:
        distributions = tuple(
            replace(distribution, probs=(distribution.probs + 1) / (distribution.probs + 1).sum())
            for distribution in proposal.draft_distributions
        )
        return verify(Proposal(proposal.tokens, distributions), *rest)

    assert total_variation(few_law(True, told), few_law(False)) > 0.01


# ------------------------------------------------------------------ recall and its store


def filled(rows: int = 3, windows: int = 2, window: int = 4) -> ReplayBuffer:
    store = ReplayBuffer(windows, window, 6, 5, 3, 0)
    for row in range(rows):
        distribution = Distribution(torch.arange(9), torch.eye(9)[row] * 0.9 + 0.1 / 9)
        trail = torch.tensor([[row, row + 1, row + 2]])
        direction = torch.eye(5)[row % 5][None]
        assert (
            store.add(torch.full((1, 6), float(row)), direction, trail, [distribution], [0.5], 0)
            == 0
        )
    return store


def test_recall_mixes_what_followed_in_like_places() -> None:
    """Against the formula, in probabilities; votes for ids off the list are void."""
    rows = filled().rows.at(slice(3))
    ids, logits = torch.tensor([1, 2, 5, 8]), torch.tensor([0.3, -1.0, 2.0, 0.1])
    hidden, trail = torch.tensor([0.0, 3.0, 1.0, 0.0, 0.0]), torch.tensor([1, 2, 0])
    distribution = interpolate_neighbours(logits, hidden, ids, trail, rows).softmax(0)
    direction = hidden / hidden.norm()
    scores = rows.directions @ direction + 0.1 * torch.tensor([0, 2, 0])
    weights = ((scores - 1) / 0.05).exp()
    trust = 0.7 * weights.sum() / (weights.sum() + 2)
    votes = torch.zeros(9)
    for weight, row in zip(weights / weights.sum(), range(3), strict=True):
        votes.index_add_(0, rows.ids[row], weight * rows.probs[row])
    expected = (1 - trust) * logits.softmax(0) + trust * votes[ids]
    assert torch.allclose(distribution, expected / expected.sum(), atol=1e-6)
    assert distribution[0] > logits.softmax(0)[0]


def test_an_unlike_past_changes_next_to_nothing() -> None:
    logits = torch.randn(9)
    away = interpolate_neighbours(
        logits, -torch.ones(5), torch.arange(9), torch.tensor([7, 7, 7]), filled().rows
    )
    assert torch.allclose(away.softmax(0), logits.softmax(0), atol=1e-6)


def test_the_store_is_bounded_and_keeps_some_of_everything() -> None:
    store = filled(0, windows=6, window=4)
    size, counts = store.bytes, torch.zeros(50)
    for seed in range(60):
        store = ReplayBuffer(6, 4, 6, 5, 3, seed)
        for row in range(200):
            distribution = Distribution(torch.arange(9), torch.full((9,), 1 / 9))
            trail = torch.full((1, TRAIL), row)
            store.add(torch.ones(1, 6), torch.ones(1, 5), trail, [distribution], [0.5], row // 50)
        assert store.bytes == size and store.filled == 24
        assert store.rows.trails[store.newest(), 0].tolist() == [196, 197, 198, 199]
        old = store.rows.trails[12:, 0].unflatten(0, (3, 4))
        assert all((window.diff() == 1).all() for window in old)  # whole windows
        counts[old[:, 0] // 4] += 1
        drawn = store.sampled()
        assert drawn is not None and store.rows.trails[drawn, 0].diff().tolist() == [1, 1, 1]
    assert counts[:47].sum() == 180 and (counts[:23].sum() / counts[:47].sum() - 23 / 47) < 0.12
    assert counts[:23].sum() > 60  # the older half is no less likely: 88 expected, sigma 6.7


def test_what_is_not_finite_is_not_kept() -> None:
    store, distribution = filled(), Distribution(torch.arange(9), torch.full((9,), torch.nan))
    fine = Distribution(torch.arange(9), torch.full((9,), 1 / 9))
    nan = torch.full((1, 6), torch.nan)
    trail = torch.zeros(1, TRAIL, dtype=torch.int64)
    assert store.add(torch.ones(1, 6), torch.ones(1, 5), trail, [distribution], [0.5], 0) == 1
    assert store.add(nan, torch.ones(1, 5), trail, [fine], [0.5], 0) == 1
    assert store.filled == 3


# ------------------------------------------------------------------ objective and curriculum


def test_overlap_is_one_less_total_variation() -> None:
    p, q = torch.randn(2, 7).softmax(1).double()
    alpha = overlap(q.log()[None], p[None], torch.arange(7)[None])
    assert torch.allclose(alpha, 1 - (p - q).abs().sum() / 2)


def test_the_gradient_is_the_one_in_the_docstring() -> None:
    logits = torch.randn(7, dtype=torch.float64, requires_grad=True)
    p, q = torch.randn(7).softmax(0).double(), logits.softmax(0)
    OBJECTIVES["tv"](q.log()[None], p[None], torch.arange(7)[None]).sum().backward()
    below = (q < p).double()
    expected = -q * (below - (q * below).sum())
    assert logits.grad is not None and torch.allclose(logits.grad, expected, atol=1e-12)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_leads_to_the_target_law(name: str) -> None:
    torch.manual_seed(0)
    p = torch.tensor([[0.7, 0.2, 0.1, 0.0]])
    logits = torch.zeros(1, 4, requires_grad=True)
    optimiser = torch.optim.Adam([logits], 0.05)
    for _ in range(400):
        optimiser.zero_grad()
        OBJECTIVES[name](logits.log_softmax(1), p, torch.arange(4)[None]).sum().backward()
        optimiser.step()
    assert (logits.softmax(1) - p).abs().sum() < 0.06


def test_the_support_stands_for_the_whole_vocabulary() -> None:
    generator = torch.Generator().manual_seed(0)
    ids, raised = support(torch.tensor([[3, 5], [5, 9]]), 100, 1000, generator)
    assert {3, 5, 9} <= set(ids.tolist()) and torch.equal(ids, ids.unique())
    assert float(raised.exp().sum()) == pytest.approx(1000, rel=1e-5)
    assert raised[torch.isin(ids, torch.tensor([3, 5, 9]))].tolist() == [0, 0, 0]


def test_the_curriculum_goes_from_easy_to_hard() -> None:
    easy, later, unlisted = (curriculum.difficulty(*x) for x in ((1.0, 0), (1.0, 2), (0.0, 0)))
    assert easy == 0 < later < unlisted == 1
    levels = [curriculum.competence(a / 10) for a in range(11)]
    assert levels == sorted(levels) and levels[0] == pytest.approx(0.3) and levels[-1] == 1
    hard = torch.tensor([0.0, 0.5, 1.0])
    assert curriculum.weights(hard, 1.0).tolist() == [1, 1, 1]
    assert curriculum.weights(hard, 0.3).tolist() == pytest.approx([1, 0.8, 0.3])


# ------------------------------------------------------------------ learning, and safety


def test_it_learns_what_it_is_shown() -> None:
    """The same text again and again: sum min(p, q) at verified positions rises, by LoRA alone
    and by recall alone."""
    large = replace(EAGER, windows=16, window=8, interval=8)
    for config in (replace(large, recall=False), replace(large, rate=0.0)):
        learner = Aligner(DRAFT, config, carry=True)
        passes = [len(run(learner, temperature=0.0, limit=60)) for _ in range(8)]
        assert passes[-1] < 0.5 * len(run(None, temperature=0.0, limit=60))


def test_between_texts_everything_is_forgotten_unless_carried() -> None:
    config = replace(EAGER, windows=16)
    learner = Aligner(DRAFT, config)
    first, second = (run(learner, temperature=0.0) for _ in range(2))
    assert [r.proposed for r in first] == [r.proposed for r in second]
    carried = Aligner(DRAFT, config, carry=True)
    run(carried, temperature=0.0)
    assert [r.proposed for r in run(carried, temperature=0.0)] != [r.proposed for r in first]


def test_a_learner_that_is_reset_is_as_new() -> None:
    """Its luck included: what it keeps of windows gone by, and which of them it reads again."""
    learner = Aligner(DRAFT, replace(EAGER, window=2, windows=3))
    first, second = (run(learner, temperature=8.0) for _ in range(2))
    for ours, theirs in zip(first, second, strict=True):
        assert ours.evidence is not None and theirs.evidence is not None
        pairs = zip(
            ours.evidence.proposal.draft_distributions,
            theirs.evidence.proposal.draft_distributions,
            strict=True,
        )
        assert all(torch.equal(p.probs, q.probs) for p, q in pairs)


def test_floors_act_where_it_hurts_and_let_go() -> None:
    floor = Floor(memory=4, margin=0.1)
    assert not any(floor.record(gain) for gain in (-0.5, -0.5, -0.5))  # too little is known yet
    assert floor.record(-0.5) and floor.acts and not floor.record(-0.5)
    while floor.gain < 0:
        assert floor.acts
        floor.record(0.3)
    assert not floor.acts


class Poisoned(Aligner):
    """Is told something else than what happened."""

    def __init__(
        self, config: AdaptConfig, poison: Callable[[Distribution, int], Distribution], **more: Any
    ) -> None:
        super().__init__(DRAFT, config, **more)
        self._poison = poison

    def observe(self, finished: Round) -> Mapping[str, int]:
        evidence = finished.evidence
        assert evidence is not None
        told = zip(evidence.target_distributions, finished.tokens, strict=True)
        distributions = tuple(self._poison(distribution, token) for distribution, token in told)
        lie = Evidence(
            evidence.proposal, distributions, evidence.acceptance, evidence.next_distribution
        )
        return super().observe(replace(finished, evidence=lie))


def nan(distribution: Distribution, token: int) -> Distribution:
    return Distribution(distribution.ids, distribution.probs * torch.nan)


def another(distribution: Distribution, token: int) -> Distribution:
    """The law of other ids: each seven further on, and round."""
    ids, order = ((distribution.ids + 7) % TOY.vocab_size).sort()
    return Distribution(ids, distribution.probs[order])


@pytest.mark.parametrize("poison", [nan, another])
def test_false_verdicts_of_greedy_text_are_refused(
    poison: Callable[[Distribution, int], Distribution],
) -> None:
    rounds = run(Poisoned(EAGER, poison), temperature=0.0)
    plain = run(None, temperature=0.0)
    assert tokens_of(rounds) == tokens_of(plain) and len(rounds) == len(plain)
    assert sum(finished.events.get("refused_verdicts", 0) for finished in rounds) == 40


def test_after_noise_acceptance_is_the_frozen_drafts_again() -> None:
    """A draft that learns to be wrong, at an absurd rate and from laws of noise, is put back;
    after that it accepts what the frozen one does."""

    def noise(distribution: Distribution, token: int) -> Distribution:
        probs = torch.zeros_like(distribution.probs)
        probs[token] = 1e-3
        probs[(token * 7 + 3) % 50] = 1 - 1e-3
        return Distribution(distribution.ids, probs)

    config = replace(EAGER, rate=0.5)
    learner = Poisoned(config, noise, carry=True)
    rounds = []
    for seed in range(6):
        if seed == 3:
            learner._poison = lambda distribution, token: distribution  # the truth from now on
        rounds += run(learner, limit=40, seed=seed, temperature=8.0)
    events = [name for r in rounds for name, count in r.events.items() if count]
    assert "adapter_switched_off" in events
    later = [run(learner, limit=60, seed=seed, temperature=8.0) for seed in range(20, 28)]
    frozen = [run(None, limit=60, seed=seed, temperature=8.0) for seed in range(20, 28)]
    assert sum(map(len, later)) < 1.02 * sum(map(len, frozen))


def test_an_update_that_is_not_finite_is_undone() -> None:
    learner = Aligner(DRAFT, EAGER)
    learner.start()
    good = lora.state(learner.draft)
    weight = next(iter(lora.adapters(learner.draft).values())).up
    assert not learner._step((weight.sum() * torch.inf) - (weight.sum() * torch.inf))
    assert all(torch.equal(v, good[name]) for name, v in lora.state(learner.draft).items())
    assert learner._step((weight - 1).square().sum())  # and it goes on


# ------------------------------------------------------------------ methods


def test_methods_learn_by_name() -> None:
    method = Method.parse("frspec@0.25:mix+adapt")
    assert method.adapt and str(method) == "frspec@0.25:mix+adapt" and method.ranking == "mix"
    assert method != Method.parse("frspec@0.25:mix")
    with pytest.raises(ArgumentError, match="no draft to adapt"):
        Method.parse("autoregressive+adapt")


@pytest.mark.parametrize(
    "changes",
    [{"window": 0}, {"windows": 1}, {"rate": -1.0}, {"objective": "hope"}, {"interval": 0}],
    ids=str,
)
def test_bad_settings_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError):
        AdaptConfig(**changes)


# ------------------------------------------------------------------ the benchmark's parts


@pytest.mark.parametrize("kind", ["frozen", "aligned", "rival"])
def test_a_replay_takes_as_many_passes_as_the_real_loop(kind: str) -> None:
    def learner() -> Learner | None:
        made = {"frozen": None, "aligned": Aligner, "rival": Rival}[kind]
        return made(toy_draft(TARGET), EAGER) if made else None  # the same weights each time

    real = run(learner(), temperature=0.0, limit=80)
    answer, prompt = tokens_of(real), (1, 2, 3)
    ids = torch.tensor([*prompt, *answer[:-1]])
    aux_hidden_states = TARGET.step(ids, TARGET.new_cache(len(ids))).aux_hidden_states
    replayed = run(
        learner(), temperature=0.0, limit=80,
        target=Recording(prompt, answer, aux_hidden_states).reciter(50, 512),
    )  # fmt: skip
    assert [r.tokens for r in replayed] == [r.tokens for r in real]
    assert [r.proposed for r in replayed] == [r.proposed for r in real]


def test_the_rival_trains_every_parameter() -> None:
    rival = Rival(toy_draft(TARGET), EAGER)
    before = [parameter.detach().clone() for parameter in rival.draft.parameters()]
    run(rival, temperature=0.0, limit=80)
    after = list(rival.draft.parameters())
    changed = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert len(changed) > 8 and all(changed)
    held = rival.tensors()
    assert held["gradients"] == held["weights"] == []
    numbers = sum(parameter.numel() for parameter in after)
    steps = len(after)  # Adam counts them for each parameter
    assert sum(average.numel() for average in held["optimiser"]) == 2 * numbers + steps


def test_live_bytes_are_those_that_live() -> None:
    kept: dict[str, list[Tensor]] = {"buffer": []}
    live = LiveBytes(lambda: kept)
    with live:
        kept["buffer"].append(torch.zeros(1000))
        for _ in range(3):
            torch.ones(500) * 2  # two of 2,000 bytes live at once, then none
    assert live.split() == {"buffer": 4000, "activations": 4000, "peak": 8000}
    assert live.live == 4000
    kept["buffer"].clear()
    assert live.live == 0
