"""Retrieval beside the target's pass: a worker thread for shortlists that look up their next ids.

EvoSpec (arXiv 2605.27390 v1, section 3.2) retrieves on the CPU while the GPU runs the next pass. A
shortlist counts what was retrieved a stated number of rounds later, so its ids are the reference's
whatever the thread's speed: a slow one is waited for. With a delay of one round there is nothing to
run beside; from two on, a whole round.

Knows nothing of what is retrieved.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class BackgroundRunner:
    """Runs retrievals one after the other in a thread of its own."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="retrieval")

    def __call__(self, retrieve: Callable[[], T]) -> Callable[[], T]:
        """Start a retrieval. What is returned waits for its result, and raises what it raised."""
        return self._executor.submit(retrieve).result
