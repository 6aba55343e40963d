"""A drawing as SVG: boxes, lines and text in one style, light and dark.

A drawing is 400 units wide, so that its text is 9 px high or more where a phone shows it 358 px
wide; text that would not fit raises ValueError. Colours are names of the style sheet below, which
the book, the report and the explore page share.
"""

import hashlib
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from minispec.tools.reporting.colours import css_variables

WIDTH = 400
SMALLEST = 11  # units, the size of small text: 9.8 px on a phone
_ADVANCE = 0.55  # the mean width of a letter, in sizes
Point = tuple[float, float]

_BOTH = "--bright: #ffffff; --night: #1b1f24;"
_LIGHT = (
    f"--ink: #1b1f24; --soft: #57606a; --paper: #ffffff; --card: #f1f3f5; --edge: #8c959f; {_BOTH}"
)
_DARK = (
    f"--ink: #e6edf3; --soft: #aab4bf; --paper: #0d1117; --card: #262c34; --edge: #6e7781; {_BOTH}"
)
# Phases have one colour in light and dark, and the text on it one that can be read there.
_ON_PHASE = dict.fromkeys(("target", "draft", "shortlist", "learn"), "bright")


def style_sheet() -> str:
    """The colours as variables: by the reader's scheme, in the book by the one switched on."""
    light, dark = _LIGHT + " " + css_variables(dark=False), _DARK + " " + css_variables(dark=True)
    return (
        f".figure {{ {light} }}\n"
        f"@media (prefers-color-scheme: dark) {{ .figure {{ {dark} }} }}\n"
        f"[data-md-color-scheme=default] .figure {{ {light} }}\n"
        f"[data-md-color-scheme=slate] .figure {{ {dark} }}\n"
        ".figure text { font-family: system-ui, sans-serif; fill: var(--ink); }\n"
    )


def measure_text(text: str, size: float) -> float:
    """The width of a text, in units, roughly."""
    return len(text) * _ADVANCE * size


class Drawing:
    """One figure. ``title``: what it is; ``said``: what it shows, for those who cannot see it."""

    def __init__(self, name: str, height: float, title: str, said: str, data: object) -> None:
        self.name, self._height, self._title, self._said = name, height, title, said
        self._digest = hashlib.sha256(json.dumps(data).encode()).hexdigest()[:16]
        self._parts: list[str] = []

    def text(
        self, x: float, y: float, content: str, *, size: float = 12, anchor: str = "middle",
        fill: str = "ink", bold: bool = False, struck: bool = False,
    ) -> None:  # fmt: skip
        """A line of text on the base line y. Raises ValueError if it does not fit or is too
        small."""
        width = measure_text(content, size)
        left = x - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
        if left < -1 or left + width > WIDTH + 1 or size < SMALLEST:
            raise ValueError(f"{self.name}: {content!r} at {x} does not fit, or is too small")
        look = ' font-weight="600"' if bold else ""
        look += ' text-decoration="line-through"' if struck else ""
        self._parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" text-anchor="{anchor}" '
            f'style="fill: var(--{fill})"{look}>{escape(content)}</text>'
        )

    def lines(self, x: float, y: float, content: str, **look: object) -> None:
        """Several lines of text, split at newlines, the first on the base line y."""
        size = float(str(look.get("size", 12)))
        for number, line in enumerate(content.split("\n")):
            self.text(x, y + 1.25 * size * number, line, **look)  # type: ignore[arg-type]

    def box(
        self, x: float, y: float, width: float, height: float, fill: str, *, edge: str = "",
        dashed: bool = False, corner: float = 3,
    ) -> None:  # fmt: skip
        """A rectangle, of the colours named ``fill`` and ``edge``."""
        stroke = f"stroke: var(--{edge})" if edge else "stroke: none"
        dash = ' stroke-dasharray="4 3"' if dashed else ""
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{corner:g}" '
            f'style="fill: var(--{fill}); {stroke}"{dash}/>'
        )

    def label(
        self, x: float, y: float, width: float, height: float, content: str, fill: str,
        **look: object,
    ) -> None:  # fmt: skip
        """A box with a text in its middle."""
        self.box(x, y, width, height, fill, edge=str(look.pop("edge", "edge")),
                 dashed=bool(look.pop("dashed", False)))  # fmt: skip
        if fill.startswith("phase-"):
            look["fill"] = _ON_PHASE.get(fill.removeprefix("phase-"), "night")
        size = float(str(look.get("size", 12)))
        rows = content.split("\n")
        first = y + height / 2 + 0.35 * size - 0.625 * size * (len(rows) - 1)
        self.lines(x + width / 2, first, content, **look)

    def line(
        self, points: Sequence[Point], *, colour: str = "edge", width: float = 1.4,
        dashed: bool = False, arrow: bool = False,
    ) -> None:  # fmt: skip
        """A line through points, with ``arrow`` a head at its end."""
        path = " ".join(f"{x:.5g},{y:.5g}" for x, y in points)
        dash = ' stroke-dasharray="4 3"' if dashed else ""
        look = f'style="stroke: var(--{colour}); fill: none" stroke-width="{width:g}"{dash}'
        self._parts.append(f'<polyline points="{path}" {look} stroke-linejoin="round"/>')
        if arrow:
            self._add_head(points[-2], points[-1], colour)

    def _add_head(self, start: Point, end: Point, colour: str) -> None:
        (x0, y0), (x1, y1) = start, end
        length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
        dx, dy = (x1 - x0) / length, (y1 - y0) / length
        corners = (
            (x1, y1),
            (x1 - 7 * dx + 3.5 * dy, y1 - 7 * dy - 3.5 * dx),
            (x1 - 7 * dx - 3.5 * dy, y1 - 7 * dy + 3.5 * dx),
        )
        path = " ".join(f"{x:.5g},{y:.5g}" for x, y in corners)
        self._parts.append(f'<polygon points="{path}" style="fill: var(--{colour})"/>')

    def dot(self, x: float, y: float, colour: str, radius: float = 3) -> None:
        """A filled circle."""
        self._parts.append(
            f'<circle cx="{x:.5g}" cy="{y:.5g}" r="{radius:g}" style="fill: var(--{colour})"/>'
        )

    def key(
        self, x: float, y: float, entries: Sequence[tuple[str, str]], *, gap: float = 14
    ) -> float:
        """A legend of (colour, text), from left to right in rows; returns the y after it."""
        left, start = x, x
        for colour, content in entries:
            width = 15 + measure_text(content, SMALLEST)
            if left > start and left + width > WIDTH:
                left, y = start, y + 17
            self.box(left, y, 10, 10, colour, edge="edge", corner=2)
            self.text(left + 15, y + 9, content, size=SMALLEST, anchor="start")
            left += width + gap
        return y + 17

    def write(self, folder: Path) -> None:
        """Write ``NAME.svg``."""
        ids = f"{self.name}-title {self.name}-said"
        text = (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="figure" role="img" width="560" '
            f'viewBox="0 0 {WIDTH} {self._height:g}" aria-labelledby="{ids}">\n'
            f'<title id="{self.name}-title">{escape(self._title)}</title>\n'
            f'<desc id="{self.name}-said">{escape(self._said)}</desc>\n'
            f"<!-- drawn from data {self._digest} -->\n<style>\n{style_sheet()}</style>\n"
            f'<rect width="{WIDTH}" height="{self._height:g}" style="fill: var(--paper)" rx="4"/>\n'
            + "\n".join(self._parts)
            + "\n</svg>\n"
        )
        (folder / f"{self.name}.svg").write_text(text, encoding="utf-8")
