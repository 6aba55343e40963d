"""The benchmark against other engines: its ratios, its comparison of ids, and bad input.

Its functions run in a process of their own, since tests do not import the benchmarks. Sides have
answers of known speeds; ids are compared on the pocket model.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent

SCRIPT = """
import contextlib, io, json, sys
from dataclasses import replace
from pathlib import Path
import minispec
from benchmarks.__main__ import main
from benchmarks.peers import report, turns
from benchmarks.peers.picture import write_picture
from benchmarks.peers.sides import Answer, Engine, Side, Skipped, Work
from minispec.tools import extras

found, picture = {"bad": {}}, Path(sys.argv[2])
extras.find_spec = lambda module: None  # as if nothing were installed
for options in json.loads(sys.argv[1]):
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        code = main(["peers", *options])
    found["bad"][" ".join(options)] = [code, errors.getvalue()]

work = Work("pocket", Path("pocket"), (("code", (1, 2, 3)), ("general", (4, 5))), 16, 1)
model = minispec.load("pocket", backend="reference", draft=False)
plain = [model.generate(ids, shortlist="autoregressive", max_new_tokens=16, ignore_eos=True,
                        raw=True).token_ids for _, ids in work.prompts]


def build_side(engine, mode, speed, passes=16, change=None, dtype="float32"):
    def run(ids, temperature, seed, limit):
        number = [prompt for _, prompt in work.prompts].index(ids)
        tokens = list(plain[number])
        if change is not None and number == 0:
            tokens[change] = (tokens[change] + 1) % 50
        calls.append((engine, mode, number, limit))
        return Answer(tuple(tokens[:limit]), limit, passes, limit / speed / (1 + number))
    return Side(engine, dtype, mode, dtype, dtype, 1000, run)


calls = []
sides = [
    build_side("minispec", "plain", 100), build_side("minispec", "frspec@0.25", 120, 8),
    build_side("minispec", "evospec@1536", 150, 8), build_side("llama.cpp", "plain", 50, change=3),
    build_side("llama.cpp", "prompt lookup of 2", 60),
]
engines = [Engine(tuple(sides), (Skipped("other", "not installed"),), ("a note",))]
answers = turns.answer_all(sides, work, 0.0, 0)
found["calls"] = calls
differences = turns.compare_ids(model.target, answers, work)
whole = report.build_report(work, engines, {"seed": 0})
whole["runs"] = [report.build_run(answers, work, 0.0, differences),
                 report.build_run(answers, work, 0.8, {})]
found["report"] = whole
found["text"] = [report.format_sides(whole), *map(report.format_run, whole["runs"])]
write_picture(whole, picture)
short = replace(sides[0], run=lambda *_: Answer((1,), 1, 1, 1.0))
try:
    turns.answer_all([short], work, 0.0, 0)
except RuntimeError as error:
    found["short"] = str(error)
json.dump(found, sys.stdout)
"""

BAD = {
    "--limit 0": "--limit 0 must be 1 or above",
    "--max-new-tokens 3": "--max-new-tokens 3 must be 16 or above",
    "--temperatures -1": "--temperatures must lie in 0..100",
    "--temperatures nan": "--temperatures must lie in 0..100",
    "--temperatures 0 0.8 0": "--temperatures names one twice",
    "--model llama": "invalid choice: 'llama'",
    "--out picture.pdf": "must end in .png",
    "--threads two": "invalid int value",
    "": "llama_cpp and transformers not installed: get the extra with pip install "
    "'minispec-decoding[peers]'",
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    picture = tmp_path_factory.mktemp("peers") / "peers.png"
    options = json.dumps([text.split() for text in BAD])
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, options, str(picture)],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")
    return json.loads(result.stdout)


@pytest.mark.parametrize("options", BAD)
def test_main_refuses_bad_input_in_one_line(found: dict[str, Any], options: str) -> None:
    code, line = found["bad"][options]
    assert code == 2 and BAD[options] in line
    assert line.startswith("benchmarks peers: ") and line.count("\n") == 1


def test_answer_all_rotates_which_side_goes_first(found: dict[str, Any]) -> None:
    warm, timed = found["calls"][:10], found["calls"][10:]
    assert {(number, limit) for *_, number, limit in warm} == {(0, 16), (1, 16)}
    modes = [(engine, mode) for engine, mode, number, _ in timed if number == 0]
    assert [(e, m) for e, m, number, _ in timed if number == 1] == [*modes[1:], modes[0]]


def test_answer_all_refuses_a_side_that_stops_early(found: dict[str, Any]) -> None:
    assert found["short"] == "minispec float32, plain gave 1 tokens instead of 16"


def test_build_run_pairs_each_side_with_its_references(found: dict[str, Any]) -> None:
    greedy = found["report"]["runs"][0]
    assert greedy["references"] == {
        "llama_cpp_plain": "llama.cpp float32, plain",
        "llama_cpp_best": "llama.cpp float32, prompt lookup of 2",
        "our_fastest_plain": "minispec float32, plain",
    }
    rows = {row["side"]: row for row in greedy["rows"]}
    evolving = rows["minispec float32, evospec@1536"]
    assert evolving["tau"] == 2
    # 16 tokens at 150 and 16 at 300 tokens per second.
    assert evolving["tokens_per_second"] == pytest.approx(200)
    for name, value in {
        "llama_cpp_plain": 3,
        "llama_cpp_best": 2.5,
        "our_fastest_plain": 1.5,
    }.items():
        ratio = evolving[f"ratio_to_{name}"]
        assert [ratio[key] for key in ("low", "value", "high")] == pytest.approx([value] * 3)
    lookup = rows["llama.cpp float32, prompt lookup of 2"]
    assert lookup["ratio_to_own_plain"]["value"] == pytest.approx(1.2)


def test_build_run_claims_what_the_comparison_is_for(found: dict[str, Any]) -> None:
    claims = {name: claim["value"] for name, claim in found["report"]["runs"][0]["claims"].items()}
    assert claims == pytest.approx({
        "our fastest plain over llama.cpp plain": 2,
        "our fastest evospec over our fastest plain": 1.5,
        "our fastest evospec over llama.cpp's best mode": 2.5,
        "our fastest evospec over frspec@0.25 of its dtype, mean of domains": 1.25,
    })  # fmt: skip


def test_compare_ids_finds_the_first_difference_and_its_gap(found: dict[str, Any]) -> None:
    rows = {row["side"]: row for row in found["report"]["runs"][0]["rows"]}
    same, other = rows["minispec float32, plain"], rows["llama.cpp float32, plain"]
    assert same["identical"] == 2 and same["differences"] == []
    assert other["identical"] == 1 and other["median_position"] == 3
    (difference,) = other["differences"]
    assert (difference["prompt"], difference["position"]) == (0, 3)
    assert difference["gap"] == other["largest_gap"] >= 0
    assert other["took_second"] == difference["took_second"]
    assert "identical" not in found["report"]["runs"][1]["rows"][0]


def test_format_run_names_every_side_and_every_skipped_one(found: dict[str, Any]) -> None:
    sides, greedy, drawn = found["text"]
    assert "a note" in sides and "skipped: other: not installed" in sides
    for row in found["report"]["runs"][0]["rows"]:
        assert all(row["side"] in text for text in found["text"])
    assert "1/2, else from 3" in greedy and "ids as float32" not in drawn
    assert "our fastest plain over llama.cpp plain: 2.00 [2.00, 2.00]" in greedy
