"""What several test files share: the real target, and toys of the same make."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import settings

if not torch.cuda.is_available():
    # CUDA kernels then run in Numba's simulator. It is chosen when Numba is first imported, so
    # before any test file is; compiled CPU code does not mind.
    os.environ.setdefault("NUMBA_ENABLE_CUDASIM", "1")
    # There each CUDA thread is a thread of Python, and a barrier waits for all of them to have
    # had their turn: shorter turns make it several times as fast.
    sys.setswitchinterval(0.0005)

from helpers import tiny_model
from helpers.tiny_model import Tiny
from minispec.errors import FetchError
from minispec.tools.models import backend, known_models, pretrained

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# Toys are so small that a second thread would mostly be waited for, and on a busy machine long.
torch.set_num_threads(1)

# How long an example takes says more about the machine than about the code.
settings.register_profile("minispec", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "minispec"))

BROWSERS = ("chromium", "chromium-headless-shell", "google-chrome", "chrome", "chromium-browser")


@pytest.fixture(autouse=True, scope="session")
def _calibrations_of_tests_are_not_kept(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("cache")
    backend.cache_folder = lambda: folder  # type: ignore[assignment]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A whole model in a folder, with a draft and rankings."""
    return tiny_model.make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def smollm2() -> pretrained.Pretrained:
    """The real target in float32, fetched if it is not here yet."""
    try:
        known_models.fetch("smollm2")
    except FetchError as error:
        if os.environ.get("CI"):
            raise  # there, tests that did not run must not look like tests that passed
        pytest.skip(f"needs the real model: {error}")
    return pretrained.load("smollm2")


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """The system's Chromium, or the one that Playwright may have brought along."""
    from playwright.sync_api import Error, sync_playwright

    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    with sync_playwright() as playwright:
        root = hasattr(os, "getuid") and os.getuid() == 0  # for whom Chromium has no sandbox
        try:
            found = playwright.chromium.launch(
                executable_path=path, args=["--no-sandbox"] if root else []
            )
        except Error as error:
            if path:
                raise  # there is one, and it does not start: that is no reason to skip
            pytest.skip(f"no browser: install chromium ({str(error).splitlines()[0]})")
        yield found
        found.close()


@pytest.fixture
def show(browser: "Browser") -> Iterator[Callable[..., Any]]:
    """Open a file in a tab of its own; the result has the ``tab``, its ``errors`` (dialogs
    included) and its ``requests``."""
    tabs = []

    def open_file(path: Path, **options: Any) -> Any:
        tab = browser.new_page(**{"viewport": {"width": 1400, "height": 1000}} | options)
        tabs.append(tab)
        seen = SimpleNamespace(tab=tab, errors=[], requests=[])
        tab.on("console", lambda m: m.type in ("error", "warning") and seen.errors.append(m.text))
        tab.on("pageerror", lambda error: seen.errors.append(str(error)))
        tab.on("dialog", lambda dialog: (seen.errors.append(dialog.message), dialog.dismiss()))
        tab.on("request", lambda request: seen.requests.append(request.url))
        tab.goto(path.as_uri())
        tab.wait_for_timeout(300)
        return seen

    yield open_file
    for tab in tabs:
        tab.close()
