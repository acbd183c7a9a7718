"""Drives a headless Chromium through its pipe (``--remote-debugging-pipe``), for tests and benchmarks of pages.

The protocol: https://chromedevtools.github.io/devtools-protocol. Everything a page asks the network for, and everything
it complains of, is kept.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

_PATIENCE_S = 120.0


@dataclass
class Page:
    """One tab."""

    process: subprocess.Popen[bytes]
    to_browser: int
    from_browser: int
    session: str = ""
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    _number: int = 0
    _buffer: bytes = b""

    def open(self, url: str) -> None:
        """Go there, and wait until the page has loaded."""
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def call(self, method: str, **parameters: Any) -> Any:
        """One call of the protocol; RuntimeError where the browser says no."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.to_browser, json.dumps(message).encode() + b"\0")
        while True:
            told = self._read()
            if told.get("id") == self._number:
                if "error" in told:
                    raise RuntimeError(f"{method}: {told['error']}")
                return told["result"]
            self._note(told)

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression, of a promise what it comes to."""
        told = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in told:
            raise RuntimeError(f"{expression}: {told['exceptionDetails']}")
        return told["result"].get("value")

    def until(self, condition: str) -> None:
        """Wait for it to become true."""
        deadline = time.monotonic() + _PATIENCE_S
        while not self.ask(condition):
            if time.monotonic() > deadline:
                raise TimeoutError(f"not true within {_PATIENCE_S:.0f} s: {condition}; complaints: {self.complaints}")
            time.sleep(0.05)

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """A PNG of the page as it is now."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))

    def pdf(self, path: Path) -> None:
        """The page as it would be printed."""
        path.write_bytes(base64.b64decode(self.call("Page.printToPDF", preferCSSPageSize=True)["data"]))

    def resize(self, width: int, height: int) -> None:
        """The size of the window in pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def prefer(self, scheme: str) -> None:
        """What the system says of ``prefers-color-scheme``."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def mouse(self, kind: str, x: float, y: float) -> None:
        """``mouseMoved``, ``mousePressed`` or ``mouseReleased`` there."""
        pressed = {"button": "left", "clickCount": 1} if kind != "mouseMoved" else {}
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **pressed)

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            more = os.read(self.from_browser, 1 << 20)
            if not more:
                raise RuntimeError(f"Chromium has ended with {self.process.wait()}")
            self._buffer += more
        message, _, self._buffer = self._buffer.partition(b"\0")
        told: dict[str, Any] = json.loads(message)
        return told

    def _note(self, told: dict[str, Any]) -> None:
        method, what = told.get("method"), told.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(what["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(what["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and what["type"] in ("error", "warning", "assert"):
            self.complaints.append(str(what["args"]))
        elif method == "Log.entryAdded" and what["entry"]["level"] in ("error", "warning"):
            self.complaints.append(str(what["entry"]["text"]))


@contextlib.contextmanager
def chromium(width: int = 1366, height: int = 768, *, online: bool = True) -> Iterator[Page]:
    """A browser with one empty tab, as large as a laptop's; ended with all that belongs to it."""
    if PROGRAM is None:
        raise FileNotFoundError("Chromium is not installed")
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        page = _start(profile)
        try:
            target = page.call("Target.createTarget", url="about:blank")["targetId"]
            page.session = page.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                page.call(f"{domain}.enable")
            if not online:
                gone = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
                page.call("Network.emulateNetworkConditions", offline=True, **gone)
            page.resize(width, height)
            yield page
        finally:
            os.killpg(page.process.pid, signal.SIGKILL)
            page.process.wait()
            os.close(page.to_browser)
            os.close(page.from_browser)


def _start(profile: str) -> Page:
    """Chromium reads commands from descriptor 3 and answers on 4."""
    its_input, to_browser = os.pipe()
    from_browser, its_output = os.pipe()
    command = f'exec "$@" 3<&{its_input} 4>&{its_output}'
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    options += ["--disable-background-networking", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
    process = subprocess.Popen(
        ["bash", "-c", command, "bash", str(PROGRAM), *options],
        pass_fds=(its_input, its_output),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(its_input)
    os.close(its_output)
    return Page(process, to_browser, from_browser)
