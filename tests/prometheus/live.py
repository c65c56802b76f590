"""A private Prometheus that scrapes live workers, and what it answers."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from tests.acceptance.world import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


class Prometheus:
    """One server with its data in a folder; targets can be changed while it runs."""

    def __init__(self, folder: Path, rules: str = "") -> None:
        self.folder = folder
        self._rules = rules
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def target(self, *ports: int, job: str = "training-worker") -> None:
        """Scrape these ports of this host from now on."""
        (self.folder / "targets.json").write_text(
            json.dumps([{"targets": [f"127.0.0.1:{port}" for port in ports], "labels": {"job": job}}])
        )

    def start(self) -> None:
        program = shutil.which("prometheus", path="/usr/bin:/usr/local/bin")
        assert program, "Debian's prometheus is not here"
        (self.folder / "rules.yaml").write_text(self._rules or "groups: []\n")
        (self.folder / "targets.json").write_text("[]")
        (self.folder / "prometheus.yaml").write_text(
            "global: {scrape_interval: 1s, evaluation_interval: 1s}\n"
            "rule_files: [rules.yaml]\n"
            "scrape_configs:\n"
            "  - job_name: workers\n"
            "    file_sd_configs: [{files: [targets.json], refresh_interval: 1s}]\n"
        )
        with (self.folder / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    program,
                    f"--config.file={self.folder}/prometheus.yaml",
                    f"--storage.tsdb.path={self.folder}/tsdb",
                    f"--web.listen-address=127.0.0.1:{self.port}",
                    "--log.level=warn",
                ],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(20)

    def query(self, expr: str) -> list[dict[str, Any]]:
        """An instant query's result."""
        return self._ask("query", {"query": expr})["result"]

    def range(self, expr: str, start: float, end: float, step_s: float) -> list[dict[str, Any]]:
        """A range query's result."""
        return self._ask("query_range", {"query": expr, "start": start, "end": end, "step": step_s})["result"]

    def _ask(self, what: str, parameters: dict[str, Any]) -> dict[str, Any]:
        address = f"{self.url}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error

    def firing(self) -> set[str]:
        """Names of the alerts that fire."""
        return {found["metric"]["alertname"] for found in self.query('ALERTS{alertstate="firing"}')}

    async def ready(self) -> None:
        def answers() -> bool:
            try:
                with urllib.request.urlopen(f"{self.url}/-/ready", timeout=2) as answer:
                    return answer.status == 200
            except OSError:
                return False

        await until(lambda: asyncio.to_thread(answers), "Prometheus answers")


@asynccontextmanager
async def prometheus_at(folder: Path, rules: str = "") -> AsyncIterator[Prometheus]:
    folder.mkdir(parents=True, exist_ok=True)
    server = Prometheus(folder, rules)
    server.start()
    try:
        await server.ready()
        yield server
    finally:
        server.stop()
