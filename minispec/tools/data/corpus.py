"""Domain text, read where it is installed, and the prompts, which are our own.

Other people's text is never copied into the project: `documents` reads what the machine
already holds, and runs none of it. Of our own prompts, `prompts` are for evaluation and
`openers` are beginnings that the model itself continues into training prompts; `OverlapGuard`
keeps the second kind from repeating the first. Knows nothing of tokens and models.
"""

import gzip
import hashlib
import pydoc_data.topics
import re
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib import metadata, resources
from pathlib import Path
from xml.etree import ElementTree

from minispec.errors import ArgumentError, FileError

DOMAINS = ("general", "code", "law", "medicine")
MAX_CHARACTERS = 100_000  # of one document: what is longer is mostly tables or generated code
RUN = 8  # words in a row that two texts do not share by chance

# Each document's name, the same wherever it is installed, and how to read it in its turn.
Sources = Iterator[tuple[str, Callable[[], str]]]


def documents(domain: str, limit_bytes: int | None = None) -> Iterator[str]:
    """The domain's documents without duplicates, at most `limit_bytes` of UTF-8 in all.

    They come in the order of their names' hashes: fixed for a given set of installed packages,
    and so mixed that a limited corpus samples every kind of source. The last is cut to fit.
    Raises ArgumentError for an unknown domain or limit, FileError for one not installed.
    """
    if limit_bytes is not None and limit_bytes < 1:
        raise ArgumentError(f"limit_bytes is {limit_bytes}; it must be at least 1, or None")
    # Found here and not in the generator, so that what is missing is said at the call.
    sources = dict(_SOURCES[_known(domain)]())
    if not sources:
        package = "simple-icd-10-cm" if domain == "medicine" else "scancode-toolkit-mini"
        raise FileError(f"no text for {domain!r} is installed; get it by: pip install {package}")
    return _distinct(sources, limit_bytes or sys.maxsize)


def prompts(domain: str, base: bool = False) -> list[str]:
    """The evaluation prompts: messages for a chat model, or the beginnings of texts that a
    ``base`` model goes on with. Nothing may be trained on them: see `OverlapGuard`. Raises
    ArgumentError for an unknown domain."""
    return _packaged("prompts", domain, base)


def openers(domain: str, base: bool = False) -> list[str]:
    """Beginnings of user messages, for a chat model to continue into training prompts, or of
    texts of any kind, for a ``base`` model. Raises ArgumentError for an unknown domain."""
    return _packaged("openers", domain, base)


def read_prompts(path: str | Path) -> list[str]:
    """A user's own prompts: a UTF-8 text file with one on each line, blank lines skipped. Raises
    FileError."""
    try:
        data = Path(path).read_bytes()
        text = data.decode()
    except OSError as error:
        raise FileError(f"cannot read the prompts in {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise FileError(f"{path} is not UTF-8 text: see line {line}") from error
    # Some editors begin a file with a byte order mark, which is no part of the first prompt.
    found = [line.strip() for line in text.removeprefix("\ufeff").split("\n") if line.strip()]
    if not found:
        raise FileError(f"{path} holds no prompts; it should hold one on each line")
    return found


class OverlapGuard:
    """Finds text that repeats `RUN` words in a row from any of the evaluation prompts.

    Case, punctuation and spacing do not count. A shorter prompt is found only where it is the
    whole text. A check costs one set lookup per word of the text, however many the prompts.
    """

    def __init__(self, evaluation: Iterable[str]) -> None:
        self._runs = {run for prompt in evaluation for run in _runs(prompt)}

    def shared(self, text: str) -> str | None:
        """The first run of the text that a prompt has too, or None."""
        return next((run for run in _runs(text) if run in self._runs), None)


def _runs(text: str) -> Iterator[str]:
    words = re.findall(r"[^\W_]+", re.sub("['\u2019]", "", text.casefold()))
    for start in range(max(1, len(words) - RUN + 1) if words else 0):
        yield " ".join(words[start : start + RUN])


def _packaged(kind: str, domain: str, base: bool) -> list[str]:
    folder = resources.files("minispec") / "data" / kind
    file = (folder / "base" if base else folder) / f"{_known(domain)}.txt"
    lines = file.read_text(encoding="utf-8").splitlines()
    if not base:
        return lines
    # A text may have lines of its own, written as in a string of Python's.
    return [line.replace("\\n", "\n").replace("\\t", "\t") for line in lines]


def _known(domain: str) -> str:
    if domain not in DOMAINS:
        raise ArgumentError(f"unknown domain {domain!r}; there are {', '.join(DOMAINS)}")
    return domain


def _distinct(sources: dict[str, Callable[[], str]], left: int) -> Iterator[str]:
    seen: set[bytes] = set()
    for name in sorted(sources, key=lambda name: hashlib.sha256(name.encode()).digest()):
        text = sources[name]()[:MAX_CHARACTERS]
        # Control characters and the rarest planes are no reading matter, and often no token.
        text = re.sub(r"[^\t\n\x20-\x7e\xa0-\U0003ffff]", "", text).strip()
        # Copies of one licence differ in years and line breaks, so only words are compared.
        words = " ".join(re.findall(r"[^\W\d_]+", text.casefold()))
        key = hashlib.sha256(words.encode()).digest()
        if not words or key in seen:
            continue
        seen.add(key)
        text = text.encode()[:left].decode(errors="ignore")  # never half a character
        left -= len(text.encode())
        if text:
            yield text
        if left < 4:  # the next character may need as many
            return


def _general() -> Sources:
    for topic, text in pydoc_data.topics.topics.items():
        yield f"topic/{topic}", partial(_prose, text)
    for distribution in _distributions():
        if "Description" in distribution.metadata:
            text = distribution.metadata["Description"]
            yield f"description/{distribution.metadata['Name']}", partial(_prose, text)
    for path in Path("/usr/share/doc").glob("*/README*"):
        yield str(path), partial(_read, path, _prose)
    for path in Path("/usr/share/man").glob("man[15-8]/*"):  # 2 to 4 are for C programmers
        # The commands of a cloud are reference pages by the thousand, all alike.
        if not path.name.startswith(("gcloud", "aws")):
            yield str(path), partial(_read, path, _without_roff)


def _code() -> Sources:
    library = Path(sysconfig.get_path("stdlib"))
    for path in library.rglob("*.py"):
        file = path.relative_to(library)
        if not {"site-packages", "dist-packages", "pydoc_data"} & set(file.parts):
            yield f"library/{file.as_posix()}", partial(_read, path)
    for name, path in _package_files():
        if path.suffix == ".py":
            yield name, partial(_read, path)


def _law() -> Sources:
    # scancode-toolkit's texts have a header; where it names another language, all is dropped.
    header = re.compile(r"\A---\n.*?(?:\n---(?:\n|\Z)|\nlanguage:.*)", re.DOTALL)
    for name, path in _package_files():
        # LICENSE.txt, LICENSE-MIT and such, and scancode-toolkit's mit.LICENSE.
        named = re.match(r"(licen[cs]e|copying|copyright|notice)|.*\.license$", path.name.lower())
        if named and path.suffix not in (".py", ".pyc", ".pyi", ".json", ".html"):
            yield name, partial(_read, path, partial(header.sub, ""))
    for pattern in ("doc/*/copyright", "common-licenses/*"):
        for path in Path("/usr/share").glob(pattern):
            yield str(path), partial(_read, path)


def _medicine() -> Sources:
    # A document for each category of the ICD-10-CM tables, in it a line for each diagnosis or note.
    wanted = ("desc", "includes", "inclusionTerm")
    for name, file in _package_files():
        if name.startswith("simple_icd_10_cm/") and file.suffix == ".xml":
            for category in ElementTree.parse(file).iterfind("chapter/section/diag"):
                parts = (part.itertext() for part in category.iter() if part.tag in wanted)
                lines = ["; ".join(filter(None, map(str.strip, part))) for part in parts]
                yield f"icd/{category.findtext('name')}", partial("\n".join, lines)


_SOURCES = {"general": _general, "code": _code, "law": _law, "medicine": _medicine}


def _distributions() -> Iterator[metadata.Distribution]:
    # Without this one, whose data holds the evaluation prompts.
    return (found for found in metadata.distributions() if found.metadata["Name"] != "minispec")


def _package_files() -> Iterator[tuple[str, Path]]:
    for distribution in _distributions():
        for file in distribution.files or ():
            yield str(file), Path(str(file.locate()))


def _read(path: Path, clean: Callable[[str], str] = str) -> str:
    try:
        data = path.read_bytes()
        return clean((gzip.decompress(data) if path.suffix == ".gz" else data).decode())
    except (OSError, EOFError, UnicodeDecodeError):
        return ""  # listed but gone, not ours to read, or in another encoding: no document


def _without_roff(page: str) -> str:
    """A manual page's prose: roff is undone only as far as reading needs it."""
    listing = r"^\.\s*(?:de|TS|nf|EX|Vb)\b.*?^\.(?:\.|TE|fi|EE|Ve)\s*$"
    page = re.sub(listing, "", page, flags=re.DOTALL | re.MULTILINE)
    # A line in bold or italics keeps its words; every other request begins a paragraph.
    page = re.sub(r"^[.'] *(?:[BIR]{1,2} (.*)|.*)", r"\1", page, flags=re.MULTILINE)
    page = page.replace(r"\-", "-").replace(r"\(aq", "'").replace('"', "")
    page = re.sub(r"\\(?:f\[\w*\]|f\(..|f.|s[-+]?\d|[(*]..|\[\w+\]|.)", "", page)
    return _prose(re.sub(r" +([,.;:)])", r"\1", page))


def _prose(text: str) -> str:
    """The paragraphs that are mostly words, each on one line: no tables, badges, listings."""
    paragraphs = (" ".join(part.split()) for part in re.split(r"\n\s*\n", text))
    sentences = (part for part in paragraphs if part.count(" ") > 4 and "://" not in part)
    return "\n\n".join(
        part for part in sentences if len(re.findall(r"[^\W\d_]|\s", part)) >= 0.85 * len(part)
    )
