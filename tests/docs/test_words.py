"""The words that were given up for the field's own stay out of the project."""

from pathlib import Path

import pytest

from helpers import words

ROOTS = [*(words.ROOT / name for name in words.FOLDERS), *words.ROOT.glob("*.md")]
FILES = sorted(words.list_files(ROOTS))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(words.ROOT).as_posix())
def test_file_uses_the_words_of_the_field(path: Path) -> None:
    assert [str(find) for find in words.find_in(path)] == []


def test_exceptions_are_all_needed() -> None:
    for path, word, piece in words.read_exceptions():
        file = words.ROOT / path
        assert file.is_file(), path
        text = file.read_text("utf-8")
        find = words.find_in_python if file.suffix == ".py" else words.find_in_page
        assert any(found.word == word and piece in found.text for found in find(path, text)), (
            f"{path}: {word}: {piece}"
        )


@pytest.mark.parametrize(
    ("source", "word"),
    [
        ("law = 1\n", "law"),
        ("target_laws = []\n", "law"),
        ("class TargetLaw: ...\n", "law"),
        ('"""The target\'s law of the next token."""\n', "law"),
        ('"""In code, law or medicine the law changes."""\n', "law"),
        ("# rows of the list\n", "list"),
        ("off_lists = 1\n", "list"),
        ("tap_width = 1\n", "tap"),
        ("x = 1  # whoever reads this\n", "whoever"),
        ("head_width = 1\n", "head_width"),
        ("def measured(): ...\n", "participle"),
        ("def chosen(): ...\n", "participle"),
        ('raise ValueError("token 5 is no token")\n', "is no"),
    ],
)
def test_find_in_python_sees_a_word_that_was_given_up(source: str, word: str) -> None:
    assert word in {find.word for find in words.find_in_python("file.py", source)}


@pytest.mark.parametrize(
    "source",
    [
        'DOMAINS = ("general", "code", "law", "medicine")\n',
        '"""In code, law or medicine the shortlist misses what matters."""\n',
        "ids: list[int] = list(range(3)) + tensor.tolist()\n",
        '"""Inverted lists; a list of ids; Zipf\'s law."""\n',
        "low = math.floor(2.5)\n",
        "def test_it_worked(): ...\n",
        "def embed(): ...\n",
        "class A:\n    @property\n    def closed(self): ...\n",
    ],
)
def test_find_in_python_leaves_other_senses_alone(source: str) -> None:
    assert list(words.find_in_python("file.py", source)) == []
