"""The threads of this process, and of its forks.

Knows nothing of backends, which bring threads of their own.
"""

import os
from functools import cache

import torch

from minispec.checks import to_int
from minispec.errors import ArgumentError


def set_threads(threads: int | None) -> None:
    """Sets torch's number of threads, if one is given. Raises ArgumentError.

    From the first call on, a fork of this process computes with one thread: OpenMP's other threads
    are not in it, and it would wait for them forever.
    """
    _prepare_forks()
    if threads is None:
        return
    if not 1 <= (threads := to_int(threads, "threads")) <= 1024:
        raise ArgumentError(f"threads {threads} must lie in 1..1024")
    torch.set_num_threads(threads)


@cache
def _prepare_forks() -> None:
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))
