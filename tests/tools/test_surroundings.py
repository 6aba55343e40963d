"""Ordinary surroundings: each command works in them, or says in one line what it lacks."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from shutil import copytree, ignore_patterns, which

import pytest

from helpers.command_line import (
    GENERATE,
    ROOT,
    check_one_line,
    environment,
    program,
    run_program,
)

CPU = [*GENERATE[: GENERATE.index("--backend")], "--backend", "cpu"]
UNSHARE = ("unshare", "--user", "--map-user=12345", "--map-group=12345")


def can_unshare() -> bool:
    return bool(which("unshare")) and not subprocess.run([*UNSHARE, "true"]).returncode


@pytest.fixture(scope="module")
def read_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package that nobody can write to, without compiled kernels."""
    folder = tmp_path_factory.mktemp("installed")
    without = ignore_patterns("__pycache__", "smollm2", "gemma3-270m")
    for package in ("minispec", "fastpath"):
        copytree(ROOT / package, folder / package, ignore=without)
    for path in [*folder.rglob("*"), folder]:
        path.chmod(path.stat().st_mode & ~0o222 | 0o444)
    return folder


# ------------------------------------------------------------------ containers


@pytest.mark.skipif(not can_unshare(), reason="needs user namespaces")
@pytest.mark.parametrize("home", ["/proc/none", None])
def test_generate_without_a_home_a_user_name_or_a_writable_package(
    read_only: Path, tmp_path: Path, home: str | None
) -> None:
    done = run_program(
        *GENERATE, source=read_only, prefix=UNSHARE, cwd="/",
        changes={"HOME": home, "XDG_CACHE_HOME": None, "TMPDIR": "/proc/none"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(b"2 tokens") and done.stderr.count(b"\n") == 1


@pytest.mark.slow  # kernels are compiled without a cache
@pytest.mark.timeout(900)
@pytest.mark.skipif(not can_unshare(), reason="needs user namespaces")
@pytest.mark.parametrize("temporary", ["/proc/none", None])
def test_cpu_backend_without_a_place_for_kernels(read_only: Path, temporary: str | None) -> None:
    done = run_program(
        *CPU, source=read_only, prefix=UNSHARE, cwd="/", timeout=800,
        changes={"HOME": None, "XDG_CACHE_HOME": None, "TMPDIR": temporary},
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr.count(b"\n") == 1, done.stderr


@pytest.mark.skipif(not can_unshare(), reason="needs user namespaces")
def test_fetch_without_a_home_names_what_to_set() -> None:
    done = run_program(
        "fetch", "smollm2", prefix=UNSHARE, changes={"HOME": None, "XDG_CACHE_HOME": None}
    )
    assert done.returncode == 2 and "set HOME, or XDG_CACHE_HOME" in check_one_line(done.stderr)


# ------------------------------------------------------------------ Numba


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("NUMBA_DISABLE_JIT", "1", "unset NUMBA_DISABLE_JIT"),
        ("NUMBA_THREADING_LAYER", "nosuch", "unset NUMBA_THREADING_LAYER"),
        ("NUMBA_NUM_THREADS", "0", "must be > 0"),
    ],
)
def test_generate_names_what_numba_lacks(name: str, value: str, reason: str) -> None:
    done = run_program(*CPU, changes={name: value})
    error = check_one_line(done.stderr)
    assert done.returncode == 2 and "backend cpu cannot run" in error and reason in error


FORK = """
import os, sys, minispec
from minispec.errors import ArgumentError
model = minispec.load("pocket", backend=sys.argv[1], threads=2)
whole = model.generate("hi", max_new_tokens=3).text
if child := os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
try:
    code = 0 if model.generate("hi", max_new_tokens=3).text == whole else 1
except ArgumentError as error:
    code = 3 if "forked" in str(error) and "spawn" in str(error) else 1
os._exit(code)
"""


def test_generate_in_a_fork_of_a_process_that_has_decoded() -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORK, "reference"]
    assert subprocess.run(command, cwd=ROOT, timeout=280).returncode == 0


@pytest.mark.parametrize(("layer", "code"), [("omp", 3), ("workqueue", 0)])
def test_cpu_backend_in_a_fork_decodes_or_says_why_not(layer: str, code: int) -> None:
    """GNU's OpenMP ends a forked process, which is refused before; the work queue goes on."""
    command = [sys.executable, "-W", "ignore", "-c", FORK, "cpu"]
    changes = environment({"NUMBA_THREADING_LAYER": layer})
    done = subprocess.run(command, cwd=ROOT, env=changes, timeout=280, capture_output=True)
    if b"threading layer" in done.stderr:
        pytest.skip(f"Numba has no {layer} here")
    assert done.returncode == (code if sys.platform == "linux" else 0), done.stderr


# ------------------------------------------------------------------ text


@pytest.mark.parametrize(
    "changes",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONIOENCODING": "ascii"},
        {"COLUMNS": "1", "NO_COLOR": "1", "TERM": "dumb"},
    ],
)
def test_generate_reads_utf8_in_every_locale(changes: Mapping[str, str]) -> None:
    given = run_program(*GENERATE[:1], "caf\u00e9", *GENERATE[2:], "--json", changes=changes)
    stdin = {"stdin": None, "input": b"caf\xc3\xa9\r\n"}
    piped = run_program(*GENERATE[:1], *GENERATE[2:], "--json", changes=changes, **stdin)
    assert given.returncode == piped.returncode == 0 and given.stderr == piped.stderr == b""
    count = b'"prompt_tokens": '
    assert given.stdout.split(count)[1] == piped.stdout.split(count)[1]


@pytest.mark.parametrize("place", ["argument", "stdin", "--stop"])
def test_generate_names_the_byte_that_is_not_utf8(place: str) -> None:
    text, options = b"caf\xe9", GENERATE[2:]
    arguments = {"argument": [text], "stdin": [], "--stop": ["hi", "--stop", text]}[place]
    given = {"stdin": None, "input": text} if place == "stdin" else {}
    done = run_program("generate", *arguments, *options, **given)
    error = check_one_line(done.stderr)
    assert done.returncode == 2 and "is not UTF-8: byte 0xe9 at character 3" in error


def test_generate_refuses_a_prompt_far_beyond_the_context() -> None:
    done = run_program("generate", *GENERATE[2:], stdin=None, input=b"word " * 200_000)
    assert done.returncode == 2 and "shorten the prompt" in check_one_line(done.stderr)


# ------------------------------------------------------------------ streams


@pytest.mark.parametrize("stream", [0, 1, 2])
def test_generate_with_a_closed_stream(stream: int) -> None:
    done = run_program(
        *GENERATE, stdin=None, preexec_fn=lambda: os.close(stream),
        **{name: None if at == stream else subprocess.PIPE
           for at, name in ((1, "stdout"), (2, "stderr"))},
    )  # fmt: skip
    assert done.returncode == 0
    assert stream == 2 or done.stderr.count(b"\n") == 1


def test_compare_writes_its_report_though_nobody_reads_the_table(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as closed:
        done = run_program(
            "compare", "--model", "pocket", "--methods", "autoregressive", "--prompts", "-",
            "--max-new-tokens", "2", "--backend", "reference", "--threads", "1",
            "--out", str(tmp_path), stdin=None, input=b"hi\n", stdout=closed,
            stderr=subprocess.PIPE, changes={"PYTHONUNBUFFERED": None},
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    assert {path.name for path in tmp_path.iterdir()} == {
        "report.json", "report.png", "report.html",
    }  # fmt: skip


# ------------------------------------------------------------------ signals


def test_ctrl_c_is_restored_for_the_programs_of_these_tests() -> None:
    """Where the caller ignores SIGINT, such as for a background job of a script."""
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("after", [0.1, 0.3, 0.6, 1.0, 1.5, 2.0])
def test_generate_ends_in_one_line_on_ctrl_c_at_any_time(after: float) -> None:
    """During imports, loading and decoding; before ours, Python's own start is not answered for."""
    long = [*GENERATE, "--ignore-eos", "--max-new-tokens", "900"]
    with subprocess.Popen(program(*long), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        time.sleep(after)
        run.send_signal(signal.SIGINT)
        _, error = run.communicate(timeout=200)
    if b"minispec: " not in error and b"/minispec/" not in error and run.returncode:
        pytest.skip("nothing of ours had been imported yet")
    if run.returncode == 0:
        return  # it had ended
    assert run.returncode == 130, error
    assert error.endswith(b"minispec: interrupted\n") and error.count(b"\n") == 1, error


FETCH = """
import sys, time
from pathlib import Path
from minispec.io import artifacts
from minispec.tools.models import known_models
cache = Path(sys.argv[1])
artifacts.user_cache_path = lambda name: cache / name
sys.executable = sys.argv[2]  # in place of pip: writes temporary files, and does not end
sys.argv = ["minispec", "fetch", "smollm2"]
from minispec.__main__ import run
sys.exit(run())
"""
SLOW_PIP = "#!/bin/sh\nmkdir $TMPDIR/unpack\ntouch $TMPDIR/unpack/half\nexec sleep 100\n"


def test_fetch_leaves_no_temporary_files_when_terminated(tmp_path: Path) -> None:
    pip, cache = tmp_path / "pip", tmp_path / "cache"
    pip.write_text(SLOW_PIP)
    pip.chmod(0o755)
    command = [sys.executable, "-W", "ignore", "-c", FETCH, str(cache), str(pip)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) as run:
        while not list(cache.rglob("half")) and run.poll() is None:
            time.sleep(0.02)
        run.terminate()
        _, error = run.communicate(timeout=200)
    assert (run.returncode, check_one_line(error)) == (143, "minispec: terminated\n")
    assert [path for path in cache.rglob("*") if path.name != "minispec"] == []
