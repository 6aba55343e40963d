"""The book's figures as SVG, drawn from code: see ``docs/figures.py``."""
