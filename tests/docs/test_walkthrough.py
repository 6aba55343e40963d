"""The walkthrough says nothing that does not hold: each claim in it is an assertion."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_the_walkthrough_runs_and_draws(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "walkthrough.py"], cwd=tmp_path, capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "build" / "walkthrough.png").read_bytes().startswith(b"\x89PNG")
    source = (ROOT / "docs" / "walkthrough.py").read_text(encoding="utf-8")
    assert source.count("\n# %% [markdown]\n") + 1 >= 9 and source.count("\nassert ") >= 15
