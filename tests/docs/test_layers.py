"""Imports lead in one direction: a module imports only what stands before it in the reading order.

Imports are read from the source, so that those inside functions, those for type checkers only
and those by name count as well as those that run when a module is loaded.
"""

import ast
import runpy
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("minispec", "fastpath")

# The one reading order, room by room: the idea first, the plumbing last. A module imports only
# modules that stand before it. README and docs/reading-order.md print it.
ROOMS = {
    "The story": [
        "minispec.errors", "minispec.checks", "minispec.types", "minispec.tree", "minispec.verify",
        "minispec.logits_processor",
        "minispec.sampling", "minispec.ranked_head", "minispec.stopwatch", "minispec.growth",
        "minispec.selections", "minispec.propose",
        "minispec.suffix_index", "minispec.suffix_candidates",
        "minispec.round_costs", "minispec.acceptance", "minispec.auto_shape",
        "minispec.tokenizer", "minispec.stream_decoder", "minispec.commit", "minispec.rounds",
        "minispec.preconditions", "minispec.decode", "minispec.suffix_decoding",
    ],
    "Models": [
        "minispec.models", "minispec.models.kv_cache", "minispec.models.rope",
        "minispec.models.model_config", "minispec.models.quantized_matrix",
        "minispec.models.lm_head", "minispec.models.quantized_modules", "minispec.models.int8",
        "minispec.models.reference", "minispec.models.transformer",
        "minispec.models.eagle_draft", "minispec.models.eagle3_draft",
    ],
    "Shortlists": [
        "minispec.shortlists", "minispec.shortlists.full", "minispec.shortlists.frspec",
        "minispec.shortlists.statistical", "minispec.shortlists.kmeans",
        "minispec.shortlists.semantic", "minispec.shortlists.evospec", "minispec.shortlists.arc",
        "minispec.shortlists.bigrams", "minispec.shortlists.hnsw",
        "minispec.shortlists.evospec_paper", "minispec.shortlists.microspec",
        "minispec.shortlists.dynaspec", "minispec.shortlists.lowrank",
    ],
    "Learning": [
        "minispec.learning", "minispec.learning.losses", "minispec.learning.curriculum",
        "minispec.learning.guard", "minispec.learning.config", "minispec.learning.replay_buffer",
        "minispec.learning.recorder", "minispec.learning.retrieval",
        "minispec.learning.retrieval_learner", "minispec.learning.lora",
        "minispec.learning.adapter_optimizer", "minispec.learning.training_forward",
        "minispec.learning.lora_learner",
        "minispec.learning.learner", "minispec.learning.horizon", "minispec.learning.trajectories",
        "minispec.learning.paper_learner",
    ],
    "Proofs": [
        "minispec.certificate", "minispec.certificate.walker", "minispec.certificate.toys",
        "minispec.certificate.exact_sampling", "minispec.certificate.cases",
        "minispec.certificate.decodings", "minispec.certificate.enumeration",
        "minispec.certificate.mismatch", "minispec.certificate.diagnosis",
        "minispec.certificate.checked_parts", "minispec.certificate.certification_result",
        "minispec.certificate.certify",
    ],
    "Text": [
        "minispec.text", "minispec.text.vocabulary", "minispec.text.template_sandbox",
        "minispec.text.chat_template", "minispec.text.tokenizer",
        "minispec.text.tiktoken_tokenizer", "minispec.text.sentencepiece_model",
        "minispec.text.sentencepiece_tokenizer", "minispec.text.hugging_face_tokenizer",
    ],
    "Files": [
        "minispec.io", "minispec.io.utf8",
        "minispec.io.schema", "minispec.io.unfinished", "minispec.io.files",
        "minispec.io.artifacts", "minispec.io.gguf_header", "minispec.io.model_state",
        "minispec.io.draft_file", "minispec.io.index_file", "minispec.io.statistical_state",
        "minispec.io.adapter_file", "minispec.io.bigram_file", "minispec.io.lowrank_file",
    ],
    "Fast paths": [
        "fastpath", "fastpath.background", "fastpath.scores", "fastpath.places",
        "fastpath.static_shapes",
        "fastpath.cpu", "fastpath.cpu.process", "fastpath.cpu.vectors",
        "fastpath.cpu.dots", "fastpath.cpu.blend", "fastpath.cpu.exponential",
        "fastpath.cpu.block_formats", "fastpath.cpu.byte_dots", "fastpath.cpu.block_dots",
        "fastpath.cpu.blocks",
        "fastpath.cpu.positions", "fastpath.cpu.kernels", "fastpath.cpu.attention",
        "fastpath.cpu.ranks", "fastpath.cpu.rows", "fastpath.cpu.packed",
        "fastpath.cpu.packed_panels", "fastpath.cpu.panels", "fastpath.cpu.steps",
        "fastpath.cpu.head", "fastpath.cpu.weights", "fastpath.cpu.backend",
        "fastpath.compiled", "fastpath.compiled.backend",
        "fastpath.cuda", "fastpath.cuda.device", "fastpath.cuda.kernels", "fastpath.cuda.head",
        "fastpath.cuda.verify", "fastpath.cuda.backend", "fastpath.cuda.device_round",
    ],
    "Tools": [
        "minispec.tools", "minispec.tools.extras",
        "minispec.tools.models", "minispec.tools.models.patterns",
        "minispec.tools.models.tokenizer_files", "minispec.tools.models.tokenizer_json",
        "minispec.tools.models.tokenizer_folder", "minispec.tools.models.gguf_tokenizer",
        "minispec.tools.models.gguf_config", "minispec.tools.models.gguf_file",
        "minispec.tools.models.hf_rope", "minispec.tools.models.hf_settings",
        "minispec.tools.models.hf_families", "minispec.tools.models.hf_config",
        "minispec.tools.models.hf_folder",
        "minispec.tools.models.wrapped_cache", "minispec.tools.models.wrapped_target",
        "minispec.tools.models.wrapped_checks", "minispec.tools.models.wrapped_model",
        "minispec.tools.models.eagle3_config", "minispec.tools.models.eagle3_map",
        "minispec.tools.models.eagle3_folder", "minispec.tools.models.eagle3_export",
        "minispec.tools.models.known_models", "minispec.tools.models.pretrained",
        "minispec.tools.models.hnsw_cache", "minispec.tools.models.matmul_dtype",
        "minispec.tools.models.threads",
        "minispec.tools.models.backend", "minispec.tools.models.pass_costs",
        "minispec.tools.data", "minispec.tools.data.corpus", "minispec.tools.data.ranking",
        "minispec.tools.data.batched_decode", "minispec.tools.data.shards",
        "minispec.tools.data.distill",
        "minispec.tools.data.batches",
        "minispec.tools.data.prompt_files", "minispec.tools.data.streams",
        "minispec.tools.training", "minispec.tools.training.resumable",
        "minispec.tools.training.train_draft", "minispec.tools.training.draft_norms",
        "minispec.tools.training.train_router",
        "minispec.tools.training.indices", "minispec.tools.training.recipe",
        "minispec.tools.training.pocket",
        "minispec.tools.evaluation", "minispec.tools.evaluation.audit",
        "minispec.tools.evaluation.plugins", "minispec.tools.evaluation.drafts",
        "minispec.tools.evaluation.shortlist_files",
        "minispec.tools.evaluation.draft_vocabulary",
        "minispec.tools.evaluation.methods", "minispec.tools.evaluation.assembly",
        "minispec.tools.evaluation.warm_up",
        "minispec.tools.evaluation.measure",
        "minispec.tools.evaluation.switch", "minispec.tools.evaluation.replay",
        "minispec.tools.evaluation.gate",
        "minispec.tools.evaluation.recorded_answers",
        "minispec.tools.evaluation.full_finetuning", "minispec.tools.evaluation.memory",
        "minispec.tools.evaluation.study", "minispec.tools.evaluation.results",
        "minispec.tools.evaluation.compare", "minispec.tools.evaluation.plan",
        "minispec.tools.reporting", "minispec.tools.reporting.colours",
        "minispec.tools.reporting.generate",
        "minispec.tools.reporting.table", "minispec.tools.reporting.report",
        "minispec.tools.reporting.plots", "minispec.tools.reporting.page",
        "minispec.tools.reporting.plan_report",
        "minispec.tools.reporting.explore",
    ],
    "Front door": [
        "minispec.api", "minispec.api.request", "minispec.api.results", "minispec.api.chat",
        "minispec.api.model", "minispec.api.comparison", "minispec",
        "minispec.tools.custom_generate",
        "minispec.tools.cli", "minispec.tools.cli.process",
        "minispec.tools.cli.options", "minispec.tools.cli.arguments_export",
        "minispec.tools.cli.arguments",
        "minispec.tools.cli.prepare", "minispec.tools.cli.commands_generate",
        "minispec.tools.cli.commands_run", "minispec.tools.cli.commands_plan",
        "minispec.tools.cli.commands_make", "minispec.tools.cli.commands_export",
        "minispec.tools.cli.main", "minispec.__main__",
    ],
    "Exercises": [
        "minispec.exercises", "minispec.exercises.grading", "minispec.exercises.chapter_01",
        "minispec.exercises.chapter_02", "minispec.exercises.chapter_03",
        "minispec.exercises.chapter_04", "minispec.exercises.chapter_05",
        "minispec.exercises.chapter_06", "minispec.exercises.chapter_07",
        "minispec.exercises.chapter_08", "minispec.exercises.chapter_09",
        "minispec.exercises.chapter_10", "minispec.exercises.chapter_11",
        "minispec.exercises.chapter_12", "minispec.exercises.chapter_13",
        "minispec.exercises.catalogue", "minispec.exercises.__main__",
    ],
}  # fmt: skip
ORDER = [name for names in ROOMS.values() for name in names]


def module_name(path: str) -> str:
    """Of a path below the root: a package is named by its folder, as Python does."""
    return ".".join(Path(path).with_suffix("").parts).removesuffix(".__init__")


def find_imports(path: str, source: str, known: set[str]) -> Iterator[tuple[int, str]]:
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


def find_violations(sources: Mapping[str, str]) -> list[str]:
    """What flows uphill or sideways in these files (source by path), a line for each."""
    depth = {name: place for place, name in enumerate(ORDER)}
    known = {module_name(path) for path in sources}
    wrong = [f"{name} is not in the reading order" for name in sorted(known - depth.keys())]
    for path, source in sources.items():
        for line, other in find_imports(path, source, known):
            above = depth.get(other, len(ORDER)) < depth.get(module_name(path), -1)
            if not above:
                wrong.append(f"{path}:{line} imports {other}, which does not stand before it")
    return wrong


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    files = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
    return {file.relative_to(ROOT).as_posix(): file.read_text("utf-8") for file in files}


def test_method_stays_small(sources: dict[str, str]) -> None:
    figures = runpy.run_path(str(ROOT / "docs" / "readme_figures.py"))
    assert figures["count_lines"]('"""Says."""\n\n# Why.\nx = """\na"""  # two lines\n') == 2
    assert ROOT / "minispec" / "decode.py" in figures["list_method"]()
    assert ROOT / "minispec" / "models" / "rope.py" not in figures["list_method"]()
    assert 1000 < figures["count_method"]() <= 4000
    assert [path for path, source in sources.items() if len(source.splitlines()) > 300] == []


def test_order_holds_each_module_once() -> None:
    assert len(ORDER) == len(set(ORDER))


def test_imports_follow_the_reading_order(sources: dict[str, str]) -> None:
    assert {"minispec/types.py", "minispec/decode.py", "fastpath/__init__.py"} <= sources.keys()
    # The reader of imports sees ours at all, else it would find nothing wrong in any file.
    known = {module_name(path) for path in sources}
    read = find_imports("minispec/decode.py", sources["minispec/decode.py"], known)
    assert {"minispec.types", "minispec.verify"} <= {name for _, name in read}
    assert find_violations(sources) == []


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
        (
            "minispec/models/lm_head.py",
            "from minispec.text.tokenizer import Tokenizer",
            "minispec.text.tokenizer",
        ),
        ("minispec/shortlists/full.py", "from . import frspec", "minispec.shortlists.frspec"),
        ("minispec/shortlists/full.py", "from .. import learning", "minispec.learning"),
        ("minispec/shortlists/__init__.py", "from ..tools import x", "minispec.tools"),
        ("minispec/decode.py", "import fastpath", "fastpath"),
        ("minispec/decode.py", "from fastpath.cpu import backend", "fastpath.cpu.backend"),
        (
            "minispec/models/rope.py",
            "import minispec.certificate.walker",
            "minispec.certificate.walker",
        ),
        (
            "fastpath/__init__.py",
            "from minispec.tools.cli.main import main",
            "minispec.tools.cli.main",
        ),
    ],
)
def test_find_violations_sees_an_import_backwards(
    sources: dict[str, str], path: str, line: str, culprit: str
) -> None:
    planted = {**sources, path: sources.get(path, "") + "\n" + line + "\n"}
    assert [message.split(",")[0].split()[-1] for message in find_violations(planted)] == [culprit]


def test_find_violations_allows_an_import_forwards(sources: dict[str, str]) -> None:
    for path, line in [
        ("minispec/shortlists/frspec.py", "from . import full"),
        ("minispec/shortlists/frspec.py", "from ..types import Round\nimport os.path, torch.nn"),
        ("minispec/tools/cli/main.py", "import importlib\nimportlib.import_module('fastpath')"),
        ("fastpath/__init__.py", "from minispec.models import lm_head, rope"),
    ]:
        planted = {**sources, path: sources.get(path, "") + "\n" + line + "\n"}
        assert find_violations(planted) == []


def test_find_violations_sees_a_module_outside_the_order(sources: dict[str, str]) -> None:
    planted = {**sources, "minispec/nowhere.py": "import minispec.errors\n"}
    assert "minispec.nowhere is not in the reading order" in find_violations(planted)


def find_tool_imports(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """For each sub-package of the tools, the other ones that it imports."""
    folder, known = "minispec/tools/", {module_name(path) for path in sources}
    found: dict[str, set[str]] = {}
    for path, source in sources.items():
        if path.startswith(folder) and path.count("/") > 2:
            own = path.split("/")[2]
            names = [name.split(".") for _, name in find_imports(path, source, known)]
            others = {parts[2] for parts in names if parts[:2] == ["minispec", "tools"]}
            found.setdefault(own, set()).update(others - {own})
    return {own: others & found.keys() for own, others in found.items()}


def sort_levels(imports: Mapping[str, set[str]]) -> list[set[str]]:
    """Sub-packages level by level: each imports only from levels before its own. Raises ValueError
    where some import each other in a circle."""
    found: list[set[str]] = []
    while left := imports.keys() - set().union(*found):
        found.append({name for name in left if not imports[name] & left})
        if not found[-1]:
            raise ValueError(f"{', '.join(sorted(left))} import each other")
    return found


def test_tools_are_few_packages_that_import_in_one_direction(sources: dict[str, str]) -> None:
    imports = find_tool_imports(sources)
    assert {"models", "data", "training", "evaluation", "reporting", "cli"} <= imports.keys()
    assert imports["models"] == set() and "models" in imports["data"]  # imports are seen at all
    assert len(imports) <= 8 and len(sort_levels(imports)) <= 6
    for planted in ("minispec.tools.evaluation.methods", "minispec.tools.data.corpus"):
        path = "minispec/tools/models/backend.py"
        circle = {**sources, path: f"{sources[path]}\nimport {planted}\n"}
        with pytest.raises(ValueError, match="import each other"):
            sort_levels(find_tool_imports(circle))
