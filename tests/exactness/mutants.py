"""``make mutants``: the code is changed in every small way, and the tests must notice each.

A mutant is one file of ``minispec/`` with one change (``changes.py``). For each, a fresh process
loads the package with that file in place and runs the tests that come by the changed line, the
quickest first, until one fails; which they are is found out once for all files, under coverage.
One that they let pass is tried by all tests that bear on the file. If it survives these too, it
is *equivalent* only if nothing that can be seen differs: the laws of the whole grid, in fractions
and in float64, and what the production source says for many seeds, bit for bit.

    python tests/exactness/mutants.py [--out FILE] [FILE ...]
"""

import argparse
import contextlib
import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import io
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from changes import Mutant, mutants

ROOT = Path(__file__).parent.parent.parent
NO_ANSWER = "no answer"
LAWS = ["exactness/test_grid.py", "exactness/test_properties.py"]
LOOP = ["core/test_decode.py", "exactness/test_walker.py", "exactness/test_health.py"]
CACHES = [
    "models/test_eagle_draft.py",
    "models/test_transformer.py",
    "exactness/test_metamorphic.py",
]
LISTED = ["shortlists/test_shortlists.py", "exactness/test_walker.py"]

# Which tests bear on a file; the others have nothing to do with it.
SELECTION = {
    "verify": ["core/test_verify.py", *LAWS, "exactness/test_source.py"],
    "sampling": ["core/test_sampling.py", *LAWS, "exactness/test_source.py"],
    "propose": ["core/test_verify.py", "shortlists/test_shortlists.py", *LOOP, *LAWS, "learning/test_learner.py"],
    "decode": [*LOOP, "core/test_verify.py", "shortlists/test_shortlists.py", *LAWS, "exactness/test_source.py",
               "learning/test_learner.py"],
    "commit": ["core/test_decode.py", *LAWS],
    "shortlists/full": ["core/test_decode.py", *LISTED],
    "shortlists/frspec": ["tools/test_ranking.py", "exactness/test_properties.py", "models/test_eagle_draft.py",
                         "shortlists/test_shortlists.py"],
    "shortlists/microspec": LISTED,
    "shortlists/dynaspec": LISTED,
    "shortlists/semantic": LISTED,
    "shortlists/statistical": LISTED,
    "shortlists/evospec": LISTED,
    "models/kv_cache": [*CACHES, "tools/test_batched_decode.py"],
    "models/eagle_draft": [*CACHES, "exactness/test_health.py", "tools/test_train_draft.py"],
}  # fmt: skip
LAW_BEARING = ("verify", "sampling", "propose", "decode", "commit")


# --- one mutant, in a process of its own ----------------------------------------------------


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
    """Hands out the changed file where the package asks for the right one."""

    def __init__(self, mutant: Mutant) -> None:
        self._name = "minispec." + mutant.file.replace("/", ".")
        self._loader = _Loader(str(_path(mutant.file)), mutant.source)

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname != self._name:
            return None
        return importlib.util.spec_from_loader(fullname, self._loader)


class _Watch:
    """A pytest plugin: which test failed first, and how long each took. Ends the process where
    one takes far longer than it is known to: a mutant that runs in circles is noticed."""

    def __init__(self, known: dict[str, float], coverage: Any = None) -> None:
        self.failed: str | None = None
        self.seconds: Counter[str] = Counter()
        self._known, self._coverage = known, coverage

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        if self._coverage:
            self._coverage.switch_context(nodeid)
        if self._known:
            allowed = time.process_time() + 20 + 10 * self._known.get(nodeid, 0)
            resource.setrlimit(resource.RLIMIT_CPU, (int(allowed), resource.RLIM_INFINITY))

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] += report.duration
        if report.failed:
            self.failed = self.failed or report.nodeid

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.failed = self.failed or f"import of {report.nodeid}"


def _path(file: str) -> Path:
    return ROOT / "minispec" / f"{file}.py"


def _prepared(mutant: Mutant | None) -> None:
    os.chdir(ROOT)
    sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "exactness")]
    os.environ["EXAMPLES"] = "10"
    if mutant:
        sys.meta_path.insert(0, _Finder(mutant))


def _run(tests: Sequence[str], watch: _Watch) -> str | None:
    """Runs tests up to the first that fails, and names it."""
    import pytest
    from hypothesis import Phase, settings

    # Whether an example fails is all that is asked: it need not be made small.
    phases = (Phase.explicit, Phase.generate)
    settings.register_profile("mutants", deadline=None, phases=phases, max_examples=30)
    os.environ["HYPOTHESIS_PROFILE"] = "mutants"
    options = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", "--hypothesis-seed=0"]
    options += ["--deselect", "tests/exactness/test_properties.py::test_a_planted_defect_is_seen"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        code = pytest.main([*options, *tests], plugins=[watch])
    return watch.failed or (f"exit code {code}" if code else None)


def _surveyed(files: Sequence[str], answer: Connection) -> None:
    """Without any change: the test that fails, or else which tests come by each line of each
    file, and the seconds that each takes."""
    from coverage import Coverage

    _prepared(None)
    paths = [str(_path(file)) for file in files]
    coverage = Coverage(data_file=None, config_file=False, include=paths)
    coverage.start()
    watch = _Watch({}, coverage)
    failed = _run([*dict.fromkeys(test for file in files for test in _selected(file))], watch)
    coverage.stop()
    data = coverage.get_data()
    lines = {file: data.contexts_by_lineno(str(_path(file))) for file in files}
    answer.send((failed, lines, watch.seconds))


def _selected(file: str) -> list[str]:
    return [f"tests/{test}" for test in SELECTION[file]]


def _tested(
    mutant: Mutant, tests: Sequence[str], known: dict[str, float], answer: Connection
) -> None:
    _prepared(mutant)
    answer.send(_run(tests, _Watch(known)))


def _digested(mutant: Mutant | None, answer: Connection) -> None:
    _prepared(mutant)
    resource.setrlimit(resource.RLIMIT_CPU, (1800, resource.RLIM_INFINITY))
    answer.send(_digest())


def _digest() -> str:
    """Of all that can be seen: laws over the grid, and what seeds say."""
    import torch

    import parts
    from minispec.certificate import certify
    from minispec.sampling import SeededRandom

    torch.set_num_threads(1)
    seen = hashlib.sha256()
    for arithmetic in ("fraction", "float64"):
        for verifier, shortlist, sampling in (
            (v, s, p) for v in parts.VERIFIERS for s in parts.LISTS for p in certify.SAMPLINGS
        ):
            decode = parts.decoding(verifier, shortlist)
            for case in certify.GRID:
                toys = certify.Toys.of(case, sampling, parts.backend_of("reference", arithmetic))
                distribution = certify.output_distribution(decode, toys)
                seen.update(
                    repr(sorted((str(k), str(v)) for k, v in distribution.items())).encode()
                )
                if arithmetic == "float64":
                    for seed in range(5):
                        said = [finished.tokens for finished in decode(toys, SeededRandom(seed))]
                        seen.update(repr(said).encode())
    return seen.hexdigest()


def _apart(target: Any, *arguments: Any) -> Any:
    """What a forked process answers; ``NO_ANSWER`` where it died or ran in circles."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(*arguments, theirs))
    process.start()
    theirs.close()
    try:
        answer = ours.recv()
    except EOFError:
        answer = NO_ANSWER
    process.join()
    return answer


class Trial:
    """The mutants of one file, and what is known of the tests that they are tried by."""

    def __init__(
        self,
        file: str,
        by_line: dict[int, list[str]],
        seconds: Counter[str],
        done: dict[str, dict[str, Any]],
    ) -> None:
        """``by_line``: which tests come by each, and ``seconds``: how long each takes; ``done``:
        what is known already, by the hash of the changed source."""
        self._done, self._seconds, self._by_line = done, seconds, by_line
        self._files = tuple(_selected(file))
        source = _path(file).read_text("utf-8")
        self.mutants = list(mutants(file, source))

    def tried(self, mutant: Mutant) -> dict[str, Any]:
        """What becomes of a mutant."""
        sha256 = hashlib.sha256(mutant.source.encode()).hexdigest()
        if sha256 in self._done:
            return self._done[sha256]
        started = time.perf_counter()
        killer = self._killer(mutant)
        return {
            "file": f"minispec/{mutant.file}.py", "line": mutant.line, "change": mutant.change,
            "sha256": sha256, "verdict": "killed" if killer else "survived", "killer": killer,
            "seconds": round(time.perf_counter() - started, 1),
        }  # fmt: skip

    def _killer(self, mutant: Mutant) -> str | None:
        """The first test that fails; None if none does."""
        for tests in self._in_turn(mutant.line):
            if found := _apart(_tested, mutant, tests, dict(self._seconds)):
                return str(found)
        return None

    def _in_turn(self, line: int) -> list[list[str]]:
        """All tests, in the order in which they are tried: those that come by a line and take no
        time, file by file, since what a file's tests share is made once; then those that take
        some; then those that do not come by, for what an earlier test made may serve them."""
        near = {*self._by_line.get(line, ())}
        turns: dict[tuple[bool, bool, str], list[str]] = {}
        for test in sorted(filter(self._bears, self._seconds), key=self._seconds.__getitem__):
            slow = self._seconds[test] > 1
            file = "" if slow or test not in near else test.split("::")[0]
            turns.setdefault((test not in near, slow, file), []).append(test)
        return [turns[key] for key in sorted(turns, key=lambda key: (*key[:2], len(turns[key])))]

    def _bears(self, test: str) -> bool:
        return test.startswith(self._files)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("files", nargs="*", default=list(SELECTION), help=", ".join(SELECTION))
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "mutants.json")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="at a time")
    parser.add_argument("--resume", action="store_true", help="trust what --out has")
    parser.add_argument("--unwalked", action="store_true", help="call no survivor equivalent")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as compiled:
        # What is not ours is loaded, and what is ours compiled, once for all.
        sys.dont_write_bytecode, sys.pycache_prefix = False, compiled
        _preloaded()
        return _all_tried(options)


def _preloaded() -> None:
    """Loads whatever the tests load, and forgets what of it is ours."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    for name in ("conftest", "hypothesis", "pytest", "torch._dynamo", "tqdm"):
        importlib.import_module(name)
    for name, module in list(sys.modules.items()):
        if any(str(ROOT / ours) in str(module) for ours in ("minispec", "fastpath")):
            del sys.modules[name]
    del sys.modules["conftest"], sys.modules["helpers.tiny_model"]
    sys.modules["torch"].set_num_threads(1)


def _kept(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """A mutant a line, so that what changed between two runs can be read."""
    path.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n", "utf-8")


def _all_tried(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    known = json.loads(options.out.read_text("utf-8")) if options.resume else []
    asked = [f"minispec/{file}.py" for file in options.files]
    found: list[dict[str, Any]] = [row for row in known if row["file"] not in asked]
    done = {row["sha256"]: row for row in known if row["verdict"] == "killed"}
    digest, failed = "", False

    options.out.parent.mkdir(parents=True, exist_ok=True)
    broken, lines, seconds = _apart(_surveyed, options.files)
    if broken:
        print(f"{broken} fails without any change", file=sys.stderr)
        return 1
    for file in options.files:
        trial = Trial(file, lines[file], seconds, done)
        rows = []
        context = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(options.jobs, mp_context=context) as pool:
            made = pool.map(trial.tried, trial.mutants)
            for row in tqdm(made, desc=file, unit="mutant", disable=None, total=len(trial.mutants)):
                rows.append(row)
                _kept([*found, *rows], options.out)
            survivors = [
                (mutant, row)
                for mutant, row in zip(trial.mutants, rows, strict=True)
                if row["verdict"] == "survived"
            ]
            if survivors and not options.unwalked:
                digest = digest or str(_apart(_digested, None))
                assert digest != NO_ANSWER, "the grid cannot be walked without any change"
                walks = pool.map(partial(_apart, _digested), [mutant for mutant, _ in survivors])
                for (_, row), walked in zip(survivors, walks, strict=True):
                    row["verdict"] = "equivalent" if walked == digest else "survived"
        for _, row in survivors:
            print(f"{row['verdict']}: {row['file']}:{row['line']}  {row['change']}", flush=True)
        found += rows
        _kept(found, options.out)
        counts = Counter(row["verdict"] for row in rows)
        score = counts["killed"] / max(1, len(rows) - counts["equivalent"])
        wanted = 1.0 if file in LAW_BEARING else 0.9
        failed |= score < wanted or counts["equivalent"] > 0.05 * len(rows)
        print(f"minispec/{file}.py: {dict(counts)}, {100 * score:.1f}% killed", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
