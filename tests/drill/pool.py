"""Processes that take cases. One that gives no answer, or dies, is a finding, and is replaced."""

import multiprocessing
import shutil
import signal
from collections.abc import Iterable, Iterator
from multiprocessing.connection import wait
from pathlib import Path
from time import monotonic

from drill.worker import Finding, serve

_ANSWER = 60.0  # seconds: three tries of a case, each with its own alarm
_FIRST = 240.0  # of a new process, which imports everything
Case = tuple[str, int]


class _Process:
    """A worker and the case it has."""

    def __init__(self, intact: Path, seed: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, intact, seed), daemon=True)
        self.process.start()
        theirs.close()
        self.case: Case | None = None
        self.deadline, self.patience = 0.0, _FIRST

    def give(self, case: Case) -> None:
        """Have it run a case."""
        self.case, self.deadline = case, monotonic() + self.patience
        self.connection.send(case)

    def end(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.join()
        self.connection.close()


def run_cases(cases: Iterable[Case], intact: Path, seed: int, processes: int) -> Iterator[Finding]:
    """The findings on cases, in the order in which they are found."""
    left = iter(cases)
    workers: list[_Process] = []
    try:
        for _, case in zip(range(processes), left, strict=False):
            workers.append(_Process(intact, seed))
            workers[-1].give(case)
        while workers:
            ready = wait([worker.connection for worker in workers], timeout=1.0)
            for worker in list(workers):
                finding = _ask(worker, worker.connection in ready)
                if finding is None:
                    continue
                yield finding
                following = next(left, None)
                if worker.case is None and following:  # it was replaced
                    workers[workers.index(worker)] = worker = _Process(intact, seed)
                if following:
                    worker.give(following)
                else:
                    if worker.case is not None:
                        worker.connection.close()
                        worker.process.join(10)
                    workers.remove(worker)
    finally:
        for worker in workers:
            worker.end()
        for folder in intact.parent.glob("worker-*"):
            shutil.rmtree(folder, ignore_errors=True)


def _ask(worker: _Process, ready: bool) -> Finding | None:
    """Its finding if there is one; one of our own if it died or is out of time."""
    assert worker.case is not None
    reader, number = worker.case
    if ready:
        try:
            finding: Finding = worker.connection.recv()
        except (EOFError, ConnectionError):
            worker.process.join()
            code = worker.process.exitcode or 0
            how = signal.Signals(-code).name if code < 0 else f"exit {code}"
            worker.case = None
            return Finding(reader, number, "crash", detail=how)
        worker.patience = _ANSWER
        return finding
    if monotonic() > worker.deadline:
        worker.end()
        worker.case = None
        return Finding(reader, number, "hang", detail=f"no answer in {_ANSWER:.0f} s")
    return None
