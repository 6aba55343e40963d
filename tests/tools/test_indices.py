"""What shortlists search, made by the command that users run, and the methods that search it."""

import threading
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from helpers.tiny_model import Tiny
from minispec.commit import StopRule
from minispec.errors import ArgumentError
from minispec.io.bigram_file import read_bigrams
from minispec.io.lowrank_file import read_factors
from minispec.sampling import Sampling, SeededRandom
from minispec.shortlists.evospec_paper import EvoSpecPaperShortlist
from minispec.shortlists.hnsw import HnswIndex
from minispec.tools.cli import main
from minispec.tools.data import corpus
from minispec.tools.evaluation.assembly import build_decoder, build_shortlist
from minispec.tools.evaluation.methods import Method
from minispec.tools.models import hnsw_cache

TEXT = "the road came to the town and the town came to the road. " * 20


@pytest.fixture(scope="module")
def parts(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an index, a graph of bigrams and the factors of a low-rank head."""
    folder = tmp_path_factory.mktemp("parts")
    command = ["index", "build", "--model", str(tiny.folder), "--domains", "code"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "load_documents", lambda domain, limit=None: iter([TEXT]))
        for options in (
            ["--clusters", "8", "--out", "index"],
            ["--bigrams", "--out", "bigrams"],
            ["--lowrank", "4", "--draft", str(tiny.draft_path), "--out", "lowrank"],
        ):
            out = str(folder / f"{options[-1]}.safetensors")
            assert main.main([*command, *options[:-1], out]) == 0
    return folder


def test_index_build_counts_bigrams_and_fits_a_low_rank_head(tiny: Tiny, parts: Path) -> None:
    model = tiny.model
    size = model.target.head.vocab_size
    graph = read_bigrams(parts / "bigrams.safetensors", size, model.tokenizer.fingerprint)
    ids = model.tokenizer.encode(TEXT)
    [heaviest], [weight] = graph.successors(ids[4], 1)
    after = [second for first, second in pairwise(ids) if first == ids[4]]
    assert weight == pytest.approx(after.count(int(heaviest)) / len(after), rel=1e-3)
    width = model.reference.head.weight.shape[1]
    expand, projection = read_factors(parts / "lowrank.safetensors", width, model.fingerprint)
    assert expand.shape == projection.shape == (width, 4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--lowrank", "0", "--draft", "DRAFT"], "lowrank 0 must lie in 1.."),
        (["--lowrank", "4", "--bigrams"], "not allowed with"),
        (["--bigrams", "--domains", "poetry"], "poetry"),
    ],
)
def test_index_build_refuses_bad_options_in_one_line(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    options = [str(tiny.draft_path) if option == "DRAFT" else option for option in options]
    out = tmp_path / "out.safetensors"
    command = ["index", "build", "--model", str(tiny.folder), "--out", str(out), *options]
    assert main.main(command) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize(
    "spelled",
    ["evospec-paper@40/16", "evospec-paper@0.1", "microspec", "microspec@30", "lowrank@40"],
)
def test_build_decoder_decodes_as_plainly_with_every_method(
    tiny: Tiny, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelled: str
) -> None:
    monkeypatch.setattr(hnsw_cache, "cache_folder", lambda: tmp_path)
    model = replace(tiny.model, index=parts / "index.safetensors")
    options = {"gamma": 3, "sampling": Sampling(), "stop": StopRule(40)}
    texts = []
    for method in ("autoregressive", f"{spelled}+adapt:paper"):
        name, _, learning = method.partition("+")
        if name.startswith("evospec-paper"):
            name += f":{tiny.ranking('general')}"
        method = Method.parse(f"{name}{learning and '+'}{learning}")
        decode = build_decoder(method, model, tiny.draft, None, **options)
        rounds = list(decode([5, 6, 7], SeededRandom(0)))
        texts.append([token for finished in rounds for token in finished.tokens])
    assert texts[0] == texts[1]


def test_build_shortlist_of_evospec_paper_evolves(
    tiny: Tiny, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hnsw_cache, "cache_folder", lambda: tmp_path)
    model = replace(tiny.model, index=parts / "index.safetensors")
    method = Method.parse(f"evospec-paper@20/12:{tiny.ranking('general')}")
    shortlist = build_shortlist(method, model, None)
    assert isinstance(shortlist, EvoSpecPaperShortlist)
    assert (shortlist.budget, str(method)) == (32, method.spelled)
    decode = build_decoder(
        method, model, tiny.draft, None, gamma=3, sampling=Sampling(1.0), stop=StopRule(60),
        shortlist=shortlist,
    )  # fmt: skip
    rounds = list(decode([5, 6, 7], SeededRandom(0)))
    sizes = {size for finished in rounds for size in finished.shortlist_sizes}
    assert min(sizes) == 20 and 20 < max(sizes) <= 32


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_build_shortlist_of_evospec_paper_retrieves_in_the_background_on_a_fast_path(
    tiny: Tiny, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    """With a delay, in which a retrieval has a round to run beside; the ids are the same."""
    monkeypatch.setattr(hnsw_cache, "cache_folder", lambda: tmp_path)
    retrieving: set[int] = set()
    real = HnswIndex.find_nearest

    def record(index: HnswIndex, *arguments: Any) -> Any:
        retrieving.add(threading.get_ident())
        return real(index, *arguments)

    monkeypatch.setattr(HnswIndex, "find_nearest", record)
    model = replace(tiny.model, index=parts / "index.safetensors", backend=backend)
    sizes = {}
    for delay in (1, 2):
        retrieving.clear()
        method = Method.parse(f"evospec-paper@20/12/{delay}:{tiny.ranking('general')}")
        shortlist = build_shortlist(method, model, None)
        decode = build_decoder(
            method, model, tiny.draft, None, gamma=3, sampling=Sampling(1.0), stop=StopRule(60),
            shortlist=shortlist,
        )  # fmt: skip
        rounds = list(decode([5, 6, 7], SeededRandom(0)))
        sizes[delay] = [size for finished in rounds for size in finished.shortlist_sizes]
        own = threading.get_ident() not in retrieving
        assert retrieving and own == (backend == "cpu" and delay == 2)
    assert sizes[1] != sizes[2]


@pytest.mark.parametrize(
    ("spelled", "words"),
    [
        ("in_context@40", "in_context is called microspec now"),
        ("routed", "routed is called dynaspec now"),
        ("evospec-paper@0.25/", "buffer '' is not a number of ids"),
        ("evospec-paper@0.25/0", "buffer '0' is not a number of ids"),
        ("evospec-paper@0.25/256/0", "delay '0' is not a number of rounds"),
        ("evospec-paper@0.25/256/2/3", "delay '2/3' is not a number of rounds"),
        ("evospec-paper@/256", "budget '' is not a number"),
        ("microspec:general", "microspec takes no ranking"),
        ("microspec@0", "budget 0"),
        ("evospec@40/16", "budget '40/16' is not a number"),
        ("autoregressive+adapt:paper", "drop +adapt:paper"),
    ],
)
def test_parse_refuses_what_is_spelled_wrong(spelled: str, words: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        Method.parse(spelled)
    assert words in str(caught.value)


def test_build_shortlist_refuses_a_buffer_larger_than_the_vocabulary(tiny: Tiny) -> None:
    method = Method.parse(f"evospec-paper@20/999:{tiny.ranking('general')}")
    with pytest.raises(ArgumentError, match=r"core 20 and buffer 999 .* exceed the vocabulary of"):
        build_shortlist(method, tiny.model, None)
    method = Method.parse(f"evospec-paper@20/9:{tiny.ranking('general')}")
    with pytest.raises(ArgumentError, match="index build --bigrams"):
        build_shortlist(method, tiny.model, None)
