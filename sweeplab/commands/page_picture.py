"""A picture of a page, made by a browser without a window."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from sweeplab.specs import Failed, InvalidInput

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")

WIDTH, HEIGHT = 1440, 12_000
"""Pixels; what is left empty at the bottom is cut off."""

SECONDS = 120.0


def take_picture(page: Path, to: Path) -> Path:
    """Write a page as PNG, in full height; returns the file.

    Args:
        page: HTML.
        to: file to write.

    Raises:
        InvalidInput: where there is no browser.
        Failed: where it makes no picture.
    """
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        raise InvalidInput(f"--png needs a browser, one of {', '.join(BROWSERS)}; install chromium, or open {page}")
    with tempfile.TemporaryDirectory(prefix="sweeplab-picture-") as place:
        shot = Path(place) / "page.png"
        words = [browser, "--headless", "--disable-gpu", "--no-first-run", "--hide-scrollbars"]
        words += ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium's sandbox refuses root
        words += [f"--user-data-dir={place}/profile", f"--window-size={WIDTH},{HEIGHT}", "--virtual-time-budget=20000"]
        words += [f"--screenshot={shot}", page.absolute().as_uri()]
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, cwd=place)
        except subprocess.TimeoutExpired as error:
            raise Failed(f"{browser} made no picture of {page} within {SECONDS:g} s") from error
        if not shot.exists():
            raise Failed(f"{browser} made no picture of {page}: {done.stderr.strip()[-500:]}")
        with Image.open(shot) as image:
            pixels = np.asarray(image.convert("RGB"))
    used = np.flatnonzero((pixels != pixels[-1, -1]).any(axis=(1, 2)))
    bottom = int(used[-1]) + 40 if len(used) else len(pixels)
    Image.fromarray(pixels[:bottom]).save(to, optimize=True)
    return to
