"""The stream that switches domains: its conversations, the state carried over, its figures."""

import json
import math
import random
from collections import Counter
from collections.abc import Iterator
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from jinja2 import Template

from helpers import tiny_model
from helpers.follower import Follower
from helpers.tiny_model import Tiny
from minispec.commit import StopRule
from minispec.errors import ArgumentError, ContextError
from minispec.sampling import Sampling, SeededRandom
from minispec.tools.cli import main
from minispec.tools.data.streams import (
    SWITCH,
    Stream,
    build_conversations,
    build_prompt,
    plan_streams,
)
from minispec.tools.evaluation import assembly, audit, compare, switch
from minispec.tools.evaluation.compare import Settings
from minispec.tools.evaluation.measure import Figures, measure
from minispec.tools.evaluation.methods import Method
from minispec.tools.evaluation.study import Text
from minispec.tools.reporting import table

SCHEMA = json.loads(resources.files("minispec").joinpath("data/report.schema.json").read_text())
V = 320
STREAMS = [
    Stream("law", ("The court must decide.", "A party may appeal.", "This licence ends.")),
    Stream("code", ("def run():", "import this")),
    Stream("sea", ("The sea", "A wave", "Salt")),
]


@pytest.fixture(scope="module")
def tiny(tiny: Tiny) -> Iterator[Tiny]:
    with tiny_model.replace_shipped_rankings(tiny):
        yield tiny


# ------------------------------------------------------------------ building conversations


def make_streams(*sizes: int) -> list[Stream]:
    return [Stream(f"s{i}", tuple(f"{i}.{j}" for j in range(n))) for i, n in enumerate(sizes)]


def uneven_sizes(seed: int) -> list[int]:
    draws = random.Random(seed)
    return [draws.randrange(1, 12) for _ in range(draws.randrange(2, 7))]


@pytest.mark.parametrize(
    "sizes", [[24] * 4, [5, 5], [7, 3, 2], [1, 1], *map(uneven_sizes, range(30))]
)
def test_build_conversations_uses_each_prompt_once_and_changes_domain(sizes: list[int]) -> None:
    given = make_streams(*sizes)
    found = build_conversations(given, seed=0)
    used = Counter(turn for conversation in found for turn in conversation)
    assert used == Counter((s.name, prompt) for s in given for prompt in s.prompts)
    for conversation in found:
        assert 1 <= len(conversation) <= 4
        assert all(a[0] != b[0] for a, b in pairwise(conversation))
    if 2 * max(sizes) <= sum(sizes):  # else one stream has prompts left over
        assert all(len(conversation) == 4 for conversation in found[:-1])
    turns = [turn for conversation in found for turn in conversation]
    for stream in given:  # each stream's prompts stay in order
        assert [prompt for name, prompt in turns if name == stream.name] == list(stream.prompts)


def test_build_conversations_mixes_equal_streams() -> None:
    found = build_conversations(make_streams(24, 24, 24, 24), seed=0)
    assert sum(len(conversation) - 1 for conversation in found) == 72
    assert all(len({name for name, _ in turns}) == 4 for turns in found)
    pairs = Counter((a[0], b[0]) for turns in found for a, b in pairwise(turns))
    assert len(pairs) == 12  # from every domain to every other
    assert {turns[0][0] for turns in found} == {"s0", "s1", "s2", "s3"}
    assert found == build_conversations(make_streams(24, 24, 24, 24), seed=0)
    assert found != build_conversations(make_streams(24, 24, 24, 24), seed=1)


def test_build_conversations_refuses_fewer_than_two_streams(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ArgumentError, match="two or more"):
        build_conversations(make_streams(5), seed=0)
    prompts = tmp_path / "law.txt"
    prompts.write_text("The court")
    out = tmp_path / "out"
    line = [
        "compare",
        "--switch",
        "--model",
        "nowhere",
        "--prompts",
        str(prompts),
        "--out",
        str(out),
    ]
    assert main.main(line) == 2
    error = capsys.readouterr().err
    assert "two or more streams" in error and error.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize("name", ["all", "switch"])
def test_load_streams_refuses_reserved_names(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / f"{name}.txt"
    prompts.write_text("The court")
    assert main.main(["compare", "--prompts", str(prompts), "--out", str(tmp_path / "out")]) == 2
    assert "none be 'all' or 'switch'" in capsys.readouterr().err


# ------------------------------------------------------------------ prompts of later turns


@pytest.mark.parametrize("ended", [True, False])
def test_build_prompt_matches_the_chat_template(tiny: Tiny, ended: bool) -> None:
    """The ids of the answers are kept as emitted, whether or not they ended with an end id."""
    tokenizer = tiny.model.tokenizer
    texts = ["Hello sea.", "And\nthe ruling?", "More"]
    answered: list[Text] = []
    plan = make_plan(tiny, [Stream("a", (texts[0], texts[2])), Stream("b", (texts[1],))])
    (turns,) = plan[SWITCH]
    answers = [" the answer", "in two"]
    for turn, answer in zip(turns, answers, strict=False):
        ids = (*tokenizer.encode(answer), *([tokenizer.eos_ids[0]] if ended else []))
        answered.append(Text(turn.domain, build_prompt(answered, turn, tokenizer.eos_ids), ids))
    last = build_prompt(answered, turns[2], tokenizer.eos_ids)
    messages = [
        {"role": "user", "content": texts[0]},
        {"role": "assistant", "content": answers[0]},
        {"role": "user", "content": texts[1]},
        {"role": "assistant", "content": answers[1]},
        {"role": "user", "content": texts[2]},
    ]
    rendered = Template(tiny_model.TEMPLATE).render(messages=messages, add_generation_prompt=True)
    joined = b"".join(
        name.encode() if (name := special_names(tokenizer).get(i)) else tokenizer.token_bytes(i)
        for i in last
    )
    assert joined.decode() == rendered
    assert last[: len(answered[0].prompt)] == answered[0].prompt == turns[0].ids


def special_names(tokenizer: Any) -> dict[int, str]:
    return {i: name for name, i in tokenizer.special_tokens.items()}


def make_plan(tiny: Tiny, given: list[Stream], raw: bool = False, most: int = 20) -> Any:
    return plan_streams(tiny.model, given, switching=True, max_new_tokens=most, seed=0, raw=raw)


def test_build_prompt_joins_turns_of_a_base_model_by_a_blank_line(tiny: Tiny) -> None:
    tokenizer = tiny.model.tokenizer
    texts = {"a": "The sea", "b": "The ruling"}
    given = [Stream(name, (text,)) for name, text in texts.items()]
    (turns,) = make_plan(tiny, given, raw=True)[SWITCH]
    prompt = build_prompt([], turns[0], tokenizer.eos_ids)
    for end in ((), (tokenizer.eos_ids[0],)):
        first = Text(turns[0].domain, prompt, (*tokenizer.encode(" is"), *end))
        ids = build_prompt([first], turns[1], tokenizer.eos_ids)
        one, two = (texts[turn.domain] for turn in turns)
        assert tokenizer.decode(ids) == f"{one} is\n\n{two}"
        assert not set(tokenizer.eos_ids) & set(ids)


def test_plan_streams_refuses_a_conversation_that_may_exceed_the_context(tiny: Tiny) -> None:
    given = [Stream("a", ("The sea",)), Stream("b", ("The ruling",))]
    length = sum(len(turn.ids) for turn in make_plan(tiny, given)[SWITCH][0])
    most = tiny_model.CONTEXT - length
    make_plan(tiny, given, most=most - 1)
    with pytest.raises(ContextError, match=f"conversation 1 of switch has {tiny_model.CONTEXT}"):
        make_plan(tiny, given, most=most)


# ------------------------------------------------------------------ the comparison


def run_compare(tiny: Tiny, names: str, **options: Any) -> dict[str, Any]:
    chosen = tuple(Method.parse(name) for name in names.split(","))
    options = {"max_new_tokens": 12, "seed": 0, "switch": True, "sampling": Sampling()} | options
    settings = Settings(chosen, options.pop("gammas", (2,)), **options)
    given = options.get("streams", STREAMS)
    found = compare.compare(tiny.model, tiny.draft, given, settings)
    jsonschema.validate(json.loads(json.dumps(found)), SCHEMA)
    return found


def test_switch_is_a_separate_stream_outside_of_all(tiny: Tiny) -> None:
    found = run_compare(tiny, "autoregressive,full,frspec@80")
    with_it = {(r["method"], r["stream"]): r for r in found["results"]}
    without = run_compare(tiny, "autoregressive,full,frspec@80", switch=False)["results"]
    assert {(r["method"], r["stream"]) for r in without} == {k for k in with_it if k[1] != SWITCH}
    for row in without:
        other = with_it[row["method"], row["stream"]]
        for key in ("prompts", "tokens", "target_passes", "accepted_by_position", "lossless"):
            assert row[key] == other[key]
        assert "switch_curve" not in other
    for method in ("autoregressive", "full", "frspec@80"):
        row = with_it[method, SWITCH]
        assert row["prompts"] == 8
        assert row["lossless"]["checked"] == 8
        assert row["lossless"]["violations"] == 0
        assert row["switch_curve"]["switches"] == 6
        assert row["ratio_to_autoregressive"] and row["ratio_to_frspec"]
        if method == "full":
            assert row["switch_curve"]["regained_after"] == 0
    lines = table.format_switches(found)
    assert [line.split(",")[0] for line in lines] == ["full", "frspec@80"]
    assert "1.00 [1.00, 1.00] of full's tau in the 32 tokens after 6 switches" in lines[0]
    assert lines[0].endswith("95% reached after 0 tokens")
    assert table.format_switches({"results": without}) == []
    assert [sample["stream"] for sample in found["samples"]] == ["law", "code", "sea"]


def test_each_turn_continues_the_methods_own_answer(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a temperature at which the methods answer differently."""
    decoded: dict[str, list[tuple[tuple[int, ...], tuple[int, ...]]]] = {}
    real = compare.measure

    def record(rounds: Any, prompt: Any = ()) -> Figures:
        found = real(rounds, prompt)
        decoded.setdefault(str(len(found.proposed_at)), []).append((found.prompt, found.tokens))
        return found

    monkeypatch.setattr(compare, "measure", record)
    run_compare(tiny, "autoregressive,full", sampling=Sampling(1.0))
    tokenizer = tiny.model.tokenizer
    plan = make_plan(tiny, STREAMS)
    assert len(decoded["0"]) == len(decoded["2"]) == 16
    for pairs in decoded.values():
        rest = pairs[8:]  # the single prompts come first
        for turns in plan[SWITCH]:
            answered: list[Text] = []
            for turn in turns:
                prompt, tokens = rest.pop(0)
                assert prompt == build_prompt(answered, turn, tokenizer.eos_ids)
                answered.append(Text(turn.domain, prompt, tokens))
        assert not rest
    assert [p for p, _ in decoded["0"]] != [p for p, _ in decoded["2"]]


def test_shortlist_is_reset_between_conversations_only(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    followers: list[Follower] = []
    observed: list[int] = []

    class RecordingFollower(Follower):
        def select(self, context: Any) -> torch.Tensor:
            if context.depth == 0:
                observed.append(len(self.observed))
            return super().select(context)

    def shortlist(method: Method, model: Any, domain: str) -> Any:
        followers.append(RecordingFollower(torch.arange(V), 80))
        return followers[-1]

    monkeypatch.setattr(assembly, "build_shortlist", shortlist)
    run_compare(tiny, "frspec@80", sampling=Sampling(1.0))
    (follower,) = followers
    # Once to warm up, once for each single prompt, once for each conversation.
    assert follower.resets == 1 + 8 + 2
    assert observed.count(0) == 1 + 8 + 2


def test_without_own_uses_the_ranking_of_the_turns_domain(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each turn then has another shortlist, so one that learns starts afresh at each turn."""
    built: dict[str, Follower] = {}
    selected: list[tuple[str, int]] = []

    class RecordingFollower(Follower):
        domain = ""

        def select(self, context: Any) -> torch.Tensor:
            if context.depth == 0:
                selected.append((self.domain, len(self.observed)))
            return super().select(context)

    def shortlist(method: Method, model: Any, domain: str) -> Any:
        built[domain] = RecordingFollower(torch.arange(V), 80)
        built[domain].domain = domain
        return built[domain]

    monkeypatch.setattr(assembly, "build_shortlist", shortlist)
    given = [Stream("law", ("The court",)), Stream("code", ("import this",))]
    settings = Settings(
        (Method.parse("frspec@80:without-own"),), (2,), Sampling(1.0), 12, 0, switch=True
    )
    compare.compare(tiny.model, tiny.draft, given, settings)
    fresh = [domain for domain, observed in selected if observed == 0]
    (turns,) = build_conversations(given, 0)
    assert fresh == ["law", "code", "law", "code", *(domain for domain, _ in turns)]
    assert built.keys() == {"law", "code"}


def test_audit_compares_each_answer_in_its_own_context(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A method whose first answer differs continues from that answer; its next answer is compared
    with what plain decoding gives there."""
    audited: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    real = audit.audit

    def record(target: Any, ids: Any, plain: Any, *others: Any) -> str:
        audited.append((tuple(ids), tuple(plain)))
        return real(target, ids, plain, *others)

    monkeypatch.setattr(audit, "audit", record)
    real_builder = compare.build_decoder

    def build_decoder(method: Method, *arguments: Any, **options: Any) -> Any:
        real_decode = real_builder(method, *arguments, **options)

        def decode(prompt: Any, rng: Any, **more: Any) -> Any:
            rounds = list(real_decode(prompt, rng, **more))
            if method.name == "full":  # change its last token
                last = rounds[-1]
                tokens = (*last.tokens[:-1], last.tokens[-1] ^ 1)
                rounds[-1] = type(last)(
                    tokens, "", last.path, last.proposed, last.shortlist_sizes, last.seconds, None
                )
            yield from rounds

        return decode

    monkeypatch.setattr(compare, "build_decoder", build_decoder)
    found = run_compare(tiny, "autoregressive,full")
    rows = {(r["method"], r["stream"]): r["lossless"] for r in found["results"]}
    assert rows["autoregressive", SWITCH]["identical"] == 8
    assert rows["full", SWITCH]["identical"] == 0
    plainly = real_builder(
        Method("autoregressive"), tiny.model, None, None, gamma=1, sampling=Sampling(),
        stop=StopRule(12, tiny.model.tokenizer.eos_ids),
    )  # fmt: skip
    assert len({ids for ids, _ in audited}) > 8 + 8  # including contexts of its own
    for ids, plain in audited:
        assert plain == measure(plainly(ids, SeededRandom(0))).tokens


# ------------------------------------------------------------------ around the switches


def figures(*emitted: int) -> Figures:
    return Figures(
        tokens=tuple(range(sum(emitted))), text="", stop=None, passes=len(emitted), seconds={},
        accepted_at=(), proposed_at=(), latencies=(), shortlist_sizes=(), rows_probed=0,
        emitted=emitted,
    )  # fmt: skip


def test_compute_curve_counts_rounds_that_begin_in_the_window() -> None:
    # 48 tokens before the switch: 2 a round, 1 in the last 16; then 1 a round for 8, then 4.
    first, second = figures(*[2] * 16, *[1] * 16), figures(*[1] * 8, *[4] * 10)
    found = switch.compute_curve([[first, second]], None)
    assert (found["switches"], found["window"], found["regained_after"]) == (1, 32, None)
    tau = {window["start"]: window["tau"] for window in found["windows"]}
    assert tau[-32] == pytest.approx(32 / (8 + 16))
    assert tau[-48] == pytest.approx(32 / 16)
    assert tau[0] == pytest.approx(32 / (8 + 6))
    assert tau[8] == pytest.approx(4)
    assert 48 not in tau  # no answer is that long
    assert all(window["ratio_to_full"] is None for window in found["windows"])


def test_compute_curve_interval_covers_the_true_ratio() -> None:
    """Of 50 runs of 40 switches with a known ratio, about 47 intervals should contain it. Fewer
    than 41 has probability 1 in 6,000 for a free seed; this seed is fixed."""
    draws, covered = random.Random(0), 0
    for _ in range(50):
        ours, full = [], []
        for _ in range(40):
            hard = draws.random()  # the text's difficulty, shared by both
            for conversations, share in ((ours, 0.4), (full, 0.5)):
                runs = [1 + (draws.random() < share * hard) for _ in range(40)]
                conversations.append([figures(*[1] * 40), figures(*runs)])
        window = next(w for w in switch.compute_curve(ours, full)["windows"] if w["start"] == 0)
        ratio = window["ratio_to_full"]
        assert ratio["low"] <= ratio["value"] <= ratio["high"]
        covered += ratio["low"] <= (1 + 0.2) / (1 + 0.25) <= ratio["high"]
    assert covered >= 41


def test_compute_curve_regained_after() -> None:
    full = [[figures(*[2] * 50), figures(*[2] * 50)]] * 5
    assert switch.compute_curve(full, full)["regained_after"] == 0
    assert {w["ratio_to_full"]["value"] for w in switch.compute_curve(full, full)["windows"]} == {
        1.0
    }
    slow = [[figures(*[2] * 50), figures(*[1] * 24, *[2] * 38)]] * 5
    found = switch.compute_curve(slow, full)
    assert found["regained_after"] == 24
    never = [[figures(*[2] * 50), figures(*[1] * 100)]] * 5
    assert switch.compute_curve(never, full)["regained_after"] is None
    before = [w for w in switch.compute_curve(never, full)["windows"] if w["start"] < 0]
    assert before and all(w["ratio_to_full"]["value"] == 1 for w in before)


def test_compute_curve_omits_answers_too_short_for_a_window() -> None:
    short, long = figures(*[1] * 4), figures(*[2] * 40)
    ours = [[short, short], [long, long]]
    full = [[short, short], [long, short]]
    found = switch.compute_curve(ours, full)
    windows = {w["start"]: w for w in found["windows"]}
    assert windows[32]["tau"] == 2 and windows[32]["ratio_to_full"] is None
    assert math.isclose(windows[0]["tau"], (4 + 32) / (4 + 16))
    none = switch.compute_curve([[short]], [[short]])
    assert (none["switches"], none["windows"], none["regained_after"]) == (0, [], None)
