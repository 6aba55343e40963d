"""EAGLE-3 drafts in folders: both layouts are read, and what is wrong is named in one line."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import minispec
from helpers import tiny_model
from helpers.eagle3_reference import FOLDER
from helpers.tiny_model import Tiny
from minispec.errors import ArgumentError, FileError, FileWarning, FingerprintError
from minispec.models.eagle3_draft import Eagle3Draft, ReducedHead
from minispec.models.eagle_draft import EagleDraft
from minispec.models.lm_head import PackedHead
from minispec.tools.cli.main import main
from minispec.tools.models import pretrained

pytestmark = pytest.mark.filterwarnings("ignore:.*ordinary English:minispec.errors.FileWarning")
Change = Callable[[dict[str, Any], dict[str, Tensor]], Any]


def change_folder(tmp_path: Path, change: Change, name: str = "llama") -> Path:
    """A copy of a draft with its settings and tensors changed."""
    folder = tmp_path / "changed"
    shutil.copytree(FOLDER / name, folder)
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    change(config, tensors)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors")
    return folder


def to_safeailab(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """The layout of SafeAILab."""
    layer = config.pop("transformer_layer_config")
    for name in ("speculators_config", "speculators_model_type", "auto_map"):
        del config[name]
    config.update(layer, architectures=["LlamaForCausalLMEagle3"], draft_vocab_size=96)
    for name in [*tensors]:
        tensors[name.replace("layers.0.", "midlayer.")] = tensors.pop(name)


def load(folder: Path, tiny: Tiny) -> Eagle3Draft:
    draft = pretrained.load_draft(folder, pretrained.load(str(tiny.folder)))
    assert isinstance(draft, Eagle3Draft)
    return draft


def same_weights(one: EagleDraft, other: EagleDraft) -> bool:
    states = one.state_dict(), other.state_dict()
    equal = states[0].keys() == states[1].keys()
    return equal and all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_load_folder_reads_both_layouts_alike(tiny: Tiny, tmp_path: Path) -> None:
    ours, theirs = load(FOLDER / "llama", tiny), load(change_folder(tmp_path, to_safeailab), tiny)
    assert same_weights(ours, theirs)
    assert torch.equal(ours.head.ids, theirs.head.ids)  # type: ignore[union-attr]
    assert ours.config == theirs.config


@pytest.mark.parametrize(
    ("layers", "inner", "expected"),
    [
        ([1, 2, 3], None, (1, 2, 3)),
        ([3, 1, 2], None, (1, 2, 3)),  # engines concatenate them by layer
        (None, [0, 1, 2], (1, 2, 3)),
        ([1, 2, 3], [0, 1, 2], (1, 2, 3)),
    ],
)
def test_read_config_counts_auxiliary_layers_as_engines_do(
    layers: list[int] | None, inner: list[int] | None, expected: tuple[int, ...],
    tiny: Tiny, tmp_path: Path,
) -> None:  # fmt: skip
    def change(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        config["eagle_aux_hidden_state_layer_ids"] = layers
        config["eagle_config"] = inner and {"eagle_aux_hidden_state_layer_ids": inner}

    model = pretrained.load(str(tiny.folder))
    pretrained.load_draft(change_folder(tmp_path, change), model)
    assert model.reference.config.aux_hidden_state_layer_ids == expected


def reverse_rows(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    ids = torch.arange(96) + tensors["d2t"]
    tensors["d2t"] = ids.flip(0) - torch.arange(96)
    tensors["lm_head.weight"] = tensors["lm_head.weight"].flip(0)


def test_load_folder_sorts_the_rows_of_a_map_in_another_order(tiny: Tiny, tmp_path: Path) -> None:
    one, other = load(FOLDER / "llama", tiny), load(change_folder(tmp_path, reverse_rows), tiny)
    assert torch.equal(one.head.ids, other.head.ids)  # type: ignore[union-attr]
    assert torch.equal(one.head.weight, other.head.weight)


def remove(*names: str) -> Change:
    return lambda config, tensors: [tensors.pop(name) for name in names]


def test_load_folder_takes_from_the_target_what_the_folder_lacks(
    tiny: Tiny, tmp_path: Path
) -> None:
    model = pretrained.load(str(tiny.folder))

    def change(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        remove("embed_tokens.weight", "lm_head.weight", "d2t", "t2d")(config, tensors)
        config["draft_vocab_size"] = None

    draft = pretrained.load_draft(change_folder(tmp_path, change), model)
    assert isinstance(draft.head, PackedHead) and draft.head.vocab_size == 320
    assert draft.embedding.data_ptr() == model.reference.embedding.weight.data_ptr()
    assert draft.head.weight.data_ptr() == model.reference.head.weight.data_ptr()


def set_to(**settings: Any) -> Change:
    return lambda config, tensors: config.update(settings)


def set_layer(**settings: Any) -> Change:
    return lambda config, tensors: config["transformer_layer_config"].update(settings)


def put(**made: Tensor) -> Change:
    return lambda config, tensors: tensors.update(made)


BAD: dict[str, tuple[Change, type[Exception]]] = {
    "lacks 1 tensors, layers.0.self_attn.q_proj.weight": (
        remove("layers.0.self_attn.q_proj.weight"), FileError,
    ),
    "1 unexpected tensors, 'layers.1.mlp.up_proj.weight' first": (
        put(**{"layers.1.mlp.up_proj.weight": torch.zeros(2)}), FileError,
    ),
    "fc.weight has shape (31, 96)": (put(**{"fc.weight": torch.zeros(31, 96)}), FileError),
    "fc reads 192 numbers": (put(**{"fc.weight": torch.zeros(32, 192)}), FingerprintError),
    "for a target of 999 ids, this one has 320": (set_layer(vocab_size=999), FingerprintError),
    "num_hidden_layers 2": (set_layer(num_hidden_layers=2), FileError),
    "attention_bias True": (set_layer(attention_bias=True), FileError),
    "hidden_act 'gelu'": (set_layer(hidden_act="gelu"), FileError),
    "layer_types": (set_layer(layer_types=["sliding_attention"]), FileError),
    "rope type 'yarn'": (set_layer(rope_scaling={"rope_type": "yarn", "factor": 4}), FileError),
    "auxiliary layers [1, 2, 4]": (set_to(eagle_aux_hidden_state_layer_ids=[1, 2, 4]), FileError),
    "[0, 1, 2] (EAGLE-3's default": (set_to(eagle_aux_hidden_state_layer_ids=None), FileError),
    "disagree": (
        set_to(eagle_config={"eagle_aux_hidden_state_layer_ids": [1, 2, 3]}), FileError,
    ),
    "speculators_model_type 'dflash'": (set_to(speculators_model_type="dflash"), FileError),
    "norm_before_fc and fc_norm exclude": (set_to(norm_before_fc=True, fc_norm=True), FileError),
    "lacks 1 tensors, input_norm.weight": (set_to(norm_before_fc=True), FileError),
    "auto_map asks for code": (
        lambda config, tensors: [
            to_safeailab(config, tensors), config.update(auto_map={"": "x.Y"}),
        ],
        FileError,
    ),
    "neither d2t nor t2d": (remove("d2t", "t2d"), FileError),
    "d2t is all zeros": (put(d2t=torch.zeros(96, dtype=torch.int64)), FileError),
    "d2t has 95 entries": (put(d2t=torch.zeros(95, dtype=torch.int64)), FileError),
    "lacks the tensor lm_head.weight": (remove("lm_head.weight"), FileError),
    "lm_head has 320 rows, draft_vocab_size is 96: the target's head was written over": (
        put(**{"lm_head.weight": torch.zeros(320, 32)}), FileError,
    ),
    "lm_head.weight has shape (96, 31)": (
        put(**{"lm_head.weight": torch.zeros(96, 31)}), FileError,
    ),
    "embedding (its own or the target's)": (
        put(**{"embed_tokens.weight": torch.zeros(5, 32)}), FileError,
    ),
    "norm.weight contains NaN": (put(**{"norm.weight": torch.full((32,), torch.nan)}), FileError),
    "hidden_size: expected int": (set_layer(hidden_size="32"), FileError),
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_load_folder_names_what_is_wrong(message: str, tiny: Tiny, tmp_path: Path) -> None:
    change, kind = BAD[message]
    model = pretrained.load(str(tiny.folder))
    layers = model.reference.config.aux_hidden_state_layer_ids
    with pytest.raises(kind) as caught:
        pretrained.load_draft(change_folder(tmp_path, change), model)
    assert message in str(caught.value) and len(str(caught.value).splitlines()) == 1
    assert model.reference.config.aux_hidden_state_layer_ids == layers


def test_load_folder_refuses_other_folders(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(FileError, match="without an EAGLE-3 draft: give a file made by"):
        load(tmp_path, tiny)
    shutil.copy(FOLDER / "llama" / "config.json", tmp_path)
    with pytest.raises(FileError, match=r"no \.safetensors file"):
        load(tmp_path, tiny)
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK\x03\x04")
    with pytest.raises(FileError, match=r"only pytorch_model\.bin, which is pickled"):
        load(tmp_path, tiny)


def test_load_folder_never_runs_code_in_the_folder(tiny: Tiny, tmp_path: Path) -> None:
    folder = change_folder(tmp_path, lambda config, tensors: None)
    (folder / "config.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert json.loads((folder / "config.json").read_text())["auto_map"]  # names that file
    load(folder, tiny)
    assert not (tmp_path / "ran").exists()


def test_imported_draft_drafts_from_its_own_vocabulary(tiny: Tiny) -> None:
    model = minispec.load(tiny.folder, draft=FOLDER / "llama", backend="reference")
    assert isinstance(model.draft, Eagle3Draft) and isinstance(model.draft.head, ReducedHead)
    held, plain = set(model.draft.head.ids.tolist()), None
    for method in (None, "full", "microspec", "autoregressive"):
        rounds = [*model.stream("the sea", shortlist=method, max_new_tokens=16, ignore_eos=True)]
        ids = [token for finished in rounds for token in finished.tokens]
        plain = plain or ids
        assert ids == plain  # greedy output is the target's
        assert {token for finished in rounds for token in finished.proposed} <= held
    rounds = [*model.stream("the sea", max_new_tokens=8)]
    assert {size for finished in rounds for size in finished.shortlist_sizes} == {96}
    tree = model.generate("the sea", max_new_tokens=16, ignore_eos=True, tree="3x2x6")
    assert list(tree.token_ids) == plain


@pytest.mark.slow
def test_imported_draft_runs_beside_a_target_on_the_cpu_backend(tiny: Tiny) -> None:
    options: dict[str, Any] = dict(max_new_tokens=12, ignore_eos=True)
    outputs = [
        minispec.load(tiny.folder, draft=FOLDER / "llama", backend=backend).generate(
            "the sea", **options
        )
        for backend in ("reference", "cpu")
    ]
    assert outputs[0].token_ids == outputs[1].token_ids and outputs[0].tau == outputs[1].tau
    with pytest.raises(ArgumentError, match="backend compiled runs no imported EAGLE-3 draft"):
        minispec.load(tiny.folder, draft=FOLDER / "llama", backend="compiled")


def test_imported_draft_does_not_learn(tiny: Tiny) -> None:
    model = minispec.load(tiny.folder, draft=FOLDER / "llama", backend="reference")
    with pytest.raises(ArgumentError, match="imported EAGLE-3 draft has a head of its own"):
        model.generate("the sea", adapt=True)


def test_generate_takes_a_folder_as_its_draft(
    tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "generate",
        "the sea",
        "--model",
        str(tiny.folder),
        "--max-new-tokens",
        "4",
        "--json",
    ]
    command += ["--max-new-tokens", "4", "--backend", "reference"]
    assert main([*command, "--draft", str(FOLDER / "llama")]) == 0
    assert json.loads(capsys.readouterr().out)["method"] == "full"
    assert main([*command, "--draft", str(FOLDER)]) == 2
    assert "without an EAGLE-3 draft" in capsys.readouterr().err


def test_load_folder_warns_of_a_map_without_ordinary_text(tiny: Tiny) -> None:
    with pytest.warns(FileWarning, match="of ordinary English text is in the 96 ids of d2t"):
        load(FOLDER / "llama", tiny)


def test_load_folder_scales_hidden_states_as_the_target_does(tiny: Tiny) -> None:
    """Ours are divided by the scale of the embeddings, those that other projects train on not."""
    model = pretrained.load(str(tiny.folder))
    plain = load(FOLDER / "llama", tiny)
    model.reference.config = replace(model.reference.config, embedding_scale=3.0)
    scaled = pretrained.load_draft(FOLDER / "llama", model)
    aux = torch.randn(4, 96, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(scaled.fuse(aux / 3), plain.fuse(aux), atol=1e-6)


def test_load_folder_refuses_the_draft_of_another_model(tiny: Tiny, tmp_path: Path) -> None:
    tiny_model.write_model(tmp_path / "other", seed=3)
    command = ["--model", str(tiny.folder), "--draft", str(tiny.draft_path)]
    command += ["--method", f"frspec@99:{tiny.ranking('mix')}", "--out", str(tmp_path / "out")]
    assert main(["export", *command]) == 0
    load(tmp_path / "out", tiny)
    with pytest.raises(FingerprintError, match="was exported for model"):
        pretrained.load_draft(tmp_path / "out", pretrained.load(str(tmp_path / "other")))
