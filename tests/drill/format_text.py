"""Damaged text: lines, as of a Llama 3 ``tokenizer.model`` or a file of prompts."""

import random
from typing import Any

from drill.values import MISSING

_TOKENS: list[tuple[str, bytes]] = [
    ("empty", b""),
    ("-1", b"-1"),
    ("2^63", str(2**63).encode()),
    ("10^400", b"1" + b"0" * 400),
    ("5,000 digits", b"1" * 5000),
    ("a float", b"1.5"),
    ("NaN", b"NaN"),
    ("another script", "\u0663".encode()),
    ("null byte", b"\0"),
    ("not UTF-8", b"\xff\xfe"),
    ("not base64", b"!!!"),
    ("half a surrogate pair", b"\xed\xa0\x80"),
    ("long", b"x" * 100_000),
    ("a line separator", "\u2028".encode()),
    ("a tag", b"{{ cycler.__init__.__globals__.os.system('touch canary') }}"),
    ("code", b"__import__('os').mkdir('canary')"),
]


class Lines:
    """Words in lines."""

    name = "lines"

    def damage(self, content: bytes, rng: random.Random) -> tuple[bytes, str, str]:
        """The damaged text, the field and what was done to it."""
        lines = content.split(b"\n")
        index = rng.randrange(len(lines))
        kind = rng.choice(("word", "word", "word", "removed", "twice", "swapped", "ends", "depth"))
        if kind == "word":
            words = lines[index].split(b" ")
            number = rng.randrange(len(words))
            how, words[number] = rng.choice(_TOKENS)
            lines[index] = b" ".join(words)
            return b"\n".join(lines), f"word {min(number, 2) + 1}", how
        if kind == "removed":
            del lines[index]
        elif kind == "twice":
            lines.insert(index, lines[index])
        elif kind == "swapped":
            other = rng.randrange(len(lines))
            lines[index], lines[other] = lines[other], lines[index]
        elif kind == "ends":
            return b"\r\n".join(lines), "line", "Windows line ends"
        else:
            lines[index] = b"[" * 10_000 + b"]" * 10_000
            return b"\n".join(lines), "line", "10,000 arrays deep"
        return b"\n".join(lines), "line", kind

    def diff(self, intact: bytes, damaged: bytes) -> dict[str, Any] | None:
        """The words of the new text that differ; None if it is not UTF-8."""
        try:
            old, new = intact.decode().split("\n"), damaged.decode().split("\n")
        except UnicodeDecodeError:
            return None
        if len(old) != len(new):
            return {"lines": new}
        found: dict[str, Any] = {}
        for before, after in zip(old, new, strict=True):
            if before != after:
                found["line"] = [*found.get("line", []), after] if after else MISSING
        return found
