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
    for folder in ("data", "artifacts")
    for path in (ROOT / "minispec" / folder).rglob("*")
    if path.is_file()
)
ABOUT = "minispec_decoding-0.1.0.dist-info"
MEGABYTE = 1_000_000
# What is shipped is mostly weights; docs/upgrading.md states these bounds.
WHEEL_LIMIT, SDIST_LIMIT = 45 * MEGABYTE, 50 * MEGABYTE


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
    assert wheel.name == "minispec_decoding-0.1.0-py3-none-any.whl"
    assert wheel.stat().st_size < WHEEL_LIMIT
    assert {name.partition("/")[0] for name in names} == {"minispec", "fastpath", ABOUT}
    assert {
        "minispec/errors.py",
        "minispec/py.typed",
        "minispec/shortlists/full.py",
        "minispec/tools/cli/main.py",
        "fastpath/__init__.py",
        "fastpath/cpu/kernels.py",
    } <= {*names}
    shipped = [n for n in names if n.startswith(("minispec/data/", "minispec/artifacts/"))]
    assert sorted(shipped) == DATA
    assert "minispec/data/prompts/law.txt" in DATA


def test_wheel_declares_the_terms_of_what_it_holds(built: Path) -> None:
    [wheel] = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {*archive.namelist()}
    gemma = "minispec/artifacts/gemma3-270m"
    texts = {"LICENSE", "NOTICE", f"{gemma}/GEMMA_TERMS.md", f"{gemma}/NOTICE"}
    assert {f"{ABOUT}/licenses/{text}" for text in texts} <= names
    for model in ("smollm2", "pocket", "gemma3-270m"):
        folder = f"minispec/artifacts/{model}"
        assert f"{folder}/README.md" in names
        assert names & {f"{folder}/LICENSE", f"{folder}/GEMMA_TERMS.md"}


def test_sdist_holds_data_and_what_tests_need(built: Path) -> None:
    [sdist] = built.glob("*.tar.gz")
    assert sdist.stat().st_size < SDIST_LIMIT
    with tarfile.open(sdist) as archive:
        names = [member.name.partition("/")[2] for member in archive if member.isfile()]
    shipped = [n for n in names if n.startswith(("minispec/data/", "minispec/artifacts/"))]
    assert sorted(shipped) == DATA
    assert {"setup.cfg", "pyproject.toml", "Makefile", "LICENSE", "NOTICE", "ruff.toml"} <= {*names}
    assert {"tests/docs/test_package.py", "tests/helpers/words.py", "docs/one_file.py"} <= {*names}


def test_metadata(installed: Path) -> None:
    [found] = metadata.distributions(path=[str(installed)])
    about = found.metadata
    assert (about["Name"], about["Version"]) == ("minispec-decoding", "0.1.0")
    assert about["Requires-Python"] == ">=3.11"
    assert about["License-Expression"] == "Apache-2.0 AND LicenseRef-Gemma"
    extras = {
        "report", "train", "hnsw", "transformers", "peers", "cuda", "dev", "docs", "bench"
    }  # fmt: skip
    assert set(about.get_all("Provides-Extra", [])) == extras
    requirements = [*map(Requirement, found.requires or ())]
    core = {wants.name for wants in requirements if not wants.marker}
    assert core == {
        "torch", "numpy", "numba", "msgspec", "tokenizers", "jinja2",
        "safetensors", "gguf", "tiktoken", "sentencepiece",
        "platformdirs", "tqdm",
    }  # fmt: skip
    [torch] = [wants for wants in requirements if wants.name == "torch"]
    assert torch.specifier.contains("2.13.0")


def test_console_script_of_the_installed_wheel(installed: Path, tmp_path: Path) -> None:
    # Python's path begins with the installed copy, and the checkout is not the folder at hand.
    where = {"PYTHONPATH": str(installed)}
    code = "import minispec; print(minispec.__file__)"
    assert run(sys.executable, "-c", code, cwd=tmp_path, **where).startswith(str(installed))
    code = "from minispec.tools.data import corpus; print(len(corpus.load_prompts('law')))"
    assert int(run(sys.executable, "-c", code, cwd=tmp_path, **where)) >= 24

    script = installed / "bin" / "minispec"
    text = run(script, "--help", cwd=tmp_path, **where)
    for command in ("fetch", "generate", "compare", "train", "rank"):
        assert command in text
    prompt = ("generate", "It was a", "--model", "pocket", "--max-new-tokens", "8")
    assert run(script, *prompt, cwd=tmp_path, **where).strip()


def test_wheel_holds_code_for_python_3_13(built: Path, tmp_path: Path) -> None:
    """PyTorch is not installed there: what needs it is compiled, the rest is run."""
    python = find_python("3.13")
    if python is None:
        pytest.skip("needs Python 3.13")
    [wheel] = built.glob("*.whl")
    folder = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    run(python, "-W", "error", "-m", "compileall", "-q", folder, cwd=tmp_path)
    where = {"PYTHONPATH": str(folder)}
    assert "0.1.0" in run(python, "-m", "minispec", "--version", cwd=tmp_path, **where)
    assert "compare" in run(python, "-m", "minispec", "--help", cwd=tmp_path, **where)


def find_python(version: str) -> str | None:
    """An interpreter of that version, not a shim that leads nowhere."""
    name = f"python{version}"
    places = (Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/{name}")
    for path in filter(None, (shutil.which(name), *map(str, places))):
        answer = subprocess.run([path, "--version"], capture_output=True, text=True)
        if answer.returncode == 0 and f" {version}." in answer.stdout:
            return path
    return None


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(
    "target",
    ["demo", "test", "slow", "bench", "draft", "measure", "pocket", "notebook", "docs", "lint"],
)
def test_make_with_a_python_builds_no_environment(target: str) -> None:
    # As if typed by a person: nothing comes down from a make that runs these tests.
    fresh = {"MAKEFLAGS": "", "MAKELEVEL": "", "VENV": "no-venv"}
    assert f"\nmake {target} " in "\n" + run("make", "help", cwd=ROOT, **fresh)
    shown = run("make", "-n", target, f"PYTHON={sys.executable}", cwd=ROOT, **fresh)
    assert f"{sys.executable} " in shown
    assert "pip" not in shown.replace(sys.executable, "")
    assert "no-venv" not in shown
