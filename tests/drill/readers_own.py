"""Readers of minispec's own files: drafts, adapters, states, calibrations."""

import os
import warnings
from functools import cache
from pathlib import Path

import torch

from drill.format_json import Json
from drill.format_safetensors import Safetensors
from drill.reader import Outcome, Part, Reader, digest
from drill.rules import are_ids, is_finite_data, own_tensors
from drill.values import Rule, is_anything
from helpers import tiny_model
from helpers.shortlists import make_round
from minispec.io import adapter_file, draft_file, statistical_state
from minispec.io.files import write_json
from minispec.learning import lora
from minispec.models.eagle_draft import EagleDraft
from minispec.shortlists.statistical import StatisticalIndex
from minispec.tools.models import backend, pretrained
from minispec.tools.models.pretrained import Pretrained

TOKENIZER = "a" * 64
_IDS = 200


@cache
def tiny(folder: Path) -> Pretrained:
    """The tiny model, made once per process."""
    tiny_model.write_model(folder / "model")
    return pretrained.load(str(folder / "model"))


def model() -> Pretrained:
    """The tiny model, in a folder of its own that goes with the process's temporary folder."""
    return tiny(Path(os.environ["DRILL_FOLDER"]) / f"tiny-{os.getpid()}")


def _toy_draft(seed: int = 0) -> EagleDraft:
    from minispec.models.eagle_draft import init_from_target

    with torch.random.fork_rng(devices=[]):  # else PyTorch for CUDA looks for its devices
        torch.manual_seed(seed)
        draft = init_from_target(model().reference).requires_grad_(False)
        for weight in draft.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return draft


@torch.inference_mode()
def _describe_draft(draft: EagleDraft) -> Outcome:
    ids = torch.arange(1, 9)
    target = model().reference
    features = target.step(ids, target.new_cache(16))
    states = draft.step(ids, draft.fuse(features.aux_hidden_states), draft.new_cache(16))
    return {"logits": digest(draft.head.logits(draft.apply_final_norm(states)))}


def _write_draft(folder: Path) -> None:
    draft_file.save_draft(folder / "draft.safetensors", _toy_draft(), model().fingerprint)


def _load_draft(folder: Path) -> Outcome:
    path = folder / "draft.safetensors"
    return _describe_draft(draft_file.load_draft(path, model().reference, model().fingerprint))


def _add_adapters() -> EagleDraft:
    return lora.add_adapters(_toy_draft(), ("attention.output", "mlp.down"), 4, 0)


def _write_adapters(folder: Path) -> None:
    draft = _add_adapters()
    state = lora.get_adapter_state(draft)
    lora.set_adapter_state(draft, {name: value + 0.1 for name, value in state.items()})
    adapter_file.save_adapters(folder / "adapters.safetensors", draft, model().fingerprint)


def _load_adapters(folder: Path) -> Outcome:
    draft = _add_adapters()
    adapter_file.load_adapters(folder / "adapters.safetensors", draft, model().fingerprint)
    return _describe_draft(draft)


def _write_state(folder: Path) -> None:
    index = StatisticalIndex(_IDS)
    for start in range(20):
        index.observe(make_round((start, start + 3, 5)))
    statistical_state.write_state(folder / "state.safetensors", index, TOKENIZER)


def _load_state(folder: Path) -> Outcome:
    index = StatisticalIndex(_IDS)
    statistical_state.read_state(folder / "state.safetensors", index, TOKENIZER)
    return {name: digest(value) for name, value in index.state().items()}


def _write_calibration(folder: Path) -> None:
    os.environ["XDG_CACHE_HOME"] = str(folder)
    choice = {"backend": "reference", "milliseconds": {"reference": [1.0, 2.0], "cpu": [3.0, 4.0]}}
    write_json(backend._calibration_path(), {backend.calibration_key(model()): choice})


def _load_calibration(folder: Path) -> Outcome:
    """A damaged file counts as empty: whatever it holds, the choice is a backend that exists."""
    os.environ["XDG_CACHE_HOME"] = str(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a damaged file
        choice = backend.read_cached_choice(model())
    return {
        "known": choice.backend in backend.NAMES,
        "measured": digest(sorted(choice.milliseconds)),
    }


_DATA: dict[str, Rule] = {"*.data": is_finite_data}
_SUCCESSORS = are_ids(_IDS, unique=False, lowest=-1)
_STATE = own_tensors(after=_SUCCESSORS, last=_SUCCESSORS)
READERS = (
    Reader("draft", _write_draft, _load_draft,
           (Part("draft.safetensors", Safetensors(), _DATA),), 2),
    Reader("adapters", _write_adapters, _load_adapters,
           (Part("adapters.safetensors", Safetensors(), _DATA),), 2),
    Reader("statistical state", _write_state, _load_state,
           (Part("state.safetensors", Safetensors(), _STATE),), 2),
    Reader("calibration", _write_calibration, _load_calibration,
           (Part("minispec/calibration.json", Json(), {"*": is_anything}, optional=True),), 2),
)  # fmt: skip
