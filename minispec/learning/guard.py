"""The floor under whatever a draft learns: it is switched off where it hurts."""


class Floor:
    """The mean gain of late, and whether it has become a loss.

    An exponential mean that forgets a difference after ``memory`` of them; after as many it
    acts below ``-margin`` and lets go above 0.
    """

    def __init__(self, memory: int, margin: float) -> None:
        self._memory, self._margin = memory, margin
        self.gain, self._seen, self.acts = 0.0, 0, False

    def record(self, gain: float) -> bool:
        """Takes the next gain; True if the floor begins to act with it."""
        self._seen += 1
        self.gain += (gain - self.gain) / min(self._seen, self._memory)
        acted = self.acts
        if self._seen >= self._memory:
            self.acts = self.gain < (0 if acted else -self._margin)
        return self.acts and not acted
