"""Faster implementations of the arithmetic in ``minispec``: compiled passes and kernels, each
tested against the reference."""
