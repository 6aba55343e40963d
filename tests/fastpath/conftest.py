"""A check for the tests of CUDA kernels that no barrier diverges."""

import math
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from fastpath.cuda import device


@pytest.fixture
def check_barriers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails unless all threads of a block pass the same barriers in the same order. The simulator
    accepts a barrier that only some threads reach, where a GPU hangs or computes garbage."""
    if not device.SIMULATED:
        yield
        return
    from numba.cuda.simulator import kernel

    passed: dict[int, dict[int, list[int]]] = {}
    run, wait = kernel.BlockManager.run, kernel.BlockThread.syncthreads

    def record_barrier(thread: Any) -> None:
        lines = passed[id(thread._manager)].setdefault(thread.thread_id, [])
        lines.append(sys._getframe(2).f_lineno)  # the kernel's own line
        wait(thread)

    def check_block(manager: Any, *arguments: Any) -> None:
        count = math.prod(manager._block_dim)
        passed[id(manager)] = {}
        run(manager, *arguments)
        lines = passed.pop(id(manager))
        paths = [lines.get(thread, []) for thread in range(count)]
        assert all(path == paths[0] for path in paths), f"a barrier diverges: {paths}"

    monkeypatch.setattr(kernel.BlockManager, "run", check_block)
    monkeypatch.setattr(kernel.BlockThread, "syncthreads", record_barrier)
    yield
