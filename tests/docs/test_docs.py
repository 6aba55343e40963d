"""The pages tell the truth: their commands, names and files exist, their links lead somewhere, and
what is generated is up to date. ``test_blocks.py`` runs their blocks.
"""

import ast
import pkgutil
import re
import runpy
import shlex
from pathlib import Path
from urllib.parse import unquote

import pytest

import minispec
from helpers.pages import BLOCK, DOCS, PAGES, README, ROOT, name_of
from minispec.tools.cli.arguments import parse

figures = runpy.run_path(str(DOCS / "figures.py"))
reading_order = runpy.run_path(str(DOCS / "reading_order.py"))["page"]
reference_pages = runpy.run_path(str(DOCS / "reference_pages.py"))
readme_figures = runpy.run_path(str(DOCS / "readme_figures.py"))
# --- what the pages name ------------------------------------------------------------------------


def find_commands(page: Path) -> list[str]:
    """Commands on lines of their own, in indented blocks or in fenced ones of other languages."""
    found, fence = [], None
    for line in page.read_text("utf-8").replace("\\\n", " ").splitlines():
        if line.startswith("```"):
            fence = line[3:].strip() if fence is None else None
        elif fence in ("", "sh", "console") or (fence is None and line.startswith("    ")):
            command = line.split("  #")[0].strip()
            if re.match(r"(minispec|make|python) [a-z\-]", command):
                found.append(command)
    return found


@pytest.mark.parametrize("page", [README, *PAGES], ids=name_of)
def test_commands_of_a_page_exist(page: Path) -> None:
    """The command line knows the options, the Makefile the targets, and the files that Python runs
    exist. That README's commands succeed is tested in ``tests/tools/test_artifacts.py``."""
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for command in find_commands(page):
        words = shlex.split(command)
        if words == ["minispec", "--help"]:
            continue  # argparse prints it and exits
        if words[0] == "minispec":
            assert parse(words[1:])
        elif words[0] == "make":
            targets = [word for word in words[1:] if "=" not in word]
            assert all(re.search(rf"^{t}:.*##", makefile, re.MULTILINE) for t in targets), command
        elif words[1] == "-m":
            module = ROOT / words[2].replace(".", "/")
            known = module.with_suffix(".py").is_file() or (module / "__main__.py").is_file()
            assert known or words[2] == "http.server", command
        else:
            assert (ROOT / words[1]).is_file(), command


def test_find_commands_reads_pages() -> None:
    assert "make demo" in find_commands(README)
    assert any(c.startswith("minispec compare") for c in find_commands(DOCS / "measurements.md"))


_SPAN = re.compile(r"`((?:minispec|fastpath|tests|benchmarks|docs)/[\w./-]+\.\w+)(?::([\w.]+))?`")


@pytest.mark.parametrize("page", [README, *PAGES], ids=name_of)
def test_files_and_functions_of_a_page_exist(page: Path) -> None:
    for path, name in _SPAN.findall(page.read_text("utf-8")):
        assert (ROOT / path).is_file(), f"{name_of(page)} names {path}"
        assert not name or name in list_names(ROOT / path), f"{name_of(page)} names {path}:{name}"


def list_names(path: Path) -> set[str]:
    """Names of a module's functions, classes and methods (``Class.method``)."""
    kinds = ast.FunctionDef | ast.ClassDef
    found = {}
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, kinds):
            found[node.name] = node
            if isinstance(node, ast.ClassDef):
                found |= {f"{node.name}.{n.name}": n for n in node.body if isinstance(n, kinds)}
    return set(found)


# --- links --------------------------------------------------------------------------------------


def find_anchors(page: Path) -> set[str]:
    """What the headings of a page are called in links to them."""
    text = BLOCK.sub("", page.read_text("utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    plain = (re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings)
    return {re.sub(r"[\s-]+", "-", heading) for heading in plain}


@pytest.mark.parametrize("page", [README, *PAGES], ids=name_of)
def test_links_of_a_page_exist(page: Path) -> None:
    text = BLOCK.sub("", page.read_text("utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = unquote(target).partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{name_of(page)} links to {target}"
        assert not anchor or anchor in find_anchors(file), f"{name_of(page)} links to {target}"


def test_navigation_holds_every_page() -> None:
    nav = (ROOT / "mkdocs.yml").read_text("utf-8")
    assert [p for p in PAGES if p.relative_to(DOCS).as_posix() not in nav] == []


# --- equations ----------------------------------------------------------------------------------

_ROW = re.compile(
    r"^\| [^|]+ \| .+ \| `(minispec/[\w/]+\.py):([\w.]+)` \| (.*?) ?\|$", re.MULTILINE
)


def find_equations(text: str) -> list[tuple[str, str, str]]:
    """File, function and source of each row."""
    return _ROW.findall(text)


def sources(*packages: str) -> list[Path]:
    """The files of packages of ours."""
    return [path for name in packages for path in (ROOT / name).rglob("*.py")]


def read_docstrings(path: Path, name: str) -> str:
    """The docstrings of a file, of a name in it, and of its class."""
    tree: ast.Module | ast.ClassDef = ast.parse(path.read_text("utf-8"))
    said = [ast.get_docstring(tree) or ""]
    for part in name.split("."):
        [node] = [n for n in tree.body if getattr(n, "name", None) == part]
        said.append(ast.get_docstring(node) or "")
        tree = node
    return " ".join(" ".join(said).split())


def find_unfounded(rows: list[tuple[str, str, str]]) -> list[str]:
    """What does not hold of rows: no such function, or a source that the function does not name."""
    wrong = []
    for path, name, source in rows:
        if not (ROOT / path).is_file() or name not in list_names(ROOT / path):
            wrong.append(f"{path}:{name} is not there")
        elif source not in ("", "ours") and source not in read_docstrings(ROOT / path, name):
            wrong.append(f"{path}:{name} does not name {source}")
    return wrong


def test_equations_name_functions_that_cite_the_source() -> None:
    text = (DOCS / "equations.md").read_text("utf-8")
    rows = find_equations(text)
    assert len(rows) == text.count("| `minispec/") > 40  # no row is overlooked
    assert find_unfounded(rows) == []


def test_equations_hold_every_cited_paper() -> None:
    text = (DOCS / "equations.md").read_text("utf-8")
    for path in sources("minispec"):
        plain = " ".join(path.read_text("utf-8").split())
        for paper in re.findall(r"arXiv (\d{4}\.\d{5})", plain):
            assert paper in text, f"{path} cites arXiv {paper}"


def test_find_unfounded_sees_wrong_rows() -> None:
    assert find_unfounded([("minispec/verify.py", "verify", "arXiv 2211.17192")]) == []
    wrong = [
        ("minispec/nowhere.py", "verify", ""),
        ("minispec/verify.py", "nothing", ""),
        ("minispec/verify.py", "verify", "arXiv 0000.00000"),
    ]
    assert len(find_unfounded(wrong)) == 3


# --- figures, generated pages, and what stands at the root --------------------------------------


def test_paper_page_quotes_measured_figures() -> None:
    measured = (DOCS / "measurements.md").read_text("utf-8")
    paper = (DOCS / "paper.md").read_text("utf-8")
    tables = "".join(re.findall(r"<!-- table: .*?<!-- end -->", paper, re.DOTALL))
    prose = re.sub(r"<!-- table: .*?<!-- end -->", "", paper, flags=re.DOTALL)
    quoted = re.findall(r"\d\.\d+ \[\d\.\d+, \d\.\d+\]", prose)
    assert len(quoted) > 8
    assert [figure for figure in quoted if figure not in measured + tables] == []


def test_pages_show_measured_tables() -> None:
    figures = runpy.run_path(str(DOCS / "paper_figures.py"))
    pages = [page.read_text("utf-8") for page in figures["PAGES"]]
    for text in pages:
        assert figures["fill_in"](text) == text, "run `python docs/paper_figures.py`"
    assert pages[0].count("| `evospec-paper@0.25/256` |") > 3
    shown = [mark for text in pages for mark in re.findall(r"<!-- table: (.*?) -->", text)]
    assert sorted(shown) == sorted(figures["TABLES"])  # each stands somewhere, once


def test_reading_order_is_current() -> None:
    """It names all files in reading order; each of its minutes may be off by one."""
    written, wanted = (
        re.findall(r"^\| (\d+) \| `([\w/.]+)`", text, re.MULTILINE)
        for text in ((DOCS / "reading-order.md").read_text("utf-8"), reading_order())
    )
    advice = "run `python docs/reading_order.py`"
    assert [file for _, file in written] == [file for _, file in wanted], advice
    off = [(w, n) for w, n in zip(written, wanted, strict=True) if abs(int(w[0]) - int(n[0])) > 1]
    assert off == [], advice
    assert len(wanted) > 60


def test_reading_order_holds_every_module() -> None:
    files = {ROOT / file for _, file in re.findall(r"\| (\d+) \| `(.+?)`", reading_order())}
    ours = set(sources("minispec", "fastpath"))
    assert {p for p in ours - files if p.name != "__init__.py"} == set()


def test_readme_shows_measured_figures() -> None:
    text = README.read_text("utf-8")
    fresh = readme_figures["fill_in"](text, readme_figures["RESULTS"])
    assert fresh == text, "run `python docs/readme_figures.py`"
    assert text.count("| `evospec@1536` |") == 1


def test_upgrading_names_what_exists() -> None:
    text = (DOCS / "upgrading.md").read_text("utf-8")
    rows = [line for line in text.split("### Names")[1].splitlines() if line.startswith("| `")]
    names = [n for row in rows for n in re.findall(r"`(minispec\.[\w.]+)`", row.split(" | ")[1])]
    assert len(names) > 25
    for name in names:
        assert pkgutil.resolve_name(name), name


def test_version_is_the_same_everywhere() -> None:
    version = re.search(r"^version = (.+)$", (ROOT / "setup.cfg").read_text("utf-8"), re.MULTILINE)
    assert version
    assert f"\nversion: {version[1]}\n" in (ROOT / "CITATION.cff").read_text("utf-8")
    assert minispec.__version__ == version[1]


def test_reference_is_current() -> None:
    """One page a room, with every module of ``minispec``."""
    pages = reference_pages["write_pages"]()
    written = {p.name: p.read_text("utf-8") for p in (DOCS / "api").glob("*.md")}
    assert written == pages, "run `python docs/reference_pages.py`"
    shown = re.findall(r"^::: ([\w.]+)$", "\n".join(written.values()), re.MULTILINE)
    names = {".".join(f.relative_to(ROOT).with_suffix("").parts) for f in sources("minispec")}
    assert sorted(shown) == sorted(name for name in names if not name.endswith("__init__"))


def read_description(figure: Path) -> str:
    """What a figure says it was drawn from."""
    [found] = re.findall(r"drawn from data (\w+)", figure.read_text("utf-8"))
    return found


@pytest.mark.parametrize("name", figures["DRAWN"])
def test_figures_are_drawn_from_current_data(name: str, tmp_path: Path) -> None:
    committed = DOCS / "figures" / f"{name}.svg"
    assert committed.stat().st_size < 100_000
    figures["DRAWN"][name](tmp_path)
    advice = f"run `python docs/figures.py {name}`"
    assert read_description(tmp_path / f"{name}.svg") == read_description(committed), advice
