"""A Chromium of the system, driven without a network: what the dashboard's tests and screenshots look through."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from selenium.common.exceptions import StaleElementReferenceException, WebDriverException
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service as Driver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
MISSING = "needs chromium and chromedriver: apt-get install chromium chromium-driver"
WAIT_S = 60.0  # generous: nothing waits longer than it must
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--no-proxy-server",
    "--window-size=1280,900",
)


Found = TypeVar("Found")


class Browser:
    """One tab."""

    def __init__(self, driver: Chrome, url: str) -> None:
        self.driver = driver
        self.url = url
        self._requests: list[str] = []

    def open(self, page: str = "") -> None:
        """Go to a page of the dashboard by its address, without loading the dashboard anew."""
        self.driver.get(f"{self.url}/#/{page}")

    def find(self, css: str) -> WebElement:
        """The first element that is there, once it is."""
        return self.until(lambda: next(iter(self.all(css)), None), f"no element {css}")

    def all(self, css: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def text(self, css: str = "main") -> str:
        """What a person reads there now."""
        found: str = self.find(css).text
        return found

    def reads(self, wanted: str, css: str = "main") -> str:
        """The text there, once it contains `wanted`."""
        return self.until(lambda: text if wanted in (text := self.text(css)) else None, f"{css} never reads {wanted!r}")

    def button(self, text: str, css: str = "button, a.button") -> WebElement:
        """The button of that name, once it is there and can be pressed."""
        return self.until(
            lambda: next((b for b in self.all(css) if b.text == text and b.is_displayed() and b.is_enabled()), None),
            f"no button {text!r}",
        )

    def until(self, look: Callable[[], Found | None], otherwise: str) -> Found:
        """The first true answer of `look`."""
        waiting = WebDriverWait(self.driver, WAIT_S, 0.1, ignored_exceptions=[StaleElementReferenceException])
        found: Found | None = waiting.until(
            lambda _: look() or None, f"{otherwise}; the page: {self.driver.current_url}"
        )
        assert found is not None  # else it has raised
        return found

    def script(self, text: str, *arguments: Any) -> Any:
        return self.driver.execute_script(text, *arguments)

    def emulate(self, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def complaints(self) -> list[str]:
        """What the console has complained of since the last time: exceptions, refused scripts and styles, …"""
        entries = self.driver.get_log("browser")  # type: ignore[no-untyped-call]
        return [entry["message"] for entry in entries if entry["level"] in ("SEVERE", "WARNING")]

    def requests(self) -> list[str]:
        """Every address asked for so far."""
        for entry in self.driver.get_log("performance"):  # type: ignore[no-untyped-call]
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                self._requests.append(message["params"]["request"]["url"])
        return self._requests


@contextmanager
def opened_browser(url: str, profile: Path) -> Iterator[Browser]:
    """A browser on a dashboard, with a profile of its own."""
    options = ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"session.restore_on_startup": 4, "session.startup_urls": ["about:blank"]})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options, Driver(DRIVER))
    try:
        yield Browser(driver, url)
    finally:
        with suppress(WebDriverException):
            driver.quit()
