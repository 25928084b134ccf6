"""Headless Chromium for the tests of pages; they skip by name where there is none."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """A browser of playwright's; skips where it or Chromium is missing."""
    play = pytest.importorskip("playwright.sync_api", reason="no playwright here")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"no browser here: {', '.join(NAMES)}")
    with play.sync_playwright() as running:
        found = running.chromium.launch(executable_path=path, args=FLAGS)
        try:
            yield found
        finally:
            found.close()


@contextlib.contextmanager
def opened(address: str, *, width: int = 1180, dark: bool = False) -> Iterator[Any]:
    """A page, and at its end no error of its scripts and no word to another host."""
    with browser() as found:
        scheme = "dark" if dark else "light"
        page = found.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
        errors: list[str] = []
        asked: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        yield page
        assert errors == []
        assert all(url.startswith((address, "data:")) for url in asked), asked
