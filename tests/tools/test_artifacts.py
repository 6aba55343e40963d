"""What the package carries, with the real model: drafts, rankings, and what they are good for."""

import shlex
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
import torch

from minispec.commit import StopRule
from minispec.io import draft_file
from minispec.io.files import read_json, read_metadata
from minispec.sampling import Sampling, SeededRandom
from minispec.tools.data import corpus, ranking
from minispec.tools.evaluation import audit
from minispec.tools.evaluation.measure import Figures, measure
from minispec.tools.evaluation.methods import Method, build_decoder
from minispec.tools.models.pretrained import Pretrained

ROOT = Path(__file__).parent.parent.parent
ARTIFACTS = Path(str(resources.files("minispec"))) / "artifacts"
DRAFTS = ("draft", "draft-general-code")


def decoded(model: Pretrained, method: str, prompt: str, tokens: int) -> Figures:
    path = draft_file.find_draft(model.name)
    assert path is not None
    guesser = draft_file.load_draft(path, model.target, model.fingerprint)
    stop = StopRule(tokens, model.tokenizer.eos_ids)
    run = build_decoder(
        Method.parse(method), model, guesser, None, gamma=4, sampling=Sampling(), stop=stop
    )
    return measure(run(model.tokenizer.chat(prompt), SeededRandom(0)))


def test_weights_are_small_enough_to_ship() -> None:
    """Models and drafts together, those under other terms included. Rankings and indices, lists of
    ids but for one router, come on top."""
    files = [
        path for name in ("draft*", "model") for path in ARTIFACTS.rglob(f"{name}.safetensors")
    ]
    assert len(files) >= 5
    assert sum(path.stat().st_size for path in files) < 40_000_000


@pytest.mark.parametrize("name", DRAFTS)
def test_each_draft_has_a_card_and_its_figures(name: str, smollm2: Pretrained) -> None:
    path = ARTIFACTS / "smollm2" / f"{name}.safetensors"
    assert (
        draft_file.load_draft(path, smollm2.target, smollm2.fingerprint)
        .fusion.weight.isfinite()
        .all()
    )
    log = read_json(path.with_suffix(".json"))
    card = path.with_suffix(".md").read_text(encoding="utf-8")
    last = log["log"][-1]
    assert last["tokens"] >= log["config"]["tokens"]
    assert f"{last['tau']:.2f}" in card
    for heading in ("Data", "Training", "Figures", "Limits"):
        assert f"## {heading}" in card


@pytest.mark.parametrize("name", ranking.NAMES)
def test_each_ranking_orders_the_whole_vocabulary(name: str, smollm2: Pretrained) -> None:
    path = ranking.find_shipped_ranking("smollm2", name)
    size = smollm2.tokenizer.vocab_size
    ids = ranking.read_ranking(path, smollm2.tokenizer.fingerprint, size)
    assert torch.equal(ids.sort().values, torch.arange(size))
    counted = {"general": ("general",), "mix": corpus.DOMAINS}.get(
        name, tuple(d for d in corpus.DOMAINS if name != f"without-{d}")
    )
    assert read_metadata(path)["domains"].split() == list(counted)


def test_greedy_speculation_says_what_plain_decoding_says(smollm2: Pretrained) -> None:
    """On the real model, and its draft is of use: more than the target's own token a pass."""
    prompt = corpus.load_prompts("general")[0]
    plain = decoded(smollm2, "autoregressive", prompt, 32)
    assert plain.tau == 1
    gap = audit.NEAR_TIE[torch.float32]
    for method in ("full", "frspec@0.25", "frspec@2048:mix"):
        other = decoded(smollm2, method, prompt, 32)
        ids = smollm2.tokenizer.chat(prompt)
        assert audit.audit(smollm2.target, ids, plain.tokens, other.tokens, gap) != "violation"
        assert other.tau > 1.2


@pytest.mark.slow
def test_speculation_is_lossless_and_worth_it_in_every_domain(smollm2: Pretrained) -> None:
    gap = audit.NEAR_TIE[torch.float32]
    verdicts, taus = [], []
    for domain in corpus.DOMAINS:
        for prompt in corpus.load_prompts(domain)[::11]:
            plain = decoded(smollm2, "autoregressive", prompt, 64)
            other = decoded(smollm2, "full", prompt, 64)
            ids = smollm2.tokenizer.chat(prompt)
            verdicts.append(audit.audit(smollm2.target, ids, plain.tokens, other.tokens, gap))
            taus.append(other.tau)
    assert "violation" not in verdicts and verdicts.count("identical") >= 0.8 * len(verdicts)
    assert sum(taus) / len(taus) > 1.6


def readme_commands() -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.split("  #")[0].strip() for line in text.splitlines()]
    return [line for line in lines if line.startswith("minispec ")]


@pytest.mark.slow
def test_the_readmes_commands_run(tmp_path: Path, smollm2: Pretrained) -> None:
    """In the order in which they stand, in a folder that holds what they name."""
    (tmp_path / "my-prompts.txt").write_text("Why do cats purr?\n", encoding="utf-8")
    (tmp_path / "my-corpus.txt").write_text("The cat sat on the mat. " * 50, encoding="utf-8")
    commands = readme_commands()
    known = {"generate", "compare", "explore", "rank", "doctor"}
    assert {shlex.split(c)[1] for c in commands} == known
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-m", "minispec.tools.cli.main", *shlex.split(command)[1:]],
            cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.stderr}"
        assert done.stdout.strip()
