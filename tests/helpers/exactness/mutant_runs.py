"""Running tests on a mutant, in a process of its own.

The process imports minispec with the mutated source in place of one file. Everything of ours is
imported inside the process; nothing here imports minispec at the top.
"""

import contextlib
import hashlib
import importlib
import importlib.abc
import importlib.util
import io
import multiprocessing
import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

from helpers.exactness.mutant_selection import ROOT, select_tests, source_path
from helpers.exactness.mutations import Mutant

NO_RESULT = "no result"
FORKS = multiprocessing.get_context("fork")


class _Loader(importlib.abc.SourceLoader):
    def __init__(self, path: str, source: str) -> None:
        self._path, self._source = path, source

    def get_filename(self, fullname: str) -> str:
        return self._path

    def get_data(self, path: str) -> bytes:
        return self._source.encode()

    def path_stats(self, path: str) -> Any:
        raise OSError  # so that no compiled file is read or written


class _Finder(importlib.abc.MetaPathFinder):
    """Loads the mutated source where the original file is imported."""

    def __init__(self, mutant: Mutant) -> None:
        self._name = mutant.file.replace("/", ".")
        self._loader = _Loader(str(source_path(mutant.file)), mutant.source)

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname != self._name:
            return None
        return importlib.util.spec_from_loader(fullname, self._loader)


class _TestMonitor:
    """A pytest plugin that records the first failed test and the duration of each. It ends the
    process if a test takes far longer than its known duration: the mutant loops forever."""

    def __init__(self, durations: dict[str, float], coverage: Any = None) -> None:
        self.failed: str | None = None
        self.seconds: Counter[str] = Counter()
        self._durations, self._coverage = durations, coverage

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        if self._coverage:
            self._coverage.switch_context(nodeid)
        if self._durations:
            limit = time.process_time() + 20 + 10 * self._durations.get(nodeid, 0)
            resource.setrlimit(resource.RLIMIT_CPU, (int(limit), resource.RLIM_INFINITY))

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] += report.duration
        if report.failed:
            self.failed = self.failed or report.nodeid

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.failed = self.failed or f"import of {report.nodeid}"


def preload() -> None:
    """Import everything that the tests import, then drop the project's own modules."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    for name in ("conftest", "hypothesis", "pytest", "torch._dynamo", "tqdm"):
        importlib.import_module(name)
    for name, module in list(sys.modules.items()):
        if name.startswith("helpers.exactness.mut") or name in ("helpers", "helpers.exactness"):
            continue  # these do not import minispec
        ours = any(str(ROOT / folder) in str(module) for folder in ("minispec", "fastpath"))
        if ours or name == "conftest" or name.startswith("helpers."):
            del sys.modules[name]
            package, _, attribute = name.rpartition(".")
            if package in sys.modules and hasattr(sys.modules[package], attribute):
                delattr(sys.modules[package], attribute)
    sys.modules["torch"].set_num_threads(1)


def prepare(mutant: Mutant | None) -> None:
    os.chdir(ROOT)
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    os.environ["EXAMPLES"] = "10"
    if mutant:
        sys.meta_path.insert(0, _Finder(mutant))


def _run_tests(tests: Sequence[str], monitor: _TestMonitor) -> str | None:
    """Run tests up to the first failure; the test that failed, None if all pass."""
    import pytest

    options = set_up_pytest()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        code = pytest.main([*options, *tests], plugins=[monitor])
    return monitor.failed or (f"exit code {code}" if code else None)


def set_up_pytest() -> list[str]:
    """The options of a run that stops at the first failure."""
    from hypothesis import Phase, settings

    # Only whether an example fails matters, so it is not shrunk.
    phases = (Phase.explicit, Phase.generate)
    settings.register_profile("mutants", deadline=None, phases=phases, max_examples=30)
    os.environ["HYPOTHESIS_PROFILE"] = "mutants"
    options = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", "--hypothesis-seed=0"]
    options += ["--deselect", "tests/exactness/test_properties.py::test_planted_defect_is_detected"]
    return options


def survey(files: Sequence[str], connection: Connection) -> None:
    """Without a mutation: the test that fails, if any, the tests that cover each line of each
    file, and the duration of each test."""
    from coverage import Coverage

    prepare(None)
    paths = [str(source_path(file)) for file in files]
    coverage = Coverage(data_file=None, config_file=False, include=paths)
    coverage.start()
    monitor = _TestMonitor({}, coverage)
    tests = [*dict.fromkeys(test for file in files for test in select_tests(file))]
    failed = _run_tests(tests, monitor)
    coverage.stop()
    data = coverage.get_data()
    lines = {file: data.contexts_by_lineno(str(source_path(file))) for file in files}
    connection.send((failed, lines, monitor.seconds))


def try_mutant(
    mutant: Mutant, tests: Sequence[str], durations: dict[str, float], connection: Connection
) -> None:
    """The test that kills a mutant, None if all pass."""
    prepare(mutant)
    connection.send(_run_tests(tests, _TestMonitor(durations)))


def digest_mutant(mutant: Mutant | None, connection: Connection) -> None:
    """A hash of everything observable: two mutants with equal hashes are equivalent."""
    prepare(mutant)
    resource.setrlimit(resource.RLIMIT_CPU, (1800, resource.RLIM_INFINITY))
    connection.send(_digest())


def _digest() -> str:
    """SHA-256 over the output distributions of the whole grid, and the tokens of some seeds."""
    import torch

    from helpers.exactness import combinations
    from helpers.exactness.shortlists import SHORTLISTS
    from minispec.certificate.cases import GRID, SAMPLINGS
    from minispec.certificate.decodings import ToyModels
    from minispec.certificate.enumeration import output_distribution
    from minispec.sampling import SeededRandom

    torch.set_num_threads(1)
    sha256 = hashlib.sha256()
    for arithmetic in ("fraction", "float64"):
        backend = combinations.build_backend("reference", arithmetic)
        for verifier, shortlist, sampling in (
            (v, s, p) for v in combinations.VERIFIERS for s in SHORTLISTS for p in SAMPLINGS
        ):
            decode = combinations.build_decoding(verifier, shortlist)
            for case in GRID:
                models = ToyModels.build(case, sampling, backend)
                distribution = output_distribution(decode, models)
                rows = sorted((str(k), str(v)) for k, v in distribution.items())
                sha256.update(repr(rows).encode())
                if arithmetic == "float64":
                    for seed in range(5):
                        rounds = decode(models, SeededRandom(seed))
                        sha256.update(repr([finished.tokens for finished in rounds]).encode())
    return sha256.hexdigest()


def call_in_process(function: Any, *arguments: Any) -> Any:
    """The result that a function sends from a forked process; ``NO_RESULT`` if that died or ran
    into its limit."""
    return next(iterate_process(function, *arguments), NO_RESULT)


def iterate_process(function: Any, *arguments: Any) -> Iterator[Any]:
    """All results that a function sends from a forked process, until it ends."""
    receiver, sender = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=function, args=(*arguments, sender))
    process.start()
    sender.close()
    while True:
        try:
            yield receiver.recv()
        except EOFError:
            break
    process.join()
