"""Lists that follow the text: their contract, what each part brings, what they learn and hold."""

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from helpers.tiny_model import Tiny
from minispec.certificate.toys import ToyDraft, ToyTarget, random_table
from minispec.commit import StopRule
from minispec.decode import speculative
from minispec.errors import ArgumentError, FileError, FingerprintError
from minispec.io import index_file, statistical_state
from minispec.io.files import read_metadata, write_tensors
from minispec.sampling import Sampling, SeededRandom
from minispec.shortlists import kmeans, semantic, statistical
from minispec.shortlists.dynaspec import RoutedShortlist, Router
from minispec.shortlists.evospec import EvoSpecShortlist
from minispec.shortlists.frspec import FRSpecShortlist
from minispec.shortlists.full import FullShortlist
from minispec.shortlists.microspec import InContextShortlist
from minispec.tools.cli import main
from minispec.tools.evaluation.methods import Method, build_shortlist
from minispec.types import Context, Round, Shortlist


@pytest.fixture(scope="module")
def index(tiny: Tiny) -> Path:
    """The tiny model's own index, made as people make it."""
    path = tiny.folder.parent / "index.safetensors"
    command = ["index", "build", "--model", str(tiny.folder), "--clusters", "40"]
    assert main.main([*command, "--out", str(path)]) == 0
    return path


def finished(tokens: tuple[int, ...], proposed: tuple[int, ...] = (), kept: int = 0) -> Round:
    return Round(tokens, "", tuple(range(kept)), proposed, (), {}, None)


def lists(
    size: int, width: int, budget: int, seed: int, eos_ids: tuple[int, ...]
) -> list[Shortlist]:
    """One of each kind, over random rows and clusters."""
    generator = torch.Generator().manual_seed(seed)
    ranking = torch.randperm(size, generator=generator)
    rows = torch.randn(size, width, generator=generator)
    clusters = torch.randint(max(1, size // 4), (size,), generator=generator)
    router = Router(width, int(clusters.max()) + 1).requires_grad_(False)
    short = ranking[: max(1, size // 2)]
    return [
        FullShortlist(size),
        FRSpecShortlist(ranking, budget, eos_ids),
        EvoSpecShortlist(ranking, budget, eos_ids, clusters, rows),
        EvoSpecShortlist(ranking, budget, eos_ids, clusters, rows, recency=budget, per_round=False),
        EvoSpecShortlist(
            short, budget, eos_ids, clusters, rows, core=min(budget, len(eos_ids) + 1)
        ),
        EvoSpecShortlist(ranking, budget, eos_ids, clusters, rows, core=budget),
        InContextShortlist(ranking, budget, eos_ids),
        RoutedShortlist(ranking, budget, eos_ids, clusters, router),
    ]


@given(st.data())
def test_every_list_keeps_its_contract(data: st.DataObject) -> None:
    size = data.draw(st.integers(2, 60))
    budget = data.draw(st.integers(1, size))
    ids = st.integers(0, size - 1)
    eos_ids = tuple(data.draw(st.lists(ids, max_size=3, unique=True)))
    for chosen in lists(size, 4, budget, data.draw(st.integers(0, 99)), eos_ids):
        history: list[list[int]] = []
        for _ in range(2):
            seen: list[list[int]] = []
            generator = torch.Generator().manual_seed(0)
            draws = np.random.default_rng(size)
            text = [0]
            for _ in range(4):
                depth = int(draws.integers(0, 3))
                drafted = tuple(draws.integers(0, size, depth).tolist())
                hidden = torch.randn(4, generator=generator)
                context = Context((*text, *drafted), hidden, depth)
                got = chosen.select(context)
                assert got.dtype == torch.int64
                assert 1 <= len(got) <= chosen.budget
                assert got.tolist() == sorted(set(got.tolist()))
                assert got.min() >= 0 and got.max() < size
                if not isinstance(chosen, FullShortlist):
                    assert set(eos_ids[:budget]) <= set(got.tolist()) or len(eos_ids) > budget
                    assert len(got) == budget or isinstance(chosen, FRSpecShortlist)
                # Asking changes nothing.
                assert torch.equal(chosen.select(context), got)
                if isinstance(chosen, EvoSpecShortlist):
                    parts = chosen.explain(context)
                    assert [*parts] == ["core", "recency", "successor", "semantic"]
                    assert torch.cat([*parts.values()]).sort().values.tolist() == got.tolist()
                seen.append(got.tolist())
                tokens = tuple(draws.integers(0, size, int(draws.integers(1, 4))).tolist())
                chosen.observe(finished(tokens, tokens, len(tokens) - 1))
                text += tokens
            history = history or seen
            assert seen == history  # after a reset it is as new
            chosen.reset()


def test_how_often_lists_are_asked() -> None:
    """Once a round where what they answer would be the same, or costs more than a round's."""
    target, gamma, asked = ToyTarget(8, random_table(8, 1)), 3, {}
    for chosen in lists(8, 8, 4, 0, ()):
        calls: list[int] = []
        select = chosen.select

        def counted(context: Context, select: Any = select, calls: list[int] = calls) -> Tensor:
            calls.append(context.depth)
            return select(context)

        chosen.select = counted  # type: ignore[method-assign]
        rounds = list(speculative(
            target, ToyDraft(8, random_table(8, 2)), chosen, [0, 1], gamma=gamma,
            sampling=Sampling(1.0), rng=SeededRandom(0), stop=StopRule(9),
        ))  # fmt: skip
        drafted = [len(finished.shortlist_sizes) for finished in rounds]
        probed = chosen.rows_probed if isinstance(chosen, EvoSpecShortlist) else 0
        assert sum(finished.rows_probed for finished in rounds) == probed * len(calls)
        once = len(calls) == sum(map(bool, drafted)) and not any(calls)
        assert once or len(calls) == sum(drafted) > len(rounds)
        asked.setdefault(chosen.name, []).append(once)
    assert asked == {
        "full": [True], "frspec": [True], "evospec": [True, False, True, True],
        "in_context": [False], "routed": [False],
    }  # fmt: skip


# ------------------------------------------------------------------ the evolving list


def evolving(budget: int = 8, **options: int) -> EvoSpecShortlist:
    """40 ids in 10 clusters of four: 0..3, 4..7 and so on; the state i points at cluster i."""
    rows = torch.eye(10).repeat_interleave(4, 0) + 0.01 * torch.arange(40)[:, None]
    clusters = torch.arange(10).repeat_interleave(4)
    return EvoSpecShortlist(torch.arange(40), budget, (39,), clusters, rows, **options)


def parts(chosen: EvoSpecShortlist, tokens: tuple[int, ...], cluster: int) -> dict[str, list[int]]:
    context = Context(tokens, torch.eye(10)[cluster], 0)
    return {name: ids.tolist() for name, ids in chosen.explain(context).items()}


def test_shares_of_the_budget() -> None:
    """A quarter for the core, a sixth for recency; all ids that end an answer are core."""
    found = parts(evolving(budget=24), tuple(range(9, 30)), 9)
    assert len(found["core"]) == 6 and len(found["recency"]) == 4
    assert len(parts(evolving(budget=2), (1, 2, 3), 9)["core"]) == 1
    rows, clusters = torch.eye(40), torch.zeros(40, dtype=torch.int64)
    ends = EvoSpecShortlist(torch.arange(40), 4, (37, 38, 39), clusters, rows)
    context = Context((1, 2), torch.zeros(40), 0)
    assert ends.explain(context)["core"].tolist() == [37, 38, 39]


def test_each_part_brings_what_it_is_for() -> None:
    chosen = evolving(core=2, recency=3)
    assert chosen.rows_probed == 10
    found = parts(chosen, (30, 20, 10, 20, 0), 5)
    assert found == {
        "core": [0, 39],
        "recency": [10, 20, 30],
        "successor": [],
        "semantic": [21, 22, 23],
    }
    chosen.observe(finished((7, 20), (7, 33), 1))  # after 7 the draft said 33, and was wrong
    found = parts(chosen, (30, 20, 7), 5)
    assert found["recency"] == [7, 20, 30] and found["successor"] == [33]
    assert len(found["semantic"]) == 2
    # A window's oldest ids give way first; what it loses, the successors still know.
    found = parts(chosen, (30, 20, 10, 11, 7), 5)
    assert found["recency"] == [7, 10, 11] and found["successor"] == [20, 33]
    chosen.reset()
    assert parts(chosen, (30, 20, 7), 5)["successor"] == []


def test_an_old_topic_fades_from_recency() -> None:
    chosen = evolving(budget=30, recency=10)
    assert 33 in parts(chosen, (33, *[1] * 500), 0)["recency"]
    assert 33 not in parts(chosen, (33, *[1] * 600), 0)["recency"]
    assert 33 not in parts(chosen, (33, *range(10, 20), 1), 0)["recency"]


@pytest.mark.parametrize("core", [0, 9, -1])
def test_a_core_that_does_not_fit_is_refused(core: int) -> None:
    with pytest.raises(ArgumentError, match=f"core of {core} ids does not fit a budget of 8"):
        evolving(core=core)


@pytest.mark.parametrize(
    ("tokens", "most"), [(20_000, 1.5), pytest.param(1_000_000, 1.1, marks=pytest.mark.slow)]
)
def test_learning_costs_the_same_however_much_was_learnt(tokens: int, most: float) -> None:
    """Memory to the byte; time per update beside a learner that has just begun, by turns, so that
    a machine that does other things meanwhile delays both."""
    learner, beginner = (statistical.StatisticalIndex(49_152) for _ in range(2))
    before, draws = learner.bytes, np.random.default_rng(0)

    def block() -> list[Round]:
        pairs = draws.zipf(1.3, (tokens // 100 // 2, 2)) % 49_152
        return [finished((int(a), int(b)), (int(a), 5), 1) for a, b in pairs]

    def seconds(who: statistical.StatisticalIndex, rounds: list[Round]) -> float:
        started = time.process_time()
        for each in rounds:
            who.observe(each)
        return time.process_time() - started

    for _ in range(80):
        seconds(learner, block())
    ratios = []
    for turn in range(20):
        rounds, order = block(), [learner, beginner]
        spent = {who: seconds(who, rounds) for who in (order if turn % 2 else order[::-1])}
        ratios.append(spent[learner] / spent[beginner])
    state = learner.state()
    assert learner.bytes == before == state["after"].nbytes == 4 * 4 * 49_152
    assert statistics.median(ratios) < most


def test_what_followed_is_said_the_latest_first() -> None:
    learner = statistical.StatisticalIndex(12)
    for follower in (2, 3, 4, 5, 6):
        learner.observe(finished((1, follower)))
    assert learner.successors(1).tolist() == [6, 5, 4, 3]  # four, the oldest pushed out
    learner.observe(finished((1, 4)))
    assert learner.successors(1).tolist() == [4, 6, 5, 3]
    learner.observe(finished((7,)))  # what a round begins with follows the round before
    assert learner.successors(4).tolist() == [7, 1]
    learner.observe(finished((8, 9), (8, 10), 1))  # the target's 9 before the draft's 10
    assert learner.successors(8).tolist() == [9, 10]


# ------------------------------------------------------------------ state


@given(st.lists(st.lists(st.integers(0, 11), min_size=1, max_size=4), max_size=8))
def test_a_state_comes_back_as_it_was(rounds: list[list[int]]) -> None:
    first, second = statistical.StatisticalIndex(12), statistical.StatisticalIndex(12)
    for tokens in rounds:
        first.observe(finished(tuple(tokens), (3,)))
    second.restore(first.state())
    for each in (first, second):
        each.observe(finished((5, 6)))
    for token in range(12):
        assert first.successors(token).tolist() == second.successors(token).tolist()


def test_states_in_files(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    learner = statistical.StatisticalIndex(12)
    learner.observe(finished((3, 4, 5)))
    statistical_state.write_state(path, learner, "a" * 64)
    other = statistical.StatisticalIndex(12)
    statistical_state.read_state(path, other, "a" * 64)
    assert other.successors(4).tolist() == [5]
    with pytest.raises(FingerprintError, match="a" * 12):
        statistical_state.read_state(path, other, "b" * 64)
    with pytest.raises(FileError, match="shape"):
        statistical_state.read_state(path, statistical.StatisticalIndex(13), "a" * 64)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(FileError, match=str(path)):
        statistical_state.read_state(path, other, "a" * 64)
    with pytest.raises(FileError, match=r"outside 0\.\.11"):
        state = {"after": torch.full((12, 4), 12, dtype=torch.int32), "last": torch.tensor([0])}
        statistical_state.restore_state(other, state, "state")
    assert other.successors(4).tolist() == [5]  # nothing was lost


# ------------------------------------------------------------------ the semantic index


def test_rows_that_point_the_same_way_share_a_cluster() -> None:
    """Whatever their length: three bundles of directions, each with rows of length 1 to 100."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.eye(8)[:3].repeat_interleave(30, 0)
    rows = directions + 0.05 * torch.randn(90, 8, generator=generator)
    rows *= torch.logspace(0, 2, 90)[torch.randperm(90, generator=generator)][:, None]
    done = []
    clusters = kmeans.cluster_rows(rows, 3, seed=3, progress=lambda: done.append(1))
    assert [len(set(part.tolist())) for part in clusters.split(30)] == [1, 1, 1]
    assert sorted(set(clusters.tolist())) == [0, 1, 2] and len(done) == 20
    usual = kmeans.cluster_rows(rows, 30)
    assert torch.equal(usual, kmeans.cluster_rows(rows, 30, seed=0, rounds=20))
    assert not torch.equal(usual, kmeans.cluster_rows(rows, 30, seed=1))
    for count in (1, 7, 90):
        assert len(kmeans.cluster_rows(rows, count).unique()) == count  # none is empty
    same = torch.ones(10, 4)
    assert len(kmeans.cluster_rows(same, 4).unique()) == 4
    two = torch.eye(4)[:2].repeat_interleave(5, 0)  # of each direction fewer than have none
    assert len(kmeans.cluster_rows(two, 9).unique()) == 9
    assert len(kmeans.cluster_rows(two, 10).unique()) == 10
    for count in (0, 91):
        with pytest.raises(ArgumentError, match=rf"clusters {count} must lie in 1\.\.90"):
            kmeans.cluster_rows(rows, count)


def test_what_is_near() -> None:
    """Of two clusters, the best by their members' mean logit, the five best expected ids."""
    generator = torch.Generator().manual_seed(1)
    rows, states = (torch.randn(n, 6, generator=generator) for n in (50, 20))
    clusters = torch.arange(50) % 7
    ranking = torch.randperm(50, generator=generator).numpy()
    rank = {int(token): 1 + place for place, token in enumerate(ranking)}
    members = {c: [i for i in range(c, 50, 7) if i not in (3, 4)] for c in range(7)}
    index = semantic.SemanticIndex(clusters, rows, ranking, np.array([3, 4]))

    for state in states:
        logits = (rows @ state).tolist()
        means = [
            sum(logits[i] / rank[i] for i in ids) / sum(1 / rank[i] for i in ids)
            for ids in members.values()
        ]
        scores = dict(enumerate(torch.mv(index.centroids, state.half()).tolist()))
        assert [*scores.values()] == pytest.approx(means, abs=0.01)
        worth = {i: scores[c] - 2 * math.log(rank[i]) for c, ids in members.items() for i in ids}

        def expected(
            count: int, probed: int, taken: Sequence[int],
            scores: dict[int, float] = scores, worth: dict[int, float] = worth,
        ) -> set[int]:  # fmt: skip
            best = sorted(scores, key=lambda cluster: -scores[cluster])[:probed]
            left = [i for cluster in best for i in members[cluster] if i not in taken]
            return set(sorted(left, key=lambda i: -worth[i])[:count])

        first = list(expected(5, 2, []))
        crowded = [i for i in range(50) if i not in first[:3]]
        for count, probed, taken in [(5, 2, []), (5, 2, first[:2]), (0, 0, []), (3, 7, crowded)]:
            mask = np.isin(np.arange(50), taken)
            near = index.find_nearest(state, count, mask).tolist()
            assert len(near) == count and set(near) == expected(count, probed, taken)
        assert len(index.find_nearest(state, 60, np.zeros(50, bool))) == 48  # all there are


def damaged(index: Path, tmp_path: Path, clusters: Tensor) -> Path:
    path = tmp_path / "damaged.safetensors"
    write_tensors(path, {"clusters": clusters}, read_metadata(index))
    return path


def test_an_index_that_is_not_this_models_is_refused(
    tiny: Tiny, index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny.model
    size, prints = model.tokenizer.vocab_size, (model.fingerprint, model.tokenizer.fingerprint)
    clusters, router = index_file.read_index(index, size, *prints)
    assert len(clusters) == size and router == {}
    with pytest.raises(FingerprintError, match="made for model"):
        index_file.read_index(index, size, "f" * 64, prints[1])
    with pytest.raises(FingerprintError, match="made for tokenizer"):
        index_file.read_index(index, size, prints[0], "f" * 64)
    for wrong in (clusters, clusters.int() - 1, clusters[:-1].int()):
        with pytest.raises(FileError, match=r"damaged\.safetensors"):
            index_file.read_index(damaged(index, tmp_path, wrong), size, *prints)
    half = tmp_path / "half.safetensors"
    half.write_bytes(index.read_bytes()[:-50])
    command = ["generate", "hi", "--model", str(tiny.folder), "--draft", str(tiny.draft_path)]
    command += ["--method", f"evospec:{tiny.ranking('general')}"]
    for file, reason in [(half, "half.safetensors"), (tmp_path / "none", "does not exist")]:
        assert main.main([*command, "--index", str(file)]) == 2
        assert reason in capsys.readouterr().err
    assert main.main(command) == 2
    assert "minispec index build" in capsys.readouterr().err
    command[-1] = f"routed:{tiny.ranking('general')}"
    assert main.main([*command, "--index", str(index)]) == 2
    assert "minispec train router" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("--clusters 0 --out OUT/x.safetensors", "clusters 0 must lie in 1..320"),
        ("--clusters 321 --out OUT/x.safetensors", "clusters 321"),
        ("--out OUT/x.bin", "must end in .safetensors"),
        ("--out /proc/none/x.safetensors", "cannot write into"),
    ],
)
def test_what_index_build_refuses(
    tiny: Tiny, tmp_path: Path, options: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["index", "build", "--model", str(tiny.folder)]
    assert main.main([*command, *options.replace("OUT", str(tmp_path)).split()]) == 2
    assert reason in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(("last", "bytes_each"), [(2**15 - 1, 2), (2**15, 4), (40_000, 4)])
def test_an_index_takes_as_few_bytes_as_hold_its_numbers(
    last: int, bytes_each: int, tmp_path: Path
) -> None:
    path, clusters = tmp_path / "index.safetensors", torch.arange(last + 1)
    index_file.write_index(path, clusters, {}, "a" * 64, "b" * 64)
    read, _ = index_file.read_index(path, last + 1, "a" * 64, "b" * 64)
    assert torch.equal(read, clusters) and read.dtype == torch.int64
    assert 0 < path.stat().st_size - bytes_each * (last + 1) < 1000


def test_a_router_of_another_shape_is_refused() -> None:
    weights = Router(4, 3).state_dict()
    assert not any(
        p.requires_grad for p in index_file.build_router(weights, 4, 3, "file").parameters()
    )
    with pytest.raises(FileError, match="file"):
        index_file.build_router(weights, 4, 5, "file")
    with pytest.raises(FileError, match="no router"):
        index_file.build_router({}, 4, 3, "file")


def test_a_routed_cluster_is_weighed_by_what_its_rows_cost() -> None:
    """Of two that are as likely, the one with fewer rows."""
    router = Router(4, 2).requires_grad_(False)
    for weight in router.parameters():
        weight.zero_()
    clusters = torch.tensor([0] * 6 + [1] * 2)
    chosen = RoutedShortlist(torch.arange(8), 3, (5,), clusters, router)
    context = Context((1, 2), torch.zeros(4), 0)
    assert chosen.select(context).tolist() == [5, 6, 7]
    router.outer.bias[0] = 2.0  # e^2 times as likely is worth more than three times the rows
    assert chosen.select(context).tolist() == [0, 1, 5]


def test_a_router_is_trained_and_routes(
    tiny: Tiny, index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """To the cluster of what follows: after some hundred tokens better than by chance."""
    shard, out = tmp_path / "general-0000.safetensors", tmp_path / "routed.safetensors"
    generator, width, sequences, length = torch.Generator().manual_seed(0), 32, 24, 30
    steps = torch.arange(sequences * length)
    tokens = 100 + steps % 7  # an easy text: seven ids in a circle
    write_tensors(
        shard,
        {
            "tokens": tokens,
            "hidden": torch.zeros(len(steps), width, dtype=torch.bfloat16),
            "aux_hidden_states": torch.randn(len(steps), 3 * width, generator=generator).bfloat16(),
            "starts": steps[::length],
            "answers": steps[::length] + 4,
            "ends": steps[::length] + length,
        },
        {},
    )
    command = ["train", "router", "--model", str(tiny.folder), "--draft", str(tiny.draft_path)]
    command += ["--index", str(index), "--out", str(out), "--tokens", "3000"]
    assert main.main([*command, "--written", str(tmp_path / "none")]) == 2
    assert "holds no text" in capsys.readouterr().err
    assert main.main([*command, "--written", str(tmp_path)]) == 0
    model = replace(tiny.model, index=out)
    chosen = build_shortlist(Method.parse(f"routed@60:{tiny.ranking('general')}"), model, None)
    got = chosen.select(Context((1, 2), torch.randn(width, generator=generator), 0))
    # Of those seven ids, chance would bring one or two.
    assert len(got) == 60 and len(set(range(100, 107)) & set(got.tolist())) >= 4
    # What the index is for besides is as it was.
    prints = (model.fingerprint, model.tokenizer.fingerprint)
    ours, theirs = (index_file.read_index(path, 320, *prints)[0] for path in (out, index))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("method", ["evospec@40", "evospec@0.1", "in_context@40", "evospec"])
def test_methods_decode_what_plain_decoding_does(
    tiny: Tiny, index: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["generate", "hello", "--model", str(tiny.folder), "--draft", str(tiny.draft_path)]
    command += ["--index", str(index), "--max-new-tokens", "24"]
    texts = []
    for each in (f"{method}:{tiny.ranking('general')}", "autoregressive"):
        assert main.main([*command, "--method", each]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != "\n"


def test_budgets_by_share() -> None:
    assert Method.parse("evospec").ids(49_152) == 1536
    assert Method.parse("evospec@512").ids(49_152) == 512
    assert str(Method("evospec", 512, "general")) == "evospec@512:general"


def test_the_shipped_index_serves(smollm2: object) -> None:
    for name in ("evospec", "in_context", "routed"):
        chosen = build_shortlist(Method.parse(name), smollm2, None)  # type: ignore[arg-type]
        ids = chosen.select(Context((1, 2, 3), torch.randn(576), 0))
        assert len(ids) == 1536 == chosen.budget
