"""Exported drafts: they draft as ``frspec`` with the same ids, and the package ``speculators``
computes our logits from them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import minispec
from helpers.eagle3_reference import compute_logits
from helpers.tiny_model import Tiny
from helpers.toys import GEMMA, toy_transformer
from minispec.errors import ArgumentError
from minispec.models.eagle3_draft import Eagle3Draft
from minispec.models.eagle_draft import EagleDraft, build_draft
from minispec.models.rope import FrequencyFactors, RopeScaling
from minispec.tools.cli.main import main
from minispec.tools.data.corpus import DOMAINS, load_prompts
from minispec.tools.models import eagle3_export, hf_folder, pretrained
from minispec.tools.models.pretrained import Pretrained

pytestmark = pytest.mark.filterwarnings("ignore:.*ordinary English:minispec.errors.FileWarning")
IDS = torch.arange(0, 50, 3)
MANY = 20  # prompts


def export(model: str, folder: Path, *options: str) -> int:
    return main(["export", "--model", model, "--out", str(folder), *options])


def draft_tokens(
    model: minispec.Model, prompts: list[str], method: str, temperatures: tuple[float, ...]
) -> list[Any]:
    """What is drafted and emitted in each round, prompt by prompt."""
    return [
        [(finished.proposed, finished.tokens) for finished in rounds]
        for prompt in prompts
        for temperature in temperatures
        for rounds in [
            model.stream(prompt, shortlist=method, max_new_tokens=8, temperature=temperature)
        ]
    ]


def check_round_trip(
    name: str, method: str, folder: Path, prompts: list[str], *temperatures: float
) -> None:
    """The draft is exported, and read again it drafts as ``method`` does."""
    assert export(name, folder / "out", "--method", method) == 0
    expected = draft_tokens(minispec.load(name, backend="reference"), prompts, method, temperatures)
    imported = minispec.load(name, draft=folder / "out", backend="reference")
    assert isinstance(imported.draft, Eagle3Draft)
    assert draft_tokens(imported, prompts, "full", temperatures) == expected


def test_exported_draft_drafts_as_frspec_does(tmp_path: Path) -> None:
    prompts = [load_prompts(domain, base=True)[0] for domain in DOMAINS]
    check_round_trip("pocket", "frspec@1024:mix", tmp_path, prompts, 0.0, 0.8)


@pytest.mark.slow
def test_exported_smollm2_draft_drafts_as_frspec_does(smollm2: Pretrained, tmp_path: Path) -> None:
    prompts = [load_prompts(DOMAINS[i % 4])[i // 4] for i in range(MANY)]
    check_round_trip("smollm2", "frspec@0.25", tmp_path, prompts, 0.0)


def test_export_writes_the_same_weights_in_both_layouts(tiny: Tiny, tmp_path: Path) -> None:
    ours = ["--draft", str(tiny.draft_path), "--method", f"frspec@99:{tiny.ranking('mix')}"]
    layout = ["--layout", "speculators", "--verifier", "A/TARGET"]
    assert export(str(tiny.folder), tmp_path / "eagle3", *ours) == 0
    assert export(str(tiny.folder), tmp_path / "speculators", *ours, *layout) == 0
    drafts = [
        pretrained.load_draft(tmp_path / name, pretrained.load(str(tiny.folder)))
        for name in eagle3_export.LAYOUTS
    ]
    states = [draft.state_dict() | {"head": draft.head.weight} for draft in drafts]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_export_writes_the_settings_that_engines_read(tiny: Tiny, tmp_path: Path) -> None:
    method = f"frspec@100:{tiny.ranking('mix')}"
    ours = ["--draft", str(tiny.draft_path), "--method", method, "--dtype", "bfloat16"]
    assert export(str(tiny.folder), tmp_path, *ours) == 0
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLMEagle3"]
    assert (config["draft_vocab_size"], config["vocab_size"]) == (100, 320)
    assert config["eagle_aux_hidden_state_layer_ids"] == [1, 2, 3]
    assert config["eagle_config"]["eagle_aux_hidden_state_layer_ids"] == [0, 1, 2]
    tensors = load_file(tmp_path / "model.safetensors")
    ids = torch.arange(100) + tensors["d2t"]
    assert torch.equal(ids, tensors["t2d"].nonzero().flatten())
    rows = pretrained.load(str(tiny.folder)).reference.head.weight[ids].bfloat16()
    assert torch.equal(tensors["lm_head.weight"], rows)
    assert tensors["midlayer.self_attn.q_proj.weight"].shape == (32, 64)
    assert "embed_tokens.weight" not in tensors  # engines share the target's
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"


def test_export_of_the_full_vocabulary_has_no_map(tiny: Tiny, tmp_path: Path) -> None:
    ours = ["--draft", str(tiny.draft_path), "--method", "full"]
    assert export(str(tiny.folder), tmp_path, *ours) == 0
    assert not {"d2t", "t2d"} & load_file(tmp_path / "model.safetensors").keys()
    draft = pretrained.load_draft(tmp_path, pretrained.load(str(tiny.folder)))
    assert draft.head.weight.shape == (320, 32)


def toy_draft(**changes: Any) -> EagleDraft:
    return build_draft(toy_transformer(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (GEMMA, "differs in activation, embedding_scale, attention_scale, query_key_norm"),
        ({"aux_hidden_state_layer_ids": (1, 3)}, "hold 3 auxiliary layers, this draft reads 2"),
        ({"rope_scaling": FrequencyFactors((1.0, 2.0, 3.0))}, "a factor each, as in GGUF files"),
    ],
)
def test_export_refuses_what_the_layouts_cannot_hold(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ArgumentError, match=message):
        eagle3_export.export_draft(toy_draft(**changes), IDS, tmp_path / "out", fingerprint="")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        (FrequencyFactors((4.0,)), {"rope_type": "linear", "factor": 4.0}),
        (
            RopeScaling(8.0, 1.0, 4.0, 64),
            {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
             "original_max_position_embeddings": 64},
        ),
    ],
)  # fmt: skip
def test_export_keeps_rope_scaling(scaling: Any, expected: dict[str, Any], tmp_path: Path) -> None:
    draft = toy_draft(rope_scaling=scaling)
    eagle3_export.export_draft(draft, IDS, tmp_path, fingerprint="")
    assert json.loads((tmp_path / "config.json").read_text())["rope_scaling"] == expected


REFUSED = {
    "--method evospec@64": "chooses ids while it decodes, and a file holds fixed ones",
    "--method full+adapt": "chooses ids while it decodes",
    "--layout speculators": "names its target",
    "--verifier x": "layout eagle3 has no place for a verifier",
    "--method frspec@2:nosuch": "no ranking 'nosuch'",
}


@pytest.mark.parametrize("options", REFUSED)
def test_export_names_wrong_options(
    options: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export("pocket", tmp_path / "out", *options.split()) == 2
    error = capsys.readouterr().err
    assert REFUSED[options] in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_export_needs_a_draft_of_ours(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(str(tiny.folder), tmp_path / "out", "--method", "full") == 2
    assert "has no draft: give one with --draft" in capsys.readouterr().err
    ours = ["--draft", str(tiny.draft_path), "--method", "full"]
    assert export(str(tiny.folder), tmp_path / "made", *ours) == 0
    again = ["--draft", str(tmp_path / "made"), "--method", "full"]
    assert export(str(tiny.folder), tmp_path / "out", *again) == 2
    assert "has its layout already" in capsys.readouterr().err


# ------------------------------------------------------------------ the package's own model


def write_float32(model: Pretrained, folder: Path) -> None:
    """The target as a folder of Hugging Face's, in float32."""
    hf_folder.save(folder, model.reference)
    weights = {
        name: value.float() for name, value in load_file(folder / "model.safetensors").items()
    }
    rows = model.reference.embedding.weight
    weights["model.embed_tokens.weight"] = rows.detach().clone()
    if "lm_head.weight" in weights:
        weights["lm_head.weight"] = model.reference.head.weight.clone()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@torch.inference_mode()
def check_with_speculators(name: str, method: str, text: str, folder: Path) -> float:
    """The largest difference between our logits for a text and those of the package's model."""
    package = pytest.importorskip("speculators.models.eagle3.core")
    model = minispec.load(name, backend="reference")
    write_float32(model.pretrained, folder / "target")
    options = ["--layout", "speculators", "--verifier", str(folder / "target")]
    assert export(name, folder / "out", "--method", method, *options) == 0
    config = package.Eagle3SpeculatorConfig.from_pretrained(folder / "out")
    config.transformer_layer_config._attn_implementation = "eager"
    theirs = package.Eagle3DraftModel(config).eval()
    found = theirs.load_state_dict(load_file(folder / "out" / "model.safetensors"), strict=False)
    theirs.load_verifier_weights()  # the embedding, which is the target's
    assert not found.unexpected_keys
    absent = {name.partition(".")[0] for name in found.missing_keys}
    assert absent == {"embed_tokens", "verifier_norm", "verifier_lm_head"}
    ids = torch.tensor(model.tokenizer.encode(text))
    aux = model.target.step(ids, model.target.new_cache(len(ids))).aux_hidden_states
    draft = minispec.load(name, draft=folder / "out", backend="reference").draft
    assert isinstance(draft, Eagle3Draft)
    states = draft.step(ids[1:], draft.fuse(aux[:-1]), draft.new_cache(len(ids)))
    ours = draft.head.logits_of(draft.apply_final_norm(states), draft.head.ids)  # type: ignore[union-attr]
    return float((compute_logits(theirs, ids[1:], aux[:-1])[0] - ours).abs().max())


def test_exported_draft_has_our_logits_in_speculators(tmp_path: Path) -> None:
    text = "The wind blew over the sea, and the boats came home before the night."
    assert check_with_speculators("pocket", "frspec@1024:mix", text, tmp_path) <= 1e-4


@pytest.mark.slow
def test_exported_smollm2_draft_has_our_logits_in_speculators(
    smollm2: Pretrained, tmp_path: Path
) -> None:
    text = "The wind blew over the sea, and the boats came home before the night."
    assert check_with_speculators("smollm2", "frspec@0.25", text, tmp_path) <= 1e-4
