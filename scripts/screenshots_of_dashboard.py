"""Builds and tries the example in a browser, as a stranger would, and keeps what is seen."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from app.domain.decode import Image
from tests.browser import Browser, opened_browser
from tests.service import ROOT, Service

WIDTH = 1120
PHONE = {"width": 390, "height": 760}
SETTLE_S = 1.0  # bars grow, thumbnails load
SIDES, GREY = 8, 160  # of the strip beside each phone: pixels, and its colour


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        service = Service(Path(scratch) / "data").start()
        try:
            with opened_browser(service.url, Path(scratch) / "profile") as browser:
                take(browser, folder)
        finally:
            service.stop()


def take(browser: Browser, folder: Path) -> None:
    """One picture of each thing that can be done, some light, some dark, and a row of phones."""
    browser.driver.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})
    browser.emulate()
    browser.open()
    browser.reads("Latest jobs")
    keep(folder / "start.png", seen(browser, 560))
    browser.button("Try with the built-in example").click()
    browser.reads("The engine is ready")
    keep(folder / "job.png", seen(browser, 780))
    browser.emulate(dark=True)
    browser.button("Try it").click()
    for name in ("05_label7.png", "06_label2.png", "00_label6.png"):
        browser.find(f'button[aria-label="Ask with {name}"]').click()
        browser.reads(name, ".answers")
    browser.button("Measure 100 times").click()
    browser.reads("Latency of 100 requests")
    keep(folder / "try.png", seen(browser, 1060, dark=True))
    browser.emulate()
    browser.open("engines/digits%3A1")
    browser.find(".thumbnails img")
    keep(folder / "engine.png", seen(browser, 980))
    keep(folder / "phone.png", phones(browser))


def seen(browser: Browser, height: int, *, dark: bool = False) -> Image:
    browser.emulate(width=WIDTH, height=height, dark=dark)
    browser.reads("Ready", "#health")
    return pictured(browser)


def phones(browser: Browser) -> Image:
    """Three pages on a phone, side by side."""
    pictures = []
    for page, dark in (("build", False), ("engines", True), ("engines/digits%3A1", False)):
        browser.emulate(**PHONE, dark=dark)
        browser.open(page)
        browser.until(lambda: len(browser.text()) > 60, "the page stays empty")
        pictures.append(np.pad(pictured(browser), ((0, 0), (SIDES, SIDES), (0, 0)), constant_values=GREY))
    return np.hstack(pictures)


def pictured(browser: Browser) -> Image:
    time.sleep(SETTLE_S)
    data = np.frombuffer(browser.driver.get_screenshot_as_png(), np.uint8)
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)


def keep(path: Path, image: Image) -> None:
    cv2.imwrite(str(path), image, [cv2.IMWRITE_PNG_COMPRESSION, 9])
    print(f"{path.name}: {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
