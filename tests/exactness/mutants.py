"""``make mutants``: the code is changed in every small way, and the tests must notice each.

A mutant is one file of ``minispec/`` with one operator, number, condition, bound or statement
changed. For each, a fresh process loads the package with that file in place and runs the tests
that bear on it, the quickest first, until one fails. A mutant that survives is *equivalent* only
if nothing that can be seen differs: the laws of the whole grid, in fractions and in float64, and
what the production source says for many seeds, bit for bit.

    python tests/exactness/mutants.py [--out FILE] [FILE.py ...]
"""

import argparse
import ast
import contextlib
import copy
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
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
NO_ANSWER = "no answer"
CPU_SECONDS = 90  # more than any selection takes: beyond, a mutant runs in circles, and is seen
LAWS = ["exactness/test_grid.py", "exactness/test_properties.py"]
LOOP = ["test_decode.py", "test_exactness.py", "exactness/test_health.py"]
CACHES = ["test_draft.py", "test_model.py", "exactness/test_metamorphic.py"]

# Which tests bear on a file, the quickest first; the others have nothing to do with it.
SELECTION = {
    "verify": ["test_verify.py", *LAWS, "exactness/test_source.py"],
    "sampling": ["test_sampling.py", "exactness/test_properties.py", "exactness/test_source.py",
                 "exactness/test_grid.py"],
    "propose": ["test_verify.py", *LOOP, *LAWS],
    "decode": [*LOOP, "test_verify.py", *LAWS, "exactness/test_source.py", "test_model.py"],
    "commit": ["test_decode.py", "test_exactness.py", *LAWS],
    "shortlist/full": ["test_decode.py", "test_exactness.py"],
    "shortlist/static": ["test_ranking.py", "exactness/test_properties.py", "test_draft.py"],
    "shortlist/in_context": ["test_shortlists.py", "test_exactness.py"],
    "shortlist/routed": ["test_shortlists.py", "test_exactness.py"],
    "shortlist/semantic": ["test_shortlists.py", "test_exactness.py"],
    "shortlist/statistical": ["test_shortlists.py", "test_exactness.py"],
    "shortlist/evolving": ["test_shortlists.py", "test_exactness.py"],
    "cache": [*CACHES, "test_batched.py"],
    "draft": [*CACHES, "exactness/test_health.py", "test_train.py"],
}  # fmt: skip
LAW_BEARING = ("verify", "sampling", "propose", "decode", "commit")

_OTHER: dict[type, list[type]] = {
    ast.Lt: [ast.LtE, ast.GtE], ast.LtE: [ast.Lt, ast.Gt], ast.Gt: [ast.GtE, ast.LtE],
    ast.GtE: [ast.Gt, ast.Lt], ast.Eq: [ast.NotEq], ast.NotEq: [ast.Eq], ast.Is: [ast.IsNot],
    ast.IsNot: [ast.Is], ast.In: [ast.NotIn], ast.NotIn: [ast.In], ast.Add: [ast.Sub],
    ast.Sub: [ast.Add], ast.Mult: [ast.Div], ast.Div: [ast.Mult], ast.BitOr: [ast.BitAnd],
    ast.BitAnd: [ast.BitOr], ast.And: [ast.Or], ast.Or: [ast.And], ast.USub: [ast.UAdd],
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """A file's source with one change."""

    file: str
    line: int
    change: str
    source: str


def mutants(file: str, source: str) -> Iterator[Mutant]:
    """Every small change of a file, but for its messages, docstrings and annotations."""
    tree = ast.parse(source)
    parts = (part for node in ast.walk(tree) for part in _spared(node))
    spared = {id(inner) for part in parts for inner in ast.walk(part)}
    for index, node in enumerate(ast.walk(tree)):
        if id(node) in spared:
            continue
        for change in _changes(node):
            twin = copy.deepcopy(tree)
            changed = list(ast.walk(twin))[index]
            before = ast.unparse(changed)
            dropped = change(changed)
            ast.fix_missing_locations(twin)
            said = f"{ast.unparse(dropped)} -> nothing" if dropped else (
                f"{before} -> {ast.unparse(changed)}"
            )  # fmt: skip
            line = getattr(dropped or node, "lineno", 0)
            yield Mutant(file, line, said[:160], ast.unparse(twin))


def _spared(node: ast.AST) -> Iterator[ast.AST]:
    """Parts that no test is asked to know: words and types."""
    match node:
        case ast.Raise() | ast.JoinedStr() | ast.Import() | ast.ImportFrom():
            yield node
        case ast.AnnAssign(annotation=annotation) | ast.arg(annotation=ast.AST() as annotation):
            yield annotation
        case ast.FunctionDef(returns=returns, decorator_list=decorators):
            yield from decorators
            if returns:
                yield returns
        case ast.ClassDef(decorator_list=decorators):
            yield from decorators


def _changes(node: ast.AST) -> Iterator[Any]:
    """Functions that change a node in place, one for each small change; one that drops a
    statement returns it."""
    match node:
        case ast.Compare(ops=[op]):
            for other in _OTHER.get(type(op), []):
                yield lambda n, other=other: setattr(n, "ops", [other()])
        case ast.BinOp(op=op) | ast.BoolOp(op=op) | ast.UnaryOp(op=op) | ast.AugAssign(op=op):
            for other in _OTHER.get(type(op), []):
                yield lambda n, other=other: setattr(n, "op", other())
            if isinstance(op, ast.Not):
                yield lambda n: setattr(n, "operand", ast.UnaryOp(ast.Not(), n.operand))
        case ast.Constant(value=bool() as value):
            yield lambda n, value=value: setattr(n, "value", not value)
        case ast.Constant(value=int() | float() as value):
            yield lambda n, value=value: setattr(n, "value", value + 1)
        case ast.Slice(lower=lower, upper=upper):
            if lower is not None:
                yield lambda n: setattr(n, "lower", None)
            if upper is not None:
                yield lambda n: setattr(n, "upper", None)
        case ast.Call(func=ast.Name(id="min" | "max" as name)):
            other = "max" if name == "min" else "min"
            yield lambda n, other=other: setattr(n.func, "id", other)
        case ast.Return(value=ast.AST() as value) if not isinstance(value, ast.Constant):
            yield lambda n: setattr(n, "value", ast.Constant(None))
    match node:
        case ast.If(test=test) | ast.While(test=test) | ast.IfExp(test=test):
            if isinstance(test, ast.Name | ast.Call | ast.Attribute):
                yield lambda n: setattr(n, "test", ast.UnaryOp(ast.Not(), n.test))
    for name in ("body", "orelse"):
        statements = getattr(node, name, None)
        for place, statement in enumerate(statements if isinstance(statements, list) else ()):
            if _acts(statement):
                yield lambda n, name=name, place=place: _dropped(getattr(n, name), place)


def _acts(statement: ast.stmt) -> bool:
    """Whether a statement is there for what it changes, so that it can be left out."""
    match statement:
        case ast.AugAssign() | ast.Expr(value=ast.Call()):
            return True
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            return True
    return False


def _dropped(statements: list[ast.stmt], place: int) -> ast.stmt:
    statement, statements[place] = statements[place], ast.Pass()
    return statement


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
        self._loader = _Loader(str(ROOT / "minispec" / f"{mutant.file}.py"), mutant.source)

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname != self._name:
            return None
        return importlib.util.spec_from_loader(fullname, self._loader)


class _First:
    """A pytest plugin that remembers the first test that failed."""

    name: str | None = None

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and self.name is None:
            self.name = report.nodeid

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed and self.name is None:
            self.name = f"import of {report.nodeid}"


def _prepared(mutant: Mutant | None, seconds: int) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    os.chdir(ROOT)
    sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "exactness")]
    os.environ["EXAMPLES"] = "10"
    if mutant:
        sys.meta_path.insert(0, _Finder(mutant))


def _tested(mutant: Mutant | None, tests: list[str], answer: Connection) -> None:
    import pytest
    from hypothesis import Phase, settings

    # Whether an example fails is all that is asked: it need not be made small.
    phases = (Phase.explicit, Phase.generate)
    settings.register_profile("mutants", deadline=None, phases=phases, max_examples=30)
    os.environ["HYPOTHESIS_PROFILE"] = "mutants"
    _prepared(mutant, CPU_SECONDS)
    first = _First()
    options = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", "--hypothesis-seed=0"]
    options += ["--deselect", "tests/exactness/test_properties.py::test_a_planted_defect_is_seen"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        code = pytest.main([*options, *(f"tests/{test}" for test in tests)], plugins=[first])
    answer.send(first.name or (f"exit code {code}" if code else None))


def _digested(mutant: Mutant | None, answer: Connection) -> None:
    _prepared(mutant, 10 * CPU_SECONDS)
    answer.send(_digest())


def _digest() -> str:
    """Of all that can be seen: laws over the grid, and what seeds say."""
    import parts
    import torch

    from minispec import certify
    from minispec.sampling import SeededRandom

    torch.set_num_threads(1)
    seen = hashlib.sha256()
    for arithmetic in ("fraction", "float64"):
        for verifier, shortlist, sampling in (
            (v, s, p) for v in parts.VERIFIERS for s in parts.LISTS for p in certify.SAMPLINGS
        ):
            decode = parts.VERIFIERS[verifier](parts.LISTS[shortlist])
            for case in certify.GRID:
                toys = certify.Toys.of(case, sampling, parts.backend_of("reference", arithmetic))
                law = certify.output_law(decode, toys)
                seen.update(repr(sorted((str(k), str(v)) for k, v in law.items())).encode())
                if arithmetic == "float64":
                    for seed in range(5):
                        said = [round.tokens for round in decode(toys, SeededRandom(seed))]
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("files", nargs="*", default=list(SELECTION), help=", ".join(SELECTION))
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "mutants.json")
    parser.add_argument("--resume", action="store_true", help="trust what --out says was killed")
    parser.add_argument("--unwalked", action="store_true", help="call no survivor equivalent")
    options = parser.parse_args()
    import hypothesis  # noqa: F401  loaded once, for all that are forked from here
    import numpy  # noqa: F401
    import pytest  # noqa: F401
    import torch
    from tqdm import tqdm

    torch.set_num_threads(1)
    found: list[dict[str, Any]] = []
    known = json.loads(options.out.read_text("utf-8")) if options.resume else []
    done = {row["sha256"]: row for row in known if row["verdict"] == "killed"}
    digest, failed = "", False
    for file in options.files:
        tests = SELECTION[file]
        broken = _apart(_tested, None, tests)
        if broken:
            print(f"{file}: {broken} fails without any change", file=sys.stderr)
            return 1
        source = (ROOT / "minispec" / f"{file}.py").read_text("utf-8")
        made = list(mutants(file, source))
        for mutant in tqdm(made, desc=file, unit="mutant", disable=None):
            sha256 = hashlib.sha256(mutant.source.encode()).hexdigest()
            if sha256 not in done:
                started = time.perf_counter()
                killer = _apart(_tested, mutant, tests)
                verdict = "killed" if killer else "survived"
                if not killer and not options.unwalked:
                    digest = digest or _apart(_digested, None)
                    assert digest != NO_ANSWER, "the grid cannot be walked without any change"
                    same = _apart(_digested, mutant) == digest
                    verdict = "equivalent" if same else "survived"
                if not killer:
                    print(f"{verdict}: minispec/{file}.py:{mutant.line}  {mutant.change}")
                done[sha256] = {
                    "file": f"minispec/{file}.py", "line": mutant.line, "change": mutant.change,
                    "sha256": sha256, "verdict": verdict, "killer": killer,
                    "seconds": round(time.perf_counter() - started, 1),
                }  # fmt: skip
            found.append(done[sha256])
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
        counts = Counter(row["verdict"] for row in found if row["file"] == f"minispec/{file}.py")
        total = counts.total()
        score = counts["killed"] / max(1, total - counts["equivalent"])
        wanted = 1.0 if file in LAW_BEARING else 0.9
        failed |= score < wanted or counts["equivalent"] > 0.05 * total
        print(f"minispec/{file}.py: {dict(counts)}, {100 * score:.1f}% killed", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
