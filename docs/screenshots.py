"""Takes ``docs/explore.png`` and ``docs/explore-phone.png``: a round of the explore page.

    python docs/screenshots.py        # needs Chromium, and a minute

The page is the one that ``minispec explore "Why is the sky blue?" --max-new-tokens 32`` writes.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

DOCS = Path(__file__).parent
BROWSERS = ("chromium", "chromium-headless-shell", "google-chrome", "chrome")
ROUND = 11
SIZES = {"explore": (1280, 1180), "explore-phone": (390, 844)}  # pixels


def write_page(path: Path) -> None:
    """Write the explore page of the prompt."""
    prompt = ("Why is the sky blue?", "--max-new-tokens", "32", "--backend", "reference")
    methods = ("--methods", "full,frspec@0.25,evospec@1536")
    command = (sys.executable, "-m", "minispec", "explore", *prompt, *methods, "--out", str(path))
    subprocess.run(command, check=True)


def find_browser() -> str | None:
    """The system's Chromium; None for Playwright's own."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def take_screenshots(page: Path) -> None:
    """Open the page at each size, go to the round, and save what is seen."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        for name, (width, height) in SIZES.items():
            tab = browser.new_page(viewport={"width": width, "height": height})
            tab.goto(page.as_uri())
            for _ in range(ROUND - 1):
                tab.keyboard.press("ArrowRight")
            tab.screenshot(path=DOCS / f"{name}.png")
        browser.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "explore.html"
        write_page(page)
        take_screenshots(page)
