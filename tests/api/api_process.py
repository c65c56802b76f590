"""``python -m worker api`` as a process of its own, with its log and its metrics."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import URLError
from urllib.request import urlopen

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ROOT = Path(__file__).parent.parent.parent


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


class ApiProcess:
    """One API process on free ports of loopback."""

    def __init__(self, folder: Path, database_url: str, **settings: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port, self.metrics_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / f"api-{self.port}.log"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("WORKER_", "TEST_"))}
        environment = inherited | {
            "WORKER_DATABASE_URL": database_url,
            "WORKER_STORAGE_URL": (folder / "storage").as_uri(),
            "WORKER_API_PORT": str(self.port),
            "WORKER_API_METRICS_PORT": str(self.metrics_port),
            "WORKER_API_UPLOAD_FOLDER": str(folder / "uploads"),
            "PYTHONPATH": str(ROOT),
        }
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "worker", "api"], env=environment | settings, cwd=ROOT, stdin=subprocess.DEVNULL,
                stdout=output, stderr=output,
            )  # fmt: skip

    def page(self, path: str, port: int | None = None) -> tuple[int, str]:
        """Status and text of a page on the metrics port."""
        try:
            with urlopen(f"http://127.0.0.1:{port or self.metrics_port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except URLError as error:
            return getattr(error, "code", 0), ""

    def sample(self, series: str) -> float:
        """A series' value, by its name and labels as the page writes them."""
        for line in self.page("/metrics")[1].splitlines():
            if line.startswith(series + " "):
                return float(line.rpartition(" ")[2])
        raise AssertionError(f"no series {series}")

    def lines(self) -> list[dict[str, Any]]:
        """Its log: every line is a JSON object."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def told(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.lines() if line["event"] == event]

    async def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(self.process.wait, 60)


@asynccontextmanager
async def api_process(folder: Path, database_url: str, **settings: str) -> AsyncIterator[ApiProcess]:
    api = ApiProcess(folder, database_url, **settings)
    try:
        async with asyncio.timeout(60):
            while (await asyncio.to_thread(api.page, "/", api.port))[0] != 200:
                assert api.process.poll() is None, api.log.read_text()
                await asyncio.sleep(0.05)
        yield api
    finally:
        if api.process.poll() is None:
            await api.stop()
