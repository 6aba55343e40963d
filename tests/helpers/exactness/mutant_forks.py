"""Running tests on many mutants, each in a fork of one process that has collected all tests.

A fork exchanges the code of the changed functions in the modules that are already imported, so
that a mutant costs the time of its tests and nothing else. What is changed outside functions
cannot be exchanged, and a test module that computed something when it was imported did so with
the original code: for these there is ``mutant_runs.try_mutant``, which imports everything anew.
"""

import ast
import contextlib
import functools
import importlib
import io
import os
import resource
import time
import types
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from helpers.exactness.mutant_runs import FORKS, prepare, set_up_pytest
from helpers.exactness.mutant_selection import select_tests
from helpers.exactness.mutations import Mutant

_SECONDS = 20  # of a processor for one mutant, before its tests are left to a fresh process
_BASELINE_SECONDS = 60  # for the tests without a mutation: later ones are left out
UNDECIDED = "undecided"


class NotExchangeableError(Exception):
    """A change that is not within the functions of a module."""


def exchange_functions(mutant: Mutant) -> None:
    """Give the functions of an imported module the code of a mutant. Raises
    NotExchangeableError."""
    module = importlib.import_module(mutant.file.replace("/", "."))
    assert module.__file__ is not None
    with open(module.__file__, encoding="utf-8") as file:
        original = file.read()
    if _drop_bodies(original) != _drop_bodies(mutant.source):
        raise NotExchangeableError("something outside functions differs")
    mutated = types.ModuleType(module.__name__)
    mutated.__dict__["__file__"] = module.__file__
    exec(compile(mutant.source, module.__file__, "exec"), mutated.__dict__)
    _exchange(vars(module), vars(mutated), module.__name__)


def _drop_bodies(source: str) -> str:
    """A module without the bodies of its functions."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.body = [ast.Pass()]
    return ast.unparse(tree)


def _exchange(ours: Any, theirs: Any, module: str) -> None:
    for name, value in list(ours.items()):
        if name not in theirs:
            continue
        if isinstance(value, type) and value.__module__ == module:
            _exchange(vars(value), vars(theirs[name]), module)
            continue
        functions, others = _find_functions(value), _find_functions(theirs[name])
        for function, other in zip(functions, others, strict=True):
            if function.__module__ != module:
                continue
            if function.__code__.co_freevars != other.__code__.co_freevars:
                raise NotExchangeableError(f"{name} reads other variables of what encloses it")
            function.__code__ = other.__code__


def _find_functions(value: Any) -> list[types.FunctionType]:
    """The function of a property, a static method or a wrapper; none for anything else."""
    if isinstance(value, functools.cached_property):
        value = value.func
    value = getattr(value, "fget", value)
    value = getattr(value, "__func__", value)
    while hasattr(value, "__wrapped__"):
        value = value.__wrapped__
    return [value] if isinstance(value, types.FunctionType) else []


@dataclass
class _Result:
    """What a fork found: the test that killed the mutant, all that failed, and the seconds of each
    test that it ran."""

    killer: str | None
    failed: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


class _Recorder:
    """A pytest plugin in the fork: the first failure, and the seconds of each test."""

    def __init__(self) -> None:
        self.result = _Result(None)

    def pytest_runtest_logreport(self, report: Any) -> None:
        seconds = self.result.seconds
        seconds[report.nodeid] = seconds.get(report.nodeid, 0.0) + report.duration
        if report.failed:
            self.result.failed.append(report.nodeid)


class MutantLoop:
    """A pytest plugin that runs mutants in place of the tests that were collected."""

    def __init__(
        self,
        mutants: Sequence[Mutant],
        jobs: int,
        report: Callable[[Mutant, str | None], None],
        report_broken: Callable[[str], None],
    ) -> None:
        """``report`` is called with each mutant and its killer; ``report_broken`` with a test that
        fails without any mutation, and is left out."""
        self._mutants, self._jobs = mutants, jobs
        self._report, self._report_broken = report, report_broken
        self._seconds: dict[str, float] = {}  # of each test, without a mutation
        self._kills: dict[tuple[str, str], int] = {}  # by a test, in a file

    def pytest_runtestloop(self, session: Any) -> bool:
        """Take the place of pytest's own loop."""
        # One item of each test function first, then the second of each, and so on.
        counts = Counter[str]()
        items: list[tuple[int, Any]] = []
        for item in session.items:
            function = item.nodeid.partition("[")[0]
            items.append((counts[function], item))
            counts[function] += 1
        self._items = {item.nodeid: item for _, item in sorted(items, key=lambda pair: pair[0])}
        [(_, baseline)] = self._fork([(None, list(self._items))], 1)
        for test in baseline.failed:  # they depend on the machine, and can kill nothing
            self._report_broken(test)
        self._seconds = {n: s for n, s in baseline.seconds.items() if n not in baseline.failed}
        work = ((mutant, self._order(mutant)) for mutant in self._mutants)
        for mutant, result in self._fork(work, self._jobs):
            assert mutant is not None
            if result.killer and result.killer != UNDECIDED:
                key = result.killer, mutant.file
                self._kills[key] = self._kills.get(key, 0) + 1
            self._report(mutant, result.killer)
        return True

    def _order(self, mutant: Mutant) -> list[str]:
        """The tests of a mutant: those that killed others in its file first, then the fastest."""
        files = tuple(select_tests(mutant.file))
        names = [name for name in self._seconds if name.startswith(files)]
        return sorted(
            names,
            key=lambda n: (-self._kills.get((n, mutant.file), 0) / (0.05 + self._seconds[n]),
                           self._seconds[n]),
        )  # fmt: skip

    def _fork(self, work: Any, jobs: int) -> Iterator[tuple[Mutant | None, _Result]]:
        """Results of mutants and their tests, in the order in which they are ready."""
        work, running = iter(work), dict[Connection, tuple[Mutant | None, Any]]()
        while True:
            while len(running) < jobs and (task := next(work, None)):
                receiver, sender = FORKS.Pipe(duplex=False)
                process = FORKS.Process(target=self._run, args=(*task, sender))
                process.start()
                sender.close()
                running[receiver] = task[0], process
            if not running:
                return
            for receiver in wait(list(running)):
                assert isinstance(receiver, Connection)
                mutant, process = running.pop(receiver)
                try:
                    result = receiver.recv()
                except EOFError:  # the mutant loops forever, or ended the process
                    result = _Result("time limit")
                process.join()
                yield mutant, result

    def _run(self, mutant: Mutant | None, names: Sequence[str], sender: Connection) -> None:
        recorder = _Recorder()
        with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
            os.dup2(nothing.fileno(), 1), os.dup2(nothing.fileno(), 2)
            recorder.result.killer = self._try(mutant, names, recorder)
        sender.send(recorder.result)
        sender.close()
        os._exit(0)

    def _try(self, mutant: Mutant | None, names: Sequence[str], recorder: _Recorder) -> str | None:
        if mutant:
            try:
                exchange_functions(mutant)
            except NotExchangeableError:
                return UNDECIDED
        end = time.process_time() + (_SECONDS if mutant else _BASELINE_SECONDS)
        for i, name in enumerate(names):
            if time.process_time() > end:
                return UNDECIDED if mutant else None
            limit = time.process_time() + 20 + 10 * self._seconds.get(name, 2.0)
            resource.setrlimit(resource.RLIMIT_CPU, (int(limit), resource.RLIM_INFINITY))
            item, following = self._items[name], names[i + 1 : i + 2]
            item.config.pluginmanager.register(recorder, "recorder") if not i else None
            item.config.hook.pytest_runtest_protocol(
                item=item, nextitem=self._items[following[0]] if following else None
            )
            if mutant and recorder.result.failed:
                return recorder.result.failed[0]
        return None


def run_in_forks(mutants: Sequence[Mutant], jobs: int, connection: Connection) -> None:
    """Collect the tests of all mutants' files once, and try each mutant in a fork. Sends the index
    of each mutant with its killer: None if all tests pass, UNDECIDED if a fresh process has to
    try it; and None with each test that fails without any mutation."""
    import pytest

    prepare(None)
    options = set_up_pytest()
    tests = dict.fromkeys(t for mutant in mutants for t in select_tests(mutant.file))
    places = {id(mutant): index for index, mutant in enumerate(mutants)}

    def report(mutant: Mutant, killer: str | None) -> None:
        connection.send((places[id(mutant)], killer))

    with contextlib.redirect_stdout(io.StringIO()):
        loop = MutantLoop(mutants, jobs, report, lambda test: connection.send((None, test)))
        pytest.main([*options, *tests], plugins=[loop])
