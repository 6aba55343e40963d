"""Texts of many kinds for tests of tokenizers, the same at every call."""

import importlib.metadata
import random
import sysconfig
import unicodedata
from pathlib import Path

from hypothesis import strategies as st

# The bytes without a token in SmolLM2's vocabulary; the code computes them, here they are known.
ABSENT = bytes([0x04, 0x06, 0x13, 0x14, 0x16, 0x1D, 0xC0, 0xC1, 0xF1, 0xF2, *range(0xF5, 0x100)])
STDLIB = Path(sysconfig.get_paths()["stdlib"])
# Text without halves of surrogate pairs.
# U+FDD0 U+FDD1 are reserved by tokenizers, which refuse them.
whole_characters = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\ufdd0"), max_size=60
)


def readable(text: str) -> str:
    """The text without characters that SmolLM2 has no bytes for, or that Unicode has not yet
    assigned: over the latter the libraries' tables differ."""
    return "".join(
        c
        for c in text
        if unicodedata.category(c) not in ("Cn", "Cs") and not set(c.encode()) & set(ABSENT)
    )


def varied_texts(count: int) -> list[str]:
    """Texts of ten kinds, the same at every call."""
    rng = random.Random(20)
    code = "".join((STDLIB / name).read_text("utf-8") for name in ("ast.py", "re/_parser.py"))
    licences = "".join(
        file.read_text(encoding="utf-8")
        for name in ("numpy", "pytest", "hypothesis", "torch")
        for file in importlib.metadata.files(name) or ()
        if file.name.upper().startswith(("LICENSE", "COPYING"))
    )
    assert len(code) > 50_000 and len(licences) > 5_000
    drugs = ["metoprolol", "Ibuprofen", "acetylsalicylic acid", "amoxicillin/clavulanate"]
    signs = ["dyspnoea", "S1-S2 without murmur", "haemoptysis", "HbA1c", "Babinski's sign", "t½"]
    units = ["mg/d", "µg", "mmol/l", "% (95% CI 0.81–1.02)", "°C", "mL/min/1.73m²", "x10^9/L"]
    emoji = ["😀", "👩‍🔬", "🏳️‍🌈", "👍🏽", "❤️", "🇩🇪", "1️⃣", "🫠", "™", "☃"]
    white = [" ", "  ", "\t", "\n", "\r\n", "\r", "\x0b", "\x0c", "\xa0", "\u2028", "\u3000", "a"]
    control = [chr(c) for c in [*range(32), 0x7F, 0x85, 0xAD, 0x200B, 0x200D, 0x202E, 0xFEFF]]

    def excerpt(text: str) -> str:
        start = rng.randrange(len(text) - 400)
        return text[start : start + rng.randrange(1, 400)]

    def some(parts: list[str], glue: str = "") -> str:
        return glue.join(rng.choices(parts, k=rng.randrange(1, 40)))

    def characters(*ranges: tuple[int, int]) -> str:
        return some([chr(rng.randrange(*rng.choice(ranges))) for _ in range(40)])

    kinds = [
        lambda: excerpt(code),
        lambda: excerpt(licences),
        lambda: (
            f"{rng.choice(signs)}; {rng.choice(drugs)} {rng.randrange(2000)} {rng.choice(units)}, "
            f"{rng.choice(signs)} since {rng.randrange(1, 29):02d}.{rng.randrange(1, 13)}.2021."
        ),
        lambda: some([str(rng.randrange(10**9)), " ", ".", "\u0664", "\u00bd", "\u2167", "x", "-"]),
        lambda: some(emoji, rng.choice(["", " ", "1"])),
        lambda: characters((0x4E00, 0x9FFF), (0x3040, 0x30FF), (0xAC00, 0xD7A3), (0x21, 0x7F)),
        lambda: some(white),
        lambda: some([*control, "word", " ", "7"]),
        lambda: characters((0x20, 0x250), (0x370, 0x700), (0x900, 0xE00), (0x1F300, 0x1FAFF)),
        lambda: some(
            ["don't", "we'll", "I'M", "it'S", "'", "\u2019s", " ", "_x", "naïve", "Straße"]
        ),
    ]
    return [readable(kinds[i % len(kinds)]()) for i in range(count)]
