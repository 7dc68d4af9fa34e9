"""Drives the system's Chromium over its DevTools pipe: no other package, no port.

Messages are JSON, each ended by a zero byte, on the file descriptors 3 and 4 of the browser.
Source: https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_LAUNCH = """import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])"""
"""Puts the pipe's ends where Chromium looks for them; `subprocess` cannot, and a shell not beyond descriptor 9."""

CALL_TIMEOUT_S = 30.0
POLL_S = 0.05
CONSOLE_LEVELS = ("error", "warning")
KEYS = {"Enter": ("Enter", 13, "\r"), "Escape": ("Escape", 27, ""), "Tab": ("Tab", 9, ""), " ": ("Space", 32, " ")}
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-extensions", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--mute-audio", "--autoplay-policy=no-user-gesture-required", "--remote-debugging-pipe",
)  # fmt: skip


def find_chromium() -> str | None:
    """The browser's path, or None where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((path for name in names if (path := shutil.which(name))), None)


class BrowserError(Exception):
    """The browser refused a command, or a script in the page threw."""


class Browser:
    """A headless browser with a profile of its own; use it as a context."""

    def __init__(self, executable: str, profile: Path, *, flags: Sequence[str] = ()) -> None:
        self._command = [executable, *FLAGS, *flags, f"--user-data-dir={profile}"]
        self._numbers = itertools.count(1)
        self._answers: dict[int, queue.Queue[dict[str, Any]]] = {}
        self._pages: dict[str, Page] = {}

    def __enter__(self) -> Self:
        to_browser, self._write_end = os.pipe()
        self._read_end, from_browser = os.pipe()
        launch = [sys.executable, "-I", "-c", _LAUNCH, str(to_browser), str(from_browser), *self._command]
        self._process = subprocess.Popen(
            launch, pass_fds=(to_browser, from_browser), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(to_browser)
        os.close(from_browser)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self.call("Browser.close")
            self._process.wait(10)
        except (BrowserError, queue.Empty, OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait(10)
        self._reader.join(10)
        os.close(self._write_end)
        os.close(self._read_end)

    def open(self, url: str, *, width: int = 1440, height: int = 900, is_dark: bool = False) -> Page:
        """A new tab at that address, in a profile of its own: nothing is remembered from other tabs."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session, context)
        self._pages[session] = page
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        page.resize(width, height)
        page.set_colours(is_dark=is_dark)
        page.go(url)
        return page

    def call(self, method: str, *, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its answer.

        Raises:
            BrowserError: it was refused.
            queue.Empty: no answer came.
        """
        number = next(self._numbers)
        answer: queue.Queue[dict[str, Any]] = queue.Queue()
        self._answers[number] = answer
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._write_end, data) :]
        result = answer.get(timeout=CALL_TIMEOUT_S)
        if "error" in result:
            raise BrowserError(f"{method}: {result['error']}")
        return dict(result["result"])

    def _read(self) -> None:
        rest = b""
        while piece := os.read(self._read_end, 1 << 20):
            *messages, rest = (rest + piece).split(b"\0")
            for message in messages:
                self._dispatch(json.loads(message))

    def _dispatch(self, message: dict[str, Any]) -> None:
        if "id" in message:
            self._answers.pop(message["id"]).put(message)
        elif page := self._pages.get(message.get("sessionId", "")):
            page.hear(message["method"], message["params"])


class Page:
    """A tab. What goes wrong in it (uncaught errors, refused resources, policy violations) is kept in `complaints`."""

    def __init__(self, browser: Browser, session: str, context: str) -> None:
        self._browser = browser
        self._session = session
        self._context = context
        self.complaints: list[str] = []
        self.requests: list[str] = []
        """Addresses that the page asked for."""

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A command to this tab."""
        return self._browser.call(method, session=self._session, **params)

    def close(self) -> None:
        """Forget the tab and its profile."""
        self._browser.call("Target.disposeBrowserContext", browserContextId=self._context)

    def hear(self, method: str, params: dict[str, Any]) -> None:
        """Called by the reading thread."""
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in CONSOLE_LEVELS:
            entry = params["entry"]
            self.complaints.append(f"{entry['text']} {entry.get('url', '')}")
        elif method == "Runtime.consoleAPICalled" and params["type"] in CONSOLE_LEVELS:
            self.complaints.append(str([argument.get("value") for argument in params["args"]]))
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])

    # -- looking -------------------------------------------------------------------------------------------------------

    def evaluate(self, script: str) -> Any:
        """The value of an expression, awaited.

        Raises:
            BrowserError: it threw.
        """
        answer = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise BrowserError(details.get("exception", {}).get("description", details["text"]))
        return answer["result"].get("value")

    def wait_for(self, script: str, *, timeout_s: float = 20.0) -> None:
        """Until an expression is true; an element is.

        Raises:
            TimeoutError: it stays false; says what the page complained of.
        """
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            if self.evaluate(f"Boolean({script})"):
                return
            time.sleep(POLL_S)
        raise TimeoutError(f"{script} is not true after {timeout_s:g} s; complaints: {self.complaints}")

    def text(self, selector: str) -> str:
        """The words that an element shows."""
        return str(self.evaluate(f"document.querySelector({json.dumps(selector)}).innerText"))

    def count(self, selector: str) -> int:
        """How many elements there are."""
        return int(self.evaluate(f"document.querySelectorAll({json.dumps(selector)}).length"))

    def screenshot(self, path: Path) -> Path:
        """What is visible, as PNG."""
        data = self.call("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))
        return path

    def accessibility_tree(self) -> list[dict[str, Any]]:
        """What a screen reader is told: `role`, `name`, `focusable` of each node that is not ignored."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        return [
            {
                "role": node.get("role", {}).get("value", ""),
                "name": node.get("name", {}).get("value", ""),
                "focusable": any(one["name"] == "focusable" for one in node.get("properties", ())),
            }
            for node in nodes
            if not node["ignored"]
        ]

    # -- acting --------------------------------------------------------------------------------------------------------

    def go(self, url: str) -> None:
        """Load an address; returns when the document is there."""
        self.call("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'")

    def reload(self) -> None:
        """As the browser's button does."""
        self.evaluate("window.isOld = true")
        self.call("Page.reload")
        self.wait_for("!window.isOld && document.readyState === 'complete'")

    def resize(self, width: int, height: int) -> None:
        """The window's inside, in CSS pixels; narrow ones are phones."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    def set_colours(self, *, is_dark: bool, is_still: bool = False) -> None:
        """What the system prefers."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        motion = {"name": "prefers-reduced-motion", "value": "reduce" if is_still else "no-preference"}
        self.call("Emulation.setEmulatedMedia", features=[scheme, motion])

    def click(self, selector: str) -> None:
        """With the mouse, in the middle of an element that is really on top there.

        Raises:
            BrowserError: it is not there, has no size, or something covers it.
        """
        x, y = self.evaluate(_MIDDLE % json.dumps(selector))
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def write(self, selector: str, text: str) -> None:
        """Click into a field and write."""
        self.click(selector)
        self.call("Input.insertText", text=text)

    def press(self, key: str, *, modifiers: int = 0) -> None:
        """One key; `modifiers` is 2 for control, 8 for shift."""
        code, number, text = KEYS[key]
        shared = {"key": key, "code": code, "windowsVirtualKeyCode": number, "modifiers": modifiers}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **shared)
        self.call("Input.dispatchKeyEvent", type="keyUp", **shared)


_MIDDLE = """(() => {
  const element = document.querySelector(%s);
  if (!element) throw new Error("there is no such element");
  element.scrollIntoView({ block: "center" });
  const box = element.getBoundingClientRect();
  const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
  const top = document.elementFromPoint(x, y);
  const label = element.closest("label");
  if (!(element.contains(top) || top?.contains(element) && top === label || label?.contains(top)))
    throw new Error(`covered by ${top?.outerHTML.slice(0, 120)}`);
  return [x, y];
})()"""

Open = Callable[..., Page]
"""Opens the page under test: (the rest of its address, **what `Browser.open` takes)."""
