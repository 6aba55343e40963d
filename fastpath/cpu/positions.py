"""Where the tokens of a pass are: in the cache, in the text, and on which path of a tree."""

from collections.abc import Sequence

import numpy as np

from fastpath.cpu.process import check_fork
from fastpath.places import find_places
from minispec.models.kv_cache import KVCache
from minispec.tree import find_path, is_chain

Place = tuple[int, np.ndarray, int, np.ndarray]
_NO_PATHS = np.empty((0, 0), np.int64)


def place_tokens(
    cache: KVCache, new: int, parents: Sequence[int] | None, context_limit: int
) -> Place:
    """The places of ``new`` tokens that follow what is cached: the first position that they are
    stored at, their positions in the text (T,), the position of the tree's roots, and where the
    nodes of each path are stored (T, depth). For a chain the paths are empty: tokens are stored in
    the order of the text.

    ``parents`` (N,): of a tree whose last T nodes are the new ones, as in ``Draft.step``. Raises
    ContextError, before anything is changed, if the tokens exceed the cache or the context, and
    ArgumentError in a fork of a process whose threads Numba used.
    """
    check_fork()
    root, places = find_places(cache, new, parents, context_limit)
    paths = _NO_PATHS
    if parents is not None and not is_chain(parents):
        paths = np.zeros((new, max(places) + 1 - root), np.int64)
        for row, node in enumerate(range(len(parents) - new, len(parents))):
            paths[row, : places[row] + 1 - root] = root + np.array(find_path(parents, node))
    return cache.length, np.array(places), root, paths
