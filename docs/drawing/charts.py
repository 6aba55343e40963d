"""Charts: stacked bars, and lines over axes."""

import math
from collections.abc import Callable, Mapping, Sequence

from drawing.svg import SMALLEST, WIDTH, Drawing, Point

BAR, STEP = 22, 46  # the height of a bar, and from one to the next


def draw_bars(
    drawing: Drawing, top: float, rows: Mapping[str, Mapping[str, float]],
    colours: Mapping[str, str], unit: str,
) -> None:  # fmt: skip
    """A horizontal bar for each row, made of its parts, the row's name above it and the sum at its
    end."""
    longest = max(sum(row.values()) for row in rows.values())
    parts = dict.fromkeys(part for row in rows.values() for part in row)
    y = drawing.key(8, top, [(colours[part], part) for part in parts]) + 4
    for name, row in rows.items():
        drawing.text(8, y + 10, name, anchor="start", bold=True)
        x, total = 8.0, sum(row.values())
        for part, value in row.items():
            width = 320 * value / longest
            drawing.box(x, y + 15, width, BAR, colours[part], corner=0)
            x += width
        drawing.text(x + 5, y + 31, f"{total:,.0f} {unit}", size=SMALLEST, anchor="start")
        y += STEP


def height_of_bars(rows: int, keys: int = 1) -> float:
    """The height that ``draw_bars`` takes."""
    return 17 * keys + 4 + STEP * rows


class Axes:
    """A rectangle with an axis to the right and one up, over ranges of values."""

    def __init__(
        self, drawing: Drawing, frame: tuple[float, float, float, float],
        x_range: tuple[float, float], y_range: tuple[float, float], *, logarithmic: bool = False,
    ) -> None:  # fmt: skip
        self._drawing, self._frame = drawing, frame
        self._scale: Callable[[float], float] = math.log10 if logarithmic else float
        self._x_range = tuple(map(self._scale, x_range))
        self._y_range = y_range
        left, top, width, height = frame
        drawing.line([(left, top), (left, top + height), (left + width, top + height)])

    def place(self, x: float, y: float) -> Point:
        """The point of a pair of values."""
        left, top, width, height = self._frame
        (x0, x1), (y0, y1) = self._x_range, self._y_range
        share = (self._scale(x) - x0) / (x1 - x0)
        return left + width * share, top + height * (1 - (y - y0) / (y1 - y0))

    def mark(
        self, x_ticks: Mapping[float, str], y_ticks: Mapping[float, str], x_title: str, y_title: str
    ) -> None:
        """Ticks with their labels, and the titles of the axes."""
        left, top, width, height = self._frame
        for value, label in x_ticks.items():
            x, _ = self.place(value, self._y_range[0])
            self._drawing.line([(x, top + height), (x, top + height + 4)])
            self._drawing.text(x, top + height + 16, label, size=SMALLEST)
        for value, label in y_ticks.items():
            _, y = self.place(next(iter(x_ticks)), value)
            self._drawing.line([(left - 4, y), (left, y)])
            self._drawing.text(left - 7, y + 4, label, size=SMALLEST, anchor="end")
        self._drawing.text(left + width / 2, top + height + 32, x_title, size=SMALLEST, fill="soft")
        self._drawing.text(
            max(left - 30, 2), top - 8, y_title, size=SMALLEST, fill="soft", anchor="start"
        )

    def curve(
        self, points: Sequence[Point], colour: str, *, dots: bool = False, dashed: bool = False
    ) -> None:
        """A line through pairs of values."""
        places = [self.place(*point) for point in points]
        self._drawing.line(places, colour=colour, width=2, dashed=dashed)
        for x, y in places if dots else ():
            self._drawing.dot(x, y, colour)


def full_width(top: float, height: float) -> tuple[float, float, float, float]:
    """The frame of axes that take the whole width."""
    return 40, top, WIDTH - 60, height
