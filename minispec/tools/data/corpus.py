"""Text of the four domains: installed documents, evaluation prompts and training openers.

Documents are read from packages that are installed on this machine, never executed, and never
copied into this project. Prompts and openers ship in ``minispec/data``: prompts are for evaluation,
openers are beginnings that the model continues into training prompts. ``OverlapGuard`` keeps the
evaluation prompts out of the training data.

Knows nothing of tokens and models.
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
MAX_CHARACTERS = 100_000  # per document: longer ones are mostly tables or generated code
RUN = 8  # consecutive words that two independent texts do not share

# Each document's name, which does not depend on where it is installed, and a function to read it.
Sources = Iterator[tuple[str, Callable[[], str]]]


def load_documents(domain: str, limit_bytes: int | None = None) -> Iterator[str]:
    """The installed documents of a domain without duplicates, at most ``limit_bytes`` of UTF-8 in
    all; the last one is cut to fit.

    They are in the order of their names' hashes: the same for the same installed packages, and
    shuffled, so that a limited corpus samples every kind of source. Raises ArgumentError for an
    unknown domain or a limit below 1, FileError if no text of the domain is installed.
    """
    if limit_bytes is not None and limit_bytes < 1:
        raise ArgumentError(f"limit_bytes {limit_bytes} must be 1 or above, or None")
    # Sources are listed here, not in the generator, so that errors are raised at the call.
    sources = dict(_SOURCES[_check_domain(domain)]())
    if not sources:
        package = "simple-icd-10-cm" if domain == "medicine" else "scancode-toolkit-mini"
        raise FileError(f"no text of domain {domain!r} is installed: run `pip install {package}`")
    return _deduplicate(sources, limit_bytes or sys.maxsize)


def load_prompts(domain: str, base: bool = False) -> list[str]:
    """The evaluation prompts of a domain: messages for a chat model, or for a ``base`` model texts
    to continue. Nothing is trained on them, see ``OverlapGuard``. Raises ArgumentError for an
    unknown domain."""
    return _load_lines("prompts", domain, base)


def load_openers(domain: str, base: bool = False) -> list[str]:
    """Beginnings of user messages, which a chat model continues into training prompts, or for a
    ``base`` model beginnings of texts. Raises ArgumentError for an unknown domain."""
    return _load_lines("openers", domain, base)


class OverlapGuard:
    """Finds text that shares ``RUN`` consecutive words with an evaluation prompt.

    Case, punctuation and spacing are ignored. A prompt of fewer words is found only if it is the
    complete text. A check costs one set lookup per word of the text.
    """

    def __init__(self, evaluation: Iterable[str]) -> None:
        self._runs = {run for prompt in evaluation for run in _runs(prompt)}

    def find_shared_run(self, text: str) -> str | None:
        """The first run of words that the text shares with a prompt, or None."""
        return next((run for run in _runs(text) if run in self._runs), None)


def _runs(text: str) -> Iterator[str]:
    words = re.findall(r"[^\W_]+", re.sub("['\u2019]", "", text.casefold()))
    for start in range(max(1, len(words) - RUN + 1) if words else 0):
        yield " ".join(words[start : start + RUN])


def _load_lines(kind: str, domain: str, base: bool) -> list[str]:
    folder = resources.files("minispec") / "data" / kind
    file = (folder / "base" if base else folder) / f"{_check_domain(domain)}.txt"
    lines = file.read_text(encoding="utf-8").splitlines()
    if not base:
        return lines
    # A text may have several lines: line breaks and tabs are escaped as in Python strings.
    return [line.replace("\\n", "\n").replace("\\t", "\t") for line in lines]


def _check_domain(domain: str) -> str:
    if domain not in DOMAINS:
        raise ArgumentError(f"unknown domain {domain!r}: choose from {', '.join(DOMAINS)}")
    return domain


def _deduplicate(sources: dict[str, Callable[[], str]], left: int) -> Iterator[str]:
    """Reads documents in the order of their names' hashes until ``left`` bytes are used up."""
    seen: set[bytes] = set()
    for name in sorted(sources, key=lambda name: hashlib.sha256(name.encode()).digest()):
        text = sources[name]()[:MAX_CHARACTERS]
        # Control characters and the rarest Unicode planes: many tokenizers cannot encode them.
        text = re.sub(r"[^\t\n\x20-\x7e\xa0-\U0003ffff]", "", text).strip()
        # Copies of the same licence differ in years and line breaks: compare only the words.
        words = " ".join(re.findall(r"[^\W\d_]+", text.casefold()))
        key = hashlib.sha256(words.encode()).digest()
        if not words or key in seen:
            continue
        seen.add(key)
        text = text.encode()[:left].decode(errors="ignore")  # drops a character that was cut
        left -= len(text.encode())
        if text:
            yield text
        if left < 4:  # bytes that a character may need
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
        # Cloud command lines install thousands of reference pages that are nearly the same.
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


def _licences() -> Sources:
    # scancode-toolkit's texts have a header; text in another language than English is dropped.
    header = re.compile(r"\A---\n.*?(?:\n---(?:\n|\Z)|\nlanguage:.*)", re.DOTALL)
    for name, path in _package_files():
        # LICENSE.txt, LICENSE-MIT and such, and scancode-toolkit's mit.LICENSE.
        is_licence = re.match(
            r"(licen[cs]e|copying|copyright|notice)|.*\.license$", path.name.lower()
        )
        if is_licence and path.suffix not in (".py", ".pyc", ".pyi", ".json", ".html"):
            yield name, partial(_read, path, partial(header.sub, ""))
    for pattern in ("doc/*/copyright", "common-licenses/*"):
        for path in Path("/usr/share").glob(pattern):
            yield str(path), partial(_read, path)


def _medicine() -> Sources:
    # One document per category of the ICD-10-CM tables, with one line per diagnosis or note.
    wanted = ("desc", "includes", "inclusionTerm")
    for name, file in _package_files():
        if name.startswith("simple_icd_10_cm/") and file.suffix == ".xml":
            for category in ElementTree.parse(file).iterfind("chapter/section/diag"):
                parts = (part.itertext() for part in category.iter() if part.tag in wanted)
                lines = ["; ".join(filter(None, map(str.strip, part))) for part in parts]
                yield f"icd/{category.findtext('name')}", partial("\n".join, lines)


_SOURCES = {"general": _general, "code": _code, "law": _licences, "medicine": _medicine}


def _distributions() -> Iterator[metadata.Distribution]:
    # This package is left out: its data holds the evaluation prompts.
    return (d for d in metadata.distributions() if d.metadata["Name"] != "minispec-decoding")


def _package_files() -> Iterator[tuple[str, Path]]:
    for distribution in _distributions():
        for file in distribution.files or ():
            yield str(file), Path(str(file.locate()))


def _read(path: Path, clean: Callable[[str], str] = str) -> str:
    try:
        data = path.read_bytes()
        return clean((gzip.decompress(data) if path.suffix == ".gz" else data).decode())
    except (OSError, EOFError, UnicodeDecodeError):
        return ""  # missing, not readable or in another encoding: skipped as empty


def _without_roff(page: str) -> str:
    """The prose of a manual page, with most roff markup removed."""
    listing = r"^\.\s*(?:de|TS|nf|EX|Vb)\b.*?^\.(?:\.|TE|fi|EE|Ve)\s*$"
    page = re.sub(listing, "", page, flags=re.DOTALL | re.MULTILINE)
    # Requests for bold or italics keep their words; every other request starts a paragraph.
    page = re.sub(r"^[.'] *(?:[BIR]{1,2} (.*)|.*)", r"\1", page, flags=re.MULTILINE)
    page = page.replace(r"\-", "-").replace(r"\(aq", "'").replace('"', "")
    page = re.sub(r"\\(?:f\[\w*\]|f\(..|f.|s[-+]?\d|[(*]..|\[\w+\]|.)", "", page)
    return _prose(re.sub(r" +([,.;:)])", r"\1", page))


def _prose(text: str) -> str:
    """The paragraphs that are mostly words, one per line, without tables, badges and listings."""
    paragraphs = (" ".join(part.split()) for part in re.split(r"\n\s*\n", text))
    sentences = (part for part in paragraphs if part.count(" ") > 4 and "://" not in part)
    return "\n\n".join(
        part for part in sentences if len(re.findall(r"[^\W\d_]|\s", part)) >= 0.85 * len(part)
    )
