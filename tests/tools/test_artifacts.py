"""The artifacts that ship, with the real model: drafts, rankings, and the acceptance they reach."""

import json
import shlex
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
import torch

from minispec.commit import StopRule
from minispec.io import draft_file
from minispec.io.files import read_metadata
from minispec.sampling import Sampling, SeededRandom
from minispec.tools.data import corpus, ranking
from minispec.tools.evaluation import audit
from minispec.tools.evaluation.assembly import build_decoder
from minispec.tools.evaluation.measure import Figures, measure
from minispec.tools.evaluation.methods import Method
from minispec.tools.models.pretrained import Pretrained

ROOT = Path(__file__).parent.parent.parent
ARTIFACTS = Path(str(resources.files("minispec"))) / "artifacts"
DRAFTS = ("draft", "draft-general-code")


def decode_prompt(model: Pretrained, method: str, prompt: str, tokens: int) -> Figures:
    path = draft_file.find_draft(model.name)
    assert path is not None
    draft = draft_file.load_draft(path, model.target, model.fingerprint)
    stop = StopRule(tokens, model.tokenizer.eos_ids)
    run = build_decoder(
        Method.parse(method), model, draft, None, gamma=4, sampling=Sampling(), stop=stop
    )
    return measure(run(model.tokenizer.chat(prompt), SeededRandom(0)))


def test_artifacts_are_small_enough_to_ship() -> None:
    """Models and drafts together, including those under other terms. Rankings, indexes and the
    router come on top."""
    files = [
        path for name in ("draft*", "model") for path in ARTIFACTS.rglob(f"{name}.safetensors")
    ]
    assert len(files) >= 5
    assert sum(path.stat().st_size for path in files) < 40_000_000


@pytest.mark.parametrize("model", sorted(path.name for path in ARTIFACTS.iterdir()))
def test_each_models_folder_has_a_card_and_a_licence(model: str) -> None:
    """The card names every file of the folder, except the texts of the licence."""
    folder = ARTIFACTS / model
    licence = folder / ("GEMMA_TERMS.md" if model.startswith("gemma") else "LICENSE")
    assert licence.is_file()
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "## Licence" in card and f"({licence.name})" in card
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and path not in (licence, folder / "README.md"):
            assert name.split("/")[0] == "rankings" or name in card, name
    assert "rankings/NAME.safetensors" in card
    assert f"artifacts/{model}" in (ROOT / "NOTICE").read_text("utf-8") or model == "pocket"


@pytest.mark.parametrize("name", DRAFTS)
def test_drafts_have_cards_with_their_figures(name: str, smollm2: Pretrained) -> None:
    path = ARTIFACTS / "smollm2" / f"{name}.safetensors"
    assert (
        draft_file.load_draft(path, smollm2.target, smollm2.fingerprint)
        .fusion.weight.isfinite()
        .all()
    )
    log = json.loads(path.with_suffix(".json").read_bytes())
    card = path.with_suffix(".md").read_text(encoding="utf-8")
    last = log["log"][-1]
    assert last["tokens"] >= log["config"]["tokens"]
    assert f"{last['tau']:.2f}" in card
    for heading in ("Data", "Training", "Figures", "Limits"):
        assert f"## {heading}" in card


@pytest.mark.parametrize("name", ranking.NAMES)
def test_shipped_rankings_order_the_whole_vocabulary(name: str, smollm2: Pretrained) -> None:
    path = ranking.find_shipped_ranking("smollm2", name)
    size = smollm2.tokenizer.vocab_size
    ids = ranking.read_ranking(path, smollm2.tokenizer.fingerprint, size)
    assert torch.equal(ids.sort().values, torch.arange(size))
    domains = {"general": ("general",), "mix": corpus.DOMAINS}.get(
        name, tuple(d for d in corpus.DOMAINS if name != f"without-{d}")
    )
    assert read_metadata(path, dict[str, str])["domains"].split() == list(domains)


def test_greedy_speculation_equals_plain_decoding(smollm2: Pretrained) -> None:
    """On the real model; its draft helps: more than one token per target pass."""
    prompt = corpus.load_prompts("general")[0]
    plain = decode_prompt(smollm2, "autoregressive", prompt, 32)
    assert plain.tau == 1
    gap = audit.NEAR_TIE[torch.float32]
    for method in ("full", "frspec@0.25", "frspec@2048:mix"):
        other = decode_prompt(smollm2, method, prompt, 32)
        ids = smollm2.tokenizer.chat(prompt)
        assert audit.audit(smollm2.target, ids, plain.tokens, other.tokens, gap) != "violation"
        assert other.tau > 1.2


@pytest.mark.slow
def test_greedy_speculation_is_lossless_and_helps_in_every_domain(smollm2: Pretrained) -> None:
    gap = audit.NEAR_TIE[torch.float32]
    results, taus = [], []
    for domain in corpus.DOMAINS:
        for prompt in corpus.load_prompts(domain)[::11]:
            plain = decode_prompt(smollm2, "autoregressive", prompt, 64)
            other = decode_prompt(smollm2, "full", prompt, 64)
            ids = smollm2.tokenizer.chat(prompt)
            results.append(audit.audit(smollm2.target, ids, plain.tokens, other.tokens, gap))
            taus.append(other.tau)
    assert "violation" not in results and results.count("identical") >= 0.8 * len(results)
    assert sum(taus) / len(taus) > 1.6


def read_readme_commands() -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.split("  #")[0].strip() for line in text.splitlines()]
    return [line for line in lines if line.startswith("minispec ")]


@pytest.mark.slow
def test_readme_commands_run(tmp_path: Path, smollm2: Pretrained) -> None:
    """In their order, in a folder with the files that they name."""
    (tmp_path / "my-prompts.txt").write_text("Why do cats purr?\n", encoding="utf-8")
    (tmp_path / "my-corpus.txt").write_text("The cat sat on the mat. " * 50, encoding="utf-8")
    commands = read_readme_commands()
    known = {"generate", "compare", "explore", "rank", "plan", "doctor", "--help"}
    assert {shlex.split(c)[1] for c in commands} == known
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-m", "minispec.tools.cli.main", *shlex.split(command)[1:]],
            cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
            input="Why do cats purr?",  # for what reads its prompt from a pipe
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.stderr}"
        assert done.stdout.strip()
