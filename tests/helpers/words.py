"""Words that this project gave up for the field's own, and where they still stand.

    python tests/helpers/words.py [PATH ...]      # prints path:line: word: text (default: all)

Identifiers, docstrings, comments, strings and pages are read; each rule knows one word in one
sense. What is right all the same stands in ``tests/docs/word_exceptions.txt``, one line each:
``path: word: a piece of the line``.
"""

import ast
import io
import keyword
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
EXCEPTIONS = ROOT / "tests" / "docs" / "word_exceptions.txt"
FOLDERS = ("minispec", "fastpath", "tests", "benchmarks", "docs")
# The words themselves stand here, with what replaced them; and the text of a licence.
SKIPPED = {
    "CHANGELOG.md",
    "docs/glossary.md",
    "docs/upgrading.md",
    "minispec/artifacts/gemma3-270m/GEMMA_TERMS.md",
    "tests/helpers/words.py",
    "tests/docs/test_words.py",
}
_DOMAINS = r"general|code|medicine|licen[cs]e"


@dataclass(frozen=True)
class Rule:
    """A given-up word: ``part`` of an identifier, ``prose`` as a regular expression, and the
    word that replaced it. ``allowed`` marks the other sense on the same line."""

    word: str
    instead: str
    part: str = ""
    prose: str = ""
    allowed: str = ""


RULES = (
    Rule(
        "law", "distribution", "laws?", r"\blaws?\b",
        rf"({_DOMAINS})[\"'`,]*,? ?(and |or )?[\"'`]*law\b"
        rf"|\blaw[\"'`,]*,? (and |or )?[\"'`]*({_DOMAINS})"
        r"|Zipf's law|[\"'`|]law[\"'`|]|\blaw-|-law\b|\| law|in law\b|law\.txt|Pile of Law"
        r"|\bto law\b|prompts law|domains law|\blaw \[?\d|\blaw (tokens|prompts|texts?)\b|\blaw$",
    ),
    Rule(
        "list", "shortlist", "(?<!inverted )lists",
        r"\b(the|a|an|its|their|this|that|each|every|another|any|one|same|no|which|whose|own|new"
        r"|static|evolving|dynamic|on|off|draft's) list\b(?! of| comprehension)"
        r"|\b(the|of|these|all|for|with|two|static|evolving|dynamic|such|other|their|several|between"
        r"|both|any|which|than|and|to) lists\b(?! of)",
        r"inverted lists?|in lists|[Rr]eading list|package lists?",
    ),
    Rule("tap", "auxiliary hidden state", "taps?", r"\btaps?\b"),
    Rule("listen, hear, tell", "read, receive, notify", "told|hears?|heard|listens?",
         r"\b(told|hears?|heard|listens?|listening)\b"),
    Rule("verdicts (a collection)", "replay buffer, verification results", "verdicts",
         r"\bverdicts\b"),
    Rule("advise", "adjust logits", "advised?", r"\badvises?d?\b"),
    Rule("reread", "training forward", "reread", r"\bre-?reads?\b"),
    Rule("recalled", "retrieved", "recalled", r"\brecall(ed|s)\b"),
    Rule("floor", "guard", "floors?", r"\bfloors?\b", r"floor division|math\.floor|\.floor\b"),
    Rule("trail", "recent n-gram", "trails?", r"\btrails?\b"),
    Rule("elder", "the candidates before it", "elders?", r"\belders?\b"),
    Rule("room", "capacity", "room", r"\broom (for|in|of|to)\b|\bno room\b|\bhas room\b"),
    Rule("behind", "after", "behind", r"\bbehind\b"),
    Rule("whoever", "the caller, whatever reads it", "", r"\bwhoever\b"),
    Rule("of late", "recently", "", r"\bof late\b"),
    Rule("in the place of", "instead of", "",
         r"\bin (the|its|their) (place|stead)( of)?\b|\bin place of which\b"),
    Rule("is no", "is not a", "", r"\b(is|are) no (?!longer|more|less|worse|better)\w+"),
    Rule("shall", "must, will", "", r"\bshall\b"),
    Rule("sooner", "faster, earlier", "sooner", r"\bsooner\b"),
    Rule("rubbish", "garbage, unused", "rubbish", r"\brubbish\b"),
    Rule("by heart", "recorded", "", r"\bby heart\b"),
    Rule("met, came, gone, stayed, laid", "multiplied, added, removed, kept, copied",
         "met|came|gone|stayed|laid"),
    Rule("Reciter", "replay target", "recit(er|ed|es)", r"\brecit(er|es|ed)\b"),
    Rule("Witness", "recording shortlist", "witness", r"\bwitness(es)?\b"),
    Rule("so_far", "prompt builder", "so far"),
    Rule("talk", "conversation", "talks?", r"\btalks?\b"),
    Rule("guesser", "draft", "guessers?", r"\bguessers?\b"),
    Rule("river", "reading order", "river", r"\briver\b"),
)  # fmt: skip
# Exact identifiers that were given up, whatever their parts.
NAMES = {
    "head_width": "head_dim",
    "mlp_width": "intermediate_size",
    "kv_heads": "num_key_value_heads",
    "vocabulary_size": "vocab_size",
    "tap_layers": "aux_hidden_state_layer_ids",
}
# Participles and adjectives that may name a function all the same: pure copies, as in ``sorted``.
PARTICIPLES = {"sorted", "need", "seed", "embed", "feed", "proceed", "speed"}
_IRREGULAR = {
    "chosen", "known", "shown", "drawn", "written", "built", "kept", "held", "made", "found",
    "cut", "read_back", "told", "met", "laid", "taken", "given", "begun", "spelt", "sent",
}  # fmt: skip


@dataclass(frozen=True)
class Find:
    """A given-up word in a file."""

    path: str
    line: int
    word: str
    instead: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.word} (say: {self.instead}): {self.text.strip()}"


def parts(name: str) -> str:
    """An identifier as lower-case words with spaces between them."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().replace("_", " ").strip()


def find_in_identifier(name: str) -> Iterator[tuple[str, str]]:
    """The given-up words in an identifier, each with its replacement."""
    if name in NAMES:
        yield name, NAMES[name]
    words = parts(name)
    for rule in RULES:
        if rule.part and re.search(rf"(^|\s)({rule.part})($|\s)", words):
            yield rule.word, rule.instead


def find_in_prose(text: str) -> Iterator[tuple[str, str]]:
    """The given-up words in a line of prose, each with its replacement."""
    for rule in RULES:
        if rule.prose and re.search(rule.prose, re.sub(rule.allowed, " ", text) if rule.allowed
                                    else text, re.IGNORECASE):  # fmt: skip
            yield rule.word, rule.instead


def find_in_python(path: str, source: str) -> Iterator[Find]:
    """The given-up words in a file of Python."""
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NAME and not keyword.iskeyword(token.string):
            line = lines[token.start[0] - 1]
            library = re.search(rf"\b(math|np|torch|st)\.{token.string}\b", line)
            for word, instead in () if library else find_in_identifier(token.string):
                yield Find(path, token.start[0], word, instead, line)
        elif token.type in (tokenize.COMMENT, tokenize.STRING):
            for offset, line in enumerate(token.string.splitlines()):
                for word, instead in find_in_prose(line):
                    yield Find(path, token.start[0] + offset, word, instead, line)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and is_participle(node) and not is_value(node):
            yield Find(path, node.lineno, "participle", "a verb", f"def {node.name}")


def is_participle(node: ast.FunctionDef) -> bool:
    """Whether a function's name is, or ends in, a participle."""
    if node.name.startswith("test_"):
        return False
    last = node.name.strip("_").split("_")[0 if node.name.count("_") < 2 else -1]
    alone = node.name.strip("_")
    return alone not in PARTICIPLES and (
        alone in _IRREGULAR or (alone == last and alone.endswith("ed"))
    )


def is_value(node: ast.FunctionDef) -> bool:
    """Whether a function is read as a value: a property, or a fixture of pytest."""
    decorators = " ".join(map(ast.unparse, node.decorator_list))
    return "property" in decorators or "fixture" in decorators


def find_in_page(path: str, text: str) -> Iterator[Find]:
    """The given-up words in a page of Markdown."""
    for number, line in enumerate(text.splitlines(), 1):
        for word, instead in find_in_prose(line):
            yield Find(path, number, word, instead, line)


def find_in(path: Path) -> Iterator[Find]:
    """The given-up words in a file, the exceptions left out."""
    name = path.relative_to(ROOT).as_posix()
    text = path.read_text("utf-8")
    found = find_in_python(name, text) if path.suffix == ".py" else find_in_page(name, text)
    excepted = read_exceptions()
    for find in found:
        if not any(
            find.path == file and find.word == word and piece in find.text
            for file, word, piece in excepted
        ):
            yield find


def read_exceptions() -> list[tuple[str, str, str]]:
    """The reviewed exceptions: path, word, and a piece of the line."""
    lines = EXCEPTIONS.read_text("utf-8").splitlines() if EXCEPTIONS.is_file() else []
    rows = [line.split(": ", 2) for line in lines if line and not line.startswith("#")]
    return [(path, word, piece) for path, word, piece in rows]


def list_files(roots: list[Path]) -> Iterator[Path]:
    """All files of Python and Markdown that are read, below some folders."""
    for root in roots:
        found = [root] if root.is_file() else sorted((*root.rglob("*.py"), *root.rglob("*.md")))
        for path in found:
            if path.relative_to(ROOT).as_posix() not in SKIPPED:
                yield path


if __name__ == "__main__":
    given = [Path(argument).resolve() for argument in sys.argv[1:]]
    roots = given or [*(ROOT / name for name in FOLDERS), *ROOT.glob("*.md")]
    finds = [find for path in list_files(roots) for find in find_in(path)]
    print(*finds, sep="\n")
    print(f"{len(finds)} found", file=sys.stderr)
