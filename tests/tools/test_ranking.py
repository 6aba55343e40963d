"""Rankings, their files, the shortlists that are cut from them, and methods by name."""

import random
import tempfile
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from helpers.tiny_model import Tiny
from minispec.errors import ArgumentError, FileError, FileWarning, FingerprintError
from minispec.io.files import read_metadata, read_tensors, write_tensors
from minispec.preconditions import check_gamma
from minispec.shortlists.frspec import FRSpecShortlist, truncate_ranking
from minispec.shortlists.full import FullShortlist
from minispec.tools.cli import main
from minispec.tools.data import ranking
from minispec.tools.evaluation.assembly import build_shortlist
from minispec.tools.evaluation.methods import Method
from minispec.types import Context, Shortlist

TOKENIZER = "a" * 64
CONTEXT = Context((1, 2), torch.zeros(4), 0)


# ------------------------------------------------------------------ the order


def test_count_ids_counts_texts() -> None:
    counts = ranking.count_ids([[1, 1, 3], [], [3, 1]], 5)
    assert counts.dtype == torch.int64
    assert counts.tolist() == [0, 3, 0, 2, 0]
    assert ranking.count_ids([], 3).tolist() == [0, 0, 0]


def test_rank_ids_breaks_ties_by_the_lower_id() -> None:
    assert ranking.rank_ids(torch.tensor([2, 5, 2, 0, 5, 0])).tolist() == [1, 4, 0, 2, 3, 5]
    draws = random.Random(0)
    for size in (1, 2, 50, 5000):
        counts = [draws.randrange(4) for _ in range(size)]  # many ties
        expected = sorted(range(size), key=lambda i: (-counts[i], i))
        assert ranking.rank_ids(torch.tensor(counts)).tolist() == expected
        assert ranking.rank_ids(torch.tensor(counts, dtype=torch.float64)).tolist() == expected


def test_mean_frequencies_weighs_sources_equally() -> None:
    short, long = torch.tensor([0, 1, 3]), torch.tensor([6_000, 2_000, 0])
    assert ranking.mean_frequencies([short, long]).tolist() == [0.375, 0.25, 0.375]
    # If counts were summed instead, the long source would decide alone.
    assert ranking.rank_ids(ranking.mean_frequencies([short, long])).tolist() == [0, 2, 1]
    assert ranking.rank_ids(short + long).tolist() == [0, 1, 2]
    assert torch.equal(ranking.mean_frequencies([long]), ranking.mean_frequencies([long * 7, long]))
    assert ranking.mean_frequencies([torch.zeros(2), torch.tensor([1, 1])]).tolist() == [0.25, 0.25]


def test_rank_command_counts_cuts_and_converts(tiny: Tiny, tmp_path: Path) -> None:
    first, second = tmp_path / "a.txt", tmp_path / "b.txt"
    first.write_text("the the the and" * 50)
    second.write_text("zzzz")
    command = ["rank", "--model", str(tiny.folder), "--text", str(first), str(second)]
    out, short = tmp_path / "new" / "x.safetensors", tmp_path / "short.pt"
    assert main.main([*command, "--out", str(out)]) == 0
    tokenizer = tiny.model.tokenizer
    ids = ranking.read_ranking(out, tokenizer.fingerprint, tokenizer.vocab_size)
    assert sorted(ids.tolist()) == list(range(tokenizer.vocab_size))
    # One text is all z; in the other no token has more than half of the text.
    assert [tokenizer.token_bytes(i) for i in ids[:2].tolist()] == [b"z", b" "]
    shares = ranking.mean_frequencies(
        [
            ranking.count_ids([tokenizer.encode(path.read_text())], tokenizer.vocab_size)
            for path in (first, second)
        ]
    )
    assert torch.equal(ids, ranking.rank_ids(shares))
    assert read_metadata(out, dict[str, str])["texts"] == "a.txt b.txt"
    assert main.main([*command, "--budget", "9", "--out", str(short)]) == 0
    kept = torch.load(short, weights_only=True)
    assert torch.equal(kept[:7], ids[:7])  # and the two EOS ids, rare as they are
    assert set(kept[7:].tolist()) == set(tokenizer.eos_ids)
    for budget in (1, 2, 5, 9):
        converted = ["rank", "--model", str(tiny.folder), "--ranking", str(out)]
        assert main.main([*converted, "--budget", str(budget), "--out", str(short)]) == 0
        assert torch.equal(
            torch.load(short, weights_only=True), truncate_ranking(ids, budget, tokenizer.eos_ids)
        )


@pytest.mark.parametrize(
    ("budget", "expected"),
    [(1, [7]), (2, [7, 9]), (3, [4, 7, 9]), (4, [4, 7, 2, 9]), (5, [4, 7, 2, 5, 9])],
)
def test_truncate_ranking_keeps_the_order_and_eos_ids(budget: int, expected: list[int]) -> None:
    """One EOS id is frequent, one is not ranked at all; neither is lost at any budget."""
    ids = truncate_ranking(torch.tensor([4, 7, 2, 5, 3]), budget, (7, 9))
    assert ids.tolist() == expected


# ------------------------------------------------------------------ the files


def test_read_ranking_restores_what_was_written(tmp_path: Path) -> None:
    path, ids = tmp_path / "x.safetensors", torch.tensor([3, 0, 4, 1, 2])
    ranking.write_ranking(path, ids, TOKENIZER, {"domains": "law"})
    read = ranking.read_ranking(path, TOKENIZER, 5)
    assert torch.equal(read, ids) and read.dtype == torch.int64
    metadata = {"tokenizer": TOKENIZER, "domains": "law", "unseen": "2"}
    assert read_metadata(path, dict[str, str]) == metadata
    assert read_tensors(path)["ids"].tolist() == [3, 0, 4]


@given(st.permutations(range(7)), st.integers(1, 7))
def test_read_ranking_restores_complete_and_cut_rankings(order: list[int], count: int) -> None:
    ids = torch.tensor(order[:count])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        ranking.write_ranking(path, ids, TOKENIZER, {})
        assert torch.equal(ranking.read_ranking(path, TOKENIZER, 7), ids)


@pytest.mark.parametrize(
    ("unseen", "reason"),
    [
        ("two", "unseen: expected int, got str, 'two'"),
        ("-1", "unseen: expected int >= 0, got -1|unseen: expected int >= 0, got '-1'"),
        ("1.5", "unseen: expected int"),
        ("9" * 5000, "unseen: "),
        ("3", "unseen ids: with its 3 ranked ids there can be at most 2"),
    ],
)
def test_read_ranking_refuses_a_wrong_number_of_unseen_ids(
    tmp_path: Path, unseen: str, reason: str
) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(
        path, {"ids": torch.tensor([3, 0, 4])}, {"tokenizer": TOKENIZER, "unseen": unseen}
    )
    with pytest.raises(FileError, match=reason):
        ranking.read_ranking(path, TOKENIZER, 5)


def test_read_ranking_refuses_another_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    ranking.write_ranking(path, torch.arange(5), "a" * 64, {})
    with pytest.raises(FingerprintError) as error:
        ranking.read_ranking(path, "b" * 64, 5)  # with as many ids
    assert all(part in str(error.value) for part in (str(path), "a" * 12, "b" * 12, "rank"))
    write_tensors(path, {"ids": torch.arange(5)}, {})
    with pytest.raises(FingerprintError, match="does not say which tokenizer it was made for"):
        ranking.read_ranking(path, "b" * 64, 5)


@pytest.mark.parametrize(
    ("ids", "reason"),
    [
        ([0, 5], "ids 0..5, the vocabulary has 0..4"),
        ([-1, 2], "ids -1..2"),
        ([], "ids has dtype F32|does not hold ids: expected one or more integers"),
        ([[1, 2]], "ids has shape|does not hold ids"),
        ([1.0, 2.0], "ids has dtype F32|does not hold ids"),
        ([True, False], "ids has dtype BOOL|is a mask over the vocabulary|does not hold ids"),
        ([1 + 1j], "has dtype C64|does not hold ids"),
    ],
)
def test_rankings_and_token_maps_refuse_bad_ids(tmp_path: Path, ids: list, reason: str) -> None:
    tensor, path = torch.tensor(ids), tmp_path / "x.safetensors"
    write_tensors(path, {"ids": tensor}, {"tokenizer": TOKENIZER})
    torch.save(tensor, tmp_path / "tensor.pt")
    torch.save(ids, tmp_path / "list.pt")
    for read in (
        lambda: ranking.read_ranking(path, TOKENIZER, 5),
        lambda: ranking.read_token_map(tmp_path / "tensor.pt", 5),
        lambda: ranking.read_token_map(tmp_path / "list.pt", 5),
    ):
        with pytest.raises(FileError, match=reason) as error:
            read()
        assert str(tmp_path) in str(error.value)


def test_read_ranking_refuses_duplicates_and_read_token_map_drops_them(tmp_path: Path) -> None:
    path, ids = tmp_path / "x.safetensors", torch.tensor([1, 2, 1, 0, 1])
    write_tensors(path, {"ids": ids}, {"tokenizer": TOKENIZER})
    with pytest.raises(FileError, match="2 duplicate ids: it is damaged"):
        ranking.read_ranking(path, TOKENIZER, 5)
    for value in (ids, ids.tolist()):
        torch.save(value, tmp_path / "x.pt")
        with pytest.warns(FileWarning, match=r"x\.pt has 2 duplicate ids: dropped"):
            assert ranking.read_token_map(tmp_path / "x.pt", 5).tolist() == [1, 2, 0]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (torch.tensor([0, 0, 0, 1, 1, 4]), r"offsets of an EAGLE-3 draft \(d2t\)"),
        (torch.tensor([True, False]), r"a mask over the vocabulary \(t2d of an EAGLE-3 draft\)"),
        ({"d2t": torch.arange(3)}, r"an EAGLE-3 draft with a vocabulary of its own \(d2t, t2d\)"),
        ({"fc.weight": torch.ones(2)}, "an EAGLE draft of another project"),
        ({1: 2}, "a dictionary, not a token map"),
    ],
)
def test_read_token_map_names_what_other_projects_write(
    tmp_path: Path, value: object, reason: str
) -> None:
    torch.save(value, tmp_path / "x.bin")
    with pytest.raises(FileError, match=reason):
        ranking.read_ranking(tmp_path / "x.bin", TOKENIZER, 8)


def test_read_token_map_refuses_what_would_take_memory(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save(torch.zeros(1, dtype=torch.int64).expand(2**40), path)
    with pytest.raises(FileError, match="has 1099511627776 ids, the vocabulary only 5"):
        ranking.read_token_map(path, 5)
    for compression, reason in (
        (zipfile.ZIP_DEFLATED, "not compressed"),
        (zipfile.ZIP_STORED, "in it would have 3,000,000 bytes"),
    ):
        with zipfile.ZipFile(path, "w", compression) as archive:
            archive.writestr("x/data.pkl", bytes(3_000_000))
        with pytest.raises(FileError, match=reason):
            ranking.read_token_map(path, 5)
    with path.open("wb") as file:
        file.truncate(2**27)
    with pytest.raises(FileError, match="134,217,728 bytes, expected at most"):
        ranking.read_token_map(path, 5)
    torch.save([1, 2], path, _use_new_zipfile_serialization=False)
    with pytest.raises(FileError, match=r"saved by torch\.save"):
        ranking.read_token_map(path, 5)


@pytest.mark.parametrize(
    "value",
    [
        {"ids": [1, 2]},
        (1, 2),
        "12",
        7,
        [1, [2]],
        [1, 2**70],
        [torch.tensor(1)],
        torch.tensor([1, 2]).to_sparse(),
        torch.tensor([1, 2], device="meta"),
    ],
    ids=str,
)
def test_read_token_map_refuses_other_values(tmp_path: Path, value: object) -> None:
    path = tmp_path / "x.pt"
    torch.save(value, path)
    with pytest.raises(FileError, match="ids"):
        ranking.read_token_map(path, 5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_read_token_map_reads_a_tensor_or_python_ints(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "x.pt"
    for value in (torch.tensor([4, 0, 2], dtype=dtype), [4, 0, 2]):
        torch.save(value, path)
        ids = ranking.read_token_map(path, 5)
        assert ids.tolist() == [4, 0, 2] and ids.dtype == torch.int64
        # read_ranking reads token maps by their suffix; they have no fingerprint.
        assert torch.equal(ranking.read_ranking(path, "any", 5), ids)


def test_write_token_map_writes_what_sglang_reads(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.pt"
    ranking.write_token_map(path, torch.tensor([4, 0, 2], dtype=torch.int32))
    value = torch.load(path, weights_only=True)
    assert isinstance(value, Tensor)
    assert value.tolist() == [4, 0, 2] and value.dtype == torch.int64
    assert torch.equal(ranking.read_token_map(path, 5), value)
    assert [file.name for file in path.parent.iterdir()] == ["x.pt"]


def test_read_token_map_raises_file_error_for_any_damage(tmp_path: Path) -> None:
    path, draws = tmp_path / "x.pt", random.Random(0)
    ranking.write_token_map(path, torch.arange(50))
    whole = path.read_bytes()
    refused = 0
    for number in range(300):
        damaged = bytearray(whole)
        if number % 3 == 0:
            del damaged[draws.randrange(len(whole)) :]
        else:
            for _ in range(number % 5 + 1):
                damaged[draws.randrange(len(whole))] = draws.randrange(256)
        path.write_bytes(damaged)
        try:
            ids = ranking.read_token_map(path, 50)
        except FileError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            refused += 1
        else:
            assert len(ids.unique()) == len(ids) and 0 <= ids.min() <= ids.max() < 50
    assert refused > 150
    path.unlink()
    with pytest.raises(FileError, match="No such file"):
        ranking.read_token_map(path, 50)


def test_find_shipped_ranking_accepts_names_only(tmp_path: Path) -> None:
    ranking.write_ranking(tmp_path / "general.safetensors", torch.arange(5), "t", {})
    assert ranking.find_shipped_ranking(str(tmp_path), "general") is None
    assert ranking.find_shipped_ranking("smollm2", "nosuch") is None
    assert ranking.find_shipped_ranking("smollm2", "../smollm2/general") is None
    assert ranking.find_shipped_ranking("nosuch", "general") is None


# ------------------------------------------------------------------ the shortlists


def select_ids(shortlist: Shortlist) -> list[int]:
    ids = shortlist.select(CONTEXT)
    assert ids.dtype == torch.int64
    assert torch.equal(shortlist.select(CONTEXT), ids)
    return ids.tolist()


def test_frspec_is_the_sorted_prefix_of_its_ranking_with_eos_ids() -> None:
    ids = torch.tensor([7, 3, 9, 0, 5, 1, 8, 2, 6, 4])
    assert select_ids(FRSpecShortlist(ids, 4, ())) == [0, 3, 7, 9]
    # EOS ids replace the least frequent ids, so that the budget holds.
    assert select_ids(FRSpecShortlist(ids, 4, (6,))) == [3, 6, 7, 9]
    assert select_ids(FRSpecShortlist(ids, 4, (6, 4))) == [3, 4, 6, 7]
    assert select_ids(FRSpecShortlist(ids, 4, (9,))) == [0, 3, 7, 9]  # it was selected already
    assert select_ids(FRSpecShortlist(ids, 10, (9, 4))) == list(range(10))
    assert select_ids(FRSpecShortlist(ids, 1, ())) == [7]
    assert select_ids(FRSpecShortlist(ids, 1, (6, 4))) == [6]


def test_frspec_keeps_its_contract_for_any_ranking_and_budget() -> None:
    for seed in range(100):
        draws = random.Random(seed)
        size = draws.randrange(1, 60)
        ids = torch.tensor(draws.sample(range(size), size))
        budget, ends = draws.randrange(1, size + 1), draws.sample(range(size), min(size, 3))
        got = select_ids(FRSpecShortlist(ids, budget, tuple(ends)))
        assert len(got) == budget and got == sorted(set(got))
        assert set(ends[:budget]) <= set(got) <= set(range(size))
        # Except for EOS ids, no selected id is rarer than one that is left out.
        order = {token: place for place, token in enumerate(ids.tolist())}
        places = [order[token] for token in got if token not in ends]
        left = [order[token] for token in range(size) if token not in got]
        assert max(places, default=-1) < min(left, default=size)


def test_build_shortlist_takes_a_number_or_a_share_as_budget(tiny: Tiny) -> None:
    file = tiny.ranking("mix")
    ends = set(tiny.model.tokenizer.eos_ids)
    assert len(ends) == 2
    for text, budget in [("1", 1), ("2", 2), ("100", 100), ("320", 320), ("0.5", 160),
                         ("0.25", 80), ("1.0", 320), ("1e-2", 3)]:  # fmt: skip
        method = Method.parse(f"frspec@{text}:{file}")
        built = build_shortlist(method, tiny.model, None)
        assert method.ids(320) == budget == built.budget == len(select_ids(built))
        assert ends <= set(select_ids(built)) or budget == 1
    assert (
        set(select_ids(build_shortlist(Method.parse(f"frspec@1:{file}"), tiny.model, None))) < ends
    )
    assert len(select_ids(build_shortlist(Method.parse(f"frspec:{file}"), tiny.model, None))) == 80


def test_build_shortlist_reads_full_and_token_maps(tiny: Tiny, tmp_path: Path) -> None:
    full = build_shortlist(Method.parse("full"), tiny.model, None)
    assert isinstance(full, FullShortlist) and select_ids(full) == list(range(320))
    ids = ranking.read_ranking(tiny.ranking("mix"), tiny.model.tokenizer.fingerprint, 320)
    ranking.write_token_map(tmp_path / "map.pt", ids[:50])
    mapped = build_shortlist(Method.parse(f"frspec@50:{tmp_path / 'map.pt'}"), tiny.model, None)
    assert set(select_ids(mapped)) - set(tiny.model.tokenizer.eos_ids) <= set(ids[:50].tolist())
    assert sorted(select_ids(build_map(tiny, tmp_path))) == sorted(ids[:50].tolist())
    with pytest.raises(ArgumentError, match=r"51.*more than the 50 ids"):
        build_shortlist(Method.parse(f"frspec@51:{tmp_path / 'map.pt'}"), tiny.model, None)
    with pytest.raises(ArgumentError, match=r"no ranking 'mix'.*general, mix"):
        build_shortlist(Method.parse("frspec:mix"), tiny.model, None)


def build_map(tiny: Tiny, folder: Path, method: str = "frspec") -> Shortlist:
    return build_shortlist(Method.parse(f"{method}:{folder / 'map.pt'}"), tiny.model, None)


@pytest.mark.parametrize("order", ["by frequency", "ascending"])
@pytest.mark.parametrize("size", [20, 80, 200])
def test_build_shortlist_uses_a_token_map_whole(
    tiny: Tiny, tmp_path: Path, size: int, order: str
) -> None:
    """Also where it is longer or shorter than the default budget of 80, and without end ids."""
    ids = random.Random(0).sample(range(5, 320), size)
    torch.save(sorted(ids) if order == "ascending" else ids, tmp_path / "map.pt")
    method = Method.parse(f"frspec:{tmp_path / 'map.pt'}")
    assert method.ids(320) == size and str(method) == f"frspec:{tmp_path / 'map.pt'}"
    assert select_ids(build_map(tiny, tmp_path)) == sorted(ids)


def test_build_shortlist_refuses_to_cut_ids_in_ascending_order(tiny: Tiny, tmp_path: Path) -> None:
    torch.save([*range(0, 300, 3)], tmp_path / "map.pt")
    for method in ("frspec@50", "evospec", "evospec@100"):
        with pytest.raises(ArgumentError, match="lists its 100 ids in ascending order") as error:
            build_map(tiny, tmp_path, method)
        assert "minispec rank" in str(error.value)
    command = ["rank", "--model", str(tiny.folder), "--ranking", str(tmp_path / "map.pt")]
    assert main.main([*command, "--budget", "50", "--out", str(tmp_path / "cut.pt")]) == 2
    assert main.main([*command, "--out", str(tmp_path / "cut.pt")]) == 0


def test_default_budget_is_the_methods_share_or_all_of_a_shorter_ranking(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for length in (3, 7, 10):
        ids = torch.arange(9, -1, -1)[:length]
        ranking.write_ranking(path, ids, TOKENIZER, {})
        assert ranking.default_budget(path, 5, 10) == min(5, length)


def test_find_ranking_names_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="is a folder"):
        ranking.find_ranking("pocket", str(tmp_path))


def test_build_shortlist_finds_shipped_rankings_by_name(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def select_by_file(name: str) -> list[int]:
        method = Method.parse(f"frspec@40:{tiny.ranking(name)}")
        return select_ids(build_shortlist(method, tiny.model, None))

    shortlists = {name: select_by_file(name) for name in ranking.NAMES}
    assert len(set(map(tuple, shortlists.values()))) == 6
    monkeypatch.setattr(ranking, "find_shipped_ranking", lambda model, name: tiny.ranking(name))
    # Even if the current folder has a file of that name.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mix").write_text("something else")
    for text, domain, name in [
        ("frspec@40", None, "general"),
        ("frspec@40:mix", "law", "mix"),
        ("frspec@40:without-law", "code", "without-law"),
        ("frspec@40:without-own", "law", "without-law"),
        ("frspec@40:without-own", "general", "without-general"),
    ]:
        built = build_shortlist(Method.parse(text), tiny.model, domain)
        assert select_ids(built) == shortlists[name]
    for domain in (None, "cooking", "switch"):
        with pytest.raises(ArgumentError, match="without-own"):
            build_shortlist(Method.parse("frspec@40:without-own"), tiny.model, domain)


# ------------------------------------------------------------------ methods by name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("autoregressive", ("autoregressive", None, None)),
        ("full", ("full", None, None)),
        ("frspec", ("frspec", 0.25, "general")),
        ("frspec@4096", ("frspec", 4096, "general")),
        ("frspec@1", ("frspec", 1, "general")),
        ("frspec@0.25", ("frspec", 0.25, "general")),
        ("frspec@.5", ("frspec", 0.5, "general")),
        ("frspec@1.0", ("frspec", 1.0, "general")),
        ("frspec@2e-1", ("frspec", 0.2, "general")),
        ("frspec:mix", ("frspec", 0.25, "mix")),
        ("frspec@4096:mix", ("frspec", 4096, "mix")),
        ("frspec@0.25:without-own", ("frspec", 0.25, "without-own")),
        ("frspec@9:/tmp/a@b:c.pt", ("frspec", 9, "/tmp/a@b:c.pt")),
    ],
)
def test_method_parse_accepts(text: str, expected: tuple) -> None:
    method = Method.parse(text)
    assert (method.name, method.budget, method.ranking) == expected
    assert type(method.budget) is type(expected[1])
    assert str(method) == text  # reports use the given spelling
    # A method built in a program has a spelling too.
    assert Method.parse(str(Method(*expected))) == method == Method(*expected)


def test_method_equality_ignores_spelling() -> None:
    same = [Method.parse(t) for t in ("frspec", "frspec@0.25", "frspec@0.250", "frspec:general")]
    assert len(set(same)) == 1
    assert len({*same, Method.parse("frspec@0.5"), Method.parse("frspec:mix")}) == 3


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "unknown method ''"),
        ("Full", "unknown method 'Full'.*autoregressive, suffix, full, microspec"),
        ("frspec 0.25", "unknown method"),
        ("@0.5", "unknown method ''"),
        ("full@0.5", "takes neither"),
        ("full:mix", "takes neither"),
        ("autoregressive@", "takes neither"),
        ("frspec:", "no ranking"),
        ("frspec@0.5:", "no ranking"),
        ("frspec@", "budget '' is not a number"),
        ("frspec@many", "'many' is not a number"),
        ("frspec@0.5@7", "'0.5@7' is not a number"),
        ("frspec@0", "budget 0"),
        ("frspec@-1", "budget -1"),
        ("frspec@0.0", "budget 0.0"),
        ("frspec@-0.5", "budget -0.5"),
        ("frspec@1.01", "budget 1.01"),
        ("frspec@nan", "'nan' is not a number"),
        ("frspec@1e999", "budget 1e999"),
    ],
)
def test_method_parse_refuses(text: str, reason: str) -> None:
    with pytest.raises(ArgumentError, match=reason):
        Method.parse(text)


@pytest.mark.parametrize(("text", "size"), [("frspec@11", 10), ("frspec@0.04", 10)])
def test_method_ids_refuses_budgets_outside_the_vocabulary(text: str, size: int) -> None:
    with pytest.raises(ArgumentError, match="must be 1 to 10 ids"):
        Method.parse(text).ids(size)
    assert Method.parse(text).ids(100) in (4, 11)


def test_check_gamma_refuses_values_out_of_range() -> None:
    for gamma in (1, 16):
        check_gamma(gamma)
    for gamma in (-1, 0, 17):
        with pytest.raises(ArgumentError, match=f"gamma {gamma} must lie in 1..16"):
            check_gamma(gamma)
