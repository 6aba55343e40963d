"""A small part of the drill, each part in a process of its own: it forks, limits its memory and
counts what is opened, which a process that runs other tests must not."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from drill.format_gguf import Gguf, parse
from drill.format_json import Json
from drill.format_safetensors import Safetensors, join
from drill.reader import find_changes
from drill.rules import CONFIG, GGUF
from drill.values import find_illegal, is_positive, is_size

_TESTS = Path(__file__).parent.parent


def run_drill(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    """The summary of a drill that found nothing."""
    path = tmp_path / "drill.json"
    command = [sys.executable, "-m", "drill", *arguments, "--json", str(path)]
    paths = os.pathsep.join(map(str, (_TESTS.parent, _TESTS, os.environ.get("PYTHONPATH", ""))))
    environment = os.environ | {"PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=600, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    summary: dict[str, Any] = json.loads(path.read_text())
    return summary


def test_drill_refuses_hostile_files_or_reads_what_is_intact(tmp_path: Path) -> None:
    files = run_drill(tmp_path, "files", "--files", "120", "--processes", "1")["files"]
    assert files["files"] == 120 and files["structured"] > 60
    assert files["kinds"].keys() <= {"refused", "same", "unnoticed"}
    assert min(sum(counts.values()) for counts in files["readers"].values()) >= 1
    assert files["kinds"]["refused"] > 40


def test_drill_resumes_after_kills(tmp_path: Path) -> None:
    kills = run_drill(tmp_path, "kills", "--kills", "2", "--writers", "training")["kills"]
    assert kills["kills"] == kills["resumed"] == 2


def test_drill_loses_nothing_on_a_full_disk(tmp_path: Path) -> None:
    places = run_drill(tmp_path, "places", "--writers", "training")["places"]
    assert places["checks"] >= 4


@pytest.mark.parametrize(
    ("field", "value", "legal"),
    [
        ("rope_theta", 5000, True), ("rope_theta", True, False), ("rope_theta", 1e400, False),
        ("rope_theta", "4", False), ("head_dim", None, True), ("hidden_size", 2**62, False),
        ("rope_scaling.rope_type", "(missing)", False), ("layer_types.[]", "full", False),
    ],
)  # fmt: skip
def test_find_illegal_allows_values_of_the_schema_only(field: str, value: Any, legal: bool) -> None:
    assert find_illegal([(field, value)], CONFIG) == ([] if legal else [field])


def test_rules_do_not_take_flags_for_numbers() -> None:
    assert not any(rule(True) for rule in (is_positive, is_size))
    assert find_illegal([("llama.rope.freq_base", True)], GGUF)


def test_diff_names_the_fields_that_differ() -> None:
    before = b'{"a": 1, "b": {"c": [1, 2]}}'
    assert Json().diff(before, b'{"a": 1, "b": {"c": [1, 3]}}') == {"b.c.[]": 3}
    assert Json().diff(before, b'{"a": true, "b": {"c": [1, 2]}}') == {"a": True}
    assert Json().diff(before, b'{"a": 1') is None
    header = {"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    intact, damaged = (join(json.dumps(header), data) for data in (b"\0" * 4, b"\0\0\xc0\x7f"))
    (field,) = Safetensors().diff(intact, damaged) or {}
    assert field == "x.data"
    assert Safetensors().diff(intact, damaged[:-1]) is None
    with pytest.raises(ValueError, match="not GGUF"):
        parse(b"GGML" + bytes(40))
    assert Gguf().diff(b"", b"") is None


def test_find_changes_ignores_what_was_refused() -> None:
    intact = {"ids": (1, 2), "chat": (3,)}
    assert find_changes(intact, {"ids": (1, 2), "chat": ("(refused)", "no template")}) == []
    assert find_changes(intact, {"ids": (1, 3), "chat": (3,)}) == ["ids"]
