"""Text that the target writes: the same from the same seed, and nothing of the evaluation."""

import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from helpers import tiny_model
from minispec.io.draft_file import load_draft
from minispec.io.files import read_json, read_tensors
from minispec.tools.data import corpus, distill
from minispec.tools.data.batches import ShardDataset
from minispec.tools.training import recipe


def test_messages_begin_with_openers_and_repeat_nothing(tiny: tiny_model.Tiny) -> None:
    model = tiny.model
    texts = distill.generate_messages(model.target, model.tokenizer, "law", 20, "seed")
    assert len(set(texts)) == 20
    assert all(text.startswith(tuple(corpus.load_openers("law"))) for text in texts)
    assert texts == distill.generate_messages(model.target, model.tokenizer, "law", 20, "seed")
    assert texts != distill.generate_messages(model.target, model.tokenizer, "law", 20, "other seed")


def test_a_base_model_goes_on_with_texts(tiny: tiny_model.Tiny) -> None:
    """No chat template is asked for, and no beginning holds the end of its text."""
    model = tiny.model
    texts = distill.generate_messages(model.target, model.tokenizer, "code", 20, "seed", base=True)
    assert len(set(texts)) == 20
    assert all(text.startswith(tuple(corpus.load_openers("code", base=True))) for text in texts)
    assert any("\n" in text for text in texts)


def test_a_message_that_repeats_the_evaluation_is_thrown_away(
    tiny: tiny_model.Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With evaluation prompts among the openers, none of them comes through."""
    model, evaluation = tiny.model, corpus.load_prompts("law")
    clean = "When does a"
    monkeypatch.setattr(corpus, "load_openers", lambda domain, base: [*evaluation, clean])
    texts = distill.generate_messages(model.target, model.tokenizer, "law", 5, "seed")
    assert len(texts) == 5 and all(text.startswith(clean) for text in texts)


def test_shards_are_a_function_of_domain_number_and_seed(
    tiny: tiny_model.Tiny, tmp_path: Path
) -> None:
    """Written in other processes, read back in the order of their sequences; a second call
    finds them done, and a missing one is made again to the last bit."""
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


def test_what_is_stored_is_what_the_target_computes(tiny: tiny_model.Tiny, tmp_path: Path) -> None:
    (path, *_) = distill.write_shards(tmp_path, str(tiny.folder), ["law"], 1, 0, 1, 6)
    target = tiny.model.target
    material = ShardDataset([path])
    for index in range(len(material)):
        sequence = material.read_sequence(index)
        read = sequence.tokens[:-1]
        fresh = target.step(read, target.new_cache(len(read)))
        for stored, exact in (
            (sequence.hidden, fresh.hidden),
            (sequence.aux_hidden_states, fresh.aux_hidden_states),
        ):
            # Written by a bfloat16 target, so up to that rounding, which a shift is far above.
            error = (stored[:-1].float() - exact).norm() / exact.norm()
            assert error < 0.05
            assert (stored[1:-1].float() - exact[:-1]).norm() / exact.norm() > 0.2
            assert not stored[-1].any()


def test_the_recipe_makes_a_draft_and_its_log(
    tiny: tiny_model.Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distill, "write_shards", partial(distill.write_shards, shard_prompts=6))
    path = recipe.make_draft(str(tiny.folder), ["law"], 300, 0.5, 0, tmp_path)
    log = read_json(tmp_path / "training.json")
    assert log["log"][-1]["tokens"] >= 0.5 * 300 and log["log"][-1]["tau"] >= 1
    draft = load_draft(path, tiny.model.target, tiny.model.fingerprint)
    assert draft.fusion.weight.shape == (tiny_model.HIDDEN_SIZE, 3 * tiny_model.HIDDEN_SIZE)

    # At next to no rate, a run that goes on from this draft stays where it is.
    (tmp_path / "second").mkdir()
    for shard in tmp_path.glob("law-*"):
        shutil.copy(shard, tmp_path / "second")
    second = recipe.make_draft(
        str(tiny.folder), ["law"], 300, 0.5, 0, tmp_path / "second", start=path, rate=1e-12
    )
    first_weights, weights = read_tensors(path), read_tensors(second)
    assert all(torch.allclose(weights[name], first_weights[name]) for name in weights)


def test_a_writer_that_is_killed_leaves_no_process_behind(
    tiny: tiny_model.Tiny, tmp_path: Path
) -> None:
    """Its processes share its standard output, which ends when the last of them has."""
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
