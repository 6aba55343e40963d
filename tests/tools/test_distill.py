"""Text that the target generates: the same for the same seed, without evaluation prompts."""

import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from helpers import tiny_model
from minispec.errors import ArgumentError, FileError
from minispec.io.draft_file import load_draft
from minispec.io.files import read_tensors, write_json, write_tensors
from minispec.tools.data import corpus, distill, shards
from minispec.tools.data.batches import ShardDataset
from minispec.tools.training import recipe


def test_generate_messages_continues_openers_without_duplicates(tiny: tiny_model.Tiny) -> None:
    model = tiny.model
    texts = distill.generate_messages(model.target, model.tokenizer, "law", 20, "seed")
    assert len(set(texts)) == 20
    assert all(text.startswith(tuple(corpus.load_openers("law"))) for text in texts)
    assert texts == distill.generate_messages(model.target, model.tokenizer, "law", 20, "seed")
    assert texts != distill.generate_messages(
        model.target, model.tokenizer, "law", 20, "other seed"
    )


def test_generate_messages_of_a_base_model_continues_texts(tiny: tiny_model.Tiny) -> None:
    """It needs no chat template, and no message contains the end of its text."""
    model = tiny.model
    texts = distill.generate_messages(model.target, model.tokenizer, "code", 20, "seed", base=True)
    assert len(set(texts)) == 20
    assert all(text.startswith(tuple(corpus.load_openers("code", base=True))) for text in texts)
    assert any("\n" in text for text in texts)


def test_generate_messages_drops_evaluation_prompts(
    tiny: tiny_model.Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With evaluation prompts among the openers, no message starts with one."""
    model, evaluation = tiny.model, corpus.load_prompts("law")
    clean = "When does a"
    monkeypatch.setattr(corpus, "load_openers", lambda domain, base: [*evaluation, clean])
    texts = distill.generate_messages(model.target, model.tokenizer, "law", 5, "seed")
    assert len(texts) == 5 and all(text.startswith(clean) for text in texts)


def test_write_shards_depends_on_domain_number_and_seed(
    tiny: tiny_model.Tiny, tmp_path: Path
) -> None:
    """Other processes write them; a second call keeps existing shards and writes a missing one
    again, bit for bit."""
    arguments = (str(tiny.folder), ["code", "general"], 900, 7, 2, 6)
    paths = list(distill.write_shards(tmp_path, *arguments))
    names = [path.name for path in paths]
    assert names[:2] == ["code-0000.safetensors", "general-0000.safetensors"]
    assert sum(map(distill.count_answer_tokens, paths)) >= 900
    before = read_tensors(paths[0])
    paths[0].unlink()
    list(distill.write_shards(tmp_path, *arguments))
    after = read_tensors(paths[0])
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_write_shards_refuses_the_shards_of_another_run(tmp_path: Path) -> None:
    settings = shards.ShardSettings("toy", 7, "float32", 6, False)
    path = shards.shard_path(tmp_path, "law", 0)
    write_tensors(path, {"tokens": torch.ones(1)}, settings.metadata("law"))
    shards.check_settings(path, settings)
    for change in (
        {"model": "other"}, {"seed": 8}, {"dtype": "bfloat16"}, {"prompts": 7}, {"base": True}
    ):  # fmt: skip
        other = vars(settings) | change
        with pytest.raises(ArgumentError, match=f"generated with {next(iter(change))} ") as error:
            list(
                distill.write_shards(
                    tmp_path, other["model"], ["law"], 9, other["seed"], 1, other["prompts"],
                    other["base"], other["dtype"],
                )
            )  # fmt: skip
        assert "give another folder" in str(error.value)


def test_find_shards_leaves_out_what_no_draft_was_trained_on(tmp_path: Path) -> None:
    for name in ("code-0000", "law-0000", "law-0001"):
        (tmp_path / f"{name}.safetensors").touch()
    assert len(shards.find_shards(tmp_path)) == 3
    write_json(
        tmp_path / "training.json", {"shards": ["code-0000.safetensors", "law-0000.safetensors"]}
    )
    assert [path.name for path in shards.find_shards(tmp_path, "law")] == ["law-0000.safetensors"]
    for names in (["../law-0000.safetensors"], [1], "law", None):
        write_json(tmp_path / "training.json", {"shards": names})
        with pytest.raises(FileError, match=r"training\.json: shards"):
            shards.find_shards(tmp_path)


def test_write_shards_stores_the_targets_features(tiny: tiny_model.Tiny, tmp_path: Path) -> None:
    (path, *_) = distill.write_shards(tmp_path, str(tiny.folder), ["law"], 1, 0, 1, 6)
    target = tiny.model.target
    dataset = ShardDataset([path], target.config)
    for index in range(len(dataset)):
        sequence = dataset.read_sequence(index)
        read = sequence.tokens[:-1]
        fresh = target.step(read, target.new_cache(len(read)))
        for stored, exact in (
            (sequence.hidden, fresh.hidden),
            (sequence.aux_hidden_states, fresh.aux_hidden_states),
        ):
            # Equal up to the rounding of a bfloat16 target; a shift by a position is far above it.
            error = (stored[:-1].float() - exact).norm() / exact.norm()
            assert error < 0.05
            assert (stored[1:-1].float() - exact[:-1]).norm() / exact.norm() > 0.2
            assert not stored[-1].any()


def test_make_draft_writes_a_draft_and_its_log(
    tiny: tiny_model.Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distill, "write_shards", partial(distill.write_shards, shard_prompts=6))
    path = recipe.make_draft(str(tiny.folder), ["law"], 300, 0.5, 0, tmp_path)
    log = json.loads((tmp_path / "training.json").read_bytes())
    assert log["log"][-1]["tokens"] >= 0.5 * 300 and log["log"][-1]["tau"] >= 1
    draft = load_draft(path, tiny.model.target, tiny.model.fingerprint)
    assert draft.fusion.weight.shape == (tiny_model.HIDDEN_SIZE, 3 * tiny_model.HIDDEN_SIZE)

    # With a learning rate near zero, a run that starts from this draft does not change it.
    (tmp_path / "second").mkdir()
    for shard in tmp_path.glob("law-*"):
        shutil.copy(shard, tmp_path / "second")
    second = recipe.make_draft(
        str(tiny.folder), ["law"], 300, 0.5, 0, tmp_path / "second", start=path, rate=1e-12
    )
    first_weights, weights = read_tensors(path), read_tensors(second)
    assert all(torch.allclose(weights[name], first_weights[name]) for name in weights)
    # Norms are added to a draft without them.
    (tmp_path / "second" / "checkpoint.safetensors").unlink()
    third = recipe.make_draft(
        str(tiny.folder), ["law"], 300, 0.1, 0, tmp_path / "second", start=path,
        feature_weight=0.0, norms=True,
    )  # fmt: skip
    assert load_draft(third, tiny.model.target, tiny.model.fingerprint).norms
    config = json.loads((tmp_path / "second" / "training.json").read_bytes())["config"]
    assert (config["feature_weight"], config["norms"]) == (0, True)


def test_write_shards_leaves_no_process_when_killed(tiny: tiny_model.Tiny, tmp_path: Path) -> None:
    """Its processes share its standard output, which closes when the last of them ends."""
    code = (
        "import sys; from pathlib import Path; from minispec.tools.data import distill\n"
        "if __name__ == '__main__':\n"
        "    for path in distill.write_shards("
        "Path(sys.argv[2]), sys.argv[1], ['law'], 10**9, 0, 1, 6):\n"
        "        print(path, flush=True)"
    )
    script = tmp_path / "write.py"
    script.write_text(code)
    command = [sys.executable, str(script), str(tiny.folder), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None and writer.stdout.readline()
        writer.kill()
        writer.communicate(timeout=60)
