"""Writes ``docs/slides.html``: slides for a lecture, one for each figure, in the order of the book.

    python docs/slides.py

The page needs nothing but the figures beside it: arrow keys, or scrolling, and printing gives a
slide a sheet.
"""

from html import escape
from pathlib import Path

DOCS = Path(__file__).parent
PAGE = DOCS / "slides.html"
# Figure, title, and what to say.
SLIDES = (
    ("roofline", "A pass over five positions costs as much as one",
     "Decoding is bound by memory. What waits is arithmetic: use it to check guesses."),
    ("speculative-round", "A round",
     "Draft four, score five positions in one pass, accept a prefix, add one token."),
    ("overlap", "Why the output is p",
     "Accepted min(p, q); refused and given back are equally large. Together p, for any q."),
    ("choose", "Two uniform numbers", "One chooses a token, one accepts it. A seed fixes the run."),
    ("branches", "A proof by enumeration",
     "Take every branch with its exact probability: the sums are p, not close to p."),
    ("rollback", "The caches after a rejection",
     "The target's: a shorter length. The draft's: rebuilt from better states."),
    ("layer", "The draft: one layer on the target's hidden states",
     "Low, middle and high layers, projected; and the embedding of the next token."),
    ("learning", "How such a draft is trained", "More updates matter more than more text."),
    ("bytes", "The bottleneck: the draft's head",
     "Five million parameters, and a head that is five times as large."),
    ("round", "The same in time", "Measured on two cores: where do the milliseconds go?"),
    ("budget", "Fewer ids", "A static shortlist needs thousands; an evolving one hundreds."),
    ("inverted-index", "Search by direction", "Centroids first, then members, then exact logits."),
    ("successors", "Text repeats itself", "Recency and successors: two parts that cost nothing."),
    ("parts", "An evolving shortlist", "Selected again for each round: who fills it?"),
    ("arc", "The paper's buffer", "Filled after a failure; ARC decides what leaves it."),
    ("curriculum", "Learning while serving", "What counts, and when: a position's weight."),
    ("packing", "Reading scattered rows", "Gather, or keep a packed copy up to date."),
    ("tree", "Several candidates", "The second is tested against what the first left of p."),
)  # fmt: skip
_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Speculative decoding: slides</title>
<style>
:root {{ --ink: #1b1f24; --soft: #57606a; --paper: #fff; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #e6edf3; --soft: #aab4bf; --paper: #0d1117; }}
}}
html {{ scroll-snap-type: y mandatory; }}
body {{ margin: 0; font: 2.6vmin/1.4 system-ui, sans-serif; color: var(--ink);
  background: var(--paper); }}
section {{ box-sizing: border-box; height: 100vh; padding: 4vmin 6vmin; scroll-snap-align: start;
  display: flex; flex-direction: column; gap: 2vmin; break-after: page; }}
h1 {{ font-size: 1.7em; margin: 0; }}
p {{ margin: 0; color: var(--soft); font-size: max(1em, 14px); }}
img {{ flex: 1; min-height: 0; max-width: 100%; object-fit: contain; object-position: left; }}
</style>
</head>
<body>
{slides}
<script>
addEventListener('keydown', event => {{
  const step = {{ArrowRight: 1, ArrowDown: 1, PageDown: 1, ' ': 1,
    ArrowLeft: -1, ArrowUp: -1, PageUp: -1}}[event.key];
  if (!step) return;
  event.preventDefault();
  scrollTo({{top: (Math.round(scrollY / innerHeight) + step) * innerHeight}});
}});
</script>
</body>
</html>
"""


def make_page() -> str:
    """The page with all slides."""
    slides = (
        f"<section><h1>{escape(title)}</h1>\n"
        f'<img src="figures/{figure}.svg" alt="{escape(title)}">\n'
        f"<p>{escape(said)}</p></section>"
        for figure, title, said in SLIDES
    )
    return _PAGE.format(slides="\n".join(slides))


if __name__ == "__main__":
    PAGE.write_text(make_page(), encoding="utf-8")
