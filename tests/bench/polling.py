"""Polls and lists of the API beside a plain FastAPI endpoint that reads one row with asyncpg.

A million models of 10,000 organizations, the largest with 100,000. The API has authentication and limits on, the plain
endpoint has neither. Both servers are one process on one core; the load comes from another. Rounds take turns, medians
count. Requests a second are given by wall clock and per second of the server's own processor time.

    python -m tests.bench.polling [--models 1000000] [--rounds 5] [--seconds 3]

Prints tables and one last line `RESULT {…}`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import asyncpg

from deploy.local.postgres import create_database, drop_database
from worker.store.migrations import migrate

if TYPE_CHECKING:
    from collections.abc import Callable

LARGEST = 1
SORTS = ("id", "name", "key", "last_modified", "base_language_key", "training_status")
KEYS = 2_000
CONNECTIONS = 48
MODEL = "/api/v3/custom_models/{}"
LIST = "/api/v3/speech-to-text/models"

_MODELS = """
insert into custom_models (key, name, organization_id, base_language_id, base_language_key, training_status, last_modified)
select 'm-' || n || '-' || substr(md5(n::text), 1, 8),
    (array['Cardiology', 'Radiology', 'Court', 'Warehouse', 'Call centre', 'Lecture'])[1 + n % 6] || ' ' || substr(md5('x' || n), 1, 6),
    case when n <= $1::int / 10 then 1 else 2 + n % ($2::int - 1) end,
    1 + n % 2, (array['en', 'de'])[1 + n % 2], case when n % 3 = 0 then null else 1 + n % 5 end, now() - (hashint4(n::int) % 1000000) * interval '1 second'
from generate_series($3::int, $4::int) n
"""


def token(number: int) -> str:
    return f"stk_bench_{number}"


async def fill(url: str, models: int, organizations: int) -> None:
    """Organizations, two base languages, models, keys: as they would be after years."""
    await migrate(url)
    connection = await asyncpg.connect(url)
    began = time.perf_counter()
    await connection.execute(
        "insert into organizations (id, name) select n, 'O ' || n from generate_series(1, $1::int) n", organizations
    )
    await connection.execute(
        "insert into base_languages (id, key, name, weights) values (1, 'en', 'English', 'w'), (2, 'de', 'Deutsch', 'w')"
    )
    await connection.execute("alter sequence language_ids restart with 3")
    # As a bulk load is done: without triggers and list indexes, which come back before anything is measured.
    indexes = await connection.fetch(
        "select indexname, indexdef from pg_indexes where tablename = 'custom_models' and indexname like 'models_by_%'"
    )
    for index in indexes:
        await connection.execute(f"drop index {index['indexname']}")
    await connection.execute("set session_replication_role = replica")
    step = 100_000
    for first in range(1, models + 1, step):
        await connection.execute(_MODELS, models, organizations, first, min(models, first + step - 1))
    await connection.execute("set session_replication_role = default")
    for index in indexes:
        await connection.execute(index["indexdef"])
    await connection.execute(
        "insert into organization_counts (organization_id, models) select organization_id, count(*) from custom_models group by 1"
    )
    rows = [
        (organization_of(n, organizations), "owner", "bench", hashlib.sha256(token(n).encode()).digest(), "stk")
        for n in range(KEYS)
    ]
    await connection.executemany(
        "insert into api_keys (organization_id, role, name, sha256, prefix) values ($1, $2, $3, $4, $5)", rows
    )
    await connection.execute("vacuum analyze")
    print(f"{models:,} models of {organizations:,} organizations filled in {time.perf_counter() - began:.0f} s")
    await connection.close()


def organization_of(key: int, organizations: int) -> int:
    """Key 0 is the largest organization's, the others are spread."""
    return LARGEST if key == 0 else 1 + (key * 7919) % organizations


# --- the servers ---------------------------------------------------------------------------------------------------


def serve(kind: str, url: str, port: int) -> None:
    """One server, until it is ended."""
    import uvicorn  # noqa: PLC0415 - only in the server's process

    if kind == "plain":
        uvicorn.run(plain(url), host="127.0.0.1", port=port, access_log=False, log_level="error")
    else:
        from pydantic import SecretStr  # noqa: PLC0415

        from worker.api.app import create_app  # noqa: PLC0415
        from worker.api.serving import server_config  # noqa: PLC0415
        from worker.api.settings import ApiSettings  # noqa: PLC0415
        from worker.storage import FileStorage  # noqa: PLC0415

        settings = ApiSettings(database_url=SecretStr(url), api_port=port, api_rate_per_s=1e6, api_burst=10**6)
        app = create_app(settings, FileStorage(Path(tempfile.mkdtemp(prefix="polling-"))))
        uvicorn.Server(server_config(app)).run()


def plain(url: str) -> Any:
    """What one would write in five minutes: no authentication, no limits."""
    from contextlib import asynccontextmanager  # noqa: PLC0415

    from fastapi import FastAPI  # noqa: PLC0415

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> Any:
        app.state.pool = await asyncpg.create_pool(url, min_size=8, max_size=8)
        yield
        await app.state.pool.close()

    app = FastAPI(lifespan=lifespan)

    @app.get("/models/{model_id}")
    async def model(model_id: int) -> dict[str, Any]:
        row = await app.state.pool.fetchrow("select * from custom_models where id = $1", model_id)
        return {
            name: row[name] for name in ("id", "key", "name", "last_modified", "organization_id", "training_status")
        }

    return app


@dataclass
class Server:
    """A server's process on one core."""

    process: subprocess.Popen[bytes]
    port: int

    def cpu_s(self) -> float:
        """Processor seconds used so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.asynccontextmanager
async def server(kind: str, url: str) -> Any:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tests.bench.polling", "--serve", kind, "--database", url, "--port", str(port)]
    process = subprocess.Popen(command, preexec_fn=lambda: os.sched_setaffinity(0, {0}))  # noqa: PLW1509 - no threads yet
    try:
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    break
                await asyncio.sleep(0.1)
        yield Server(process, port)
    finally:
        process.terminate()
        process.wait()


# --- the load ------------------------------------------------------------------------------------------------------


class Caller(asyncio.Protocol):
    """One connection that asks again as soon as it was answered."""

    def __init__(self, ask: Callable[[], bytes], until: Callable[[], bool], statuses: dict[int, int]) -> None:
        self._ask = ask
        self._until = until
        self._statuses = statuses
        self._buffer = b""
        self.latencies: list[float] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._send()

    def _send(self) -> None:
        self._at = time.perf_counter()
        self._transport.write(self._ask())

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head_end = self._buffer.find(b"\r\n\r\n")
        if head_end < 0:
            return
        head = self._buffer[:head_end].lower()
        length = 0
        at = head.find(b"content-length:")
        if at >= 0:
            length = int(head[at + 15 :].split(b"\r\n", 1)[0])
        if len(self._buffer) < head_end + 4 + length:
            return
        status = int(head[9:12])
        self._statuses[status] = self._statuses.get(status, 0) + 1
        self._buffer = self._buffer[head_end + 4 + length :]
        self.latencies.append(time.perf_counter() - self._at)
        if self._until():
            self._transport.close()
            self.done.set_result(None)
        else:
            self._send()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(error or ConnectionError("closed"))


@dataclass
class Measured:
    """One round."""

    per_s: float
    per_cpu_s: float
    latencies: list[float]
    statuses: dict[int, int]


async def load(target: Server, asks: list[bytes], seconds: float, connections: int = CONNECTIONS) -> Measured:
    """Ask for a while, from several connections."""
    ends = time.perf_counter() + seconds
    choose = random.Random(7)
    statuses: dict[int, int] = {}
    loop = asyncio.get_running_loop()
    cpu, began = target.cpu_s(), time.perf_counter()
    callers = []
    for _ in range(connections):
        _, caller = await loop.create_connection(
            lambda: Caller(lambda: choose.choice(asks), lambda: time.perf_counter() > ends, statuses),
            "127.0.0.1",
            target.port,
        )
        callers.append(caller)
    await asyncio.gather(*(caller.done for caller in callers))
    took = time.perf_counter() - began
    latencies = [one for caller in callers for one in caller.latencies]
    return Measured(len(latencies) / took, len(latencies) / max(target.cpu_s() - cpu, 1e-3), latencies, statuses)


def ask(path: str, key: int | None = None, tag: str | None = None) -> bytes:
    lines = [f"GET {path} HTTP/1.1", "Host: bench"]
    if key is not None:
        lines.append(f"Authorization: Bearer {token(key)}")
    if tag is not None:
        lines.append(f"If-None-Match: {tag}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def polls(url: str, target: Server, organizations: int) -> tuple[list[bytes], list[bytes], list[bytes]]:
    """Requests for one's own models: with the newest tag, on the plain endpoint, and first pages of lists."""
    import httpx  # noqa: PLC0415 - the load's process only

    connection = await asyncpg.connect(url)
    with_tag, bare, lists = [], [], []
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{target.port}", trust_env=False) as http:
        for key in range(0, KEYS, 4):
            organization = organization_of(key, organizations)
            model = await connection.fetchval(
                "select id from custom_models where organization_id = $1 offset $2 limit 1", organization, key % 50
            )
            answer = await http.get(MODEL.format(model), headers={"Authorization": f"Bearer {token(key)}"})
            with_tag.append(ask(MODEL.format(model), key, answer.headers["etag"]))
            bare.append(ask(f"/models/{model}"))
            lists.append(ask(LIST, key))
    await connection.close()
    return with_tag, bare, lists


def p99(latencies: list[float]) -> float:
    """Milliseconds."""
    return round(statistics.quantiles(latencies, n=100)[98] * 1000, 2)


async def latencies(target: Server, models: int) -> dict[str, float]:
    """p99 in the largest organization, 4 callers: every sort in both directions with pages from first to last, and q."""
    found: dict[str, float] = {}
    largest = models // 10
    spread = [0, 0, 0, 25, 100, largest // 2, largest - 25]
    for sort in SORTS:
        for direction in ("asc", "desc"):
            asks = [ask(f"{LIST}?sort={sort}&direction={direction}&offset={offset}", 0) for offset in spread]
            found[f"{sort}_{direction}"] = p99((await load(target, asks, 2, connections=4)).latencies)
    searches = {
        "q_few": [f"m-{n}-" for n in range(1, largest, largest // 40)],
        "q_many": ["Cardio", "card", "court", "e", "a1", "lecture"],
        "q_none": [f"nothing {n}" for n in range(40)],
    }
    for name, texts in searches.items():
        asks = [ask(f"{LIST}?q={quote(text)}&sort={sort}", 0) for text in texts for sort in SORTS]
        found[name] = p99((await load(target, asks, 3, connections=4)).latencies)
    return found


async def churned(url: str, target: Server, models: int) -> dict[str, float]:
    """p99 of searches in the largest organization while its models change, so that no earlier answer helps."""
    stop = asyncio.Event()

    async def change() -> None:
        connection = await asyncpg.connect(url)
        while not stop.is_set():
            await connection.execute(
                "update custom_models set last_modified = last_modified + interval '1 microsecond' where id = $1",
                random.randrange(3, models // 10),
            )
            await asyncio.sleep(0.02)
        await connection.close()

    changing = asyncio.create_task(change())
    found = {}
    for name, texts in {"q_many_changing": ["cardio", "e"], "q_few_changing": ["m-77-", "m-999-"]}.items():
        asks = [ask(f"{LIST}?q={text}&sort={sort}", 0) for text in texts for sort in ("name", "last_modified")]
        found[name] = p99((await load(target, asks, 3, connections=4)).latencies)
    stop.set()
    await changing
    return found


async def bench(url: str, models: int, rounds: int, seconds: float) -> dict[str, Any]:
    organizations = max(10, models // 100)
    await fill(url, models, organizations)
    os.sched_setaffinity(0, set(range(1, os.cpu_count() or 1)) or {0})
    measured: dict[str, list[Measured]] = {"plain": [], "poll_304": [], "list": []}
    async with server("plain", url) as plain_server, server("api", url) as api_server:
        with_tag, bare, lists = await polls(url, api_server, organizations)
        await load(plain_server, bare, 1)
        await load(api_server, with_tag, 1)
        for _ in range(rounds):
            measured["plain"].append(await load(plain_server, bare, seconds))
            measured["poll_304"].append(await load(api_server, with_tag, seconds))
            measured["list"].append(await load(api_server, lists, seconds))
        slowest = await latencies(api_server, models) | await churned(url, api_server, models)
    for name, one in (("plain", 200), ("poll_304", 304), ("list", 200)):
        assert all(set(m.statuses) == {one} for m in measured[name]), (name, [m.statuses for m in measured[name]])
    return summary(measured, slowest, models)


def summary(measured: dict[str, list[Measured]], slowest: dict[str, float], models: int) -> dict[str, Any]:
    result: dict[str, Any] = {"bench": "polling", "models": models, "rounds": len(measured["plain"])}
    print(f"\n{'':10} {'per s':>9} {'per CPU s':>10} {'p99 ms':>8}")
    for name, of in measured.items():
        wall, cpu = statistics.median(m.per_s for m in of), statistics.median(m.per_cpu_s for m in of)
        result |= {f"{name}_per_s": round(wall), f"{name}_per_cpu_s": round(cpu)}
        print(f"{name:10} {wall:9,.0f} {cpu:10,.0f} {p99([one for m in of for one in m.latencies]):8}")
    for name in ("poll_304", "list"):
        short = name.removeprefix("poll_")
        pairs = list(zip(measured[name], measured["plain"], strict=True))
        result[f"ratio_{short}_to_plain"] = round(statistics.median(a.per_s / b.per_s for a, b in pairs), 3)
        result[f"ratio_{short}_to_plain_cpu"] = round(statistics.median(a.per_cpu_s / b.per_cpu_s for a, b in pairs), 3)
    print("\np99 in the largest organization, ms")
    for name, value in slowest.items():
        print(f"{name:24} {value:8}")
    result["p99_ms"] = slowest
    return result


async def measure(models: int, rounds: int, seconds: float) -> None:
    administrator = os.environ["TEST_DATABASE_URL"]
    name = f"polling_{os.getpid()}"
    url = await create_database(administrator, name)
    try:
        result = await bench(url, models, rounds, seconds)
    finally:
        await drop_database(administrator, name)
    print("RESULT " + json.dumps(result))


def main() -> None:
    """The benchmark, or one of its servers."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--serve", choices=["plain", "api"])
    parser.add_argument("--database")
    parser.add_argument("--port", type=int)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.database, options.port)
    else:
        asyncio.run(measure(options.models, options.rounds, options.seconds))


if __name__ == "__main__":
    main()
