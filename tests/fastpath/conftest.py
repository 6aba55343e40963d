"""For tests of CUDA kernels a check that no barrier diverges, for tests of graphs a compiler that
runs them eagerly."""

import math
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

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


@pytest.fixture
def eager_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are captured as usual but executed eagerly: compiling them takes a minute. Graph
    breaks and recompilations are the same."""
    torch_compile = torch.compile

    def compile_eagerly(run: Any, **options: Any) -> Any:
        return torch_compile(run, backend="eager", **options)

    monkeypatch.setattr(torch, "compile", compile_eagerly)


@pytest.fixture
def reset_compiler() -> Iterator[None]:
    """Nothing that other tests compiled is left."""
    torch._dynamo.reset()
    counters.clear()
    yield
