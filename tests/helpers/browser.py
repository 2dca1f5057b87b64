"""Drives a headless Chromium or Chrome, where there is one."""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

BROWSER = shutil.which("chromium") or shutil.which("chrome") or shutil.which("google-chrome")
# The browser takes commands from file 3 and answers in file 4.
LAUNCH = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)


class Browser:
    """A headless Chromium with one page, driven by the DevTools protocol: JSON texts, each ended by a zero byte."""

    def __init__(self, profile: Path) -> None:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        options += ["--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"]
        # Above 10, so that none of them is 3 or 4 itself.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for pair in (os.pipe(), os.pipe()) for end in pair]
        theirs = (ends[0], ends[3])
        self._commands, self._answers = ends[1], ends[2]
        command = [sys.executable, "-c", LAUNCH, *map(str, theirs), str(BROWSER), *options]
        self._process = subprocess.Popen(
            command, pass_fds=theirs, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        for end in theirs:
            os.close(end)
        self._unread, self._number, self._session = b"", 0, {}
        self._events: list[dict[str, Any]] = []
        target = self.do("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self.do("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Log"):
            self.do(f"{domain}.enable")

    def do(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        command = {"id": self._number, "method": method, "params": params, **self._session}
        os.write(self._commands, json.dumps(command).encode() + b"\0")
        while (answer := self._read()).get("id") != self._number:
            self._events.append(answer)
        return answer["result"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            assert select.select([self._answers], [], [], 60)[0], "the browser is silent"
            part = os.read(self._answers, 1 << 16)
            assert part, "the browser has ended"
            self._unread += part
        text, _, self._unread = self._unread.partition(b"\0")
        return json.loads(text)

    def open(self, url: str, width: int = 1280, height: int = 900) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.do("Emulation.setDeviceMetricsOverride", **metrics)
        for place in ("about:blank", url):  # first away, so that another #hash alone loads the page again
            self._events.clear()
            self.do("Page.navigate", url=place)
            while not any(event["method"] == "Page.loadEventFired" for event in self._events):
                self._events.append(self._read())

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression, after what it set off has been drawn."""
        drawn = f"new Promise(done => {{ const value = {script}; setTimeout(() => done(value), 50); }})"
        result = self.do("Runtime.evaluate", expression=drawn, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    @property
    def errors(self) -> list[dict[str, Any]]:
        """Errors, log entries and console messages since the page was opened."""
        kinds = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
        return [event for event in self._events if event["method"] in kinds]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for end in (self._commands, self._answers):
            os.close(end)
