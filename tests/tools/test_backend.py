"""Backends: which one is chosen, which are refused, and that all emit the same tokens."""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch

from helpers.tiny_model import Tiny
from helpers.toys import toy_transformer
from minispec.commit import StopRule
from minispec.errors import ArgumentError, FileWarning
from minispec.models import eagle_draft
from minispec.sampling import Sampling, SeededRandom
from minispec.tools.cli import main
from minispec.tools.evaluation.assembly import build_decoder, build_learner
from minispec.tools.evaluation.methods import Method
from minispec.tools.models import backend


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(backend, "cache_folder", lambda: tmp_path / "minispec")
    return tmp_path / "minispec" / "calibration.json"


def decode_tokens(model, draft, method: str, temperature: float) -> list[int]:
    run = build_decoder(
        Method.parse(method), model, draft, None, gamma=3, sampling=Sampling(temperature),
        stop=StopRule(24),
    )  # fmt: skip
    return [token for finished in run([5, 6, 7], SeededRandom(3)) for token in finished.tokens]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("method", ["autoregressive", "full", "full+adapt"])
def test_place_on_backend_keeps_the_tokens(tiny: Tiny, method: str, temperature: float) -> None:
    model, draft = backend.place_on_backend(tiny.model, tiny.draft, "reference")
    assert (model, draft) == (tiny.model, tiny.draft)
    fast, fast_draft = backend.place_on_backend(tiny.model, tiny.draft, "cpu")
    assert (fast.backend, fast.reference) == ("cpu", tiny.model.reference)
    assert type(fast.target) is not type(model.target)
    expected = decode_tokens(model, draft, method, temperature)
    assert decode_tokens(fast, fast_draft, method, temperature) == expected


def test_choose_backend_measures_once_and_caches_the_choice(
    tiny: Tiny, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = torch.get_num_threads()
    choice = backend.choose_backend(tiny.model)
    assert torch.get_num_threads() == threads
    figures = choice.milliseconds
    assert {"reference", "cpu"} <= figures.keys() and "compiled" not in figures
    assert choice.backend == min(figures, key=lambda name: sum(figures[name]))
    assert [*json.loads(cache.read_text()).values()] == [json.loads(msgspec.json.encode(choice))]
    monkeypatch.setattr(backend, "_time_passes", lambda *_: pytest.fail("measured again"))
    assert backend.choose_backend(tiny.model) == choice
    assert backend.place_on_backend(tiny.model, None, "auto")[0].backend == choice.backend


def test_place_on_backend_puts_a_learning_draft_on_a_learning_backend(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = {"cuda": (0.1, 0.1), "reference": (2.0, 2.0), "cpu": (1.0, 2.0)}
    found = backend.Choice("cuda", figures)
    monkeypatch.setattr(backend, "choose_backend", lambda model: found)
    on_backend, draft = backend.place_on_backend(tiny.model, tiny.draft, "auto", learns=True)
    assert on_backend.backend == "cpu"
    assert decode_tokens(on_backend, draft, "full+adapt", 0.0) == decode_tokens(
        on_backend, draft, "full", 0.0
    )


def test_build_learner_names_the_backends_that_learn(tiny: Tiny) -> None:
    compiled, draft = backend.place_on_backend(tiny.model, tiny.draft, "compiled")
    with pytest.raises(
        ArgumentError, match=r"\+adapt needs an EAGLE draft on backend reference or cpu"
    ):
        decode_tokens(compiled, draft, "full+adapt", 0.0)


CHOICE = '{"backend": "cpu", "milliseconds": {"reference": [1.0, 2.0], "cpu": [0.5, 0.5]}}'


@pytest.mark.parametrize(
    "damaged",
    [
        "{",
        "[1]",
        "",
        '{"KEY": 1}',
        '{"KEY": {"backend": "cpu"}}',
        CHOICE.replace('"cpu", "m', '"warp", "m'),
        CHOICE.replace("[0.5, 0.5]", '"fast"'),
        CHOICE.replace("[0.5, 0.5]", "[0.5]"),
        CHOICE.replace("0.5]", "NaN]"),
        CHOICE.replace("0.5]", "Infinity]"),
        CHOICE.replace("0.5]", "-1.0]"),
        CHOICE.replace("0.5]", "9" * 5000 + "]"),
        CHOICE.replace("0.5]", "1e999]"),
        CHOICE.replace("[0.5, 0.5]", "[" * 10_000),
        CHOICE.replace("reference", "other"),
    ],
)
def test_choose_backend_replaces_a_damaged_calibration(
    tiny: Tiny, cache: Path, damaged: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not JSON of the right form is named and measured again."""
    key = json.dumps(backend.calibration_key(tiny.model))
    text = damaged.replace('"KEY"', key)
    text = f"{{{key}: {text}}}" if damaged.startswith('{"backend') else text
    cache.parent.mkdir()
    cache.write_text(text)
    monkeypatch.setattr(backend, "_time_passes", lambda model, name: (2.0, 3.0))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert backend.read_cached_choice(tiny.model).backend == "reference"
        assert backend.choose_backend(tiny.model).milliseconds["cpu"] == (2.0, 3.0)
    if "other" not in damaged:  # a choice without the reference is of another version
        assert len(said) == 2 and all(w.category is FileWarning for w in said)
        assert all(str(cache) in str(w.message) and "again" in str(w.message) for w in said)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backend.read_cached_choice(tiny.model).milliseconds["cpu"] == (2.0, 3.0)


def test_choose_backend_measures_again_when_its_backend_is_unavailable(
    tiny: Tiny, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "_time_passes", lambda model, name: (1.0, float(len(name))))
    assert backend.choose_backend(tiny.model).backend == "cpu"
    monkeypatch.setattr(
        backend, "why_unavailable", lambda model, name: None if name == "reference" else "removed"
    )
    assert backend.read_cached_choice(tiny.model).backend == "reference"
    assert backend.choose_backend(tiny.model) == backend.Choice(
        "reference", {"reference": (1.0, 9.0)}
    )


def test_place_on_backend_refuses_unknown_and_unavailable_backends(tiny: Tiny) -> None:
    with pytest.raises(
        ArgumentError, match="unknown backend 'warp': choose from auto, reference, cpu"
    ):
        backend.place_on_backend(tiny.model, None, "warp")
    if not torch.cuda.is_available():
        with pytest.raises(ArgumentError, match=r"cuda cannot run .* no CUDA device"):
            backend.place_on_backend(tiny.model, None, "cuda")


def test_place_on_backend_keeps_a_model_on_another_device_on_the_reference(tiny: Tiny) -> None:
    model = replace(tiny.model, device="cuda")
    for name in ("reference", "auto"):
        assert backend.place_on_backend(model, tiny.draft, name) == (model, tiny.draft)
    with pytest.raises(
        ArgumentError, match="backend cpu starts from weights on the CPU, not on dev"
    ):
        backend.place_on_backend(model, tiny.draft, "cpu")


def test_build_learner_refuses_a_draft_on_another_device() -> None:
    draft = eagle_draft.build_draft(toy_transformer().to("meta"))
    with pytest.raises(ArgumentError, match=r"\+adapt needs a draft on the CPU, not on meta"):
        build_learner(draft)


def test_doctor_shows_backends_and_warms_up(
    tiny: Tiny, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", str(tiny.folder), "--draft", str(tiny.draft_path), "--warm"]
    assert main.main(["doctor", *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "GB/s" in lines[0]
    assert [line.split(":")[0] for line in lines[1:5]] == [*backend.NAMES]
    assert lines[5].startswith("auto takes ")
    assert lines[6:] == ["all of it was measured now", "warmed up: nothing is left to compile"]
