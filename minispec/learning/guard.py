"""A guard that switches a learner off while it lowers the acceptance rate."""


class Guard:
    """A threshold with hysteresis on the running mean of gains.

    A gain is the acceptance rate with the learner minus the one without it. ``gain`` is an
    exponential moving average over about ``horizon`` gains. Once that many were recorded, the
    guard becomes ``active`` when the average is below ``-margin``, and inactive again when it is 0
    or above. While it is active the learner must not be used.
    """

    def __init__(self, horizon: int, margin: float) -> None:
        self._horizon, self._margin = horizon, margin
        self.gain, self.active = 0.0, False
        self._num_recorded = 0

    def record(self, gain: float) -> bool:
        """Add a gain to the average. True if this one makes the guard active."""
        self._num_recorded += 1
        self.gain += (gain - self.gain) / min(self._num_recorded, self._horizon)
        was_active = self.active
        if self._num_recorded >= self._horizon:
            self.active = self.gain < (0 if was_active else -self._margin)
        return self.active and not was_active
