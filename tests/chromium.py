"""Debian's Chromium without a window, from a cache folder: nothing is installed. Spoken to over DevTools' pipe.

`python tests/chromium.py` fetches it ahead of time: 175 MB, 570 MB unpacked.
`python tests/chromium.py PAGE.html PICTURE.png` takes a picture of a page.

It runs with the C library that it was built for, whatever the machine has: that library's loader starts the program.
Chromium looks for its data beside what runs, so the loader stands there; its own processes are started the same way.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import platform
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from debian import UnavailableError, unpacked

_LOADERS = {"x86_64": ("amd64", "ld-linux-x86-64.so.2"), "aarch64": ("arm64", "ld-linux-aarch64.so.1")}
_PACKAGES = ("chromium-headless-shell", "fonts-dejavu-core")
_START = """#!/bin/sh
root=$(dirname "$(readlink -f "$0")")
libraries=$root/usr/lib/{machine}-linux-gnu chromium=$root/usr/lib/chromium
export FONTCONFIG_SYSROOT="$root"
exec "$chromium/loader" --library-path "$libraries:$libraries/pulseaudio" "$chromium/chromium-headless-shell" "$@"
"""
_ANSWER_S = 120


def chromium() -> Path:
    """The program; every argument is Chromium's.

    Raises:
        UnavailableError: It is not in the cache and cannot be fetched.
    """
    machine = platform.machine()
    if sys.platform != "linux" or machine not in _LOADERS:
        raise UnavailableError(f"Debian has no Chromium for {sys.platform} on {machine}")
    architecture, loader = _LOADERS[machine]
    root = unpacked(f"chromium-{architecture}", _PACKAGES, architecture=architecture, dependencies=True)
    start, beside = root / "chromium", root / "usr/lib/chromium/loader"
    if not start.exists():
        shutil.copyfile(root / f"usr/lib/{machine}-linux-gnu" / loader, beside)
        beside.chmod(0o755)
        start.write_text(_START.format(machine=machine))
        start.chmod(0o755)
    return start


class Page:
    """A tab, and what happened in it.

    Attributes:
        events: What Chromium told, in its order: `(method, parameters)`.
    """

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write, self._buffer = read, write, b""
        self._numbers = itertools.count(1)
        self._session: str | None = None
        self.events: list[tuple[str, dict[str, Any]]] = []
        tab = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=tab, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Calls a method of the DevTools protocol; events that come before its answer are kept.

        Raises:
            RuntimeError: Chromium refuses it or ended.
            TimeoutError: There is no answer.
        """
        number = next(self._numbers)
        session = {"sessionId": self._session} if self._session else {}
        os.write(
            self._write, json.dumps({"id": number, "method": method, "params": parameters, **session}).encode() + b"\0"
        )
        while True:
            message = self._message()
            if message.get("id") == number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                result: dict[str, Any] = message["result"]
                return result
            self.events.append((message["method"], message["params"]))

    def open(self, url: str) -> None:
        """Opens an address and waits until it is loaded."""
        self.events.clear()
        self.call("Page.navigate", url=url)
        while not any(method == "Page.loadEventFired" for method, _ in self.events):
            message = self._message()
            self.events.append((message["method"], message["params"]))

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression.

        Raises:
            RuntimeError: It throws.
        """
        done = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in done:
            raise RuntimeError(json.dumps(done["exceptionDetails"]))
        return done["result"].get("value")

    def press(self, key: str) -> None:
        """Presses a key where the focus is: `Tab`, `Enter`."""
        text = {"text": "\r"} if key == "Enter" else {}
        code = {"Tab": 9, "Enter": 13}[key]
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)

    def look(self, width_px: int, height_px: int, *, scheme: str = "light", scale: float = 1) -> None:
        """Sets the size of the window and whether the reader wants it `light` or `dark`."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width_px,
            height=height_px,
            deviceScaleFactor=scale,
            mobile=width_px < 600,
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def picture(self) -> bytes:
        """What the window shows, as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def _message(self) -> dict[str, Any]:
        end = time.monotonic() + _ANSWER_S
        with selectors.DefaultSelector() as selector:
            selector.register(self._read, selectors.EVENT_READ)
            while b"\0" not in self._buffer:
                if not selector.select(end - time.monotonic()):
                    raise TimeoutError(f"Chromium has said nothing for {_ANSWER_S} s")
                received = os.read(self._read, 1 << 20)
                if not received:
                    raise RuntimeError("Chromium ended")
                self._buffer += received
        line, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        return message


@contextmanager
def browser() -> Iterator[Page]:
    """Starts Chromium for one tab; it ends, and its profile goes, with the block.

    Raises:
        UnavailableError: There is none.
    """
    program = str(chromium())
    (their_read, our_write), (our_read, their_write) = os.pipe(), os.pipe()
    # It reads from descriptor 3 and writes to 4. No sandbox: it needs a set-user-id program or user namespaces, and the
    # only page that is opened is ours. No zygote: that would start the loader without its program.
    flags = ["--remote-debugging-pipe", "--no-sandbox", "--no-zygote", "--disable-gpu", "--hide-scrollbars"]
    flags.append(f"--browser-subprocess-path={program}")
    start = f'exec "$@" 3<&{their_read} 4>&{their_write}'
    with tempfile.TemporaryDirectory(prefix="edgecls-chromium-", ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            ["bash", "-c", start, "bash", program, *flags, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(their_read, their_write),
            stderr=subprocess.DEVNULL,
        )
        os.close(their_read)
        os.close(their_write)
        try:
            yield Page(our_read, our_write)
        finally:
            os.close(our_write)
            os.close(our_read)
            process.terminate()
            process.wait(timeout=_ANSWER_S)


if __name__ == "__main__":
    print(chromium())
    if len(sys.argv) > 1:
        with browser() as page:
            page.look(1440, 1800)
            page.open(Path(sys.argv[1]).resolve().as_uri())
            Path(sys.argv[2]).write_bytes(page.picture())
