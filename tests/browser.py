"""A real browser: Debian's chromium through its chromedriver, which speaks WebDriver, JSON over HTTP."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

_OFFLINE = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--hide-scrollbars",
)  # fmt: skip
_PATIENCE_S = 60.0


class Browser:
    """One window; ``console`` gives what the page complained of since the last time."""

    def __init__(self, profile: Path, width: int = 1200, height: int = 900) -> None:
        self._driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True)
        self._base = f"http://127.0.0.1:{self._port()}"
        options = {
            "binary": chromium(),
            "args": [*_OFFLINE, f"--user-data-dir={profile}", f"--window-size={width},{height}"],
        }
        capabilities = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        session = self._say("POST", "/session", {"capabilities": {"alwaysMatch": capabilities}})
        self._base += f"/session/{session['sessionId']}"

    def _port(self) -> str:
        assert self._driver.stdout is not None
        for line in self._driver.stdout:
            if "started successfully on port" in line:
                return line.rstrip(".\n ").rpartition(" ")[2]
        raise AssertionError("chromedriver did not start")

    def _say(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = json.dumps(body or {}).encode() if method == "POST" else None
        request = urllib.request.Request(self._base + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=_PATIENCE_S) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as fault:
            raise AssertionError(fault.read().decode()) from fault

    def close(self) -> None:
        self._say("DELETE", "")
        self._driver.terminate()
        self._driver.wait()
        assert self._driver.stdout is not None
        self._driver.stdout.close()

    def emulate(self, width: int, height: int, *, dark: bool = False, phone: bool = False) -> None:
        """A screen of this size in CSS pixels, with this taste in colours."""
        screen = {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1, "mobile": phone}
        self._devtools("Emulation.setDeviceMetricsOverride", screen)
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self._devtools("Emulation.setEmulatedMedia", {"features": features})

    def _devtools(self, command: str, params: dict[str, Any]) -> Any:
        return self._say("POST", "/goog/cdp/execute", {"cmd": command, "params": params})

    def open(self, page: Path) -> None:
        self._say("POST", "/url", {"url": page.resolve().as_uri()})

    def run(self, script: str) -> Any:
        """The value of a script's ``return``."""
        return self._say("POST", "/execute/sync", {"script": script, "args": []})

    def wait_for(self, condition: str) -> None:
        """Until a JavaScript expression is true."""
        until = time.monotonic() + _PATIENCE_S
        while not self.run(f"return Boolean({condition})"):
            assert time.monotonic() < until, f"never came true: {condition}"

    def point_at(self, x: float, y: float) -> None:
        moves = [{"type": "pointerMove", "duration": 0, "x": int(x) + shift, "y": int(y)} for shift in (-3, 0)]
        pointer = {"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}, "actions": moves}
        self._say("POST", "/actions", {"actions": [pointer]})

    def console(self) -> list[str]:
        return [entry["message"] for entry in self._say("POST", "/se/log", {"type": "browser"})]

    def screenshot(self, file: Path, *, whole: bool = False) -> None:
        if whole:
            data = self._devtools("Page.captureScreenshot", {"captureBeyondViewport": True})["data"]
        else:
            data = self._say("GET", "/screenshot")
        file.write_bytes(base64.b64decode(data))


def chromium() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not chromium() or not shutil.which("chromedriver"):
        pytest.skip("no chromium with its chromedriver here (Debian: apt-get install chromium chromium-driver)")
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()
