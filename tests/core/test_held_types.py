"""Everything that decoding returns is of the type that is declared, down to each entry."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch
from torch import Tensor

from minispec.certificate.toys import ToyDraft, ToyTarget, random_table
from minispec.commit import Committed, Output, StopRule
from minispec.decode import autoregressive, speculative
from minispec.propose import top_k_candidates
from minispec.sampling import Sampling, SeededRandom
from minispec.types import BaseShortlist, Context, Distribution, Proposal, Round
from minispec.verify import VERIFIERS, verify_siblings

V, PROMPT = 8, [0, 1]
TARGET = ToyTarget(V, random_table(V, 3))
DRAFT = ToyDraft(V, random_table(V, 4))


class Wide(BaseShortlist):
    """All ids; keeps the contexts and rounds that it is given."""

    name, budget = "wide", V

    def __init__(self, top_ids_wanted: int) -> None:
        self.top_ids_wanted, self.given = top_ids_wanted, list[Any]()

    def select(self, context: Context) -> Tensor:
        self.given.append(context)
        return torch.arange(V)

    def observe(self, finished: Round) -> None:
        self.given.append(finished)


def check(value: Any, hint: Any, path: str) -> None:
    """The value is exactly of the type, in all of its entries and fields."""
    origin = get_origin(hint)
    if hint is Any:
        return
    if origin is UnionType:
        optional = [each for each in get_args(hint) if each is not type(None)]
        if value is not None:
            check(value, optional[0], path)
    elif origin is tuple:
        assert type(value) is tuple, f"{path} is a {type(value).__name__}"
        for index, each in enumerate(value):
            check(each, get_args(hint)[0], f"{path}[{index}]")
    elif origin is Mapping:
        for key, each in value.items():
            check(key, get_args(hint)[0], path), check(each, get_args(hint)[1], f"{path}[{key}]")
    else:
        kinds = (int, float) if hint is float else (hint,)
        assert type(value) in kinds, f"{path} is a {type(value).__name__}, not {hint}"
    if is_dataclass(value):
        hints = get_type_hints(type(value))
        for each in fields(value):
            check(getattr(value, each.name), hints[each.name], f"{path}.{each.name}")
    if isinstance(value, Distribution) and isinstance(value.ids, Tensor):
        assert value.ids.dtype == torch.int64
        assert value.probs.dtype in (torch.float32, torch.float64)


@pytest.mark.parametrize("top_ids_wanted", [0, 3])
@pytest.mark.parametrize("verifier", VERIFIERS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rounds_hold_the_declared_types(
    temperature: float, verifier: str, top_ids_wanted: int
) -> None:
    options: dict[str, Any] = {
        "sampling": Sampling(temperature), "rng": SeededRandom(0), "stop": StopRule(12, (7,)),
        "trace": True,
    }  # fmt: skip
    shortlist = Wide(top_ids_wanted)
    rounds = list(speculative(
        TARGET, DRAFT, shortlist, PROMPT, gamma=3, verifier=VERIFIERS[verifier], **options
    ))  # fmt: skip
    plain = list(autoregressive(TARGET, PROMPT, **options))
    for given in (*rounds, *shortlist.given, *plain):
        check(given, type(given), type(given).__name__)
        if isinstance(given, Round):
            evidence, drafted = given.evidence, given not in plain
            assert evidence is not None and type(evidence.proposal.draft_distributions) is tuple
            assert evidence.top_ids.dtype == torch.int64
            expected = (len(given.tokens), top_ids_wanted) if drafted and top_ids_wanted else (0, 0)
            assert evidence.top_ids.shape == evidence.top_logits.shape == expected
            assert evidence.draft_hidden.dim() == 2
            assert drafted or evidence.draft_hidden.shape == (0, 0)


def test_verifiers_and_candidates_hold_the_declared_types() -> None:
    for library in (torch, np):
        p = Distribution(library.arange(V), library.ones(V) / V)  # type: ignore[attr-defined]
        siblings = top_k_candidates(p, 3)
        check(siblings, Proposal, "top_k_candidates")
        verdict = verify_siblings(siblings, [p] * 4, SeededRandom(0))
        check(verdict, type(verdict), "verify_siblings")
        for verify in VERIFIERS.values():
            chain = Proposal((1, 2), (p, p))
            check(verify(chain, [p] * 3, SeededRandom(1)), type(verdict), "verify")


def test_settings_hold_the_declared_types() -> None:
    rule = StopRule(np.int64(3), torch.tensor([5, 6]), "x")  # type: ignore[arg-type]
    assert rule == StopRule(3, (5, 6), ("x",))
    sampling = Sampling(
        np.float32(1.0), np.int64(2), torch.tensor(0.5), np.float64(0.25)  # type: ignore[arg-type]
    )  # fmt: skip
    assert sampling == Sampling(1.0, 2, 0.5, 0.25)
    for settings in (rule, sampling):
        check(settings, type(settings), type(settings).__name__)
    for tokens in ([4, 5, 6], [4]):
        check(Output(StopRule(3, (5,)), None, 9).commit(tokens), Committed, "commit")


def test_random_source_returns_python_values() -> None:
    source = SeededRandom(3)
    for probability in (0.5, torch.tensor(0.5), np.float64(0.5)):
        assert type(source.bernoulli(probability)) is bool  # type: ignore[arg-type]
    for probs in (torch.tensor([0.5, 0.5]), np.array([0.5, 0.5]), [0.5, 0.5]):
        assert type(source.choose(probs)) is int  # type: ignore[arg-type]
