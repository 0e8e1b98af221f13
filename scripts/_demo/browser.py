"""Owns the browser that looks at the pages: Debian's chromium, driven by Playwright."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

from playwright.sync_api import sync_playwright

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser

_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def open_browser() -> Iterator[Browser]:
    """A headless chromium.

    Raises:
        FileNotFoundError: there is none on the PATH.
    """
    chromium = shutil.which("chromium")
    if chromium is None:
        raise FileNotFoundError("no chromium on the PATH; on Debian and Ubuntu install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, headless=True, args=_FLAGS)
        try:
            yield browser
        finally:
            browser.close()
