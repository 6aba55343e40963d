"""Wall time by phase: the time between two laps belongs to exactly one phase.

Knows nothing of what is timed.
"""

import time
from collections import defaultdict


class Stopwatch:
    """Starts on construction; ``lap`` adds the time since the last lap to a named phase."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def lap(self, phase: str) -> None:
        """Add the time since the last lap to a phase."""
        now = time.perf_counter()
        self._seconds[phase] += now - self._last
        self._last = now

    def collect(self) -> dict[str, float]:
        """Seconds by phase since the last collection. Does not stop the watch."""
        seconds = dict(self._seconds)
        self._seconds.clear()
        return seconds

    def resume(self) -> None:
        """Discard the time since the last lap, which the caller spent between two rounds."""
        self._last = time.perf_counter()
