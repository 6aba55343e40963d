"""Spherical k-means: clusters by direction, none empty."""

import pytest
import torch
from torch import Tensor

from minispec.errors import ArgumentError
from minispec.shortlists.kmeans import cluster_rows


def build_rows() -> Tensor:
    """30 rows around each of three directions, of lengths from 1 to 100 (90, 8)."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.eye(8)[:3].repeat_interleave(30, 0)
    rows = directions + 0.05 * torch.randn(90, 8, generator=generator)
    return rows * torch.logspace(0, 2, 90)[torch.randperm(90, generator=generator)][:, None]


def test_cluster_rows_groups_rows_by_direction() -> None:
    done: list[int] = []
    clusters = cluster_rows(build_rows(), 3, seed=3, progress=lambda: done.append(1))
    assert [len(set(part.tolist())) for part in clusters.split(30)] == [1, 1, 1]
    assert sorted(set(clusters.tolist())) == [0, 1, 2] and len(done) == 20


def test_cluster_rows_depends_on_the_seed_alone() -> None:
    rows = build_rows()
    default = cluster_rows(rows, 30)
    assert torch.equal(default, cluster_rows(rows, 30, seed=0, rounds=20))
    assert not torch.equal(default, cluster_rows(rows, 30, seed=1))


def test_cluster_rows_leaves_no_cluster_empty() -> None:
    rows = build_rows()
    for count in (1, 7, 90):
        assert len(cluster_rows(rows, count).unique()) == count
    equal = torch.ones(10, 4)
    assert len(cluster_rows(equal, 4).unique()) == 4
    two = torch.eye(4)[:2].repeat_interleave(5, 0)  # fewer rows of a direction than empty clusters
    assert len(cluster_rows(two, 9).unique()) == 9
    assert len(cluster_rows(two, 10).unique()) == 10


@pytest.mark.parametrize("count", [0, 91])
def test_cluster_rows_refuses_a_number_of_clusters_outside_that_of_rows(count: int) -> None:
    with pytest.raises(ArgumentError, match=rf"clusters {count} must lie in 1\.\.90"):
        cluster_rows(build_rows(), count)
