"""Opens every page of the built book as a reader does, and reports what cannot be read.

    make docs && python docs/check_pages.py [PAGE ...]      # needs Chromium; some minutes

Each page is opened at 1280 and at 390 pixels, light and dark. Reported are pages that scroll
sideways, formulas and figures that are cut, and text below 9 pixels. A picture of each is written
to ``build/pages``, to be looked at. Exits with 1 if anything is reported.
"""

import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright
from screenshots import find_browser

ROOT = Path(__file__).parent.parent
BOOK, PICTURES = ROOT / "build" / "book", ROOT / "build" / "pages"
SMALLEST = 9  # pixels
_SETTINGS = [(width, scheme) for width in (1280, 390) for scheme in ("light", "dark")]

# What is wrong with a page, as short lines.
_INSPECT = """(smallest) => {
  const found = [], wide = document.documentElement;
  if (wide.scrollWidth > wide.clientWidth + 1)
    found.push(`scrolls sideways: ${wide.scrollWidth} of ${wide.clientWidth} pixels`);
  for (const each of document.querySelectorAll('.formula'))
    if (each.scrollWidth > each.clientWidth + 1)
      found.push(`formula cut: ${each.textContent.slice(0, 40)}`);
  for (const each of document.querySelectorAll('figure svg, article img')) {
    const box = each.getBoundingClientRect();
    if (box.width && box.right > wide.clientWidth + 1) found.push('figure cut');
  }
  const small = new Map(), hidden = 'script, style, title, desc';
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const parent = walker.currentNode.parentElement, text = walker.currentNode.data.trim();
    if (!text || !parent.getClientRects().length || parent.closest(hidden)) continue;
    const scale = parent.ownerSVGElement ? parent.getScreenCTM().a : 1;
    const size = parseFloat(getComputedStyle(parent).fontSize) * scale;
    if (size < smallest - 0.05)
      small.set(`${parent.tagName} ${size.toFixed(1)} px`, text.slice(0, 30));
  }
  for (const [what, text] of small) found.push(`small text: ${what}: ${text}`);
  return found;
}"""


def inspect(tab: Page, page: Path, width: int, scheme: str) -> list[str]:
    """What cannot be read of a page at one width and scheme; saves a picture of it."""
    tab.goto(page.as_uri())
    name = page.relative_to(BOOK).with_suffix("").as_posix().replace("/", "-")
    tab.screenshot(path=PICTURES / f"{name}-{width}-{scheme}.png", full_page=True)
    found: list[str] = tab.evaluate(_INSPECT, SMALLEST)
    return [f"{name} at {width} pixels, {scheme}: {each}" for each in found]


def main(names: list[str]) -> int:
    """Inspects the named pages, or all; returns the exit code."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    pages = [BOOK / name for name in names] or sorted(BOOK.rglob("*.html"))
    reports: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        for width, scheme in _SETTINGS:
            # A page of its own for each: the book remembers the scheme that it was first read in.
            tab = browser.new_page(
                viewport={"width": width, "height": 900},
                color_scheme=scheme,  # type: ignore[arg-type]
            )
            for page in pages:
                reports += inspect(tab, page, width, scheme)
            tab.close()
        browser.close()
    print(*reports, sep="\n")
    print(f"{len(pages)} pages, {len(reports)} reports; pictures in {PICTURES.relative_to(ROOT)}")
    return 1 if reports else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
