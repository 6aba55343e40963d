"""The command line: bad input gets one line on stderr, and no file is left.

Most cases run in this process, through the function that the console script calls; those about
signals, pipes, terminals and the interpreter's exit run as a separate program.
"""

import io
import json
import os
import pickle
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers import tiny_model
from helpers.tiny_model import Tiny
from minispec.commit import StopRule
from minispec.decode import autoregressive
from minispec.errors import ArgumentError, FetchError
from minispec.io import artifacts, draft_file
from minispec.io.files import read_tensors
from minispec.models import eagle_draft
from minispec.sampling import Sampling, SeededRandom
from minispec.tools import extras
from minispec.tools.cli import main
from minispec.tools.data import ranking
from minispec.tools.data.shards import AUX_KEY
from minispec.tools.evaluation import compare
from minispec.tools.evaluation.measure import measure
from minispec.tools.models import backend, known_models, pretrained
from minispec.tools.models.pretrained import Pretrained
from minispec.tools.training import recipe

# ------------------------------------------------------------------ fixtures


PARTS = """
import torch
from minispec.types import BaseShortlist

NUMBER = 5

class Even(BaseShortlist):
    name = "even"
    def __init__(self, vocab_size):
        self.ids = torch.arange(0, vocab_size, 2)
        self.budget = len(self.ids)
    def select(self, context):
        return self.ids

class Unsorted(Even):
    name = "unsorted"
    def select(self, context):
        return self.ids.flip(0)

class Frequent(BaseShortlist):
    name = "frequent"
    def __init__(self, ranking, budget):
        self.budget, self.ids = budget, ranking[:budget].sort().values
    def select(self, context):
        return self.ids

class Asking(Even):
    def __init__(self, vocab_size, depth):
        super().__init__(vocab_size)

class Lacking:
    def select(self, context):
        return torch.arange(3)

def returns_none():
    return None
"""


OWN_PARTS = """
import os
from pathlib import Path
from minispec.io import draft_file
from minispec.verify import verify

def make_draft(model):
    return draft_file.load_draft(Path(os.environ["DRAFT"]), model.reference, model.fingerprint)

def check(proposal, target_distributions, rng):
    return verify(proposal, target_distributions, rng)
"""


@pytest.fixture(scope="module")
def bad(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of damaged, foreign and misplaced files."""
    bad = tmp_path_factory.mktemp("bad")
    (bad / "file").write_text("a file where a folder should be")
    (bad / "good.txt").write_text("The wind.\n\nThe sea.\n")
    (bad / "law.txt").write_text("The court.\n")
    (bad / "all.txt").write_text("The wind.\n")
    (bad / "empty.txt").write_text("\n \n")
    (bad / "latin.txt").write_bytes("first\ncaf\u00e9\n".encode("latin-1"))
    (bad / "long.txt").write_text("short\n" + "the sea " * tiny_model.CONTEXT + "\n")
    (bad / "byte.txt").write_text("The wind \x04.\n")
    (bad / "drafted").mkdir()
    (bad / "drafted" / "draft.safetensors").write_bytes(b"")
    (bad / "parts").mkdir()
    (bad / "parts" / "my_parts.py").write_text(PARTS)
    (bad / "parts" / "broken_parts.py").write_text("class Part\n")
    (bad / "parts" / "failing_parts.py").write_text("{}['torch']\n")
    (bad / "parts" / "leaving_parts.py").write_text("raise SystemExit(0)\n")

    weights = (tiny.folder / "model.safetensors").read_bytes()
    tensors = load_file(tiny.folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    spoilt = tensors[name].clone()
    spoilt[3, 5] = torch.nan
    for model, content in {
        "truncated": weights[: len(weights) // 2],
        "corrupted": b"\xff" * 8 + weights[8:],
        "shapes": tensors | {name: tensors[name][:-1].contiguous()},
        "nan": tensors | {name: spoilt},
        "lacking": {key: value for key, value in tensors.items() if key != name},
        "no-template": tensors,
    }.items():
        tiny_model.write_model(bad / model)
        path = bad / model / "model.safetensors"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            save_file(content, path)
    (bad / "no-template" / "tokenizer_config.json").unlink()
    (bad / "hollow").mkdir()

    (bad / "garbage.gguf").write_bytes(os.urandom(4096))
    (bad / "short.gguf").write_bytes(
        b"GGUF" + (3).to_bytes(4, "little") + (9).to_bytes(8, "little")
    )

    tiny_model.write_model(
        bad / "elsewhere", seed=1, special=("<|end|>", "<|im_start|>", "<|im_end|>")
    )
    other = pretrained.load(str(bad / "elsewhere"))
    draft_file.save_draft(
        bad / "other-draft.safetensors",
        eagle_draft.init_from_target(other.target),
        other.fingerprint,
    )
    drafted = tiny.draft_path.read_bytes()
    (bad / "short-draft.safetensors").write_bytes(drafted[: len(drafted) // 2])
    ids = torch.arange(other.tokenizer.vocab_size)
    ranking.write_ranking(bad / "other.safetensors", ids, other.tokenizer.fingerprint, {})
    (bad / "short.safetensors").write_bytes(tiny.ranking("mix").read_bytes()[:200])

    torch.save(ids[:100], bad / "half.pt")
    whole = (bad / "half.pt").read_bytes()
    (bad / "short.pt").write_bytes(whole[: len(whole) // 2])
    (bad / "garbage.pt").write_bytes(os.urandom(512))
    (bad / "empty.pt").write_bytes(b"")
    torch.save({"ids": ids}, bad / "dict.pt")
    torch.save(ids.float(), bad / "float.pt")
    torch.save([0, 1, 10_000], bad / "range.pt")
    torch.save([1, "2"], bad / "words.pt")
    return bad


def one_line(error: str) -> str:
    """The text on stderr, which must be a single line and no traceback."""
    assert error.startswith("minispec: ") and error.endswith("\n"), error
    assert error.count("\n") == 1, error
    assert "Traceback" not in error
    return error


def run_refused(capsys: pytest.CaptureFixture[str], arguments: Sequence[str]) -> str:
    """Runs a command that must refuse its input; returns its error line."""
    capsys.readouterr()
    code = main.main(arguments)
    out, error = capsys.readouterr()
    assert (code, out) == (2, ""), error
    return one_line(error)


def files(*folders: Path) -> set[Path]:
    return {path for folder in folders for path in folder.rglob("*")}


def fill(line: str, tiny: Tiny, bad: Path, tmp: Path) -> list[str]:
    """A command line with its placeholders replaced: TINY is a model and the draft made for it."""
    model = f"--model {tiny.folder} --draft {tiny.draft_path}"
    line = line.replace("TINY", model).replace("RANKING", str(tiny.ranking("general")))
    return shlex.split(line.replace("BAD", str(bad)).replace("TMP", str(tmp)))


# ------------------------------------------------------------------ bad input

GENERATE = {
    "generate hi --model nosuch": ["unknown model 'nosuch'", "smollm2", "folder"],
    "generate hi --model BAD/hollow": ["hollow/config.json"],
    "generate hi --model BAD/good.txt": ["good.txt", "GGUF"],
    "generate hi TINY --method medusa": [
        "unknown method 'medusa'",
        "autoregressive, suffix",
        "evospec",
    ],
    "generate hi TINY --method ''": ["unknown method ''"],
    "generate '' TINY": ["prompt is empty"],
    "generate ' \n' TINY": ["prompt is empty"],
    "generate --raw '\x04' TINY --method full": ["0x04", "no token"],
    "generate 'a\x04b' TINY --method full": ["0x04", "character 1", "no token"],
    "generate hi TINY --method full --gamma 0": ["gamma 0", "1..16"],
    "generate hi TINY --method full --gamma 17": ["gamma 17", "1..16"],
    "generate hi TINY --method autoregressive --gamma -1": ["gamma -1", "1..16"],
    "generate hi TINY --gamma four": ["--gamma", "'four'"],
    "generate hi TINY --method frspec:RANKING --budget 0": ["budget 0", "1 id or more"],
    "generate hi TINY --method frspec:RANKING --budget=-3": ["budget -3", "1 id or more"],
    "generate hi TINY --method frspec@1.5:RANKING": ["budget 1.5", "at most 1.0"],
    "generate hi TINY --method frspec@0.0:RANKING": ["budget 0.0", "above 0"],
    "generate hi TINY --method frspec@nan:RANKING": ["'nan'", "not a number"],
    "generate hi TINY --method frspec@1e999:RANKING": ["budget 1e999", "at most 1.0"],
    "generate hi TINY --method frspec@321:RANKING": ["budget 321", "1 to 320"],
    "generate hi TINY --method frspec@0.001:RANKING": ["budget 0.001", "1 to 320"],
    "generate hi TINY --method frspec@:RANKING": ["budget ''", "not a number"],
    "generate hi TINY --method frspec@0.5:": ["names no ranking"],
    "generate hi TINY --method full@0.5": ["full takes neither a budget nor a ranking"],
    "generate hi TINY --method full --budget 9": ["full takes neither a budget nor a ranking"],
    "generate hi TINY --method autoregressive:mix": ["autoregressive takes neither"],
    "generate hi TINY --method frspec@0.5 --budget 9": ["--budget", "'frspec@0.5'", "one of them"],
    "generate hi TINY --method frspec:mix --ranking mix": ["--ranking", "'frspec:mix'", "one of"],
    "generate hi TINY --method frspec@0.25:without-own": ["without-own", "single prompt", "law"],
    "generate hi TINY --method frspec": ["no ranking 'general'", "minispec rank"],
    "generate hi TINY --ranking BAD/nosuch.pt": ["no ranking", "nosuch.pt"],
    "generate hi TINY --budget 0.5 --ranking nosuch": ["no ranking 'nosuch'", "general, mix"],
    "generate hi --model TMP": ["TMP/config.json"],
    "generate hi TINY --temperature -1": ["temperature -1.0", "0 (greedy) or above"],
    "generate hi TINY --temperature nan": ["temperature nan", "0 (greedy) or above"],
    "generate hi TINY --temperature inf": ["temperature inf"],
    "generate hi TINY --temperature warm": ["--temperature", "'warm'"],
    "generate hi TINY --top-p 0": ["top-p 0.0", "(0, 1]"],
    "generate hi TINY --top-p 1.01": ["top-p 1.01", "(0, 1]"],
    "generate hi TINY --top-p nan": ["top-p nan", "(0, 1]"],
    "generate hi TINY --top-k -1": ["top-k -1", "0 (all ids) or above"],
    "generate hi TINY --max-new-tokens -1": ["max-new-tokens -1", "0 or above"],
    "generate hi TINY --stop ''": ["stop string is empty"],
    "generate hi TINY --threads 0": ["threads 0", "1..1024"],
    "generate hi TINY --dtype float8": ["--dtype", "float32", "bfloat16"],
    "generate hi TINY --seed x": ["--seed", "'x'"],
    "generate hi TINY --trace --json": ["--json", "--trace"],
    "generate hi TINY --loud": ["--loud", "minispec --help"],
    "generate --gamma": ["--gamma", "generate --help"],
    "generate hi TINY --draft BAD": ["draft BAD is a folder", "train draft"],
    "generate hi TINY --draft BAD/drafted": ["is a folder", "give BAD/drafted/draft.safetensors"],
    "generate hi TINY --method nosuch:Part": ["cannot import nosuch:Part", "no module 'nosuch'"],
    "generate hi TINY --method json.nosuch:Part": ["no module 'json.nosuch'"],
    "generate hi TINY --method broken_parts:Part": ["broken_parts:Part", "SyntaxError"],
    "generate hi TINY --method failing_parts:Part": ["failing_parts:Part", "KeyError: 'torch'"],
    "generate hi TINY --method leaving_parts:Part": ["leaving_parts:Part", "SystemExit"],
    "generate hi TINY --method my_parts:Nothing": ["my_parts.py", "has no 'Nothing'"],
    "generate hi TINY --method my_parts:NUMBER": ["my_parts:NUMBER (int)", "not a shortlist"],
    "generate hi TINY --method my_parts:Lacking": ["not a shortlist", "observe, reset"],
    "generate hi TINY --method my_parts:returns_none": ["not a shortlist", "select"],
    "generate hi TINY --method my_parts:Asking": [
        "asks for 'depth'",
        "vocab_size, budget, eos_ids",
    ],
    "generate hi TINY --method my_parts:Even@20": ["no parameter 'budget'"],
    "generate hi TINY --method my_parts:Frequent@0": ["budget 0", "1 id or more"],
    "generate hi TINY --method my_parts:Frequent@999": ["budget 999", "1 to 320"],
    "generate hi TINY --method my_parts:Frequent": ["no ranking 'general'"],
    "generate hi TINY --method my_parts:Even --ranking mix": ["--ranking", "my_parts:Even"],
    "generate hi TINY --method my_parts:Even@9 --budget 9": ["--budget", "one of them"],
    "generate hi TINY --method my_parts:Unsorted": ["unsorted", "sorted"],
    "generate hi TINY --method full --verifier nosuch": ["verifier 'nosuch'", "token, block"],
    "generate hi TINY --method full --verifier nosuch:verify": ["no module 'nosuch'"],
    "generate hi TINY --method full --verifier my_parts:Nothing": ["has no 'Nothing'"],
    "generate hi TINY --method full --verifier my_parts:NUMBER": ["not a verifier"],
    "generate hi TINY --method full --verifier my_parts:returns_none": ["not a verifier"],
    "generate hi --model BAD/elsewhere --draft nosuch:Draft": ["no module 'nosuch'"],
    "generate hi --model BAD/elsewhere --draft my_parts:Nothing": ["has no 'Nothing'"],
    "generate hi --model BAD/elsewhere --draft my_parts:NUMBER": [
        "not a draft",
        "apply_final_norm",
    ],
    "generate hi --model BAD/elsewhere --draft my_parts:Even": ["not a draft", "fuse"],
    "generate hi TINY --device tpu": ["--device", "cpu", "mps"],
    "generate hi TINY --adapt --method autoregressive": ["autoregressive", "no draft"],
    "generate hi --model BAD/no-template": ["chat template", "--raw"],
}
DAMAGE = {
    "generate hi --model BAD/truncated": ["truncated/model.safetensors", "damaged"],
    "generate hi --model BAD/corrupted": ["corrupted/model.safetensors", "damaged"],
    "generate hi --model BAD/shapes": ["up", "shape (47, 32)", "expected (48, 32)"],
    "generate hi --model BAD/nan": ["BAD/nan", "up", "NaN"],
    "generate hi --model BAD/lacking": ["BAD/lacking", "lacks 1 tensors", "up"],
    "generate hi --model BAD/garbage.gguf": ["garbage.gguf", "not a GGUF file"],
    "generate hi --model BAD/short.gguf": ["short.gguf", "not a GGUF file"],
    "generate hi TINY --draft BAD/nosuch": ["BAD/nosuch does not exist"],
    "generate hi TINY --draft BAD/garbage.gguf": ["garbage.gguf", "not a safetensors file"],
    "generate hi TINY --draft BAD/short-draft.safetensors": ["short-draft", "damaged"],
    "generate hi TINY --draft BAD/other-draft.safetensors": ["other-draft", "was made for model"],
    "generate hi TINY --draft RANKING": ["general.safetensors", "does not say which model"],
    "generate hi TINY --ranking BAD/other.safetensors": ["other.safetensors", "tokenizer"],
    "generate hi TINY --ranking BAD/short.safetensors": ["short.safetensors", "damaged"],
    "generate hi TINY --ranking BAD/short-draft.safetensors": ["short-draft", "damaged"],
    "generate hi TINY --ranking BAD/other-draft.safetensors": ["is not a ranking", "minispec rank"],
    "generate hi TINY --ranking BAD/latin.txt": ["latin.txt", "not a safetensors file"],
    "generate hi TINY --ranking BAD/short.pt": ["short.pt", "not a token map"],
    "generate hi TINY --ranking BAD/garbage.pt": ["garbage.pt", "not a token map"],
    "generate hi TINY --ranking BAD/empty.pt": ["empty.pt", "not a token map"],
    "generate hi TINY --ranking BAD/dict.pt": ["dict.pt", "is a dictionary, not a token map"],
    "generate hi TINY --ranking BAD/float.pt": ["float.pt", "does not hold ids"],
    "generate hi TINY --ranking BAD/words.pt": ["words.pt", "does not hold ids"],
    "generate hi TINY --ranking BAD/range.pt": ["range.pt", "0..10000", "0..319"],
}
OUT = "--out TMP/out"
COMPARE = {
    f"compare {OUT} --model nosuch": ["unknown model 'nosuch'"],
    f"compare {OUT} TINY --methods full,medusa": ["unknown method 'medusa'", "frspec"],
    f"compare {OUT} TINY --methods full,,": ["unknown method ''"],
    f"compare {OUT} TINY --methods full,full": ["method is named twice"],
    f"compare {OUT} TINY --methods frspec,frspec@0.25": ["method is named twice"],
    f"compare {OUT} TINY --methods frspec@0": ["budget 0"],
    f"compare {OUT} TINY --methods frspec@999:RANKING": ["budget 999", "1 to 320"],
    f"compare {OUT} TINY --methods frspec@250:BAD/half.pt": ["more than the 100 ids"],
    f"compare {OUT} TINY --methods frspec@0.5": ["no ranking 'general'"],
    f"compare {OUT} --model BAD/nan --methods full": ["NaN"],
    f"compare {OUT} --model BAD/elsewhere --methods full": ["needs a draft", "--draft"],
    f"compare {OUT} TINY --gamma 0": ["gamma 0", "1..16"],
    f"compare {OUT} TINY --gamma 4,17": ["gamma 17", "1..16"],
    f"compare {OUT} TINY --gamma 4,x": ["gamma 'x'", "whole number"],
    f"compare {OUT} TINY --gamma 4,4": ["gamma is named twice"],
    f"compare {OUT} TINY --max-new-tokens 0": ["max-new-tokens 0", "1 or above"],
    f"compare {OUT} TINY --max-new-tokens -1": ["max-new-tokens -1", "1 or above"],
    f"compare {OUT} TINY --temperature nan": ["temperature nan"],
    f"compare {OUT} TINY --top-p 0": ["top-p 0.0"],
    f"compare {OUT} TINY --top-k -2": ["top-k -2"],
    f"compare {OUT} TINY --threads 9999": ["threads 9999", "1..1024"],
    f"compare {OUT} TINY --limit 0": ["limit 0", "1 or above"],
    f"compare {OUT} TINY --prompts BAD/nosuch.txt": ["nosuch.txt", "No such file"],
    f"compare {OUT} TINY --prompts nosuch": ["'nosuch'", "general, code, law, medicine"],
    f"compare {OUT} TINY --prompts BAD/hollow": ["hollow", "a folder"],
    f"compare {OUT} TINY --prompts BAD/empty.txt": ["empty.txt", "no prompts", "per line"],
    f"compare {OUT} TINY --prompts BAD/latin.txt": ["latin.txt", "not UTF-8", "line 2"],
    f"compare {OUT} TINY --prompts BAD/good.txt BAD/good.txt": ["good, good", "must differ"],
    f"compare {OUT} TINY --prompts law BAD/law.txt": ["law, law", "must differ"],
    f"compare {OUT} TINY --prompts BAD/all.txt": ["none be 'all'"],
    f"compare {OUT} TINY --prompts BAD/long.txt": ["prompt 2 of long", "context holds 2048"],
    f"compare {OUT} TINY --prompts BAD/byte.txt": ["0x04", "no token"],
    f"compare {OUT} TINY --prompts BAD/good.txt --methods frspec@0.25:without-own": [
        "frspec@0.25:without-own", "stream 'good'", "general, code, law, medicine",
    ],
    f"compare {OUT} TINY --methods full,my_parts:Nothing": ["has no 'Nothing'"],
    f"compare {OUT} TINY --methods my_parts:Even,my_parts:Even": ["method is named twice"],
    f"compare {OUT} TINY --methods full --verifier nosuch": ["verifier 'nosuch'"],
    "compare --out BAD/file TINY": ["cannot write into BAD/file"],
    "compare --out BAD/file/deep/out TINY": ["cannot write into BAD/file/deep/out"],
    "compare --out TMP/new/out --model nosuch": ["unknown model 'nosuch'"],
}  # fmt: skip
PAGE = "--out TMP/x.html"
EXPLORE = {
    f"explore {PAGE}": ["prompt", "explore --help"],
    f"explore ' ' {PAGE} TINY": ["prompt is empty"],
    f"explore hi {PAGE} --model nosuch": ["unknown model 'nosuch'"],
    f"explore hi {PAGE} TINY --methods full,medusa": ["unknown method 'medusa'", "frspec"],
    f"explore hi {PAGE} TINY --methods full,full": ["method is named twice"],
    f"explore hi {PAGE} TINY --methods full,frspec@9:without-own": ["without-own", "single prompt"],
    f"explore hi {PAGE} TINY --methods full,frspec@9": ["no ranking 'general'"],
    f"explore hi {PAGE} --model BAD/elsewhere --methods full": ["needs a draft", "--draft"],
    f"explore hi {PAGE} TINY --methods full --gamma 17": ["gamma 17", "1..16"],
    f"explore hi {PAGE} TINY --methods full --max-new-tokens 0": ["max-new-tokens 0", "1 or above"],
    f"explore hi {PAGE} TINY --methods full --temperature nan": ["temperature nan"],
    f"explore 'a\x04b' {PAGE} TINY --methods full": ["0x04", "character 1"],
    "explore hi TINY --out TMP/x.txt": ["x.txt must end in .html"],
    "explore hi TINY --out BAD/file/x.html": ["cannot write into BAD/file"],
    "explore hi TINY --out TMP/new/x.html": ["TMP/new does not exist", "create it"],
    f"explore hi {PAGE} TINY --methods my_parts:Nothing": ["has no 'Nothing'"],
    f"explore hi {PAGE} TINY --methods full --verifier my_parts:NUMBER": ["not a verifier"],
    "explore hi TINY --out TMP": ["must end in .html"],
}
OTHERS = {
    "": ["COMMAND", "minispec --help"],
    "guess": ["'guess'", "generate", "compare"],
    "fetch nosuch": ["unknown model 'nosuch'", "smollm2"],
    "fetch": ["model"],
    "rank --model BAD/elsewhere --out TMP/x.pt": [
        "text to count",
        "--text",
        "--domains",
        "--ranking",
    ],
    "rank --out TMP/x.pt --text BAD/good.txt --written BAD": ["--written", "--domains"],
    "rank --out TMP/x.txt --text BAD/good.txt": ["x.txt", ".safetensors or .pt"],
    "rank --out TMP/x.pt --text BAD/good.txt --ranking RANKING": ["either", "--ranking"],
    "rank --out TMP/x.pt --ranking nosuch --model BAD/elsewhere": ["no ranking 'nosuch'"],
    "generate hi TINY --seed -1": ["seed -1", "0..2147483647"],
    f"generate hi TINY --seed {2**31}": ["seed 2147483648", "0..2147483647"],
    "rank --out BAD/file/x.pt --text BAD/good.txt": ["cannot write into BAD/file"],
    "rank --out TMP/x.pt --text BAD/good.txt --model nosuch": ["unknown model 'nosuch'"],
    "rank --out TMP/x.pt --text BAD/nosuch.txt --model BAD/elsewhere": ["nosuch.txt"],
    "rank --out TMP/x.pt --text BAD/latin.txt --model BAD/elsewhere": ["latin.txt", "UTF-8"],
    "rank --out TMP/x.pt --text BAD/byte.txt --model BAD/elsewhere": ["0x04", "no token"],
    "rank --out TMP/x.pt --domains cooking --model BAD/elsewhere": ["'cooking'", "medicine"],
    "rank --out TMP/x.pt --text BAD/good.txt --model BAD/elsewhere --budget 0": ["0", "1..320"],
    "rank --out TMP/x.pt --domains law --written TMP --model BAD/elsewhere --budget 999": ["999"],
    "train": ["PART", "train --help"],
    "train draft --out TMP/out --model nosuch": ["unknown model 'nosuch'"],
    "train draft --out TMP/out --domains cooking": ["'cooking'", "medicine"],
    "train draft --out TMP/out --tokens 0": ["tokens 0", "1 or above"],
    "train draft --out TMP/out --epochs 0": ["epochs 0.0", "above 0"],
    "train draft --out TMP/out --epochs nan": ["epochs nan", "above 0"],
    "train draft --out TMP/out --epochs inf": ["epochs inf", "above 0"],
    "train draft --out TMP/out --rate 0": ["rate 0.0", "above 0"],
    "train draft --out TMP/out --feature-weight -1": ["feature-weight -1.0", "from 0"],
    "train draft --out TMP/out --feature-weight nan": ["feature-weight nan", "from 0"],
    "train draft --out TMP/out --start BAD/none": ["cannot read BAD/none"],
    "train draft --out TMP/out --threads 0": ["threads 0"],
    "train draft --out BAD/file/out": ["cannot write into BAD/file/out"],
}
CASES = GENERATE | DAMAGE | COMPARE | EXPLORE | OTHERS


@pytest.mark.parametrize("line", CASES)
def test_main_refuses_bad_input_in_one_line(
    line: str,
    tiny: Tiny,
    bad: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(str(bad / "parts"))
    before = files(tiny.folder.parent, bad, tmp_path)
    error = run_refused(capsys, fill(line, tiny, bad, tmp_path))
    for word in CASES[line]:
        assert word.replace("BAD", str(bad)).replace("TMP", str(tmp_path)) in error
    assert files(tiny.folder.parent, bad, tmp_path) == before


def test_main_accepts_the_cases_without_their_fault(
    tiny: Tiny, bad: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each case above is this one with one thing wrong, so that thing is what is refused."""
    for method in ("autoregressive", "full", "frspec@148:RANKING", "frspec@100:BAD/half.pt"):
        line = f"generate hi TINY --method {method} --gamma 16 --max-new-tokens 3 --top-k 0"
        line += " --temperature 0.5 --top-p 1 --stop x --threads 1 --seed 1 --json"
        assert main.main(fill(line, tiny, bad, tmp_path)) == 0
        out, error = capsys.readouterr()
        assert json.loads(out)["tokens"] == 3 and error == ""


def test_main_runs_parts_of_the_current_folder(tiny: Tiny, tmp_path: Path) -> None:
    """As the console script: its own folder, not the current one, is on the path."""
    (tmp_path / "own_parts.py").write_text(PARTS + OWN_PARTS)
    code = "import sys; sys.path = [p for p in sys.path if p]; sys.dont_write_bytecode = True\n"
    code += "from minispec.tools.cli.main import main; sys.exit(main())"
    options = ["--model", str(tiny.folder), "--max-new-tokens", "20", "--json", "--threads", "1"]
    options += ["--draft", "own_parts:make_draft", "--verifier", "own_parts:check"]
    command = program("generate", "The wind", *options, "--method", "own_parts:Even", code=code)
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "DRAFT": str(tiny.draft_path)}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=environment
    )  # fmt: skip
    assert done.stderr == ""
    answer = json.loads(done.stdout)
    assert (answer["method"], answer["verifier"]) == ("own_parts:Even", "own_parts:check")
    assert answer["tokens"] == 20 > answer["target_passes"] and answer["budget"] is None
    rule = StopRule(20)
    prompt = tiny.model.tokenizer.chat("The wind")
    plain = autoregressive(
        tiny.model.target, prompt, sampling=Sampling(), rng=SeededRandom(0), stop=rule
    )
    assert answer["ids"] == list(measure(plain).tokens)


def test_compare_and_explore_take_a_shortlist_of_ones_own(
    tiny: Tiny,
    bad: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(str(bad / "parts"))
    options = "TINY --methods full,my_parts:Even --max-new-tokens 4"
    line = f"compare {OUT} --prompts BAD/good.txt {options}"
    assert main.main(fill(line, tiny, bad, tmp_path)) == 0
    rows = json.loads((tmp_path / "out" / "report.json").read_bytes())["results"]
    assert {row["method"] for row in rows} == {"full", "my_parts:Even"}
    assert main.main(fill(f"explore hi {PAGE} {options}", tiny, bad, tmp_path)) == 0
    assert "my_parts:Even" in (tmp_path / "x.html").read_text("utf-8")


def test_explore_creates_only_the_folder_of_its_default(
    tiny: Tiny,
    bad: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    line = "explore hi TINY --methods full --max-new-tokens 2"
    for expected in ("minispec: creating folder build\n", ""):
        assert main.main(fill(line, tiny, bad, tmp_path)) == 0
        out, error = capsys.readouterr()
        assert (out, error) == ("wrote build/explore.html\n", expected)


def test_explore_defaults_to_the_methods_that_the_model_has(
    tiny: Tiny, bad: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for model, expected in (("TINY", ["full"]), (f"--model {tiny.folder}", ["autoregressive"])):
        line = f"explore hi {PAGE} {model} --max-new-tokens 2"
        assert main.main(fill(line, tiny, bad, tmp_path)) == 0
        page = (tmp_path / "x.html").read_text("utf-8")
        data = page.split('id="data">')[1].split("</script>")[0]
        assert [run["method"] for run in json.loads(data)["runs"]] == expected
    capsys.readouterr()


def test_doctor_measures_everything_anew(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    times = iter([[5.0, 6.0], [1.0, 2.0]])
    monkeypatch.setattr(backend, "NAMES", ("reference",))
    monkeypatch.setattr(backend, "_time_passes", lambda model, name: next(times))
    for expected in ("5.0 ms a pass over 1 position, 6.0 ms", "1.0 ms a pass over 1 position"):
        assert main.main(["doctor", "--model", str(tiny.folder)]) == 0
        out = capsys.readouterr().out
        assert "GB/s" in out and f"reference: {expected}" in out
        assert "auto takes reference" in out and "measured now" in out


def test_generate_names_the_flag_that_fetch_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(artifacts, "user_cache_path", lambda name: tmp_path / name)
    error = run_refused(capsys, ["generate", "hi", "--model", "gemma3-270m"])
    assert "`minispec fetch gemma3-270m --accept-licence`" in error
    assert "`minispec fetch smollm2`" in run_refused(capsys, ["generate", "hi"])


class Malicious:
    """Unpickled without restrictions, it creates a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


def pickle_bytes(value: object) -> bytes:
    return pickle.dumps(value, protocol=2)


def zip_bytes(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("write", [pickle_bytes, zip_bytes])
def test_read_token_map_refuses_code_and_does_not_run_it(
    write: Callable[[object], bytes],
    tiny: Tiny,
    bad: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, proof = tmp_path / "map.pt", tmp_path / "proof"
    path.write_bytes(write([1, 2, Malicious(proof)]))
    line = f"generate hi TINY --method frspec@2:{path}"
    assert "not a token map" in run_refused(capsys, fill(line, tiny, bad, tmp_path))
    assert not proof.exists()
    # Unrestricted loading would have run it.
    with suppress(RuntimeError):  # torch expects more entries in a pickle
        torch.load(path, weights_only=False)
    assert proof.exists()


# ------------------------------------------------------------------ the disk and the network


@contextmanager
def full_disk(left: int) -> Iterator[None]:
    """No file can grow beyond ``left`` bytes: as close to a full disk as possible without root."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (left, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_rank_leaves_no_file_on_a_full_disk(
    name: str, bad: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / name
    arguments = ["rank", "--model", str(bad / "elsewhere"), "--text", str(bad / "good.txt")]
    with full_disk(100):
        error = run_refused(capsys, [*arguments, "--out", str(out)])
    assert f"cannot write {out}" in error
    assert files(tmp_path) == set()
    assert main.main([*arguments, "--out", str(out)]) == 0
    assert files(tmp_path) == {out}


@pytest.mark.parametrize(("left", "kept"), [(100, set()), (20_000, {"report.json"})])
def test_compare_prints_its_figures_on_a_full_disk(
    left: int,
    kept: set[str],
    tiny: Tiny,
    bad: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Measurements of backends do not fit either, and are not kept."""
    line = "compare --out {} TINY --prompts BAD/good.txt --methods full --max-new-tokens 2"
    # Kernels compiled for the first time are cached on disk too.
    assert main.main(fill(line.format(tmp_path / "before"), tiny, bad, tmp_path)) == 0
    capsys.readouterr()
    monkeypatch.setattr(backend, "cache_folder", lambda: tmp_path / "none" / "minispec")
    out = tmp_path / "out"
    with full_disk(left):
        code = main.main(fill(line.format(out), tiny, bad, tmp_path))
    assert code == 2
    said, error = capsys.readouterr()
    assert "tokens/s" in said
    lost = "report.png" if kept else "report.json"
    assert f"cannot write {out / lost}" in one_line(error)
    assert {path.name for path in files(out)} == kept
    assert all(json.loads((out / name).read_bytes())["results"] for name in kept)


def test_rank_leaves_no_file_if_renaming_fails(
    bad: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*paths: object) -> None:
        raise OSError(28, "No space left on device")

    arguments = ["rank", "--model", str(bad / "elsewhere"), "--text", str(bad / "good.txt")]
    monkeypatch.setattr(os, "replace", fails)
    error = run_refused(capsys, [*arguments, "--out", str(tmp_path / "x.pt")])
    assert "No space left on device" in error
    assert files(tmp_path) == set()


@pytest.mark.parametrize("fault", [FetchError("cannot fetch it: is the network there?"),
                                   KeyboardInterrupt()])  # fmt: skip
def test_fetch_leaves_no_file_when_interrupted(
    fault: BaseException,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stops(requirement: str, folder: Path) -> Path:
        (folder / "half.whl").write_bytes(b"PK")
        raise fault

    monkeypatch.setattr(artifacts, "user_cache_path", lambda name: tmp_path / name)
    monkeypatch.setattr(known_models, "_download", stops)
    code = main.main(["fetch", "smollm2"])
    out, error = capsys.readouterr()
    assert out == ""
    if isinstance(fault, KeyboardInterrupt):
        assert (code, one_line(error)) == (130, "minispec: interrupted\n")
    else:
        assert (code, one_line(error)) == (2, f"minispec: {fault}\n")
    assert [path for path in files(tmp_path) if path.is_file()] == []


# ------------------------------------------------------------------ the program, and signals


def program(*arguments: str, code: str = "") -> list[str]:
    start = ["-W", "ignore", "-c", code] if code else ["-m", "minispec.tools.cli.main"]
    return [sys.executable, *start, *arguments]


def test_program_refuses_a_prompt_that_is_not_utf8(tiny: Tiny) -> None:
    prompt = b"caf\xe9"  # sent by a terminal in Latin-1
    command = [*program("generate", "--model", str(tiny.folder)), prompt]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "byte 0xe9 at character 3" in one_line(done.stderr)


def test_help_names_all_options_without_importing_torch() -> None:
    code = (
        "import sys\n"
        "from minispec.tools.cli.main import main\n"
        "for command in ['', 'fetch', 'generate', 'compare', 'rank', 'train', 'train draft']:\n"
        "    try:\n"
        "        main([*command.split(), '--help'])\n"
        "    except SystemExit as end:\n"
        "        assert end.code == 0\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run(program(code=code), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    for word in ("--method", "--budget", "--ranking", "--gamma", "--temperature", "--top-k"):
        assert word in done.stdout
    for word in ("--top-p", "--seed", "--max-new-tokens", "--ignore-eos", "--dtype", "--threads"):
        assert word in done.stdout
    for word in ("--trace", "--raw", "--json", "--prompts", "--methods", "--out", "without-own"):
        assert word in done.stdout


def endless(tiny: Tiny) -> list[str]:
    """A command that decodes until the context is full."""
    options = ["--model", str(tiny.folder), "--draft", str(tiny.draft_path), "--method", "full"]
    length = ["--ignore-eos", "--max-new-tokens", str(tiny_model.CONTEXT)]
    return ["generate", "The wind", *options, *length, "--threads", "1"]


def test_generate_exits_with_130_on_ctrl_c(tiny: Tiny) -> None:
    with subprocess.Popen(
        program(*endless(tiny)), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as run:
        assert run.stdout and run.stderr
        assert run.stdout.read(20)  # it is decoding
        run.send_signal(signal.SIGINT)
        run.stdout.read()
        error = run.stderr.read().decode()
    assert (run.returncode, one_line(error)) == (130, "minispec: interrupted\n")


# With buffered output, Python's default, the interpreter writes once more at its exit, and would
# complain about a closed pipe or a full disk.
BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


def test_generate_exits_quietly_if_its_reader_closes_the_pipe(tiny: Tiny) -> None:
    with subprocess.Popen(
        program(*endless(tiny)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=BUFFERED
    ) as run:
        assert run.stdout and run.stderr
        assert run.stdout.read(20)
        run.stdout.close()
        error = run.stderr.read().decode()
    assert (run.returncode, error) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no /dev/full")
def test_generate_reports_a_full_output_device(tiny: Tiny) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            program(*endless(tiny)), stdout=full, stderr=subprocess.PIPE, text=True, env=BUFFERED
        )
    assert done.returncode == 2
    assert "No space left on device" in one_line(done.stderr)


def test_compare_exits_with_130_on_ctrl_c(
    tiny: Tiny,
    bad: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "measure", interrupt)
    line = f"compare {OUT} TINY --prompts BAD/good.txt --methods full"
    assert main.main(fill(line, tiny, bad, tmp_path)) == 130
    assert capsys.readouterr() == ("", "minispec: interrupted\n")
    assert files(tmp_path) == set()


def write_shard(path: Path, model: Pretrained, sequences: int = 6, tokens: int = 24) -> None:
    """Text written by the tiny target, in the format of ``distill``."""
    parts: dict[str, list[torch.Tensor]] = {"tokens": [], "hidden": [], AUX_KEY: []}
    ends = [0]
    for number in range(sequences):
        prompt = model.tokenizer.encode(f"The wind {number}")
        greedy, rule = Sampling(), StopRule(tokens)
        rounds = autoregressive(
            model.target, prompt, sampling=greedy, rng=SeededRandom(0), stop=rule
        )
        ids = torch.tensor([*prompt, *measure(rounds).tokens])
        features = model.target.step(ids, model.target.new_cache(len(ids)))
        parts["tokens"].append(ids)
        parts["hidden"].append(features.hidden.bfloat16())
        parts[AUX_KEY].append(features.aux_hidden_states.bfloat16())
        ends.append(ends[-1] + len(ids))
    places = {"starts": ends[:-1], "answers": [end - tokens for end in ends[1:]], "ends": ends[1:]}
    tensors = {name: torch.cat(values) for name, values in parts.items()}
    save_file(tensors | {name: torch.tensor(values) for name, values in places.items()}, path)


# Trains a draft of the tiny model, with text that is already written, until it is interrupted.
TRAINING = """
import sys
from pathlib import Path
import torch
from minispec.tools import extras
from minispec.tools.cli import main
from minispec.tools.data import distill
from minispec.tools.models import known_models, pretrained
from minispec.tools.training import train_draft
model, shard, out = sys.argv[1:]
load = pretrained.load
known_models.fetch = lambda name: Path(model)
pretrained.load = lambda name: load(model)
distill.write_shards = lambda *arguments, **options: iter([Path(shard)])
config = train_draft.TrainConfig
train_draft.TrainConfig = lambda **options: config(report=500, **options)
epochs = ["--epochs", "1e6", "--tokens", "1", "--threads", "1"]
sys.exit(main.main(["train", "draft", "--out", out, *epochs]))
"""


def test_train_draft_keeps_whole_files_on_ctrl_c(tiny: Tiny, tmp_path: Path) -> None:
    shard, out = tmp_path / "shard.safetensors", tmp_path / "out"
    write_shard(shard, tiny.model)
    command = program(str(tiny.folder), str(shard), str(out), code=TRAINING)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert run.stdout and run.stderr
        while not (out / "training.json").exists() and run.poll() is None:
            time.sleep(0.02)
        run.send_signal(signal.SIGINT)
        said, error = run.stdout.read(), run.stderr.read().decode()
    assert (run.returncode, said) == (130, b""), error
    assert one_line(error) == "minispec: interrupted\n"
    # Only whole files are left.
    kept = {"run.json", "checkpoint.safetensors", "training.json"}
    assert {path.name for path in files(out)} == kept
    assert json.loads((out / "training.json").read_bytes())["log"]
    assert read_tensors(out / "checkpoint.safetensors")


def test_train_draft_exits_with_130_on_ctrl_c_while_writing_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*arguments: object, **options: object) -> Iterator[Path]:
        raise KeyboardInterrupt
        yield tmp_path

    monkeypatch.setattr(recipe.known_models, "fetch", lambda name: tmp_path)
    monkeypatch.setattr(recipe.distill, "write_shards", interrupt)
    assert main.main(["train", "draft", "--out", str(tmp_path / "out")]) == 130
    assert capsys.readouterr() == ("", "minispec: interrupted\n")
    assert {path.name for path in files(tmp_path / "out")} == {"run.json"}


def test_compare_names_the_extra_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda module: None if module == "bokeh" else module)
    with pytest.raises(ArgumentError, match=r"bokeh not installed.*minispec-decoding\[report\]"):
        extras.check_extra("report", "matplotlib", "bokeh")
    assert main.main(["compare", "--model", "pocket"]) == 2
