"""The stream that switches: who speaks when, what is carried over, and what is counted."""

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
from minispec.errors import ArgumentError, ContextError
from minispec.sampling import Sampling
from minispec.tools.cli import main
from minispec.tools.data.streams import SWITCH, Stream, conversations, plan_streams, build_prompt
from minispec.tools.evaluation import audit, compare, methods, switch
from minispec.tools.evaluation.compare import Settings
from minispec.tools.evaluation.measure import Figures
from minispec.tools.evaluation.methods import Method
from minispec.tools.evaluation.study import Text
from minispec.tools.reporting import report

SCHEMA = json.loads(resources.files("minispec").joinpath("data/report.schema.json").read_text())
V = 320
STREAMS = [
    Stream("law", ("The court shall decide.", "A party may appeal.", "This licence ends.")),
    Stream("code", ("def run():", "import this")),
    Stream("sea", ("The sea", "A wave", "Salt")),
]


@pytest.fixture(scope="module")
def tiny(tiny: Tiny) -> Iterator[Tiny]:
    with tiny_model.rankings_shipped(tiny):
        yield tiny


# ------------------------------------------------------------------ who speaks when


def streams(*sizes: int) -> list[Stream]:
    return [Stream(f"s{i}", tuple(f"{i}.{j}" for j in range(n))) for i, n in enumerate(sizes)]


def uneven(seed: int) -> list[int]:
    draws = random.Random(seed)
    return [draws.randrange(1, 12) for _ in range(draws.randrange(2, 7))]


@pytest.mark.parametrize("sizes", [[24] * 4, [5, 5], [7, 3, 2], [1, 1], *map(uneven, range(30))])
def test_every_prompt_is_asked_once_and_domains_change(sizes: list[int]) -> None:
    given = streams(*sizes)
    found = conversations(given, seed=0)
    asked = Counter(turn for talk in found for turn in talk)
    assert asked == Counter((s.name, prompt) for s in given for prompt in s.prompts)
    for talk in found:
        assert 1 <= len(talk) <= 4
        assert all(a[0] != b[0] for a, b in pairwise(talk))
    if 2 * max(sizes) <= sum(sizes):  # else some stream must be left over
        assert all(len(talk) == 4 for talk in found[:-1])
    for stream in given:  # each stream's prompts in their order
        assert [p for talk in found for s, p in talk if s == stream.name] == list(stream.prompts)


def test_four_even_streams_meet_in_every_conversation_in_changing_order() -> None:
    found = conversations(streams(24, 24, 24, 24), seed=0)
    assert sum(len(talk) - 1 for talk in found) == 72
    assert all(len({name for name, _ in talk}) == 4 for talk in found)
    pairs = Counter((a[0], b[0]) for talk in found for a, b in pairwise(talk))
    assert len(pairs) == 12  # from every domain to every other
    assert {talk[0][0] for talk in found} == {"s0", "s1", "s2", "s3"}
    assert found == conversations(streams(24, 24, 24, 24), seed=0)
    assert found != conversations(streams(24, 24, 24, 24), seed=1)


def test_fewer_than_two_streams_are_refused(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ArgumentError, match="two or more"):
        conversations(streams(5), seed=0)
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
def test_names_that_rows_have_already_are_refused(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / f"{name}.txt"
    prompts.write_text("The court")
    assert main.main(["compare", "--prompts", str(prompts), "--out", str(tmp_path / "out")]) == 2
    assert "none be 'all' or 'switch'" in capsys.readouterr().err


# ------------------------------------------------------------------ how a conversation goes on


@pytest.mark.parametrize("ended", [True, False])
def test_a_conversation_reads_as_the_models_own_template_renders_it(
    tiny: Tiny, ended: bool
) -> None:
    """Up to the answers, whose ids stay as they were emitted, whether or not they ended."""
    tokenizer = tiny.model.tokenizer
    texts = ["Hello sea.", "And\nthe law?", "More"]
    talk: list[Text] = []
    plan = plan_of(tiny, [Stream("a", (texts[0], texts[2])), Stream("b", (texts[1],))])
    (turns,) = plan[SWITCH]
    answers = [" the answer", "in two"]
    for turn, answer in zip(turns, answers, strict=False):
        ids = (*tokenizer.encode(answer), *([tokenizer.eos_ids[0]] if ended else []))
        talk.append(Text(turn.domain, build_prompt(talk, turn, tokenizer.eos_ids), ids))
    last = build_prompt(talk, turns[2], tokenizer.eos_ids)
    messages = [
        {"role": "user", "content": texts[0]},
        {"role": "assistant", "content": answers[0]},
        {"role": "user", "content": texts[1]},
        {"role": "assistant", "content": answers[1]},
        {"role": "user", "content": texts[2]},
    ]
    rendered = Template(tiny_model.TEMPLATE).render(messages=messages, add_generation_prompt=True)
    joined = b"".join(
        name.encode() if (name := names(tokenizer).get(i)) else tokenizer.token_bytes(i)
        for i in last
    )
    assert joined.decode() == rendered
    assert last[: len(talk[0].prompt)] == talk[0].prompt == turns[0].ids


def names(tokenizer: Any) -> dict[int, str]:
    return {i: name for name, i in tokenizer.special_tokens.items()}


def plan_of(tiny: Tiny, given: list[Stream], raw: bool = False, most: int = 20) -> Any:
    return plan_streams(tiny.model, given, switching=True, max_new_tokens=most, seed=0, raw=raw)


def test_turns_of_a_base_model_are_joined_by_a_blank_line(tiny: Tiny) -> None:
    tokenizer = tiny.model.tokenizer
    texts = {"a": "The sea", "b": "The law"}
    given = [Stream(name, (text,)) for name, text in texts.items()]
    (turns,) = plan_of(tiny, given, raw=True)[SWITCH]
    prompt = build_prompt([], turns[0], tokenizer.eos_ids)
    for end in ((), (tokenizer.eos_ids[0],)):
        first = Text(turns[0].domain, prompt, (*tokenizer.encode(" is"), *end))
        ids = build_prompt([first], turns[1], tokenizer.eos_ids)
        one, two = (texts[turn.domain] for turn in turns)
        assert tokenizer.decode(ids) == f"{one} is\n\n{two}"
        assert not set(tokenizer.eos_ids) & set(ids)


def test_a_conversation_that_may_outgrow_the_context_is_refused(tiny: Tiny) -> None:
    given = [Stream("a", ("The sea",)), Stream("b", ("The law",))]
    length = sum(len(turn.ids) for turn in plan_of(tiny, given)[SWITCH][0])
    most = tiny_model.CONTEXT - length
    plan_of(tiny, given, most=most - 1)
    with pytest.raises(ContextError, match=f"conversation 1 of switch has {tiny_model.CONTEXT}"):
        plan_of(tiny, given, most=most)


# ------------------------------------------------------------------ the comparison


def compared(tiny: Tiny, names: str, **options: Any) -> dict[str, Any]:
    chosen = tuple(Method.parse(name) for name in names.split(","))
    options = {"max_new_tokens": 12, "seed": 0, "switch": True, "sampling": Sampling()} | options
    settings = Settings(chosen, options.pop("gammas", (2,)), **options)
    given = options.get("streams", STREAMS)
    found = compare.compare(tiny.model, tiny.draft, given, settings)
    jsonschema.validate(json.loads(json.dumps(found)), SCHEMA)
    return found


def test_switch_is_a_stream_of_its_own_that_all_leaves_out(tiny: Tiny) -> None:
    found = compared(tiny, "autoregressive,full,frspec@80")
    with_it = {(r["method"], r["stream"]): r for r in found["results"]}
    without = compared(tiny, "autoregressive,full,frspec@80", switch=False)["results"]
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
    said = report.switches(found)
    assert [line.split(",")[0] for line in said] == ["full", "frspec@80"]
    assert "1.00 [1.00, 1.00] of full's tau in the 32 tokens after 6 switches" in said[0]
    assert said[0].endswith("95% regained after 0")
    assert report.switches({"results": without}) == []
    assert [sample["stream"] for sample in found["samples"]] == ["law", "code", "sea"]


def test_each_turn_goes_on_from_the_methods_own_answer(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a temperature, where methods answer differently: what each was asked is what it said."""
    asked: dict[str, list[tuple[tuple[int, ...], tuple[int, ...]]]] = {}
    real = compare.measure

    def noted(rounds: Any, prompt: Any = ()) -> Figures:
        found = real(rounds, prompt)
        asked.setdefault(str(len(found.proposed_at)), []).append((found.prompt, found.tokens))
        return found

    monkeypatch.setattr(compare, "measure", noted)
    compared(tiny, "autoregressive,full", sampling=Sampling(1.0))
    tokenizer = tiny.model.tokenizer
    plan = plan_of(tiny, STREAMS)
    assert len(asked["0"]) == len(asked["2"]) == 16
    for said in asked.values():
        rest = said[8:]  # the single prompts come first
        for turns in plan[SWITCH]:
            talk: list[Text] = []
            for turn in turns:
                prompt, tokens = rest.pop(0)
                assert prompt == build_prompt(talk, turn, tokenizer.eos_ids)
                talk.append(Text(turn.domain, prompt, tokens))
        assert not rest
    assert [p for p, _ in asked["0"]] != [p for p, _ in asked["2"]]


def test_a_list_goes_on_within_a_conversation_and_begins_anew_with_the_next(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    followers: list[Follower] = []
    known: list[int] = []

    class Watched(Follower):
        def select(self, context: Any) -> torch.Tensor:
            if context.depth == 0:
                known.append(len(self.seen))
            return super().select(context)

    def shortlist(method: Method, model: Any, domain: str) -> Any:
        followers.append(Watched(torch.arange(V), 80))
        return followers[-1]

    monkeypatch.setattr(methods, "shortlist", shortlist)
    compared(tiny, "frspec@80", sampling=Sampling(1.0))
    (follower,) = followers
    # To warm up, for each prompt alone, and for each conversation.
    assert follower.resets == 1 + 8 + 2
    assert known.count(0) == 1 + 8 + 2


def test_without_own_is_the_ranking_of_the_turns_domain(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a list that learns then begins anew at each turn, since it is another."""
    made: dict[str, Follower] = {}
    asked: list[tuple[str, int]] = []

    class Watched(Follower):
        domain = ""

        def select(self, context: Any) -> torch.Tensor:
            if context.depth == 0:
                asked.append((self.domain, len(self.seen)))
            return super().select(context)

    def shortlist(method: Method, model: Any, domain: str) -> Any:
        made[domain] = Watched(torch.arange(V), 80)
        made[domain].domain = domain
        return made[domain]

    monkeypatch.setattr(methods, "shortlist", shortlist)
    given = [Stream("law", ("The court",)), Stream("code", ("import this",))]
    settings = Settings(
        (Method.parse("frspec@80:without-own"),), (2,), Sampling(1.0), 12, 0, switch=True
    )
    compare.compare(tiny.model, tiny.draft, given, settings)
    begun = [domain for domain, known in asked if known == 0]
    (talk,) = conversations(given, 0)
    assert begun == ["law", "code", "law", "code", *(domain for domain, _ in talk)]
    assert made.keys() == {"law", "code"}


def test_an_answer_is_audited_in_its_own_context(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A method whose first answer differs goes on from that; what plain decoding would have
    said there is what its next answer is held against."""
    held: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    real = audit.audit

    def noted(target: Any, ids: Any, plain: Any, other: Any, gap: float) -> str:
        held.append((tuple(ids), tuple(plain)))
        return real(target, ids, plain, other, gap)

    monkeypatch.setattr(audit, "audit", noted)
    wrong = compare.decoder

    def decoder(method: Method, *arguments: Any, **options: Any) -> Any:
        right = wrong(method, *arguments, **options)

        def decode(prompt: Any, rng: Any, **more: Any) -> Any:
            rounds = list(right(prompt, rng, **more))
            if method.name == "full":  # says something else in the end
                last = rounds[-1]
                tokens = (*last.tokens[:-1], last.tokens[-1] ^ 1)
                rounds[-1] = type(last)(
                    tokens, "", last.path, last.proposed, last.shortlist_sizes, last.seconds, None
                )
            yield from rounds

        return decode

    monkeypatch.setattr(compare, "decoder", decoder)
    found = compared(tiny, "autoregressive,full")
    rows = {(r["method"], r["stream"]): r["lossless"] for r in found["results"]}
    assert rows["autoregressive", SWITCH]["identical"] == 8
    assert rows["full", SWITCH]["identical"] == 0
    alone = wrong(
        Method("autoregressive"), tiny.model, None, None, gamma=1, sampling=Sampling(),
        stop=compare.StopRule(12, tiny.model.tokenizer.eos_ids),
    )  # fmt: skip
    assert len({ids for ids, _ in held}) > 8 + 8  # contexts of its own
    for ids, plain in held:
        assert plain == compare.measure(alone(ids, compare.SeededRandom(0))).tokens


# ------------------------------------------------------------------ around the switches


def figures(*emitted: int) -> Figures:
    return Figures(
        tokens=tuple(range(sum(emitted))), text="", stop=None, passes=len(emitted), seconds={},
        accepted_at=(), proposed_at=(), latencies=(), shortlist_sizes=(), rows_probed=0,
        emitted=emitted,
    )  # fmt: skip


def test_windows_count_the_rounds_that_begin_in_them() -> None:
    # 48 tokens before the switch: 2 a round, 1 in the last 16; then 1 a round for 8, then 4.
    first, second = figures(*[2] * 16, *[1] * 16), figures(*[1] * 8, *[4] * 10)
    found = switch.curve([[first, second]], None)
    assert (found["switches"], found["window"], found["regained_after"]) == (1, 32, None)
    tau = {window["start"]: window["tau"] for window in found["windows"]}
    assert tau[-32] == pytest.approx(32 / (8 + 16))
    assert tau[-48] == pytest.approx(32 / 16)
    assert tau[0] == pytest.approx(32 / (8 + 6))
    assert tau[8] == pytest.approx(4)
    assert 48 not in tau  # that far no answer goes
    assert all(window["ratio_to_full"] is None for window in found["windows"])


def test_the_ratio_is_pooled_and_its_interval_covers() -> None:
    """Of 50 runs of 40 switches with a known ratio some 47 intervals should hold it; fewer
    than 41 would happen once in some 6,000 runs, if luck were not fixed by the seed."""
    draws, held = random.Random(0), 0
    for _ in range(50):
        ours, full = [], []
        for _ in range(40):
            hard = draws.random()  # shared by both, as the text's difficulty is
            for talks, share in ((ours, 0.4), (full, 0.5)):
                runs = [1 + (draws.random() < share * hard) for _ in range(40)]
                talks.append([figures(*[1] * 40), figures(*runs)])
        window = next(w for w in switch.curve(ours, full)["windows"] if w["start"] == 0)
        ratio = window["ratio_to_full"]
        assert ratio["low"] <= ratio["value"] <= ratio["high"]
        held += ratio["low"] <= (1 + 0.2) / (1 + 0.25) <= ratio["high"]
    assert held >= 41


def test_when_it_is_regained() -> None:
    full = [[figures(*[2] * 50), figures(*[2] * 50)]] * 5
    assert switch.curve(full, full)["regained_after"] == 0
    assert {w["ratio_to_full"]["value"] for w in switch.curve(full, full)["windows"]} == {1.0}
    slow = [[figures(*[2] * 50), figures(*[1] * 24, *[2] * 38)]] * 5
    found = switch.curve(slow, full)
    assert found["regained_after"] == 24
    never = [[figures(*[2] * 50), figures(*[1] * 100)]] * 5
    assert switch.curve(never, full)["regained_after"] is None
    before = [w for w in switch.curve(never, full)["windows"] if w["start"] < 0]
    assert before and all(w["ratio_to_full"]["value"] == 1 for w in before)


def test_answers_too_short_for_a_window_are_left_out_of_it() -> None:
    short, long = figures(*[1] * 4), figures(*[2] * 40)
    ours = [[short, short], [long, long]]
    full = [[short, short], [long, short]]
    found = switch.curve(ours, full)
    windows = {w["start"]: w for w in found["windows"]}
    assert windows[32]["tau"] == 2 and windows[32]["ratio_to_full"] is None
    assert math.isclose(windows[0]["tau"], (4 + 32) / (4 + 16))
    none = switch.curve([[short]], [[short]])
    assert (none["switches"], none["windows"], none["regained_after"]) == (0, [], None)
