"""The command line as a separate program, for what a process alone can show."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
# A short answer that needs neither kernels nor a download.
GENERATE = (
    "generate", "hi", "--model", "pocket", "--max-new-tokens", "2", "--backend", "reference",
    "--threads", "1",
)  # fmt: skip


def program(*arguments: str | bytes, source: Path = ROOT) -> list[str | bytes]:
    """The command that runs the package in ``source``."""
    code = f"import sys; sys.path.insert(0, {str(source)!r}); from minispec.__main__ import run; "
    return [sys.executable, "-W", "ignore", "-c", code + "sys.exit(run())", *arguments]


def environment(changes: Mapping[str, str | None]) -> dict[str, str]:
    """This process's environment with changes; None removes a variable."""
    known = {**os.environ, **changes}
    return {name: value for name, value in known.items() if value is not None}


def run_program(
    *arguments: str | bytes,
    source: Path = ROOT,
    prefix: Sequence[str] = (),
    changes: Mapping[str, str | None] | None = None,
    **options: Any,
) -> subprocess.CompletedProcess[bytes]:
    """Runs a command to its end, within the time limit of a test; ``prefix`` is put before it,
    ``changes`` are to the environment."""
    options = {"stdin": subprocess.DEVNULL, "timeout": 280} | options
    if not {"stdout", "stderr"} & options.keys():
        options["capture_output"] = True
    return subprocess.run(
        [*prefix, *program(*arguments, source=source)], env=environment(changes or {}), **options
    )


def check_one_line(error: bytes) -> str:
    """The text on stderr, which must be one line of ours."""
    text = error.decode()
    assert text.startswith("minispec: ") and text.endswith("\n") and text.count("\n") == 1, text
    return text
