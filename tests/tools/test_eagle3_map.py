"""What gives a wrong map of a reduced vocabulary away is named in one line."""

import warnings

import pytest
import torch

from minispec.errors import FileError, FileWarning, FingerprintError
from minispec.tools.models import eagle3_map

SIZE = 200
IDS = torch.tensor([2, 3, 7, 20, 90, 150])
D2T = IDS - torch.arange(len(IDS))
T2D = torch.zeros(SIZE, dtype=torch.bool)
T2D[IDS] = True


def read(rows: int = len(IDS), **tensors: torch.Tensor) -> torch.Tensor:
    return eagle3_map.read_map(tensors, rows, SIZE, "FOLDER")


def test_read_map_reads_offsets_and_masks() -> None:
    for tensors in ({"d2t": D2T}, {"t2d": T2D}, {"d2t": D2T, "t2d": T2D}, {"d2t": D2T.int()}):
        assert torch.equal(read(**tensors), IDS)
    order = torch.tensor([3, 0, 1, 2, 5, 4])
    shuffled = IDS[order] - torch.arange(len(IDS))
    assert torch.equal(read(d2t=shuffled, t2d=T2D), IDS[order])
    every = torch.zeros(SIZE, dtype=torch.int64)  # the identity over the whole vocabulary
    assert torch.equal(read(SIZE, d2t=every), torch.arange(SIZE))


OTHER = T2D.roll(1)
REFUSED = {
    "d2t is () int64": {"d2t": torch.tensor(3)},
    "d2t is (6,) float32": {"d2t": D2T.float()},
    "d2t is (6, 1) int64": {"d2t": D2T[:, None]},
    "d2t has 5 entries, but lm_head 6 rows": {"d2t": D2T[:5]},
    "t2d is (200,) int64": {"t2d": T2D.long()},
    "t2d marks 5 ids, but lm_head has 6 rows": {"t2d": T2D & (torch.arange(SIZE) != 7)},
    "all zeros, which names the first 6 ids: the map was never filled": {"d2t": D2T * 0},
    "all zeros, which names the first 6 ids, but t2d marks others": {"d2t": D2T * 0, "t2d": T2D},
    "looks like ids, not like offsets": {"d2t": torch.tensor([0, 1, 9, 30, 100, 196])},
    "leads to 1 ids twice": {"d2t": torch.tensor([2, 1, 5, 17, 86, 145])},
    "t2d disagrees with d2t: 5 of 6 ids": {"d2t": D2T, "t2d": OTHER},
}


@pytest.mark.parametrize("message", REFUSED)
def test_read_map_names_what_is_wrong(message: str) -> None:
    with pytest.raises(FileError) as caught:
        read(**REFUSED[message])
    assert message in str(caught.value) and str(caught.value).startswith("FOLDER: ")


def test_read_map_sees_a_long_list_of_ids() -> None:
    with pytest.raises(FileError, match="looks like ids"):
        read(64, d2t=torch.arange(64))


@pytest.mark.parametrize("tensors", [{"d2t": D2T + 60}, {"d2t": D2T - 3}, {"t2d": T2D[:150]}])
def test_read_map_refuses_the_map_of_another_vocabulary(tensors: dict[str, torch.Tensor]) -> None:
    with pytest.raises(FingerprintError, match="another tokenizer"):
        read(**tensors)


def test_read_map_warns_of_the_first_ids() -> None:
    first = torch.arange(SIZE) < 6
    with pytest.warns(FileWarning, match="marks the first 6 ids"):
        assert torch.equal(read(d2t=D2T * 0, t2d=first), torch.arange(6))


def test_read_map_sees_a_head_of_all_ids() -> None:
    with pytest.raises(FileError, match="target's head had overwritten the draft's"):
        read(SIZE, d2t=D2T)


def test_check_head_sees_the_first_rows_of_the_target() -> None:
    target = torch.randn(SIZE, 8, generator=torch.Generator().manual_seed(0))
    eagle3_map.check_head(target[IDS], IDS, target, "FOLDER")
    eagle3_map.check_head(target[:6] + 0.1, IDS, target, "FOLDER")
    eagle3_map.check_head(target[:6], torch.arange(6), target, "FOLDER")
    with pytest.raises(FileError, match="written over the draft's"):
        eagle3_map.check_head(target[:6], IDS, target, "FOLDER")


def test_check_coverage_warns_of_a_map_without_ordinary_text() -> None:
    text = torch.tensor([2, 3, 2, 7, 8])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        eagle3_map.check_coverage(IDS, text, "FOLDER")
    with pytest.warns(FileWarning, match="only 20% of ordinary English text"):
        eagle3_map.check_coverage(torch.tensor([8, 100]), text, "FOLDER")
