"""The colours of phases, of tokens and of a shortlist's parts: in the terminal's trace, the plots,
the explore page and the book's figures.

Knows nothing of what is shown.
"""

from dataclasses import dataclass

# The phases of decoding after prefill, in the order of a round, with their labels.
PHASES = {
    "target": "target pass",
    "verify": "verification",
    "draft": "draft layer",
    "draft_head": "draft LM head",
    "shortlist": "shortlist selection",
    "observe": "shortlist update",
    "learn": "retrieval and learning",
    "commit": "commit",
}
PHASE_COLOURS = {
    "prefill": "#8c959f",
    "target": "#2f6fd0",
    "verify": "#7db1ff",
    "draft": "#c4620a",
    "draft_head": "#f0b060",
    "shortlist": "#8250df",
    "observe": "#bf87ff",
    "learn": "#1b7c83",
    "commit": "#57ab5a",
}


@dataclass(frozen=True)
class FateColour:
    """How tokens of one fate look: an ANSI escape in a terminal, a background on a page."""

    ansi: str
    light: str
    dark: str


# What can happen to a token: a drafted one is accepted or rejected; the target's own is drawn
# from the residual after a rejection (in vLLM: recovered), or from p after an accepted chain.
FATES = {
    "accepted": FateColour("\x1b[32m", "#c9f0d0", "#1d5230"),
    "rejected": FateColour("\x1b[9;31m", "#ffd9d6", "#5c2126"),
    "recovered": FateColour("\x1b[33m", "#ffe0a8", "#6b4a10"),
    "bonus": FateColour("\x1b[34m", "#cfe3ff", "#1c4a86"),
}
# The parts of shortlists, and what is outside of one: colours in the light and in the dark.
PARTS = {
    "core": ("#d8dee6", "#414b57"),
    "recency": ("#e3d5ff", "#513a85"),
    "successor": ("#bdeee9", "#12605b"),
    "semantic": ("#ffd3ea", "#7d2f5c"),
    "target": ("#cfe3ff", "#1f4a80"),
    "hnsw": ("#ffd3ea", "#7d2f5c"),
    "bigrams": ("#bdeee9", "#12605b"),
    "shortlist": ("#e6ead0", "#4a5130"),
    "outside": ("#fff09e", "#6e6108"),
}
# The distributions at a position.
CURVES = {
    "p": ("#2f6fd0", "#6ea8ff"),
    "q": ("#c4620a", "#f0954a"),
    "residual": ("#2a8a43", "#56c271"),
}
ANSI_RESET = "\x1b[0m"


def css_variables(dark: bool) -> str:
    """The declarations ``--FATE``, ``--PART``, ``--CURVE`` and ``--phase-NAME`` of a style sheet,
    light or ``dark``."""
    colours = {name: fate.dark if dark else fate.light for name, fate in FATES.items()}
    colours |= {name: pair[dark] for name, pair in (PARTS | CURVES).items()}
    colours |= {f"phase-{name}": colour for name, colour in PHASE_COLOURS.items()}
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())
