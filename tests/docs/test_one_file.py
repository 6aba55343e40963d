"""``docs/one_file.py``: short, self-contained, and its assertion of exactness can fail."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ONE_FILE = Path(__file__).parent.parent.parent / "docs" / "one_file.py"
SOURCE = ONE_FILE.read_text(encoding="utf-8")


def run_source(source: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a version of the file as a script, isolated from this checkout."""
    path = folder / "one_file.py"
    path.write_text(source, encoding="utf-8")
    return subprocess.run(
        [sys.executable, "-I", path], cwd=folder, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip


def test_one_file_runs_and_prints_its_result(tmp_path: Path) -> None:
    done = run_source(SOURCE, tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3 and "shortlist" in lines[0] and "tau = " in lines[1]
    assert 1 < float(lines[1].split()[2]) <= 3  # tau lies between 1 and gamma + 1
    assert "total variation" in lines[2] and float(lines[2].split()[-1]) < 1e-12
    assert done.stderr == ""


def test_one_file_imports_torch_alone() -> None:
    imports = [n for n in ast.walk(ast.parse(SOURCE)) if isinstance(n, ast.Import | ast.ImportFrom)]
    assert [ast.unparse(node) for node in imports] == ["import torch"]
    assert "__import__" not in SOURCE and "import_module" not in SOURCE


def test_one_file_has_at_most_150_lines() -> None:
    assert len(SOURCE.splitlines()) <= 150
    assert max(map(len, SOURCE.splitlines())) <= 100


@pytest.mark.parametrize(
    ("line", "defect"),
    [
        ("(p[i] - q[i]).clamp(min=0)", "p[i]"),  # after a rejection, draw from p itself
        ("(p[i] - q[i]).clamp(min=0)", "(p[i] - q[i]).clamp(min=0) * (q[i] > 0) + 1e-9"),
        ("(p[i, x] / q[i][x]).clamp(max=1)", "0.9 * (p[i, x] / q[i][x]).clamp(max=1)"),
        ("choose(p[-1])", "choose(p[0])"),  # the bonus token from the wrong position
    ],
)
def test_one_file_with_a_planted_defect_fails(line: str, defect: str, tmp_path: Path) -> None:
    assert SOURCE.count(line) == 1
    done = run_source(SOURCE.replace(line, defect), tmp_path)
    assert done.returncode == 1
    assert "AssertionError: the output does not follow the target's distribution" in done.stderr
