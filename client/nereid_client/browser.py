"""A headless Chromium, where one is installed: a picture of a page that needs nothing else; knows no server."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome", "chrome-headless-shell")
SECONDS = 60.0
_MOST_HEIGHT = 16_000
"""Pixels; Chromium's pictures end soon after."""


class BrowserError(Exception):
    """The browser has not done what it was asked for."""


def find_browser() -> str | None:
    """The first of the usual names on the path."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


def command(browser: str, profile: Path) -> list[str]:
    """How it is started, with a profile of its own. It refuses to run as root inside its sandbox."""
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    quiet = ["--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--no-first-run", "--disable-extensions"]
    still = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--mute-audio"]
    return [browser, "--headless", *sandbox, *quiet, *still, f"--user-data-dir={profile}"]


def screenshot(page: Path, picture: Path, width: int, height: float, browser: str) -> None:
    """Draw an HTML file into a PNG of its own size in CSS pixels; raises BrowserError."""
    with tempfile.TemporaryDirectory(prefix="nereid-browser-") as folder:
        size = f"--window-size={width},{min(int(height), _MOST_HEIGHT)}"
        drawn = Path(folder) / "page.png"
        run = [*command(browser, Path(folder) / "profile"), size, f"--screenshot={drawn}", page.resolve().as_uri()]
        try:
            done = subprocess.run(run, capture_output=True, text=True, timeout=SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BrowserError(f"{browser} cannot draw {page}: {error}") from None
        if not drawn.is_file():
            said = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
            raise BrowserError(f"{browser} has drawn no picture of {page}: {said}")
        shutil.copyfile(drawn, picture)
