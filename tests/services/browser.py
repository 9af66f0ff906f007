"""A headless Chromium for tests of pages: Debian's `chromium` and `chromium-driver`."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from debian import install
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

PROGRAMS = ("chromium", "chromedriver")
PACKAGES = ("chromium", "chromium-driver")


@contextlib.contextmanager
def browser() -> Iterator[Chrome]:
    """Start it without a network; skip the test where it is not installed, but with CI=true.

    Then it is installed first, which needs root.
    """
    if not all(map(shutil.which, PROGRAMS)):
        if os.environ.get("CI") != "true":
            pytest.skip(f"no browser; apt-get install --no-install-recommends {' '.join(PACKAGES)}")
        install(*PACKAGES)
    options = ChromeOptions()
    options.binary_location = str(shutil.which(PROGRAMS[0]))
    with tempfile.TemporaryDirectory() as profile:
        for argument in (
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--proxy-server=127.0.0.1:9", "--proxy-bypass-list=127.0.0.1",
            f"--user-data-dir={profile}",
        ):  # fmt: skip
            options.add_argument(argument)
        started = Chrome(options=options, service=Service(str(shutil.which(PROGRAMS[1]))))
        try:
            yield started
        finally:
            started.quit()


def set_size(page: Chrome, width: int, height: int = 900) -> None:
    """Let a page be so many pixels wide, a phone's below 600."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def open_file(page: Chrome, file: Path, width: int) -> None:
    """Show a file in a window of some width."""
    set_size(page, width)
    page.get(file.as_uri())
