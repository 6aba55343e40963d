"""The explore page: its data equals what was decoded, and it works with the keyboard alone, on any
screen and without a network."""

import copy
import json
import re
from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from playwright.sync_api import expect

from helpers.tiny_model import Tiny
from minispec.commit import StopRule
from minispec.errors import ArgumentError, ContextError, FileError
from minispec.sampling import Sampling, SeededRandom
from minispec.shortlists.statistical import recent_ids
from minispec.text.tokenizer import encode_prompt
from minispec.tools.cli import main
from minispec.tools.evaluation import assembly
from minispec.tools.evaluation.compare import Settings
from minispec.tools.evaluation.methods import Method
from minispec.tools.models.pretrained import Pretrained
from minispec.tools.reporting import explore
from minispec.types import BaseShortlist, Context, Round

Show = Callable[..., Any]
PROMPT = 'The sea 🌈 </script><script>alert("loud")</script><!-- <b>bold</b> &amp;'
LENGTH, SEED = 60, 1


@pytest.fixture(scope="module")
def model(tiny: Tiny) -> Pretrained:
    """The tiny model with an index."""
    path = tiny.folder.parent / "index.safetensors"
    command = ["index", "build", "--model", str(tiny.folder), "--clusters", "40"]
    assert main.main([*command, "--out", str(path)]) == 0
    return replace(tiny.model, index=path)


def settings(tiny: Tiny, *names: str, gamma: int = 2, **changes: Any) -> Settings:
    """At this temperature some tokens are accepted, some rejected, and some chains complete."""
    spelled = (name.replace("RANKING", str(tiny.ranking("general"))) for name in names)
    chosen = Settings(tuple(map(Method.parse, spelled)), (gamma,), Sampling(4.0), LENGTH, SEED)
    return replace(chosen, **changes)


NAMES = (
    "autoregressive", "full", "frspec@120:RANKING", "evospec@90:RANKING", "microspec",
)  # fmt: skip


@pytest.fixture(scope="module")
def page_data(tiny: Tiny, model: Pretrained) -> dict[str, Any]:
    return explore.explore(model, tiny.draft, PROMPT, settings(tiny, *NAMES))


@pytest.fixture(scope="module")
def path(page_data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "explore.html"
    explore.write(page_data, path)
    return path


def decode(tiny: Tiny, model: Pretrained, name: str, **changes: Any) -> list[Round]:
    """The rounds of a method without recording."""
    chosen = settings(tiny, name, **changes)
    run = assembly.build_decoder(
        chosen.methods[0], model, tiny.draft, None, gamma=chosen.gammas[0], trace=True,
        sampling=chosen.sampling, stop=StopRule(LENGTH, model.tokenizer.eos_ids),
        verifier=chosen.verifier,
    )  # fmt: skip
    ids = encode_prompt(model.tokenizer, PROMPT, chosen.raw)
    return list(run(ids, SeededRandom(SEED)))


def list_fates(run: dict[str, Any]) -> list[str]:
    """The fate of each emitted token, from the rounds."""
    fates = []
    for finished in run["rounds"]:
        last = "recovered" if finished["kept"] < len(finished["drafted"]) else "bonus"
        fates += ["accepted"] * finished["kept"]
        fates += [last if finished["drafted"] else "plain"] * (
            len(finished["tokens"]) - finished["kept"]
        )
    return fates


# ------------------------------------------------------------------ the data


@pytest.mark.parametrize("number", range(len(NAMES)), ids=[n.partition("@")[0] for n in NAMES])
def test_explore_records_the_decoded_rounds(
    tiny: Tiny, model: Pretrained, page_data: dict[str, Any], number: int
) -> None:
    """Tokens, distributions and residuals equal those of a decoder without recording."""
    run, rounds = page_data["runs"][number], decode(tiny, model, NAMES[number])
    assert len(run["rounds"]) == len(rounds) == run["target_passes"]
    residuals = 0
    for recorded, finished in zip(run["rounds"], rounds, strict=True):
        evidence = finished.evidence
        assert evidence
        assert [token for token, _ in recorded["tokens"]] == list(finished.tokens)
        assert [token for token, _ in recorded["drafted"]] == list(finished.proposed)
        assert recorded["kept"] == len(finished.path)
        assert list(recorded["sizes"]) == list(finished.shortlist_sizes)
        assert {"target", "verify"} <= recorded["ms"].keys() and min(recorded["ms"].values()) >= 0
        for (token, q), distribution in zip(
            recorded["drafted"], evidence.proposal.draft_distributions, strict=True
        ):
            assert q == pytest.approx(float(distribution.probability(token)), rel=1e-3)
        for i, (rows, p) in enumerate(
            zip(recorded["positions"], evidence.target_distributions, strict=True)
        ):
            ids = [row[0] for row in rows]
            assert len(set(ids)) == len(ids) and {*finished.tokens[i : i + 1]} <= {*ids}
            assert {*p.ids[p.probs.topk(8).indices].tolist()} <= {*ids}
            assert [row[1] for row in rows] == pytest.approx(p.probs[ids].tolist(), rel=1e-3)
            rejected = i == len(finished.path) and i < len(finished.proposed)
            residuals += rejected
            if i >= len(finished.proposed):
                assert all(row[2] is None for row in rows)
                continue
            q = torch.zeros(len(p.ids))
            distribution = evidence.proposal.draft_distributions[i]
            q[distribution.ids] = distribution.probs
            assert {
                *distribution.ids[distribution.probs.topk(8).indices].tolist(),
                finished.proposed[i],
            } <= {*ids}
            assert [row[2] for row in rows] == pytest.approx(q[ids].tolist(), rel=1e-3)
            positive = (p.probs - q).clamp(min=0)
            expected = (positive / positive.sum())[ids].tolist()
            residual = [row[3] for row in rows]
            assert rejected or residual == [None] * len(ids)
            assert not rejected or residual == pytest.approx(expected, rel=2e-3, abs=1e-7)
    assert bool(residuals) == (NAMES[number] != "autoregressive")
    tokens = [token for finished in rounds for token in finished.tokens]
    recorded_text = "".join(text for finished in run["rounds"] for _, text in finished["tokens"])
    assert recorded_text == run["text"] == model.tokenizer.decode(tokens)


def test_explore_records_the_acceptance_decisions(page_data: dict[str, Any]) -> None:
    accepted = rejected = 0
    for run in page_data["runs"]:
        for finished in run["rounds"]:
            kept, drafted = finished["kept"], finished["drafted"]
            assert len(finished["decisions"]) == min(len(drafted), kept + 1)
            for i, (probability, u) in enumerate(finished["decisions"]):
                assert (u < probability) == (i < kept)
                _, p, q, _, _ = next(r for r in finished["positions"][i] if r[0] == drafted[i][0])
                assert probability == pytest.approx(min(1, p / q), rel=3e-3)
                accepted, rejected = accepted + (i < kept), rejected + (i == kept)
    assert accepted > 20 and rejected > 20


def test_explore_records_block_decisions_from_the_longest_prefix(
    tiny: Tiny, model: Pretrained
) -> None:
    chosen = settings(tiny, "full", verifier="block", gamma=4)
    [run] = explore.explore(model, tiny.draft, PROMPT, chosen)["runs"]
    rounds = decode(tiny, model, "full", verifier="block", gamma=4)
    assert run["ids"] == [token for finished in rounds for token in finished.tokens]
    lengths = set()
    for finished in run["rounds"]:
        below = [u < probability for probability, u in finished["decisions"]]
        rejected = len(finished["drafted"]) - finished["kept"]
        assert below == [False] * rejected + [True] * (finished["kept"] > 0)
        lengths.add(len(below))
    assert len(lengths) > 2


def test_explore_records_the_part_of_each_id(
    tiny: Tiny, model: Pretrained, page_data: dict[str, Any]
) -> None:
    size = model.target.head.vocab_size
    evolving = assembly.build_shortlist(settings(tiny, NAMES[3]).methods[0], model, None)
    assert isinstance(evolving, BaseShortlist)
    core = {*evolving.explain(Context((5,), torch.zeros(32), 0))["core"].tolist()}
    text = encode_prompt(model.tokenizer, PROMPT, False)
    seen = set()
    for finished in page_data["runs"][3]["rounds"]:
        assert (
            sum(count for _, count, _ in finished["parts"]) == (finished["sizes"] or [0])[0] <= 90
        )
        for name, count, ids in finished["parts"]:
            assert len(ids) == min(count, 8)
            assert name != "core" or {*ids} <= core
        for rows in finished["positions"]:
            for token, _, q, _, part in rows:
                seen.add(part)
                assert (part == "core") == (token in core) or not finished["drafted"]
                if part == "recency":
                    assert token in recent_ids(text)
                if q is not None:
                    assert (q == 0) == (part == "outside")
        text += [token for token, _ in finished["tokens"]]
    assert {"core", "recency", "semantic", "successor", "outside"} <= seen
    # A shortlist without parts is one part; plain decoding has no shortlist.
    parts = [
        {row[4] for each in run["rounds"] for rows in each["positions"] for row in rows}
        for run in page_data["runs"][:2]
    ]
    assert parts == [{None}, {"shortlist", None}]
    assert all(0 <= token < size for token in page_data["texts"])


def test_explore_records_nothing_after_a_stop(tiny: Tiny, model: Pretrained) -> None:
    """At an accepted token: no rejection, no residual, no token of the target's own."""
    rounds = decode(tiny, model, "full", gamma=4)
    emitted, end = set[int](), -1
    for finished in rounds:
        if len(finished.path) > 1 and finished.tokens[0] not in emitted:
            end = finished.tokens[0]
            break
        emitted |= {*finished.tokens}
    tokenizer = copy.copy(model.tokenizer)
    tokenizer.eos_ids = (end,)
    stopping = replace(model, tokenizer=tokenizer)
    data = explore.explore(stopping, tiny.draft, PROMPT, settings(tiny, "full", gamma=4))
    *_, last = data["runs"][0]["rounds"]
    assert data["runs"][0]["stop"] == "eos"
    assert [token for token, _ in last["tokens"]] == [end] and last["kept"] == 1
    assert len(last["drafted"]) == len(last["positions"]) == 1 and len(last["decisions"]) >= 1
    assert all(row[3] is None for row in last["positions"][0])


def test_greedy_methods_have_the_same_text(tiny: Tiny, model: Pretrained) -> None:
    data = explore.explore(
        model, tiny.draft, PROMPT, settings(tiny, *NAMES[:4], sampling=Sampling())
    )
    assert len({run["text"] for run in data["runs"]}) == 1
    for run in data["runs"]:
        for rows in (rows for finished in run["rounds"] for rows in finished["positions"]):
            assert sorted(row[1] for row in rows)[-1] == 1 and len(rows) <= 3


def test_explore_checks_its_input_before_decoding(
    tiny: Tiny, model: Pretrained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(model.target), "step", lambda *_: pytest.fail("decoding began"))
    with pytest.raises(ArgumentError, match="needs a draft"):
        explore.explore(model, None, PROMPT, settings(tiny, "autoregressive", "full"))
    with pytest.raises(ArgumentError, match="no ranking 'general'"):
        explore.explore(model, tiny.draft, PROMPT, settings(tiny, "full", "frspec"))
    with pytest.raises(ContextError, match="context holds 2048"):
        explore.explore(model, tiny.draft, "the sea " * 2048, settings(tiny, "full"))


# ------------------------------------------------------------------ the page


def test_page_escapes_the_prompt(path: Path, page_data: dict[str, Any], show: Show) -> None:
    template = resources.files("minispec").joinpath("data/explore.html").read_text("utf-8")
    page = path.read_text("utf-8")
    assert page.count("<") == template.count("<")  # no further tag or comment
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert data and json.loads(data[1])["prompt"] == PROMPT
    assert any("\\x" in text for text in page_data["texts"].values())  # bytes of half a character
    seen = show(path)
    assert seen.tab.locator("#prompt").text_content() == PROMPT
    assert seen.errors == [] and seen.requests == [path.as_uri()]
    assert seen.tab.title() == f"minispec: {page_data['model']}, round by round"


def test_page_colours_text_by_fate_and_origin(
    path: Path, page_data: dict[str, Any], show: Show
) -> None:
    tab = show(path).tab
    assert tab.locator("h2").all_inner_texts() == [run["method"] for run in page_data["runs"]]
    all_origins = []
    for number, run in enumerate(page_data["runs"]):
        tokens = tab.locator(".text").nth(number).locator(".token:not(.rejected)")
        kinds = [name.split() for name in tokens.evaluate_all("all => all.map(t => t.className)")]
        assert [kind[1] for kind in kinds] == list_fates(run)
        pieces = [
            each for r in run["rounds"] for each in zip(r["tokens"], r["positions"], strict=True)
        ]
        origins = [next(row[4] for row in rows if row[0] == token[0]) for token, rows in pieces]
        assert [kind[2] if len(kind) > 2 else None for kind in kinds] == origins
        all_origins.append({*origins})
        shown = "".join(tokens.evaluate_all("all => all.map(t => t.textContent)"))
        assert shown.replace("↵\n", "\n") == run["text"]
        rejected = tab.locator(".text").nth(number).locator(".rejected")
        assert rejected.count() == list_fates(run).count("recovered")
    colours = "all => new Set(all.map(t => getComputedStyle(t).backgroundColor)).size"
    tab.evaluate("show(last)")
    evolving = tab.locator(".text").nth(3).locator(".token:not(.rejected)")
    assert evolving.evaluate_all(colours) == len({*list_fates(page_data["runs"][3])})
    tab.get_by_label("origin").check()
    assert evolving.evaluate_all(colours) == len(all_origins[3]) > 3
    assert "successor" in tab.locator("#legend").inner_text()


def test_page_works_with_the_keyboard_alone(
    path: Path, page_data: dict[str, Any], show: Show
) -> None:
    seen = show(path)
    tab = seen.tab
    last = max(len(run["rounds"]) for run in page_data["runs"])
    where = tab.locator("#where")
    tab.evaluate("show(1)")
    assert where.inner_text() == f"Round 1 of {last}"
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowLeft")
    assert where.inner_text() == f"Round 2 of {last}"
    assert f"Round 2 of {last}. autoregressive: one token" in tab.locator("#status").inner_text()

    reached: dict[str, Any] = {}
    for _ in range(60):
        tab.keyboard.press("Tab")
        focus = tab.evaluate(
            """() => { const e = document.activeElement, style = getComputedStyle(e);
            return {name: e.id || e.name || e.className, tag: e.tagName, width: style.outlineWidth,
            style: style.outlineStyle, label: e.ariaLabel || e.parentElement.innerText}; }"""
        )
        if focus["tag"] == "BODY":
            break
        reached.setdefault(focus["name"], focus)
        if focus["name"] == "slider":
            tab.keyboard.press("ArrowRight")
            assert where.inner_text() == f"Round 3 of {last}"
            tab.keyboard.press("End")
            assert where.inner_text() == f"Round {last} of {last}"
            assert tab.locator("#slider").get_attribute("aria-valuetext") == where.inner_text()
            tab.keyboard.press("Home")
        if focus["name"] == "on":
            tab.keyboard.press("Enter")
            assert where.inner_text() == f"Round 2 of {last}"
        if focus["name"] == "colour":
            tab.keyboard.press("ArrowRight")
            assert tab.locator("body").get_attribute("data-colour") == "origin"
    assert {"prompt", "back", "slider", "on", "colour", "text", "position-1", "position-4"} <= {
        *reached
    }
    assert all(focus["style"] == "solid" and focus["width"] == "3px" for focus in reached.values())
    assert all(focus["label"].strip() for focus in reached.values())
    assert seen.errors == []


def test_page_shows_the_data_of_each_round(
    path: Path, page_data: dict[str, Any], show: Show
) -> None:
    """The tables of every round, and the choice of a position by keys."""
    seen = show(path)
    tab, number = seen.tab, 3
    run = page_data["runs"][number]
    section = tab.locator("section").nth(number)
    for at, finished in enumerate(run["rounds"], 1):
        tab.evaluate(f"show({at})")
        assert section.locator("h3").first.inner_text().startswith(f"Round {at} of ")
        assert tab.locator(".text").nth(number).locator(".now").count() == 1
        drafted, distributions, *_ = section.locator("table").all()
        own = len(finished["tokens"]) > finished["kept"]
        assert drafted.locator("tbody tr").count() == len(finished["drafted"]) + own
        assert drafted.locator(".gauge").count() == len(finished["decisions"])
        assert drafted.locator("input").count() == len(finished["positions"])
        assert distributions.locator("tbody tr").count() == len(finished["positions"][-1]) + 1
    at = next(at for at, finished in enumerate(run["rounds"], 1) if finished["kept"] == 1)
    tab.evaluate(f"show({at})")
    finished = run["rounds"][at - 1]
    drafted, distributions, *_ = section.locator("table").all()
    # The position of the rejection is selected: it has p, q and the residual.
    assert distributions.locator("thead").inner_text().split() == ["token", "p", "q", "residual"]
    drafted.locator("input").last.focus()
    tab.keyboard.press("ArrowUp")
    drafted, distributions, *_ = section.locator("table").all()
    assert distributions.locator("thead").inner_text().split() == ["token", "p", "q"]
    assert distributions.locator("tbody tr").count() == len(finished["positions"][0]) + 1
    assert "drafted, emitted" in distributions.inner_text()
    assert tab.evaluate("document.activeElement.type") == "radio"
    # A method with fewer rounds than the others is marked as finished.
    tab.evaluate("show(last)")
    assert f"finished after {len(run['rounds'])} rounds" in tab.locator("#status").inner_text()
    assert seen.errors == []


def test_page_begins_with_a_round_in_which_something_happens(
    path: Path, page_data: dict[str, Any], show: Show
) -> None:
    tab = show(path).tab
    at = int(tab.locator("#where").inner_text().split()[1])
    rounds = [run["rounds"] for run in page_data["runs"]]
    eventful = [0 < r[at - 1]["kept"] < len(r[at - 1]["drafted"]) for r in rounds if len(r) >= at]
    assert any(eventful)
    links = tab.locator("section").nth(3).locator(".chapter a")
    for link in links.evaluate_all("all => all.map(a => a.href)"):
        assert Path(link.removeprefix("file://")).is_file()
    assert len(links.all()) == 4  # of the round, the distributions, the shortlist, the times


def test_page_plays_until_someone_takes_over(path: Path, show: Show) -> None:
    tab = show(path, reduced_motion="no-preference").tab
    assert tab.locator("#play").inner_text() == "Pause"
    start = tab.locator("#where").inner_text()
    expect(tab.locator("#where")).not_to_have_text(start)
    tab.keyboard.press("ArrowRight")
    assert tab.locator("#play").inner_text() == "Play"
    tab.locator("#play").click()
    assert tab.locator("#play").inner_text() == "Pause"


def test_page_shows_one_method_at_a_time_on_a_phone(path: Path, show: Show) -> None:
    tab = show(path, viewport={"width": 390, "height": 844}).tab
    for number in (0, 3):
        tab.get_by_role("tab").nth(number).click()
        assert tab.locator("section:visible").count() == 1
        assert tab.locator("section").nth(number).is_visible()


def test_page_goes_to_the_clicked_round(path: Path, page_data: dict[str, Any], show: Show) -> None:
    tab = show(path).tab
    tab.locator(".text").nth(1).locator("span[data-round='4']").click(position={"x": 2, "y": 5})
    assert tab.locator("#where").inner_text().startswith("Round 4 of")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1280])
def test_page_fits_the_screen(path: Path, show: Show, width: int, scheme: str) -> None:
    seen = show(path, viewport={"width": width, "height": 800}, color_scheme=scheme)
    tab = seen.tab
    wider = """() => [...document.querySelectorAll('*')]
        .filter(e => !e.closest('.hidden, .text *') && e.getBoundingClientRect().right > innerWidth)
        .map(e => e.outerHTML)"""
    for at in range(1, 40, 3):
        tab.evaluate(f"show({at})")
        assert tab.evaluate("document.documentElement.scrollWidth") == width
        assert tab.evaluate(wider) == []
    inside = "all => all.every(e => e.scrollWidth <= e.clientWidth)"
    assert tab.locator(".text").evaluate_all(inside)
    sizes = "all => Math.min(...all.map(e => parseFloat(getComputedStyle(e).fontSize)))"
    assert tab.locator("td, th, p, span").evaluate_all(sizes) >= 11
    paper, ink = (
        tab.locator("body").evaluate(f"e => getComputedStyle(e).{name}").strip("rgb()").split(",")
        for name in ("backgroundColor", "color")
    )
    light, dark = (paper, ink) if scheme == "light" else (ink, paper)
    assert min(map(int, light)) > 200 and max(map(int, dark)) < 60
    assert tab.locator("#tabs").is_visible() == (width == 375)
    assert tab.locator("section:visible").count() == (1 if width == 375 else len(NAMES))
    columns = {round(box["x"]) for e in tab.locator("section").all() if (box := e.bounding_box())}
    assert len(columns) == (1 if width == 375 else 3)
    assert seen.errors == []


def test_page_shows_rounds_of_every_kind(
    tiny: Tiny, model: Pretrained, show: Show, tmp_path: Path
) -> None:
    """Block verification, plain decoding alone, a stop at an accepted token."""
    block = settings(tiny, "full", verifier="block", gamma=4)
    plain = settings(tiny, "autoregressive", max_new_tokens=1, sampling=Sampling())
    truncated = explore.explore(model, tiny.draft, PROMPT, settings(tiny, "full", gamma=4))
    rounds = truncated["runs"][0]["rounds"]
    del rounds[next(i for i, finished in enumerate(rounds, 1) if finished["kept"] == 2) :]
    for name in ("drafted", "tokens", "positions"):
        del rounds[-1][name][2:]
    for data in (
        explore.explore(model, tiny.draft, "Say", block),
        explore.explore(model, None, "Say", plain),
        truncated,
    ):
        explore.write(data, tmp_path / "any.html")
        seen = show(tmp_path / "any.html")
        seen.tab.evaluate("for (let at = 1; at <= last; at++) show(at)")
        assert seen.errors == []
    lines = seen.tab.locator("section table").first.locator("tbody tr")
    assert [line.split()[-1] for line in lines.locator(".tag").all_inner_texts()] == [
        "accepted"
    ] * 2


def test_page_of_two_hundred_tokens_is_small_and_opens_fast(
    tiny: Tiny, model: Pretrained, show: Show, tmp_path: Path
) -> None:
    chosen = settings(tiny, *NAMES[1:4], gamma=16, max_new_tokens=200, ignore_eos=True)
    page_data = explore.explore(model, tiny.draft, PROMPT, chosen)
    assert all(run["tokens"] == 200 for run in page_data["runs"])
    explore.write(page_data, tmp_path / "long.html")
    assert (tmp_path / "long.html").stat().st_size < 2e6
    script = "performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd"
    load_times = (show(tmp_path / "long.html").tab.evaluate(script) for _ in range(5))
    assert any(milliseconds < 2000 for milliseconds in load_times)


# ------------------------------------------------------------------ the command


def test_explore_command_writes_the_page(
    tiny: Tiny, model: Pretrained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "page.html"
    out.parent.mkdir()
    command = ["explore", "The sea", "--model", str(tiny.folder), "--draft", str(tiny.draft_path)]
    command += ["--methods", f"full,evospec@90:{tiny.ranking('general')}", "--index"]
    command += [str(model.index), "--max-new-tokens", "5", "--ignore-eos", "--out", str(out)]
    assert main.main(command) == 0
    assert capsys.readouterr().out == f"wrote {out}\n"
    assert '"temperature":0.8' in out.read_text("utf-8")
    assert [each.name for each in out.parent.iterdir()] == ["page.html"]


def test_write_leaves_no_partial_page(page_data: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot write"):
        explore.write(page_data, tmp_path / "file" / "page.html")
    with pytest.raises(ValueError, match="JSON"):
        explore.write(page_data | {"seed": float("nan")}, tmp_path / "page.html")
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
