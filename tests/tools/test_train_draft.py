"""Training: it unrolls what decoding does, and a killed run resumes to the same weights."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helpers.toys import toy_transformer
from minispec.commit import StopRule
from minispec.decode import speculative
from minispec.errors import ArgumentError
from minispec.io.files import write_tensors
from minispec.models import eagle_draft as drafts
from minispec.models.eagle_draft import EagleDraft
from minispec.models.lm_head import LinearHead
from minispec.models.transformer import Transformer
from minispec.sampling import Sampling, SeededRandom
from minispec.shortlists.full import FullShortlist
from minispec.tools.data.batched_decode import decode_batch
from minispec.tools.data.batches import ShardDataset, is_greedy, make_batch
from minispec.tools.data.shards import AUX_KEY, Shard
from minispec.tools.evaluation.measure import measure
from minispec.tools.training import train_draft
from minispec.tools.training.train_draft import TrainConfig

PROMPTS = [[1, 2, 3], [4, 5], [6, 7, 8, 9], [10, 3], [11, 12], [13, 2]]
TARGET = toy_transformer().float()


def init_draft(target: Transformer, noise: float = 0.0) -> EagleDraft:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draft = drafts.init_from_target(target)
        with torch.no_grad():
            for weight in draft.parameters():
                weight += noise * torch.randn_like(weight)
    return draft


def generate_shards(target: Transformer, temperature: float) -> list[Shard]:
    """What a target generates after the prompts, with its features in full precision."""
    shards = []
    for row in decode_batch(
        target,
        PROMPTS,
        [Sampling(temperature)] * len(PROMPTS),
        [SeededRandom(seed) for seed in range(len(PROMPTS))],
        rows=4,
        max_new_tokens=30,
        eos_ids=(0,),
        keep_features=True,
    ):
        prompt, features = PROMPTS[row.index], row.features
        assert features is not None
        unread = torch.zeros(1, target.config.hidden_size, dtype=features.hidden.dtype)
        tokens = torch.tensor([*prompt, *row.tokens])
        shards.append(
            Shard(
                tokens=tokens,
                hidden=torch.cat((features.hidden, unread)),
                aux_hidden_states=torch.cat((features.aux_hidden_states, unread.repeat(1, 3))),
                starts=torch.tensor([0]),
                answers=torch.tensor([len(prompt)]),
                ends=torch.tensor([len(tokens)]),
            )
        )
    return shards


@pytest.fixture
def dataset(tmp_path: Path) -> ShardDataset:
    """The same sequences, concatenated in one file."""
    shards = generate_shards(TARGET, temperature=1.0)
    starts = torch.tensor([0, *(len(s.tokens) for s in shards[:-1])]).cumsum(0)
    path = tmp_path / "toy-0000.safetensors"
    write_tensors(
        path,
        {
            "tokens": torch.cat([s.tokens for s in shards]),
            "hidden": torch.cat([s.hidden for s in shards]).bfloat16(),
            AUX_KEY: torch.cat([s.aux_hidden_states for s in shards]).bfloat16(),
            "starts": starts,
            "answers": starts + torch.cat([s.answers for s in shards]),
            "ends": starts + torch.cat([s.ends for s in shards]),
        },
        {},
    )
    return ShardDataset([path], TARGET.config)


def test_unroll_computes_what_drafting_computes() -> None:
    """Step j at position t equals the state of a chain that read the target's auxiliary hidden
    states up to t - (j - 1) and its own states from there on, through the draft's real cache."""
    target = toy_transformer()
    draft = init_draft(target, noise=0.1)
    (sequence, *_) = generate_shards(target, temperature=1.0)
    ids, aux_hidden_states = sequence.tokens[1:], sequence.aux_hidden_states
    batch = make_batch([sequence], torch.float64)
    with torch.inference_mode():
        steps = [hidden[0] for hidden, _ in train_draft.unroll(draft, batch, 4)]
    for start in (1, 4, 9):
        cache = draft.new_cache(40)
        state = draft.step(ids[:start], draft.fuse(aux_hidden_states[:start]), cache)[-1]
        for j in range(4):
            position = start - 1 + j
            assert torch.allclose(
                draft.apply_final_norm(state), steps[j][position], rtol=0, atol=1e-10
            )
            state = draft.step(ids[start + j : start + j + 1], state[None], cache)[0]


def test_compute_loss_reads_hidden_states_only_with_a_feature_weight() -> None:
    """What of them no row of the LM head sees leaves the target's distribution as it is."""
    target = toy_transformer()
    draft = init_draft(target, noise=0.1)
    batch = make_batch(generate_shards(target, temperature=1.0), torch.float64)
    rows = draft.head.weight[:10]  # (10, 24)
    unseen = torch.linalg.svd(rows).Vh[-1]  # (24,)
    moved = replace(batch, hidden=batch.hidden + unseen)
    for weight in (0.0, 0.5):
        config = TrainConfig(tokens=1, steps=2, feature_weight=weight)
        losses = [
            train_draft.compute_loss(draft, b, LinearHead(rows), config)[0] for b in (batch, moved)
        ]
        assert torch.isclose(*losses, rtol=1e-9) == (weight == 0)


def test_replay_tau_equals_the_decoding_loops() -> None:
    target = toy_transformer()
    draft = init_draft(target).double().requires_grad_(False)
    taus = []
    for shard, prompt in zip(
        sorted(generate_shards(target, temperature=0.0), key=lambda s: int(s.tokens[0])),
        PROMPTS,
        strict=True,
    ):
        replayed = train_draft.replay_tau(draft, [shard], gamma=3)
        real = measure(
            speculative(
                target, draft, FullShortlist(50), prompt, gamma=3, sampling=Sampling(),
                rng=SeededRandom(0), stop=StopRule(30, (0,)),
            )
        )  # fmt: skip
        assert real.tokens == tuple(shard.tokens[len(prompt) :].tolist())
        taus.append((replayed, real.tau))
    assert any(replayed > 1 for replayed, _ in taus)
    assert all(replayed == pytest.approx(real) for replayed, real in taus)


def test_train_lowers_the_loss_and_raises_tau(dataset: ShardDataset, tmp_path: Path) -> None:
    draft = init_draft(TARGET)
    held_out = [dataset.read_sequence(index) for index in range(3)]
    config = TrainConfig(tokens=2500, steps=3, common_ids=40, random_ids=5, report=500)
    lines = list(train_draft.train(draft, dataset, held_out, config, tmp_path, "toy"))
    assert lines[-1]["tokens"] >= 2500
    for key in ("loss_1", "loss_2", "loss_3"):
        assert lines[-1][key] < lines[0][key] - 0.2
    assert lines[-1]["tau"] > lines[0]["tau"]


def test_train_resumes_bit_for_bit(dataset: ShardDataset, tmp_path: Path) -> None:
    config = TrainConfig(tokens=900, steps=2, common_ids=40, random_ids=5, report=200)
    whole = init_draft(TARGET)
    expected = list(
        train_draft.train(
            whole, dataset, [dataset.read_sequence(0)], config, tmp_path / "whole", "toy"
        )
    )
    # Killed after the second log line; the next run has nothing but the folder.
    killed = train_draft.train(
        init_draft(TARGET), dataset, [dataset.read_sequence(0)], config, tmp_path / "cut", "toy"
    )
    first = [next(killed), next(killed)]
    killed.close()  # type: ignore[attr-defined]
    resumed = init_draft(TARGET, noise=1.0)
    rest = list(
        train_draft.train(
            resumed, dataset, [dataset.read_sequence(0)], config, tmp_path / "cut", "toy"
        )
    )

    def drop_seconds(lines: list[dict[str, float]]) -> list[dict[str, float]]:
        return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]

    assert drop_seconds(first + rest) == drop_seconds(expected) and len(rest) >= 2
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_train_refuses_the_folder_of_another_run(dataset: ShardDataset, tmp_path: Path) -> None:
    config = TrainConfig(tokens=100, steps=1, common_ids=40, random_ids=5, report=50)
    list(
        train_draft.train(
            init_draft(TARGET), dataset, [dataset.read_sequence(0)], config, tmp_path, "toy"
        )
    )
    other = TrainConfig(tokens=100, steps=1, common_ids=40, random_ids=5, report=50, seed=1)
    with pytest.raises(ArgumentError, match="another training run"):
        list(
            train_draft.train(
                init_draft(TARGET), dataset, [dataset.read_sequence(0)], other, tmp_path, "toy"
            )
        )


def test_hold_out_removes_sequences_from_the_dataset(dataset: ShardDataset) -> None:
    before = len(dataset)
    taken = dataset.hold_out(3)
    left = [tuple(dataset.read_sequence(i).tokens.tolist()) for i in range(len(dataset))]
    assert len(taken) + len(left) == before and len(taken) == 2
    assert not {tuple(s.tokens.tolist()) for s in taken} & set(left)


def test_is_greedy_separates_greedy_from_sampled_text() -> None:
    greedy = generate_shards(TARGET, temperature=0.0)
    # A sampled answer of one or two tokens can be greedy by chance.
    sampled = [s for s in generate_shards(TARGET, temperature=20.0) if s.ends - s.answers > 4]
    assert len(sampled) > 2
    assert all(is_greedy(s, TARGET.head) for s in greedy)
    assert not any(is_greedy(s, TARGET.head) for s in sampled)
