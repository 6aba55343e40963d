"""The pocket pair: the recipe that makes it, also if interrupted, and the pair that ships."""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from itertools import islice, pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from minispec.commit import StopRule
from minispec.errors import ArgumentError
from minispec.io import draft_file, index_file
from minispec.io.files import read_tensors
from minispec.models import eagle_draft
from minispec.models.model_config import default_aux_layer_ids
from minispec.sampling import Sampling, SeededRandom
from minispec.text.tokenizer import encode_prompt
from minispec.tools.cli import main
from minispec.tools.data import corpus, distill, ranking
from minispec.tools.evaluation.assembly import build_decoder
from minispec.tools.evaluation.measure import Figures, measure
from minispec.tools.evaluation.methods import Method
from minispec.tools.models import known_models, pretrained
from minispec.tools.models.pretrained import Pretrained
from minispec.tools.models.tokenizer_files import from_sentencepiece
from minispec.tools.training import pocket
from minispec.tools.training.resumable import read_log

SMALL = replace(
    pocket.SHAPE, vocab_size=700, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
    num_key_value_heads=1, head_dim=8, intermediate_size=24,
    aux_hidden_state_layer_ids=default_aux_layer_ids(3),
)  # fmt: skip


TEXT = {
    "train": (torch.arange(3000) % 7 + 5).to(torch.int16),
    "held_out": (torch.arange(300) % 7 + 5).to(torch.int16),
}
CONFIG = pocket.TargetConfig(tokens=4000, report=1000, windows=2, length=64)


@pytest.fixture
def small_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe in seconds: little text, this file's, and a small target."""
    words = Path(__file__).read_text(encoding="utf-8")

    def documents(domain: str, limit: int) -> Iterable[str]:
        return [f"{domain} {number}: {words}" for number in range(45)]

    monkeypatch.setattr(corpus, "load_documents", documents)
    monkeypatch.setattr(pocket, "SHAPE", SMALL)
    monkeypatch.setattr(pocket, "_CLUSTERS", 20)
    monkeypatch.setattr(distill, "write_shards", partial(distill.write_shards, shard_prompts=3))


def test_make_writes_all_artifacts(small_recipe: None, tmp_path: Path) -> None:
    made = pocket.make(tmp_path, tokens=8192, draft_tokens=1200, epochs=1.0, seed=0)
    model = pretrained.load(str(made / "model"))
    size = model.tokenizer.vocab_size
    assert size == SMALL.vocab_size == model.target.head.vocab_size
    draft_file.load_draft(made / "draft.safetensors", model.reference, model.fingerprint)
    index = made / "index.safetensors"
    index_file.read_index(index, size, model.fingerprint, model.tokenizer.fingerprint)
    for name in ranking.NAMES:
        path = made / "rankings" / f"{name}.safetensors"
        assert len(ranking.read_ranking(path, model.tokenizer.fingerprint, size)) == size
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")

    # A run that was killed before its last picture and after its last checkpoint.
    whole = {path: path.read_bytes() for path in made.rglob("*") if path.is_file()}
    for name in ("curves.png", "artifacts/index.safetensors", "artifacts/model/training.json"):
        (tmp_path / name).unlink()
    (tmp_path / "draft" / "medicine-0001.safetensors").write_bytes(b"written ahead")
    pocket.make(tmp_path, tokens=8192, draft_tokens=1200, epochs=1.0, seed=0)
    assert {path: path.read_bytes() for path in made.rglob("*") if path.is_file()} == whole


def test_prepare_text_round_trips_and_drops_evaluation_prompts(
    small_recipe: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner, prompt = corpus.load_documents, corpus.load_prompts("law", base=True)[0]
    monkeypatch.setattr(
        corpus, "load_documents", lambda *a: [*inner(*a), f"Read {prompt}, no less"]
    )
    text = pocket._prepare_text(tmp_path / "text.safetensors", tmp_path / "tokenizer.model")
    assert text.keys() == {"train", "held_out"}
    tokenizer = from_sentencepiece(tmp_path / "tokenizer.model")
    found = "".join(tokenizer.decode(ids.tolist()) for ids in text.values())
    for domain in corpus.DOMAINS:
        assert all(document in found for document in inner(domain, 1))
    assert prompt not in found
    # 180 documents, each between BOS and EOS; every fortieth is held out.
    assert [int((ids == tokenizer.bos_id).sum()) for ids in text.values()] == [175, 5]
    odd = " two  spaces\n\n\tand \u00fcber \U0001f600\x07"
    assert tokenizer.decode(tokenizer.encode(odd)) == odd


def test_cross_entropy_is_that_of_the_decoding_pass() -> None:
    """The training loss of a text equals the cross-entropy of the distributions in decoding."""
    target = pocket.init_target(0).double()
    ids = torch.randint(8192, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = target(ids[:, :-1], target.new_cache(19, batch_size=2))
        logits = target.head.logits(features.hidden)
        wanted = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        found = pocket.cross_entropy(target, ids)
    assert float(found) == pytest.approx(float(wanted), abs=1e-5)  # computed in float32


def test_target_run_resumes_to_the_same_weights(tmp_path: Path) -> None:
    def run(config: pocket.TargetConfig = CONFIG) -> pocket._TargetRun:
        return pocket._TargetRun(pocket.init_target(0), TEXT, config)

    whole, killed, resumed = run(), run(), run()
    same = {"shape": (1, 2)}
    lines = list(whole.train(tmp_path / "whole", same, lambda seen: None))
    assert lines[-1]["loss_1"] < lines[0]["loss_1"] and lines[-1]["held_out"] < 8
    next(killed.train(tmp_path / "cut", same, lambda seen: None))
    killed.update()  # lost
    list(resumed.train(tmp_path / "cut", same, lambda seen: None))
    assert resumed.seen == whole.seen
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name
    assert len(read_log(tmp_path / "cut" / "training.json")) == len(lines)
    with pytest.raises(ArgumentError, match="another training run"):
        next(run().train(tmp_path / "cut", {"shape": (1, 3)}, lambda seen: None))


def test_shuffle_windows_covers_the_text_before_repeating() -> None:
    windows = 2999 // 64 - 1
    updates = list(islice(pocket._shuffle_windows(3000, CONFIG), windows // 2))
    starts = sorted(start for update in updates for start in update)
    assert len(set(starts)) == len(starts) and min(starts) >= 0 and max(starts) + 64 < 3000
    assert all(later - earlier >= 64 for earlier, later in pairwise(starts))


@pytest.fixture(scope="module")
def pair() -> tuple[Pretrained, eagle_draft.EagleDraft]:
    model = pretrained.load("pocket", "float64")  # so that no two logits tie for the largest
    path = draft_file.find_draft("pocket")
    assert path is not None
    return model, draft_file.load_draft(path, model.reference, model.fingerprint)


def decode_prompt(
    pair: tuple[Pretrained, eagle_draft.EagleDraft], method: str, prompt: str
) -> Figures:
    model, draft = pair
    ids = encode_prompt(model.tokenizer, prompt, raw=True)
    run = build_decoder(
        Method.parse(method), model, draft, None, gamma=4, sampling=Sampling(),
        stop=StopRule(48, model.tokenizer.eos_ids),
    )  # fmt: skip
    return measure(run(ids, SeededRandom(0)))


def test_pocket_pair_is_exact_and_its_draft_helps(
    pair: tuple[Pretrained, eagle_draft.EagleDraft],
) -> None:
    """Greedy, over prompts of all domains: the ids of plain decoding, with more than 1.5 tokens
    per target pass."""
    taus = []
    for domain in corpus.DOMAINS:
        for prompt in corpus.load_prompts(domain, base=True)[:3]:
            plain = decode_prompt(pair, "autoregressive", prompt)
            for method in ("full", "frspec@0.25", "evospec@256"):
                other = decode_prompt(pair, method, prompt)
                assert other.tokens == plain.tokens
                taus.append(other.tau)
            text = pair[0].tokenizer.decode(plain.tokens)
            assert len(text.strip()) > 40 and "\ufffd" not in text
    assert sum(taus) / len(taus) > 1.5


def test_pocket_target_predicts_unseen_text(
    pair: tuple[Pretrained, eagle_draft.EagleDraft],
) -> None:
    """On text that it was not trained on, this file's: a uniform guess is 9 nats per token."""
    model, _ = pair
    ids = torch.tensor([model.tokenizer.encode(Path(__file__).read_text("utf-8"))[:513]])
    with torch.no_grad():
        assert float(pocket.cross_entropy(model.reference, ids)) < 5.5


def test_pocket_artifacts_belong_together(pair: tuple[Pretrained, eagle_draft.EagleDraft]) -> None:
    model, _ = pair
    folder, size = known_models.model_path("pocket"), model.tokenizer.vocab_size
    index = index_file.find_index("pocket", None)
    index_file.read_index(index, size, model.fingerprint, model.tokenizer.fingerprint)
    for name in ranking.NAMES:
        path = ranking.find_shipped_ranking("pocket", name)
        assert path is not None
        assert len(ranking.read_ranking(path, model.tokenizer.fingerprint, size)) == size
    card = (folder.parent / "README.md").read_text(encoding="utf-8")
    last = read_log(folder / "training.json")[-1]
    draft = read_log(folder.parent / "draft.json")[-1]
    assert f"{last['held_out']:.2f}" in card and f"{draft['tau']:.2f}" in card
    for heading in ("Data", "Training", "Figures", "Limits"):
        assert f"## {heading}" in card
    assert all(
        t.dtype == torch.bfloat16 for t in read_tensors(folder / "model.safetensors").values()
    )


@pytest.mark.parametrize(
    "command",
    [
        "fetch pocket",
        "generate --model pocket The --max-new-tokens 8",
        "generate --model pocket The --max-new-tokens 8 --method evospec@256 --trace",
        "rank --model pocket --text FILE --out OUT/r.safetensors",
        "index build --model pocket --clusters 16 --out OUT/i.safetensors",
        "explore --model pocket The --max-new-tokens 8 --out OUT/x.html",
        "doctor --model pocket",
        "compare --model pocket --prompts law --limit 1 --max-new-tokens 8 --out OUT",
    ],
)
def test_every_command_runs_on_the_pocket_pair(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = command.replace("FILE", __file__).replace("OUT", str(tmp_path)).split()
    assert main.main(words) == 0
    assert capsys.readouterr().out.strip()
