"""Chromium without a window, and someone who reads a page in it."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

MOST_SECONDS = 240  # longest life of a browser, whatever becomes of the test


def _end_processes_of(profile: Path) -> None:
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if str(profile).encode() in (folder / "cmdline").read_bytes():
                os.kill(int(folder.name), signal.SIGKILL)
        except OSError:
            continue  # it ended by itself


@contextmanager
def open_browser(folder: Path) -> Iterator[Any]:
    """Chromium by Selenium, with its profile in `folder`; its log has the requests. Skips where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install -e '.[dev]'")
    chromium, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs chromium (or google-chrome) and chromedriver in PATH (Debian: chromium, chromium-driver)")
    # A driver that nobody stops is stopped by `timeout`; Chromium ends with the pipe to its driver.
    wrapper = folder / "chromedriver"
    wrapper.write_text(f'#!/bin/sh\nexec timeout --kill-after=5 {MOST_SECONDS} "{driver}" "$@"\n')
    wrapper.chmod(0o755)
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    for argument in (
        "--headless=new",
        "--no-sandbox",  # Chromium has no sandbox for root, as in a container; the page is our own
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--remote-debugging-pipe",
        f"--user-data-dir={folder / 'profile'}",
    ):
        options.add_argument(argument)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", "localhost,127.0.0.1")
        patch.setenv("NO_PROXY", "localhost,127.0.0.1")
        started = None
        try:
            started = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(wrapper)))
            started.set_page_load_timeout(30)
            started.set_script_timeout(30)
            yield started
        finally:
            if started is not None:
                started.quit()
            _end_processes_of(folder / "profile")


# Contrast of each text with what is behind it, and the element that has it.
CONTRASTS = """((selector) => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const linear = numbers(colour).slice(0, 3).map((c) => c / 255)
      .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const behind = (element) => {
    const colour = getComputedStyle(element).backgroundColor;
    return numbers(colour)[3] === 0 ? behind(element.parentElement) : colour;
  };
  return [...document.querySelectorAll(selector)]
    .filter((element) => element.offsetWidth && element.textContent.trim())
    .map((element) => {
      const [low, high] = [light(getComputedStyle(element).color), light(behind(element))].sort((a, b) => a - b);
      return [(high + 0.05) / (low + 0.05), element.outerHTML.slice(0, 80)];
    });
})(arguments[0])"""


class Visitor:
    """Someone who reads a page in a browser; a new one is told neither of a screen nor of a colour scheme."""

    def __init__(self, browser: Any, folder: Path) -> None:
        self.browser, self.folder = browser, folder
        self.devtools("Emulation.setScriptExecutionDisabled", value=False)
        self.devtools("Emulation.setEmulatedMedia", media="", features=[])
        self.window(1280, 800)

    def open(self, path: Path) -> None:
        self.browser.get_log("performance")
        self.browser.get(path.as_uri())

    def prefer(self, scheme: str, media: str = "") -> None:
        """Asks for a colour scheme, light or dark."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.devtools("Emulation.setEmulatedMedia", media=media, features=features)

    def devtools(self, command: str, **arguments: Any) -> Any:
        return self.browser.execute_cdp_cmd(command, arguments)

    def window(self, width: int, height: int) -> None:
        self.devtools(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def ask(self, expression: str, *arguments: Any) -> Any:
        return self.browser.execute_script(f"return {expression}", *arguments)

    def find(self, selector: str) -> Any:
        return self.browser.find_element("css selector", selector)

    def press(self, *keys: str) -> None:
        """Keys go to whatever has the focus."""
        from selenium.webdriver import ActionChains, Keys

        for key in keys:
            ActionChains(self.browser).send_keys(getattr(Keys, key)).perform()

    def focus(self, selector: str) -> None:
        self.ask("arguments[0].focus()", self.find(selector))

    def contrasts(self, selector: str) -> list[tuple[float, str]]:
        """The contrast, 1 to 21, of every text that is shown in elements of a selector, and the element."""
        return [(value, element) for value, element in self.ask(CONTRASTS, selector)]

    def overflow(self) -> int:
        """Pixels by which the page is wider than the window."""
        # innerWidth would not do, because a telephone zooms out until all of a wide page is in it.
        root = "document.documentElement"
        return int(self.ask(f"{root}.scrollWidth - {root}.clientWidth"))

    def requested(self) -> list[str]:
        """Addresses that were requested since `open`, except the page and its embedded parts."""
        messages = [json.loads(entry["message"])["message"] for entry in self.browser.get_log("performance")]
        urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        assert any(url.startswith("file:") for url in urls)
        return [url for url in urls if not url.startswith(("data:", "blob:")) and not url.endswith("/page.html")]
