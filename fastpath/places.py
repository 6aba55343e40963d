"""Where the new tokens of a pass are in the text, checked against the cache and the context.

Every backend places them alike; in which form a pass needs it differs.
"""

from collections.abc import Sequence
from typing import Protocol

from minispec.errors import ContextError
from minispec.tree import find_depths, is_chain


class _Cache(Protocol):
    @property
    def length(self) -> int: ...
    @property
    def capacity(self) -> int: ...


def find_places(
    cache: _Cache, new: int, parents: Sequence[int] | None, context_limit: int
) -> tuple[int, list[int]]:
    """The first position of the tree, or of a chain, and the positions in the text (T,) of the
    ``new`` tokens that follow what is cached: in a tree by depth.

    ``parents`` (N,): of a tree whose last T nodes are the new ones, as in ``Draft.step``. Raises
    ContextError if the tokens exceed the cache or the context.
    """
    start, end = cache.length, cache.length + new
    if end > cache.capacity:
        raise ContextError(f"{start} + {new} positions do not fit a cache of {cache.capacity}")
    if parents is None or is_chain(parents):
        root, places = start, list(range(start, end))
    else:
        root = end - len(parents)
        places = [root + depth for depth in find_depths(parents)[-new:]]
    if (last := max(places) + 1) > context_limit:
        raise ContextError(f"position {last} is outside the model's context of {context_limit}")
    return root, places
