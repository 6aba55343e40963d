"""The Python interface: what it returns, that parts of one's own fit in, and what it imports."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import minispec
from helpers import tiny_model
from helpers.tiny_model import Tiny
from minispec.api.chat import Chat
from minispec.api.comparison import Comparison
from minispec.api.model import Model
from minispec.errors import ArgumentError, ContextError, FileError, ShortlistError
from minispec.io import draft_file
from minispec.shortlists.frspec import FRSpecShortlist
from minispec.tools.cli import main
from minispec.tools.data import ranking
from minispec.types import BaseShortlist, Context, Round
from minispec.verify import verify, verify_block

PROMPT = "The wind and the sea"


@pytest.fixture(scope="module")
def model(tiny: Tiny) -> Model:
    return minispec.load(str(tiny.folder), draft=tiny.draft_path, backend="reference")


@pytest.fixture
def shipped_rankings(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model's rankings stand in for shipped ones."""
    monkeypatch.setattr(ranking, "find_shipped_ranking", lambda model, name: tiny.ranking(name))


class Even(BaseShortlist):
    """The even ids."""

    name = "even"
    per_round = True

    def __init__(self, vocab_size: int) -> None:
        self.ids = torch.arange(0, vocab_size, 2)
        self.budget = len(self.ids)
        self.resets = self.observed = 0

    def select(self, context: Context) -> Tensor:
        return self.ids

    def observe(self, finished: Round) -> None:
        self.observed += 1

    def reset(self) -> None:
        self.resets += 1


# ------------------------------------------------------------------ generate and stream


def test_generate_returns_the_greedy_text_of_plain_decoding(model: Model) -> None:
    plain = model.generate(PROMPT, shortlist="autoregressive", max_new_tokens=40)
    out = model.generate(PROMPT, shortlist="full", gamma=3, max_new_tokens=40)
    assert (out.text, out.token_ids) == (plain.text, plain.token_ids)
    assert out.text == model.tokenizer.decode(out.token_ids)
    assert (plain.method, plain.tau, plain.target_passes) == ("autoregressive", 1, 40)
    assert plain.accepted_by_position == () and len(out.accepted_by_position) == 3
    assert (out.method, out.finish_reason) == ("full", "length")
    assert out.tau == 40 / out.target_passes > 1 and out.tokens_per_second > 0
    assert out.seconds_to_first_token > out.seconds["prefill"] > 0
    assert list(out.prompt_token_ids) == model.tokenizer.chat(PROMPT)


def test_generate_takes_token_ids_as_they_are(model: Model) -> None:
    ids = model.tokenizer.encode(PROMPT)
    out = model.generate(ids, shortlist="full", max_new_tokens=8)
    assert out.prompt_token_ids == tuple(ids)
    tensor = model.generate(torch.tensor(ids), shortlist="full", max_new_tokens=8)
    assert (tensor.prompt_token_ids, tensor.token_ids) == (tuple(ids), out.token_ids)
    raw = model.generate(PROMPT, raw=True, shortlist="full", max_new_tokens=8)
    assert raw.token_ids == out.token_ids
    with pytest.raises(ArgumentError, match="no tokens"):
        model.generate([])
    with pytest.raises(ArgumentError, match=r"outside 0\.\.319"):
        model.generate([320])


def test_generate_agrees_with_the_command_line(
    model: Model, tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--method", "full", "--temperature", "1", "--seed", "7", "--stop", "the", "--json"]
    folder = ["--model", str(tiny.folder), "--draft", str(tiny.draft_path)]
    command = ["generate", PROMPT, *folder, "--max-new-tokens", "40", "--gamma", "3", *options]
    assert main.main([*command, "--backend", "reference"]) == 0
    answer = json.loads(capsys.readouterr().out)
    out = model.generate(
        PROMPT, shortlist="full", temperature=1, seed=7, stop="the", max_new_tokens=40, gamma=3
    )
    assert (answer["ids"], answer["text"]) == (list(out.token_ids), out.text)
    assert (answer["stop"], answer["tau"]) == (out.finish_reason, out.tau)


def test_stream_yields_the_rounds_of_generate(model: Model) -> None:
    rounds = list(model.stream(PROMPT, temperature=0.8, seed=7, max_new_tokens=40))
    out = model.generate(PROMPT, temperature=0.8, seed=7, max_new_tokens=40)
    assert "".join(step.text for step in rounds) == out.text
    assert tuple(token for step in rounds for token in step.tokens) == out.token_ids
    assert rounds[-1].stop == out.finish_reason and len(rounds) == out.target_passes
    other = model.generate(PROMPT, temperature=0.8, seed=8, max_new_tokens=40)
    assert other.token_ids != out.token_ids


def test_stream_can_be_abandoned_and_interleaved(model: Model) -> None:
    options: dict[str, Any] = {"shortlist": "full", "max_new_tokens": 20}
    whole = list(model.stream(PROMPT, **options))
    first, second = model.stream(PROMPT, **options), model.stream(PROMPT, **options)
    pairs = [(next(first).tokens, next(second).tokens) for _ in range(3)]
    assert pairs == [(step.tokens, step.tokens) for step in whole[:3]]


def test_generate_checks_its_options(model: Model) -> None:
    for options, words in (
        ({"gamma": 0}, "gamma 0"),
        ({"seed": -1}, "seed -1"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top-p"),
        ({"top_k": -1}, "top-k"),
        ({"max_new_tokens": -1}, "max-new-tokens"),
        ({"stop": ""}, "stop string"),
        ({"verifier": "nosuch"}, "unknown verifier 'nosuch'"),
        ({"verifier": 5}, "int is not a verifier"),
        ({"verifier": lambda proposal: None}, "<lambda> is not a verifier"),
        ({"shortlist": "medusa"}, "unknown method 'medusa'"),
        ({"shortlist": 5}, "not a shortlist"),
        ({"shortlist": "frspec@0.25:without-own"}, "single prompt"),
        ({"shortlist": "autoregressive", "adapt": True}, "no draft"),
    ):
        with pytest.raises(ArgumentError, match=words):
            model.generate(PROMPT, **options)
        with pytest.raises(ArgumentError, match=words):
            model.stream(PROMPT, **options)  # at once, not at the first round
        with pytest.raises(ArgumentError, match=words):
            model.chat(**options)


def test_generate_lets_the_draft_learn(model: Model, shipped_rankings: None) -> None:
    options: dict[str, Any] = {"max_new_tokens": 200, "ignore_eos": True}
    out = model.generate(PROMPT, shortlist="frspec@100", adapt=True, **options)
    spelled = model.generate(PROMPT, shortlist="frspec@100+adapt", **options)
    assert out.method == spelled.method == "frspec@100+adapt"
    assert out.events["changed"] >= 1 and out.token_ids == spelled.token_ids


# ------------------------------------------------------------------ parts of one's own


def make_even(vocab_size: int) -> Even:
    return Even(vocab_size)


@pytest.mark.parametrize(
    ("shortlist", "name"),
    [
        (Even, "Even"),
        (make_even, "make_even"),
        (lambda size: Even(size), "<lambda>"),
        (Even(320), "Even"),
        (partial(Even, vocab_size=320), "Even"),
    ],
)
def test_generate_takes_a_shortlist_of_ones_own(model: Model, shortlist: Any, name: str) -> None:
    plain = model.generate(PROMPT, shortlist="autoregressive", max_new_tokens=30)
    out = model.generate(PROMPT, shortlist=shortlist, max_new_tokens=30)
    assert (out.token_ids, out.method) == (plain.token_ids, name)
    sizes = {
        size for step in model.stream(PROMPT, shortlist=shortlist) for size in step.shortlist_sizes
    }
    assert sizes == {160}


def test_generate_fills_the_parameters_of_a_shortlist_by_name(
    model: Model, tiny: Tiny, shipped_rankings: None
) -> None:
    seen: dict[str, Any] = {}

    class Curious(Even):
        def __init__(self, vocab_size, budget, eos_ids, ranking, rows, tokenizer, model, mine=3):  # type: ignore[no-untyped-def]
            super().__init__(vocab_size)
            seen.update(locals())

    model.generate(PROMPT, shortlist=Curious, max_new_tokens=2)
    assert (seen["vocab_size"], seen["budget"], seen["mine"]) == (320, 10, 3)
    assert seen["eos_ids"] == model.tokenizer.eos_ids and seen["tokenizer"] is model.tokenizer
    assert len(seen["ranking"]) == 320 and seen["rows"].shape == (320, 32)
    assert seen["model"] is model.pretrained
    # A built-in class needs nothing else.
    ours = model.generate(PROMPT, shortlist=partial(FRSpecShortlist, budget=40), max_new_tokens=20)
    built_in = model.generate(PROMPT, shortlist="frspec@40", max_new_tokens=20)
    assert (ours.token_ids, ours.tau) == (built_in.token_ids, built_in.tau)


def test_generate_refuses_a_shortlist_that_breaks_its_contract(model: Model) -> None:
    class Unsorted(Even):
        def select(self, context: Context) -> Tensor:
            return self.ids.flip(0)

    with pytest.raises(ShortlistError, match="even"):
        model.generate(PROMPT, shortlist=Unsorted)


def test_generate_takes_a_verifier_of_ones_own(model: Model) -> None:
    calls = []

    def counting(proposal: Any, target_distributions: Any, rng: Any) -> Any:
        calls.append(len(proposal))
        return verify_block(proposal, target_distributions, rng)

    options: dict[str, Any] = {"shortlist": "full", "temperature": 2, "max_new_tokens": 30}
    out = model.generate(PROMPT, verifier=counting, **options)
    assert len(calls) == out.target_passes
    assert out.token_ids == model.generate(PROMPT, verifier="block", **options).token_ids
    token = model.generate(PROMPT, verifier="minispec.verify:verify", **options)
    assert token.token_ids == model.generate(PROMPT, verifier=verify, **options).token_ids


def test_load_takes_a_draft_of_ones_own(model: Model, tiny: Tiny) -> None:
    def make_draft(target: Any, model: Any) -> Any:
        assert target is model.target
        return draft_file.load_draft(tiny.draft_path, model.reference, model.fingerprint)

    expected = model.generate(PROMPT, shortlist="full", max_new_tokens=30)
    for draft in (make_draft, model.draft):
        own = minispec.load(str(tiny.folder), draft=draft, backend="reference")
        out = own.generate(PROMPT, max_new_tokens=30)
        assert (out.method, out.token_ids, out.tau) == ("full", expected.token_ids, expected.tau)
    with pytest.raises(ArgumentError, match="Even is not a draft"):
        minispec.load(str(tiny.folder), draft=Even)


def test_load_takes_no_draft_or_a_missing_one(tiny: Tiny, tmp_path: Path) -> None:
    plain = minispec.load(str(tiny.folder), draft=False)
    assert plain.draft is None and plain.generate(PROMPT, max_new_tokens=2).tau == 1
    assert "no draft" in repr(plain)
    with pytest.raises(ArgumentError, match="needs a draft"):
        plain.generate(PROMPT, shortlist="full")
    with pytest.raises(FileError, match="does not exist"):
        minispec.load(str(tiny.folder), draft=tmp_path / "nosuch")
    with pytest.raises(FileError, match="is a folder"):
        minispec.load(str(tiny.folder), draft=tmp_path)
    with pytest.raises(ArgumentError, match="unknown model"):
        minispec.load("nosuch")


def test_load_sets_the_options_of_the_model(tiny: Tiny) -> None:
    model = minispec.load(str(tiny.folder), draft=tiny.draft_path, dtype="bfloat16", device="cpu")
    assert (model.pretrained.dtype, model.name, model.is_base) == (
        "bfloat16", str(tiny.folder), False,
    )  # fmt: skip
    with pytest.raises(ArgumentError, match="threads 0"):
        minispec.load(str(tiny.folder), threads=0)
    with pytest.raises(ArgumentError, match="unknown device 'tpu'"):
        minispec.load(str(tiny.folder), device="tpu")


# ------------------------------------------------------------------ chat


def test_chat_continues_the_conversation(model: Model) -> None:
    shortlist = Even(320)
    chat = model.chat(shortlist=shortlist, max_new_tokens=12)
    assert isinstance(chat, Chat) and chat.method == "Even"
    first = chat.send("The wind")
    second = chat.send("and the sea")
    tokenizer = model.tokenizer
    assert list(first.prompt_token_ids) == tokenizer.chat("The wind")
    before = first.token_ids
    before = before[:-1] if before[-1] in tokenizer.eos_ids else before
    later = tokenizer.chat("and the sea", later=True)
    assert second.prompt_token_ids == (*first.prompt_token_ids, *before, *later)
    assert chat.token_ids == (*second.prompt_token_ids, *second.token_ids)
    # The shortlist was reset once, and observed the rounds of both turns.
    assert shortlist.resets == 1
    assert shortlist.observed == first.target_passes + second.target_passes
    # The same turns give the same answers.
    again = model.chat(shortlist=Even, max_new_tokens=12)
    assert [again.send(t).token_ids for t in ("The wind", "and the sea")] == [
        first.token_ids, second.token_ids,
    ]  # fmt: skip


def test_chat_drops_the_end_id_of_an_answer(model: Model) -> None:
    chat = model.chat(shortlist="full", temperature=30, max_new_tokens=1000, seed=2)
    first = chat.send("The wind")
    assert first.finish_reason == "eos"
    second = chat.build_prompt("and the sea")
    end = model.tokenizer.chat("x", later=True)[0]
    joint = len(first.prompt_token_ids) + len(first.token_ids) - 1
    assert second[joint] == end and second[:joint] == list(chat.token_ids[:-1])


def test_chat_keeps_what_an_abandoned_stream_yielded(model: Model) -> None:
    chat = model.chat(shortlist="full", max_new_tokens=30)
    rounds = chat.stream("The wind")
    seen = [*next(rounds).tokens, *next(rounds).tokens]
    rounds.close()  # type: ignore[attr-defined]
    assert list(chat.token_ids) == [*model.tokenizer.chat("The wind"), *seen]
    assert chat.send("and").token_ids


def test_chat_raw_continues_its_text(model: Model) -> None:
    chat = model.chat(shortlist="full", raw=True, max_new_tokens=5)
    first = chat.send("The wind")
    assert list(first.prompt_token_ids) == model.tokenizer.encode("The wind")
    second = chat.build_prompt("and the sea")
    assert second == [*chat.token_ids, *model.tokenizer.encode("\n\nand the sea")]


def test_chat_refuses_to_outgrow_the_context(model: Model) -> None:
    chat = model.chat(shortlist="full", raw=True, max_new_tokens=5)
    chat.send("The wind")
    before = chat.token_ids
    with pytest.raises(ContextError):
        chat.send("the" * tiny_model.CONTEXT)
    assert chat.token_ids == before  # the conversation can go on
    assert chat.send("and").token_ids


# ------------------------------------------------------------------ compare and certify


def test_compare_sets_methods_side_by_side(
    model: Model, shipped_rankings: None, tmp_path: Path
) -> None:
    methods = ["autoregressive", "frspec@0.25", Even]
    found = minispec.compare(
        model, methods, prompts=[PROMPT, "The court"], gamma=2, max_new_tokens=6
    )
    assert isinstance(found, Comparison)
    assert [result.method for result in found.results] == ["autoregressive", "frspec@0.25", "Even"]
    plain, frspec, even = found.results
    assert (plain.gamma, plain.budget, plain.tau) == (None, None, 1)
    assert (frspec.gamma, frspec.budget, even.budget) == (2, 80, None)
    assert plain.speedup is not None and plain.speedup.value == 1
    assert even.speedup is not None and even.speedup.low <= even.speedup.value <= even.speedup.high
    assert all(result.identical for result in found.results) and found["Even"] is even
    assert str(found).splitlines()[0].startswith("method") and "Even" in str(found)
    with pytest.raises(ArgumentError, match="'full' was not compared"):
        found["full"]
    found.save(tmp_path / "report")
    assert {path.name for path in (tmp_path / "report").iterdir()} == {
        "report.json", "report.png", "report.html",
    }  # fmt: skip


def test_compare_takes_named_streams_and_several_gammas(model: Model) -> None:
    found = minispec.compare(
        model, ["full"], prompts={"sea": ["The sea"], "wind": ["The wind"]}, gamma=[1, 2],
        max_new_tokens=4, temperature=1,
    )  # fmt: skip
    assert [(result.gamma, result.identical) for result in found.results] == [(1, None), (2, None)]
    assert {row["stream"] for row in found.report["results"]} == {"sea", "wind", "all"}


def test_compare_checks_its_options(model: Model) -> None:
    compare: Callable[..., Comparison] = partial(minispec.compare, model, prompts=["x"])
    for call, words in (
        (partial(compare, ["full"], prompts="The sea"), "list of texts"),
        (partial(compare, ["full"], prompts=[]), "no prompts"),
        (partial(compare, ["full"], prompts={"sea": []}), "no prompts"),
        (partial(compare, []), "at least one method"),
        (partial(compare, ["full", "full"]), "named twice"),
        (partial(compare, [Even, Even]), "named twice"),
        (partial(compare, ["full"], gamma=17), "gamma 17"),
        (partial(compare, ["full"], seed=-1), "seed -1"),
        (partial(compare, ["full"], verifier="nosuch"), "unknown verifier"),
        (partial(compare, ["full"], max_new_tokens=0), "max-new-tokens 0"),
        (partial(compare, ["medusa"]), "unknown method"),
    ):
        with pytest.raises(ArgumentError, match=words):
            call()


def test_certify_is_the_certificates() -> None:
    from minispec.certificate import certify

    assert minispec.certify is certify.certify


# ------------------------------------------------------------------ the package itself


def test_package_exports_are_there_and_listed() -> None:
    assert set(minispec.__all__) == set(minispec._HOMES) <= set(dir(minispec))
    for name in minispec.__all__:
        assert getattr(minispec, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nosuch'"):
        minispec.nosuch  # noqa: B018
    source = Path(minispec.__file__).read_text("utf-8")
    typed = source[source.index("if TYPE_CHECKING:") : source.index("__version__")]
    for name, home in minispec._HOMES.items():
        assert re.search(rf"from {home} import .*\b{name}\b", typed), name


def test_package_version_is_that_of_its_metadata(capsys: pytest.CaptureFixture[str]) -> None:
    setup = (Path(__file__).parent.parent.parent / "setup.cfg").read_text("utf-8")
    assert f"\nversion = {minispec.__version__}\n" in setup or "attr: minispec.__version__" in setup
    with pytest.raises(SystemExit):
        main.main(["--version"])
    assert capsys.readouterr().out == f"minispec {minispec.__version__}\n"


def run_python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True, text=True
    ).stdout


def test_import_loads_nothing_but_the_package() -> None:
    """`import minispec` leaves even torch to the first use of a name."""

    def load(statement: str) -> set[str]:
        code = f"import sys; before = set(sys.modules); import minispec; {statement}; "
        code += "print(*{name.split('.')[0] for name in set(sys.modules) - before})"
        return set(run_python(code).split())

    loaded = load("pass")
    third_party = loaded - sys.stdlib_module_names
    assert third_party == {"minispec"}
    heart = load("minispec.speculative")
    assert "torch" in heart
    slow = {"numba", "matplotlib", "bokeh", "gguf", "tiktoken", "sentencepiece", "fastpath"}
    assert not heart & slow
    door = load("minispec.load")
    assert not door & {"numba", "matplotlib", "bokeh", "fastpath"}
