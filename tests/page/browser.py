"""A real headless Chromium for tests, and what they need to be there."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

from tollkeeper.http.page import DIRECTORY

ROOT: Final = Path(__file__).resolve().parents[2]
UI: Final = ROOT / "ui"
_DRIVER: Final = Path(__file__).with_name("browser.mjs")


def chromium() -> str:
    """Return the path of the browser; fail and name what is missing."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert found, "the page's tests need Chromium: apt-get install chromium"
    return found


def check_built() -> None:
    """Fail and name what is missing, where the page or the driver is not there."""
    assert (DIRECTORY / "index.html").is_file(), "the page is not built: make ui"
    assert (UI / "node_modules" / "playwright-core").is_dir(), (
        "the browser's driver is not installed: make ui"
    )


class Browser:
    """One browser process; each tab is a browser of its own, as far as cookies and storage go."""

    def __init__(self) -> None:
        check_built()
        # Node is that of the build: the machine's, or the one of `.venv-node`.
        command = [str(UI / "with-node"), "node", str(_DRIVER), str(UI / "node_modules"), chromium()]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def do(self, what: str, *args: Any) -> Any:
        """Return what a command of `browser.mjs` returns."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps({"do": what, "args": args}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the browser has ended"
        answer = json.loads(line)
        assert "error" not in answer, answer["error"]
        return answer["value"]

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(30)


class Tab:
    """A tab on the page at *url*. Its methods are playwright's, in Python's names; selectors too."""

    def __init__(self, browser: Browser, name: str, url: str, **options: Any) -> None:
        self._browser = browser
        self._name = name
        self.url = url
        browser.do("open", name, url, options)

    def page(self, method: str, *args: Any) -> Any:
        return self._browser.do("page", self._name, method, *args)

    def go(self, path: str = "") -> None:
        self.page("goto", self.url + path)

    def click(self, selector: str) -> None:
        self.page("click", selector)

    def fill(self, selector: str, text: str) -> None:
        self.page("fill", selector, text)

    def press(self, key: str) -> None:
        self._browser.do("press", self._name, key)

    def wait_for(self, selector: str) -> None:
        self.page("waitForSelector", selector)

    def text(self, selector: str = "body") -> str:
        found: str = self.page("innerText", selector)
        return found

    def table(self, heading: str) -> list[list[tuple[str, str]]]:
        """Return the rows of the table in the panel of a heading: text and title of each cell."""
        return [
            [(text, title) for text, title in row] for row in self._browser.do("table", self._name, heading)
        ]

    def cookies(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._browser.do("cookies", self._name)
        return found

    def axe(self) -> list[str]:
        found: list[str] = self._browser.do("axe", self._name)
        return found

    def report(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = self._browser.do("report", self._name)
        return found

    def answers(self) -> list[tuple[str, str, int]]:
        return [(method, path, status) for method, path, status in self._browser.do("answers", self._name)]

    def log_in(self, key: str) -> None:
        self.go()
        self.fill("input[type=password]", key)
        self.press("Enter")
        self.wait_for("#main")

    def show(self, view: str) -> None:
        """Go to a view, and return when it shows what it asked for."""
        self.go(view)
        self.settle()

    def settle(self) -> None:
        self.wait_for("#main section.panel")
        self.page("waitForLoadState", "networkidle")

    def close(self) -> None:
        self._browser.do("close", self._name)
