"""Wall time by phase: every moment between two laps belongs to exactly one phase."""

import time
from collections import defaultdict


class Stopwatch:
    """Started when made; ``lap`` books the time since the last lap under a name."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def lap(self, phase: str) -> None:
        """Books the time since the last lap on a phase."""
        now = time.perf_counter()
        self._seconds[phase] += now - self._last
        self._last = now

    def collect(self) -> dict[str, float]:
        """Seconds by phase since the last collection; the watch runs on."""
        seconds = dict(self._seconds)
        self._seconds.clear()
        return seconds

    def resume(self) -> None:
        """Forgets the time since the last lap: it was spent by someone else."""
        self._last = time.perf_counter()
