"""Backends by name: what is chosen, what is refused, and that all say the same."""

import json
from pathlib import Path

import pytest
import torch

from helpers.tiny_model import Tiny
from minispec.commit import StopRule
from minispec.errors import ArgumentError
from minispec.sampling import Sampling, SeededRandom
from minispec.tools.cli import main
from minispec.tools.evaluation.methods import Method, build_decoder
from minispec.tools.models import backend


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(backend, "cache_folder", lambda: tmp_path / "minispec")
    return tmp_path / "minispec" / "calibration.json"


def said(model, draft, method: str, temperature: float) -> list[int]:
    run = build_decoder(
        Method.parse(method), model, draft, None, gamma=3, sampling=Sampling(temperature),
        stop=StopRule(24),
    )  # fmt: skip
    return [token for finished in run([5, 6, 7], SeededRandom(3)) for token in finished.tokens]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("method", ["autoregressive", "full", "full+adapt"])
def test_every_backend_says_the_same(tiny: Tiny, method: str, temperature: float) -> None:
    model, draft = backend.place_on_backend(tiny.model, tiny.draft, "reference")
    assert (model, draft) == (tiny.model, tiny.draft)
    fast, runner = backend.place_on_backend(tiny.model, tiny.draft, "cpu")
    assert (fast.backend, fast.reference) == ("cpu", tiny.model.reference)
    assert type(fast.target) is not type(model.target)
    expected = said(model, draft, method, temperature)
    assert said(fast, runner, method, temperature) == expected


def test_auto_measures_once_and_keeps_what_it_found(
    tiny: Tiny, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = torch.get_num_threads()
    verdict = backend.choose_backend(tiny.model)
    assert torch.get_num_threads() == threads
    figures = verdict["milliseconds"]
    assert {"reference", "cpu"} <= figures.keys() and "compiled" not in figures
    assert verdict["backend"] == min(figures, key=lambda name: sum(figures[name]))
    assert [*json.loads(cache.read_text()).values()] == [verdict]
    monkeypatch.setattr(backend, "_time_passes", lambda *_: pytest.fail("measured again"))
    assert backend.choose_backend(tiny.model) == verdict
    assert backend.place_on_backend(tiny.model, None, "auto")[0].backend == verdict["backend"]


def test_a_draft_that_learns_is_placed_where_it_can(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = {"cuda": [0.1, 0.1], "reference": [2.0, 2.0], "cpu": [1.0, 2.0]}
    found = {"backend": "cuda", "milliseconds": figures}
    monkeypatch.setattr(backend, "choose_backend", lambda model: found)
    placed, draft = backend.place_on_backend(tiny.model, tiny.draft, "auto", learns=True)
    assert placed.backend == "cpu"
    assert said(placed, draft, "full+adapt", 0.0) == said(placed, draft, "full", 0.0)


def test_a_draft_that_cannot_learn_says_where_it_could(tiny: Tiny) -> None:
    compiled, draft = backend.place_on_backend(tiny.model, tiny.draft, "compiled")
    with pytest.raises(ArgumentError, match=r"\+adapt: a draft learns on --backend reference or"):
        said(compiled, draft, "full+adapt", 0.0)


@pytest.mark.parametrize("damaged", ["{", "[1]", ""])
def test_a_damaged_calibration_is_made_anew(tiny: Tiny, cache: Path, damaged: str) -> None:
    cache.parent.mkdir()
    cache.write_text(damaged)
    assert backend.choose_backend(tiny.model)["backend"] in backend.NAMES
    assert isinstance(json.loads(cache.read_text()), dict)


def test_what_cannot_run_is_refused_by_name(tiny: Tiny) -> None:
    with pytest.raises(ArgumentError, match="unknown backend 'warp': choose from auto, reference, cpu"):
        backend.place_on_backend(tiny.model, None, "warp")
    if not torch.cuda.is_available():
        with pytest.raises(ArgumentError, match=r"cuda cannot run .* no CUDA device"):
            backend.place_on_backend(tiny.model, None, "cuda")


def test_doctor_says_what_there_is_and_warms_up(
    tiny: Tiny, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", str(tiny.folder), "--draft", str(tiny.draft_path), "--warm"]
    assert main.main(["doctor", *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "GB/s" in lines[0]
    assert [line.split(":")[0] for line in lines[1:5]] == [*backend.NAMES]
    assert lines[5].startswith("auto takes ")
    assert lines[6] == "warmed up: nothing is left to compile"
