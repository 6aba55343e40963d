"""The contract of all shortlists, how often the loop calls them, and methods by name."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from helpers.shortlists import build_index, build_shortlists, make_round
from helpers.tiny_model import Tiny
from minispec.certificate.toys import ToyDraft, ToyTarget, random_table
from minispec.commit import StopRule
from minispec.decode import speculative
from minispec.sampling import Sampling, SeededRandom
from minispec.shortlists.dynaspec import DynaSpecShortlist
from minispec.shortlists.evospec import EvoSpecShortlist
from minispec.shortlists.frspec import FRSpecShortlist
from minispec.shortlists.full import FullShortlist
from minispec.tools.cli import main
from minispec.tools.evaluation.assembly import build_shortlist
from minispec.tools.evaluation.methods import Method
from minispec.types import BaseShortlist, Context, Round, Shortlist


@pytest.fixture(scope="module")
def index(tiny: Tiny) -> Path:
    return build_index(tiny)


@given(st.data())
def test_shortlists_keep_their_contract(data: st.DataObject) -> None:
    size = data.draw(st.integers(2, 60))
    budget = data.draw(st.integers(1, size))
    ids = st.integers(0, size - 1)
    eos_ids = tuple(data.draw(st.lists(ids, max_size=3, unique=True)))
    for shortlist in build_shortlists(size, 4, budget, data.draw(st.integers(0, 99)), eos_ids):
        history: list[list[int]] = []
        for _ in range(2):
            selections: list[list[int]] = []
            generator = torch.Generator().manual_seed(0)
            draws = np.random.default_rng(size)
            text = [0]
            for _ in range(4):
                depth = int(draws.integers(0, 3))
                drafted = tuple(draws.integers(0, size, depth).tolist())
                hidden = torch.randn(4, generator=generator)
                context = Context((*text, *drafted), hidden, depth)
                selected = shortlist.select(context)
                assert selected.dtype == torch.int64
                assert 1 <= len(selected) <= shortlist.budget
                assert selected.tolist() == sorted(set(selected.tolist()))
                assert selected.min() >= 0 and selected.max() < size
                if not isinstance(shortlist, FullShortlist):
                    dynaspec = isinstance(shortlist, DynaSpecShortlist)
                    limit = shortlist.budget_at(depth) if dynaspec else budget
                    assert set(eos_ids[:limit]) <= set(selected.tolist()) or len(eos_ids) > limit
                    assert len(selected) == limit or isinstance(shortlist, FRSpecShortlist)
                # ``select`` changes nothing.
                assert torch.equal(shortlist.select(context), selected)
                assert isinstance(shortlist, BaseShortlist)
                parts = shortlist.explain(context)
                assert tuple(parts) == shortlist.part_names
                if isinstance(shortlist, EvoSpecShortlist):
                    assert [*parts] == ["core", "recency", "successor", "semantic"]
                    assert torch.cat([*parts.values()]).sort().values.tolist() == selected.tolist()
                selections.append(selected.tolist())
                tokens = tuple(draws.integers(0, size, int(draws.integers(1, 4))).tolist())
                shortlist.observe(make_round(tokens, tokens, len(tokens) - 1))
                text += tokens
            history = history or selections
            assert selections == history  # ``reset`` restores the state after construction
            shortlist.reset()


def decode_toys(shortlist: Shortlist) -> list[Round]:
    """Nine tokens of toys with 8 ids, at temperature 1 and gamma 3."""
    return list(speculative(
        ToyTarget(8, random_table(8, 1)), ToyDraft(8, random_table(8, 2)), shortlist, [0, 1],
        gamma=3, sampling=Sampling(1.0), rng=SeededRandom(0), stop=StopRule(9),
    ))  # fmt: skip


def test_speculative_calls_select_once_a_round_or_at_each_draft_step() -> None:
    """Once a round for shortlists whose answer would not change, or would cost too much."""
    calls_once: dict[str, list[bool]] = {}
    for shortlist in build_shortlists(8, 8, 4, 0, ()):
        calls: list[int] = []
        select = shortlist.select

        def count(context: Context, select: Any = select, calls: list[int] = calls) -> Tensor:
            calls.append(context.depth)
            return select(context)

        shortlist.select = count  # type: ignore[method-assign]
        rounds = decode_toys(shortlist)
        drafted = [len(finished.shortlist_sizes) for finished in rounds]
        assert isinstance(shortlist, BaseShortlist)
        probed = shortlist.rows_probed
        assert sum(finished.rows_probed for finished in rounds) == probed * len(calls)
        once = len(calls) == sum(map(bool, drafted)) and not any(calls)
        assert once or len(calls) == sum(drafted) > len(rounds)
        calls_once.setdefault(shortlist.name, []).append(once)
    assert calls_once == {
        "full": [True], "frspec": [True], "evospec": [True, False, True, True],
        "lowrank": [False], "dynaspec": [False],
    }  # fmt: skip


class LeastShortlist:
    """A shortlist with the members of the protocol and no others: the ids below its budget."""

    name, budget, per_round = "least", 4, False

    def select(self, context: Context) -> Tensor:
        return torch.arange(self.budget)

    def observe(self, finished: Round) -> None: ...

    def reset(self) -> None: ...


class InheritingShortlist(BaseShortlist):
    """The same, with the defaults of the base class, and the cost of two rows a selection."""

    name, budget, rows_probed = "inheriting", 4, 2

    def select(self, context: Context) -> Tensor:
        return torch.arange(self.budget)


def test_speculative_accepts_any_object_with_the_members_of_the_protocol() -> None:
    least, inheriting = decode_toys(LeastShortlist()), decode_toys(InheritingShortlist())
    assert [finished.tokens for finished in least] == [finished.tokens for finished in inheriting]
    assert all(finished.rows_probed == 0 for finished in least)
    for finished in inheriting:
        assert finished.rows_probed == 2 * len(finished.shortlist_sizes)


@pytest.mark.parametrize("method", ["evospec@40", "evospec@0.1", "evospec"])
def test_generate_gives_the_greedy_text_with_any_shortlist(
    tiny: Tiny, index: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["generate", "hello", "--model", str(tiny.folder), "--draft", str(tiny.draft_path)]
    command += ["--index", str(index), "--max-new-tokens", "24"]
    texts = []
    for each in (f"{method}:{tiny.ranking('general')}", "autoregressive"):
        assert main.main([*command, "--method", each]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != "\n"


def test_method_takes_a_budget_as_a_number_or_a_share() -> None:
    assert Method.parse("evospec").ids(49_152) == 1536
    assert Method.parse("evospec@512").ids(49_152) == 512
    assert str(Method("evospec", 512, "general")) == "evospec@512:general"


def test_build_shortlist_uses_the_shipped_index(smollm2: object) -> None:
    for name in ("evospec", "lowrank", "dynaspec"):
        shortlist = build_shortlist(Method.parse(name), smollm2, None)  # type: ignore[arg-type]
        ids = shortlist.select(Context((1, 2, 3), torch.randn(576), 0))
        assert len(ids) == 1536 == shortlist.budget
