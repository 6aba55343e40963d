"""What people install is what the project holds: built, installed and run in folders aside.

The build goes the whole way, checkout to sdist to wheel, so a file that the sdist forgets is
missing from the wheel as well.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent.parent
DATA = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "minispec" / "data").rglob("*")
    if path.is_file()
)
WEIGHTS = sorted(
    path.relative_to(ROOT).as_posix() for path in (ROOT / "weights").rglob("*") if path.is_file()
)
ABOUT = "minispec-0.1.0.dist-info"


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """The command's stdout; what it said on stderr is shown where it fails."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the sdist and the wheel, made from a copy: a build litters its folder."""
    copy = tmp_path_factory.mktemp("checkout") / "minispec"
    left = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, copy, ignore=left)
    run(sys.executable, "-m", "build", "--no-isolation", cwd=copy)
    return copy / "dist"


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and nothing else installed in it."""
    folder = tmp_path_factory.mktemp("installed")
    [wheel] = built.glob("*.whl")
    install = (sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet")
    run(*install, "--target", folder, wheel, cwd=folder)
    return folder


def test_wheel_holds_packages_and_data(built: Path) -> None:
    [wheel] = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert wheel.name == "minispec-0.1.0-py3-none-any.whl"
    apart = "minispec-0.1.0.data"
    assert {name.partition("/")[0] for name in names} == {
        "minispec", "fastpath", ABOUT
    }  # fmt: skip
    shared = sorted(name for name in names if name.startswith(apart))
    assert shared == [f"{apart}/data/share/minispec/{path}" for path in WEIGHTS]
    assert {
        "minispec/errors.py",
        "minispec/shortlists/full.py",
        "fastpath/__init__.py",
        "minispec/tools/cli/main.py",
    } <= {*names}
    assert {f"{ABOUT}/licenses/LICENSE", f"{ABOUT}/licenses/NOTICE"} <= {*names}
    assert sorted(name for name in names if name.startswith("minispec/data/")) == DATA
    assert "minispec/data/prompts/law.txt" in DATA


def test_sdist_holds_data_and_what_tests_need(built: Path) -> None:
    [sdist] = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = [member.name.partition("/")[2] for member in archive if member.isfile()]
    assert sorted(name for name in names if name.startswith("minispec/data/")) == DATA
    assert {"setup.cfg", "pyproject.toml", "Makefile", "LICENSE", "NOTICE", "ruff.toml"} <= {*names}
    assert "tests/docs/test_package.py" in names


def test_metadata(installed: Path) -> None:
    [found] = metadata.distributions(path=[str(installed)])
    about = found.metadata
    assert (about["Name"], about["Version"]) == ("minispec", "0.1.0")
    assert about["Requires-Python"] == ">=3.11"
    assert "Apache-2.0" in (about["License-Expression"], about["License"])
    assert set(about.get_all("Provides-Extra", [])) == {"dev", "bench", "cuda", "docs"}
    requirements = {wants.name: wants for wants in map(Requirement, found.requires or ())}
    assert requirements["torch"].specifier.contains("2.13.0")


def test_console_script_of_the_installed_wheel(installed: Path, tmp_path: Path) -> None:
    # Python's path begins with the installed copy, and the checkout is not the folder at hand.
    where = {"PYTHONPATH": str(installed)}
    code = "import minispec.tools.cli.main; print(minispec.tools.cli.main.__file__)"
    assert run(sys.executable, "-c", code, cwd=tmp_path, **where).startswith(str(installed))
    code = "from minispec.tools.data import corpus; print(len(corpus.prompts('law')))"
    assert int(run(sys.executable, "-c", code, cwd=tmp_path, **where)) >= 24

    says = run(installed / "bin" / "minispec", "--help", cwd=tmp_path, **where)
    for command in ("fetch", "generate", "compare", "train", "rank"):
        assert command in says


def test_what_is_under_other_terms_is_found_where_the_wheel_puts_it(installed: Path) -> None:
    assert "weights/gemma3-270m/GEMMA_TERMS.md" in WEIGHTS
    code = "from minispec.tools.models.pretrained import _shipped_apart as s; print(*s('gemma3-270m'), sep='\\n')"
    told = run(sys.executable, "-c", code, cwd=installed, PYTHONPATH=str(installed))
    found = sorted(Path(line) for line in told.splitlines())
    assert [path.name for path in found] == [Path(path).name for path in WEIGHTS]
    assert all(path.is_relative_to(installed.resolve()) and path.read_bytes() for path in found)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(
    "target", ["demo", "test", "slow", "bench", "draft", "pocket", "notebook", "docs", "lint"]
)
def test_make_with_a_python_builds_no_environment(target: str) -> None:
    # As if typed by a person: nothing comes down from a make that runs these tests.
    fresh = {"MAKEFLAGS": "", "MAKELEVEL": "", "VENV": "no-venv"}
    assert f"\nmake {target} " in "\n" + run("make", "help", cwd=ROOT, **fresh)
    told = run("make", "-n", target, f"PYTHON={sys.executable}", cwd=ROOT, **fresh)
    assert f"{sys.executable} -m " in told
    assert "pip" not in told.replace(sys.executable, "")
    assert "no-venv" not in told
