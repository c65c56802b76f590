"""A small WebDriver client: what the console's tests need of Chromium, and nothing more."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import shutil
import socket
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

CHROMIUM = shutil.which("chromium")
CHROMEDRIVER = shutil.which("chromedriver")
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip


@dataclass
class Browser:
    """One window."""

    http: httpx.AsyncClient
    session: str

    async def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        answer = await self.http.request(
            method, f"/session/{self.session}{path}", json=body if method == "POST" else None
        )
        document = answer.json()["value"]
        if answer.status_code != 200:
            raise LookupError(f"{document['error']}: {document['message'][:300]}")
        return document

    async def go(self, url: str) -> None:
        await self._call("POST", "/url", {"url": url})

    async def run(self, script: str, *arguments: Any) -> Any:
        return await self._call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    async def find(self, selector: str, text: str | None = None, *, within_s: float = 20) -> str:
        """The first visible element that fits, as soon as there is one."""
        script = """return [...document.querySelectorAll(arguments[0])].find((one) => one.checkVisibility()
            && (arguments[1] === null || one.textContent.includes(arguments[1]))) ?? null"""
        try:
            async with asyncio.timeout(within_s):
                while True:
                    found = await self.run(script, selector, text)
                    if found is not None:
                        return str(found[_ELEMENT])
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise LookupError(f"no {selector} with {text!r} in: {await self.text()}") from None

    async def text(self) -> str:
        return str(await self.run("return document.body.innerText"))

    async def click(self, selector: str, text: str | None = None) -> None:
        """Click an element, again where the page was drawn anew between finding and clicking."""
        for attempt in range(5):
            try:
                await self._call("POST", f"/element/{await self.find(selector, text)}/click", {})
            except LookupError as error:
                if "stale" not in str(error) or attempt == 4:
                    raise
            else:
                return

    async def type(self, selector: str, text: str) -> None:
        await self._call("POST", f"/element/{await self.find(selector)}/value", {"text": text})

    async def choose_files(self, selector: str, paths: list[Path]) -> None:
        found = await self.run("return document.querySelector(arguments[0])", selector)
        await self._call("POST", f"/element/{found[_ELEMENT]}/value", {"text": "\n".join(map(str, paths))})

    async def keys(self, *keys: str) -> None:
        """Press keys one after another, wherever the focus is."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        await self._call("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    async def focused(self) -> str:
        """What the focused control says; nothing where the focus is on the page itself."""
        script = "const one = document.activeElement; return one.matches('a, button, input, select, summary, pre') ? one.textContent : ''"
        return str(await self.run(script))

    async def media(self, *, dark: bool = False, width: int = 1100, height: int = 900) -> None:
        """Set the colour scheme and the window."""
        await self._cdp(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}],
        )
        await self._cdp(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    async def offline(self, *, offline: bool) -> None:
        await self._cdp("Network.enable")
        await self._cdp(
            "Network.emulateNetworkConditions", offline=offline, latency=0, downloadThroughput=-1, uploadThroughput=-1
        )

    async def _cdp(self, command: str, **parameters: Any) -> None:
        await self._call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    async def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(await self._call("GET", "/screenshot")))

    async def complaints(self) -> list[str]:
        """What the browser's console holds: errors of scripts, and what a policy refused."""
        entries = await self._call("POST", "/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]


@contextlib.asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """A fresh headless Chromium with nothing remembered."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    driver = await asyncio.create_subprocess_exec(
        str(CHROMEDRIVER), f"--port={port}", stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    with tempfile.TemporaryDirectory(prefix="console-", ignore_cleanup_errors=True) as profile:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as http:
            try:
                yield await _session(http, profile)
            finally:
                with contextlib.suppress(httpx.HTTPError):
                    await http.get("/shutdown")
                with contextlib.suppress(ProcessLookupError):
                    driver.terminate()
                await driver.wait()


async def _session(http: httpx.AsyncClient, profile: str) -> Browser:
    options = {"binary": CHROMIUM, "args": [*_FLAGS, f"--user-data-dir={profile}"]}
    wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(httpx.ConnectError):
                answer = await http.post("/session", json={"capabilities": {"alwaysMatch": wanted}})
                assert answer.status_code == 200, answer.text
                return Browser(http, answer.json()["value"]["sessionId"])
            await asyncio.sleep(0.05)
