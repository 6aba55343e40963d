"""The design is one river: a module imports only what lies upstream of it.

Imports are read from the source, so that those inside functions, those for type checkers only
and those by name count as well as those that run when a module is loaded.
"""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("minispec", "fastpath")

# From the spring to the mouth. Modules in one line know nothing of each other.
RIVER = [
    ["minispec.errors"],
    ["minispec.types"],
    [
        "minispec.checkpoint",
        "minispec.vocabulary",
        "minispec.head",
        "minispec.stopwatch",
        "minispec.quantised",
    ],
    ["minispec.arguments"],
    ["minispec.tokenizer"],
    ["minispec.cache", "minispec.sampling", "minispec.commit"],
    ["minispec.rope"],
    ["minispec.model"],
    ["minispec.gguf_file", "minispec.hf_folder"],
    ["minispec.pretrained"],
    ["minispec.shortlist.full", "minispec.shortlist.static"],
    ["minispec.shortlist.semantic", "minispec.shortlist.statistical"],
    ["minispec.shortlist.evolving", "minispec.shortlist.in_context", "minispec.shortlist.routed"],
    ["minispec.shortlist"],
    ["minispec.draft", "minispec.verdicts", "minispec.curriculum", "minispec.objective"],
    ["minispec.lora", "minispec.recall"],
    ["minispec.align"],
    ["minispec.propose", "minispec.verify"],
    ["minispec.decode", "minispec.batched"],
    ["minispec.audit"],
    ["minispec.corpus"],
    ["minispec.ranking"],
    ["minispec.distill"],
    ["minispec.batches", "minispec.training"],
    ["minispec.train", "minispec.routing"],
    ["minispec.recipe"],
    ["minispec.pocket"],
    ["minispec.methods", "minispec.measure"],
    ["minispec.streams", "minispec.switch", "minispec.replay", "minispec.generate"],
    ["minispec.results", "minispec.study"],
    ["minispec.compare"],
    ["minispec.report"],
    ["minispec.page", "minispec.explore"],
    ["minispec"],  # the package's own file, which may gather what lies above
    ["fastpath.static", "fastpath.device", "fastpath.dots"],
    ["fastpath.kernels"],
    ["fastpath.compiled", "fastpath.cuda_kernels", "fastpath.rows", "fastpath.steps"],
    ["fastpath.cuda_head", "fastpath.cpu"],
    ["fastpath.cuda_verify", "fastpath.cuda"],
    ["fastpath.cuda_round"],
    ["fastpath"],  # so nothing above can import it, and the command line below can
    ["minispec.backend"],  # which loads them by name
    ["minispec.prepare"],
    ["minispec.commands_run", "minispec.commands_make"],
    ["minispec.cli"],
    ["minispec.testing"],  # for users and for our tests: nothing that ships relies on it
    ["minispec.certify"],
]


def module_name(path: str) -> str:
    """Of a path below the root: a package is named by its folder, as Python does."""
    return ".".join(Path(path).with_suffix("").parts).removesuffix(".__init__")


def imported(path: str, source: str, known: set[str]) -> Iterator[tuple[int, str]]:
    """The line and name of each module of ours that a file imports, in whatever way."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(source, path)):
        match node:
            case ast.Import(names=names):
                found += [(node.lineno, alias.name) for alias in names]
            case ast.ImportFrom(module=module, names=names, level=level):
                # One dot is the file's own folder, each further one the folder around it.
                folders = Path(path).parent.parts
                start = folders[: len(folders) + 1 - level] if level else ()
                base = ".".join((*start, *([module] if module else [])))
                # What is taken from a package may be a module in it, or else a name in its file.
                inner = [f"{base}.{alias.name}" for alias in names]
                found += [(node.lineno, name if name in known else base) for name in inner]
            case ast.Call(func=ast.Attribute(attr=called) | ast.Name(id=called)):
                if called in ("import_module", "__import__"):
                    texts = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
                    found += [(node.lineno, text) for text in texts[:1]]
    return ((line, name) for line, name in found if name.split(".")[0] in PACKAGES)


def violations(sources: Mapping[str, str]) -> list[str]:
    """What flows uphill or sideways in these files (source by path), a line for each."""
    depth = {name: layer for layer, names in enumerate(RIVER) for name in names}
    known = {module_name(path) for path in sources}
    wrong = [f"{name} is not in the river" for name in sorted(known - depth.keys())]
    for path, source in sources.items():
        for line, other in imported(path, source, known):
            above = depth.get(other, len(RIVER)) < depth.get(module_name(path), -1)
            if not above:
                wrong.append(f"{path}:{line} imports {other}, which is not upstream of it")
    return wrong


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    files = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
    return {file.relative_to(ROOT).as_posix(): file.read_text("utf-8") for file in files}


def test_every_module_stands_once_in_the_river() -> None:
    names = [name for layer in RIVER for name in layer]
    assert len(names) == len(set(names))


def test_imports_only_go_up_the_river(sources: dict[str, str]) -> None:
    assert {"minispec/types.py", "minispec/decode.py", "fastpath/__init__.py"} <= sources.keys()
    # The reader of imports sees ours at all, else it would find nothing wrong in any file.
    known = {module_name(path) for path in sources}
    read = imported("minispec/decode.py", sources["minispec/decode.py"], known)
    assert {"minispec.types", "minispec.verify"} <= {name for _, name in read}
    assert violations(sources) == []


@pytest.mark.parametrize(
    ("path", "line", "culprit"),
    [
        ("minispec/types.py", "import minispec.decode", "minispec.decode"),
        ("minispec/types.py", "import minispec.decode as decode", "minispec.decode"),
        ("minispec/types.py", "from minispec.decode import speculative", "minispec.decode"),
        ("minispec/types.py", "from minispec import decode", "minispec.decode"),
        ("minispec/types.py", "from . import decode", "minispec.decode"),
        ("minispec/types.py", "from .decode import speculative", "minispec.decode"),
        ("minispec/types.py", "from minispec import speculative", "minispec"),
        ("minispec/types.py", "def f():\n    import minispec.decode", "minispec.decode"),
        ("minispec/types.py", "if TYPE_CHECKING:\n    import minispec.decode", "minispec.decode"),
        ("minispec/types.py", "importlib.import_module('minispec.decode')", "minispec.decode"),
        ("minispec/types.py", "__import__('fastpath')", "fastpath"),
        ("minispec/types.py", "import minispec.nowhere", "minispec.nowhere"),
        ("minispec/types.py", "import minispec.types", "minispec.types"),
        ("minispec/head.py", "from minispec.tokenizer import Tokenizer", "minispec.tokenizer"),
        ("minispec/shortlist/full.py", "from . import static", "minispec.shortlist.static"),
        ("minispec/shortlist/full.py", "from .. import decode", "minispec.decode"),
        ("minispec/shortlist/__init__.py", "from ..decode import x", "minispec.decode"),
        ("minispec/decode.py", "import fastpath", "fastpath"),
        ("minispec/decode.py", "from fastpath import cpu", "fastpath.cpu"),
        ("minispec/report.py", "import minispec.testing", "minispec.testing"),
        ("fastpath/__init__.py", "from minispec.cli import main", "minispec.cli"),
    ],
)
def test_an_import_against_the_stream_is_caught(
    sources: dict[str, str], path: str, line: str, culprit: str
) -> None:
    planted = {**sources, path: sources.get(path, "") + "\n" + line + "\n"}
    assert [message.split(",")[0].split()[-1] for message in violations(planted)] == [culprit]


def test_an_import_with_the_stream_is_allowed(sources: dict[str, str]) -> None:
    for path, line in [
        ("minispec/shortlist/__init__.py", "from . import full"),
        ("minispec/shortlist/static.py", "from ..types import Round\nimport os.path, torch.nn"),
        ("minispec/cli.py", "import importlib\nimportlib.import_module('fastpath')"),
        ("fastpath/__init__.py", "from minispec import head, model"),
    ]:
        planted = {**sources, path: sources.get(path, "") + "\n" + line + "\n"}
        assert violations(planted) == []


def test_a_module_without_a_place_is_caught(sources: dict[str, str]) -> None:
    planted = {**sources, "minispec/nowhere.py": "import minispec.errors\n"}
    assert "minispec.nowhere is not in the river" in violations(planted)
