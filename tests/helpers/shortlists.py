"""Rounds, shortlists of each kind, and an index of the tiny model, for tests of shortlists."""

from pathlib import Path

import torch

from helpers.tiny_model import Tiny
from minispec.shortlists.dynaspec import DynaSpecShortlist, Router
from minispec.shortlists.evospec import EvoSpecShortlist
from minispec.shortlists.frspec import FRSpecShortlist
from minispec.shortlists.full import FullShortlist
from minispec.shortlists.lowrank import LowRankShortlist, fit_factors
from minispec.tools.cli import main
from minispec.types import Round, Shortlist


def make_round(tokens: tuple[int, ...], proposed: tuple[int, ...] = (), accepted: int = 0) -> Round:
    """A finished round, of which ``observe`` sees tokens, proposed tokens and accepted ones."""
    return Round(tokens, "", tuple(range(accepted)), proposed, (), {}, None)


def build_shortlists(
    vocab_size: int, hidden_size: int, budget: int, seed: int, eos_ids: tuple[int, ...]
) -> list[Shortlist]:
    """Shortlists of each kind, over random rows and clusters."""
    generator = torch.Generator().manual_seed(seed)
    ranking = torch.randperm(vocab_size, generator=generator)
    rows = torch.randn(vocab_size, hidden_size, generator=generator)
    clusters = torch.randint(max(1, vocab_size // 4), (vocab_size,), generator=generator)
    router = Router(hidden_size, int(clusters.max()) + 1).requires_grad_(False)
    half = ranking[: max(1, vocab_size // 2)]
    core = min(budget, len(eos_ids) + 1)
    return [
        FullShortlist(vocab_size),
        FRSpecShortlist(ranking, budget, eos_ids),
        EvoSpecShortlist(ranking, budget, eos_ids, clusters, rows),
        EvoSpecShortlist(ranking, budget, eos_ids, clusters, rows, recency=budget, per_round=False),
        EvoSpecShortlist(half, budget, eos_ids, clusters, rows, core=core),
        EvoSpecShortlist(ranking, budget, eos_ids, clusters, rows, core=budget),
        LowRankShortlist(rows, budget, eos_ids, fit_factors(rows, torch.eye(hidden_size), 2)),
        DynaSpecShortlist(ranking, budget, eos_ids, clusters, router),
    ]


def build_index(tiny: Tiny) -> Path:
    """The file of an index of the tiny model, made by the command that users run."""
    path = tiny.folder.parent / "index.safetensors"
    command = ["index", "build", "--model", str(tiny.folder), "--clusters", "40"]
    assert main.main([*command, "--out", str(path)]) == 0
    return path
