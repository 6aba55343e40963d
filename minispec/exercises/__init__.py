"""Exercises of the book that grade themselves: ``python -m minispec.exercises``."""
