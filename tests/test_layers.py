"""The design is one river: a module imports only what lies upstream of it.

Imports are read from the source, so that those inside functions, those for type checkers only
and those by name count as well as those that run when a module is loaded.
"""

import ast
import io
import tokenize
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Kinds of token that are not code.
_NO_CODE = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
    tokenize.ENDMARKER,
}  # fmt: skip
PACKAGES = ("minispec", "fastpath", "workshop")

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
    ["minispec.tokenizer"],
    ["minispec.cache", "minispec.sampling", "minispec.commit"],
    ["minispec.rope"],
    ["minispec.model"],
    ["minispec.shortlist.full", "minispec.shortlist.static"],
    ["minispec.shortlist.semantic", "minispec.shortlist.statistical"],
    ["minispec.shortlist.evolving", "minispec.shortlist.in_context", "minispec.shortlist.routed"],
    ["minispec.shortlist"],
    ["minispec.draft", "minispec.verdicts", "minispec.curriculum", "minispec.objective"],
    ["minispec.lora", "minispec.recall", "minispec.floor"],
    ["minispec.align"],
    ["minispec.propose", "minispec.verify"],
    ["minispec.decode", "minispec.batched"],
    ["minispec"],  # the package's own file, which may gather what lies above
    ["fastpath.static", "fastpath.device", "fastpath.dots"],
    ["fastpath.exponential", "fastpath.scores", "fastpath.blend", "fastpath.kernels"],
    ["fastpath.attention", "fastpath.ranks"],
    ["fastpath.compiled", "fastpath.cuda_kernels"],
    ["fastpath.rows", "fastpath.steps"],
    ["fastpath.packed"],
    ["fastpath.cuda_head", "fastpath.cpu_head"],
    ["fastpath.cpu"],
    ["fastpath.cuda_verify", "fastpath.cuda"],
    ["fastpath.cuda_round"],
    ["fastpath"],  # loaded by name, in workshop.backend alone
    ["workshop.arguments", "workshop.audit", "workshop.corpus"],
    ["workshop.tokenizer_files"],
    ["workshop.gguf_file", "workshop.hf_folder"],
    ["workshop.pretrained"],
    ["workshop.ranking"],
    ["workshop.products"],
    ["workshop.distill"],
    ["workshop.batches", "workshop.training"],
    ["workshop.train", "workshop.routing"],
    ["workshop.recipe"],
    ["workshop.pocket"],
    ["workshop.methods", "workshop.measure"],
    ["workshop.streams", "workshop.switch", "workshop.replay", "workshop.generate"],
    ["workshop.results", "workshop.study"],
    ["workshop.compare"],
    ["workshop.report"],
    ["workshop.page", "workshop.explore"],
    ["workshop.backend"],
    ["workshop.prepare"],
    ["workshop.commands_run", "workshop.commands_make"],
    ["workshop.cli"],
    ["workshop"],
    ["minispec.testing"],  # for users and for our tests: nothing that ships relies on it
    ["workshop.exact_laws"],
    ["workshop.certify"],
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


def lines_of_code(source: str) -> int:
    """Those that hold more than a comment or a docstring."""
    tree = ast.parse(source)
    said: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            said |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NO_CODE:
            code |= set(range(token.start[0], token.end[0] + 1))
    return len(code - said)


def test_the_reference_can_be_read_in_an_afternoon(sources: dict[str, str]) -> None:
    assert lines_of_code('"""Says."""\n\n# Why.\nx = """\na"""  # two lines\n') == 2
    assert sum(lines_of_code(s) for p, s in sources.items() if p.startswith("minispec/")) <= 2500
    assert [path for path, source in sources.items() if len(source.splitlines()) > 300] == []


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
        ("workshop/report.py", "import minispec.testing", "minispec.testing"),
        ("fastpath/__init__.py", "from workshop.cli import main", "workshop.cli"),
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
        ("workshop/cli.py", "import importlib\nimportlib.import_module('fastpath')"),
        ("fastpath/__init__.py", "from minispec import head, model"),
    ]:
        planted = {**sources, path: sources.get(path, "") + "\n" + line + "\n"}
        assert violations(planted) == []


def test_a_module_without_a_place_is_caught(sources: dict[str, str]) -> None:
    planted = {**sources, "minispec/nowhere.py": "import minispec.errors\n"}
    assert "minispec.nowhere is not in the river" in violations(planted)
