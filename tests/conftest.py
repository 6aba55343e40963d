"""Fixtures of all tests: the real target, a tiny model in a folder, a browser."""

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import settings

if not torch.cuda.is_available():
    # CUDA kernels then run in Numba's simulator, which is selected when Numba is first imported.
    # Compiled CPU code is not affected.
    os.environ.setdefault("NUMBA_ENABLE_CUDASIM", "1")
    # Each CUDA thread is then a Python thread, and a barrier waits until all of them have run:
    # shorter switch intervals make it several times as fast.
    sys.setswitchinterval(0.0005)

from helpers import tiny_model
from helpers.tiny_model import Tiny
from minispec.errors import FetchError
from minispec.tools.models import backend, known_models, pretrained

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# As a background job of a script this process ignores Ctrl-C, and so would the programs that the
# tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Toy models are so small that a second thread costs more time than it saves.
torch.set_num_threads(1)

# No deadline: the time of an example depends on the machine more than on the code.
settings.register_profile("minispec", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "minispec"))

SLOW_LIMIT = 1800.0  # seconds for a slow test without a limit of its own

BROWSERS = ("chromium", "chromium-headless-shell", "google-chrome", "chrome", "chromium-browser")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test has a time limit: that of setup.cfg, or a longer one if it is slow."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_LIMIT))


@pytest.fixture(autouse=True, scope="session")
def _redirect_backend_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Measurements of the test run do not enter the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    backend.cache_folder = lambda: folder  # type: ignore[assignment]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A complete model in a folder, with a draft and rankings."""
    return tiny_model.make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def smollm2() -> pretrained.Pretrained:
    """The real target in float32, fetched if necessary."""
    try:
        known_models.fetch("smollm2")
    except FetchError as error:
        if os.environ.get("CI"):
            raise  # in CI a skipped test must not look like a passed one
        pytest.skip(f"needs the real model: {error}")
    return pretrained.load("smollm2")


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """The system's Chromium, or Playwright's own."""
    from playwright.sync_api import Error, sync_playwright

    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    with sync_playwright() as playwright:
        root = hasattr(os, "getuid") and os.getuid() == 0  # Chromium has no sandbox for root
        try:
            chromium = playwright.chromium.launch(
                executable_path=path, args=["--no-sandbox"] if root else []
            )
        except Error as error:
            if path:
                raise  # an installed browser that does not start is an error
            pytest.skip(f"no browser: install chromium ({str(error).splitlines()[0]})")
        yield chromium
        chromium.close()


@pytest.fixture
def show(browser: "Browser") -> Iterator[Callable[..., Any]]:
    """Open a file in a tab of its own; the result has the ``tab``, its ``errors`` (dialogs
    included) and its ``requests``."""
    tabs = []

    def open_file(path: Path, **options: Any) -> Any:
        still = {"viewport": {"width": 1400, "height": 1000}, "reduced_motion": "reduce"}
        tab = browser.new_page(**still | options)
        tabs.append(tab)
        result = SimpleNamespace(tab=tab, errors=[], requests=[])
        tab.on("console", lambda m: m.type in ("error", "warning") and result.errors.append(m.text))
        tab.on("pageerror", lambda error: result.errors.append(str(error)))
        tab.on("dialog", lambda dialog: (result.errors.append(dialog.message), dialog.dismiss()))
        tab.on("request", lambda request: result.requests.append(request.url))
        tab.goto(path.as_uri())
        tab.wait_for_timeout(300)
        return result

    yield open_file
    for tab in tabs:
        tab.close()
