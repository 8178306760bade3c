"""A headless Chromium, driven through its DevTools protocol over two pipes: no port, no driver, no network."""

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


class Browser:
    """One tab. Each call waits for its answer; what the page says meanwhile is kept in `events`."""

    def __init__(self, profile: Path) -> None:
        to_read, write = os.pipe()
        read, to_write = os.pipe()

        def connect() -> None:  # Chromium reads commands from descriptor 3 and answers on 4
            os.dup2(to_read, 63), os.dup2(to_write, 64)
            os.dup2(63, 3), os.dup2(64, 4)

        options = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
        away = (
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            f"--user-data-dir={profile}",
            "--remote-debugging-pipe",
        )
        self.process = subprocess.Popen(
            [str(CHROMIUM), *options, *away], preexec_fn=connect, close_fds=False, stderr=subprocess.DEVNULL
        )
        os.close(to_read), os.close(to_write)
        self._write, self._read, self._left, self._calls, self._session = write, read, b"", 0, None
        self.events = []
        tab = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=tab, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        """Send a command; returns its result."""
        self._calls += 1
        command = {"id": self._calls, "method": method, "params": parameters}
        if self._session:
            command["sessionId"] = self._session
        os.write(self._write, json.dumps(command).encode() + b"\0")
        while True:
            while b"\0" not in self._left:
                part = os.read(self._read, 1 << 20)
                assert part, f"the browser ended before it answered {method}"
                self._left += part
            message, self._left = self._left.split(b"\0", 1)
            answer = json.loads(message)
            if answer.get("id") == self._calls:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def run(self, code):
        """The value of a JavaScript expression; a promise is awaited."""
        answer = self.call("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, code, seconds=120):
        """Until an expression holds."""
        self.wait_for(f"!!({code})", bool, seconds)

    def wait_for(self, code, accepted, seconds=120):
        """The value of an expression, as soon as it is one that `accepted` holds for: pages load in any order."""
        until = time.monotonic() + seconds
        while not accepted(value := self.run(code)):
            assert time.monotonic() < until, f"not within {seconds} s, last {value!r}: {code}"
            time.sleep(0.05)
        return value

    def open(self, url, *, width=1440, height=900, dark=False, has_charts=True, until=None):
        """Load a page anew; where an expression is given, until it holds."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url="about:blank")
        self.events.clear()
        self.call("Page.navigate", url=url)
        if until is not None:
            self.wait(until)
            return
        self.wait(f"document.readyState === 'complete' && location.href === {json.dumps(url)}")
        if has_charts:
            self.wait("typeof trials !== 'undefined' && trials !== null")

    def show_all(self):
        """Draw every chart, as a printer would see them."""
        self.run("dispatchEvent(new Event('beforeprint'))")
        self.wait("[...document.querySelectorAll('.chart')].every((chart) => drawn.get(chart))")
        # A chart is fitted to its place once more after it was drawn.
        self.steady(
            "[...document.querySelectorAll('.chart')].map((e) => [e.clientWidth, e.layout.width, e.scrollHeight])"
        )

    def steady(self, code):
        """The value of an expression, once ten frames in a row have had it: on a slow machine they take longer."""
        return self.run(
            "new Promise((done) => { let before, frames = 0; const look = () => {"
            f" const now = JSON.stringify({code}); frames = now === before ? frames + 1 : 0; before = now;"
            " if (frames < 10) requestAnimationFrame(look); else done(JSON.parse(now)); }; look(); })"
        )

    def press(self, key):
        """A key that is pressed and let go."""
        codes = {"Tab": 9, "Enter": 13, " ": 32}
        for kind in ("keyDown", "keyUp"):
            text = {"Enter": "\r", " ": " "}.get(key, "") if kind == "keyDown" else ""
            self.call("Input.dispatchKeyEvent", type=kind, key=key, text=text, windowsVirtualKeyCode=codes[key])

    def click(self, place):
        """The mouse on the middle of the first element that a selector finds."""
        element = f"document.querySelector({json.dumps(place)})"
        self.run(f"{element}.scrollIntoView({{ block: 'center' }})")
        # Charts that come into view with it may still push it elsewhere.
        box = self.steady(f"{element}.getBoundingClientRect()")
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        for kind, buttons in (("mouseMoved", 0), ("mousePressed", 1), ("mouseReleased", 0)):
            button = "none" if kind == "mouseMoved" else "left"
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, buttons=buttons, clickCount=1)

    def picture(self, path):
        """What is in view, as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def complaints(self):
        """What the console was told, and every request that leaves this machine."""
        kinds = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        said = [event["params"] for event in self.events if event.get("method") in kinds]
        asked = [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        return said + [url for url in asked if not url.startswith(("file:", "data:", "blob:", "about:"))]

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self._write), os.close(self._read)
