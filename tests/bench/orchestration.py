"""What a run costs around its training: ours against five queue libraries, each writing the same transitions.

    bash tests/bench.sh orchestration [--rounds 5] [--runs 3000] [--only ours,dramatiq]

Every round measures each contestant in turn (interleaved, so that a busy moment of the machine hits all alike):
a backlog of no-op runs, published before the workers start, and then a steady trickle. Rates and delays are read
from the history in the database: from the first to the last transition, and from the publisher's clock to RUNNING.
Prints medians over the rounds and one last line `RESULT {…}`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import aio_pika
import asyncpg
import psutil

from deploy.local.cache import cache_root, digest, locked
from deploy.local.postgres import create_database, drop_database
from deploy.local.rabbitmq import create_vhost, delete_vhost
from tests.bench.contestants import BENCH, PEERS, Ours, Peer, Place, peers
from worker.broker import connected
from worker.intake.topology import declare
from worker.store.migrations import migrate

PATIENCE_S = 180.0
ORGANIZATIONS = 100
SUCCESS, RUNNING = 4, 3


def peer_python() -> Path:
    """The interpreter of the peers' own environment, made on the first call (60 MB)."""
    folder = cache_root() / f"bench-peers-{digest(*PEERS, sys.version)}"
    with locked(folder.name):
        if not (folder / "made").exists():
            print(f"installing the peers into {folder} …", flush=True)
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
            subprocess.run([str(folder / "bin/python"), "-m", "pip", "install", "-q", *PEERS], check=True)
            (folder / "made").touch()
    return folder / "bin" / "python"


# --- ours: models, requests, history -----------------------------------------------------------------------------


async def prepare_ours(place: Place, runs: int) -> None:
    """A migrated database with a model for every run, and the broker's objects."""
    await migrate(place.database_url)
    connection = await asyncpg.connect(place.database_url)
    await connection.execute(
        "insert into organizations (name, max_running) select 'o' || n, 1000 from generate_series(1, $1) n",
        ORGANIZATIONS,
    )
    await connection.execute("insert into base_languages (key, name, weights) values ('en', 'English', '/none')")
    await connection.execute("update base_languages set max_running = 100000")
    await connection.execute(
        "insert into custom_models (key, name, organization_id, base_language_id) "
        "select 'm' || n, 'm', 1 + n % $2, (select id from base_languages) from generate_series(1, $1) n",
        runs,
        ORGANIZATIONS,
    )
    await connection.close()
    async with connected(place.amqp_url, "bench") as broker:
        await declare(broker)


class OurPublisher:
    """Publishes requests for one model after another, confirmed."""

    def __init__(self, place: Place, skip: int = 0) -> None:
        self._place = place
        self._skip = skip
        self._models: list[tuple[int, int]] = []

    async def __aenter__(self) -> Self:
        connection = await asyncpg.connect(self._place.database_url)
        rows = await connection.fetch("select id, organization_id from custom_models order by id offset $1", self._skip)
        self._models = [(row["id"], row["organization_id"]) for row in rows]
        await connection.close()
        self._connection = await aio_pika.connect(self._place.amqp_url)
        channel = await self._connection.channel(on_return_raises=True)
        self._exchange = await channel.get_exchange("training", ensure=False)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._connection.close()

    async def one(self) -> None:
        model, organization = self._models.pop(0)
        run_id = str(uuid.uuid4())
        body = {
            "run_id": run_id,
            "custom_model_id": model,
            "organization_id": organization,
            "requested_at": datetime.now(UTC).isoformat(),
        }
        message = aio_pika.Message(
            json.dumps(body).encode(),
            content_type="application/json",
            type="training.run.requested.v1",
            message_id=run_id,
            delivery_mode=2,
        )
        await self._exchange.publish(message, "training.run.requested", mandatory=True)

    async def backlog(self, runs: int) -> None:
        for start in range(0, runs, 100):
            await asyncio.gather(*(self.one() for _ in range(min(100, runs - start))))

    async def trickle(self, rate: float, seconds: float) -> None:
        began = time.monotonic()
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
            await self.one()


# --- measuring ---------------------------------------------------------------------------------------------------

_TABLES = {True: ("training_runs", "run_transitions"), False: ("runs", "transitions")}


async def ended(
    connection: asyncpg.Connection, wanted: int, started: list[subprocess.Popen[bytes]], *, ours: bool
) -> None:
    """Wait until so many runs have succeeded.

    Raises:
        RuntimeError: they did not in time, or a worker ended.
    """
    deadline = time.monotonic() + PATIENCE_S
    while await connection.fetchval(f"select count(*) from {_TABLES[ours][0]} where status = $1", SUCCESS) < wanted:
        if time.monotonic() > deadline or any(process.poll() is not None for process in started):
            raise RuntimeError("the runs did not end in time, or a worker ended")
        await asyncio.sleep(0.2)


def usage(started: list[subprocess.Popen[bytes]]) -> tuple[float, float]:
    """CPU seconds and resident megabytes of the workers and all they started."""
    cpu_s = megabytes = 0.0
    for process in started:
        try:
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
        for one in family:
            times = one.cpu_times()
            cpu_s += times.user + times.system
            megabytes += one.memory_info().rss / 1e6
    return cpu_s, megabytes


def stop(started: list[subprocess.Popen[bytes]]) -> None:
    for process in started:
        process.send_signal(signal.SIGTERM)
    for process in started:
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    started.clear()


async def measure(contestant: Peer | Ours, place: Place, python: Path, wanted: argparse.Namespace) -> dict[str, float]:
    """One contestant, once: backlog, then trickle."""
    ours = isinstance(contestant, Ours)
    trickled = int(wanted.rate * wanted.seconds)
    if ours:
        await prepare_ours(place, wanted.runs + trickled)
        async with OurPublisher(place) as publisher:
            await publisher.backlog(wanted.runs)
    else:
        await _prepare_peer(contestant, place, python)
        await asyncio.to_thread(contestant.publish, place, python, "backlog", str(wanted.runs))
    connection = await asyncpg.connect(place.database_url)
    runs, history = _TABLES[ours]
    try:
        contestant.start(place, python)
        await ended(connection, wanted.runs, contestant.running, ours=ours)
        cpu_s, _ = usage(contestant.running)
        rate = await connection.fetchval(
            f"select (count(*) filter (where to_status = {SUCCESS}) - 1) / extract(epoch from max(at) - min(at)) "
            f"from {history}"
        )
        last = await connection.fetchval(f"select max(at) from {history}")
        if ours:
            async with OurPublisher(place, wanted.runs) as publisher:
                await publisher.trickle(wanted.rate, wanted.seconds)
        else:
            await asyncio.to_thread(contestant.publish, place, python, "trickle", str(wanted.rate), str(wanted.seconds))
        await ended(connection, wanted.runs + trickled, contestant.running, ours=ours)
        delays = await connection.fetch(
            f"select extract(epoch from h.at - r.requested_at)::float8 * 1000 as ms from {runs} r "
            f"join {history} h on h.run_id = r.id and h.to_status = {RUNNING} where r.requested_at > $1 order by 1",
            last,
        )
        milliseconds = [row["ms"] for row in delays][1:]
        if ours:
            async with asyncio.timeout(PATIENCE_S):
                while await connection.fetchval("select count(*) from outbox"):
                    await asyncio.sleep(0.1)
        _, megabytes = usage(contestant.running)
    finally:
        stop(contestant.running)
        await connection.close()
    quantiles = statistics.quantiles(milliseconds, n=100)
    return {
        "runs_per_s": float(rate),
        "p50_ms": quantiles[49],
        "p99_ms": quantiles[98],
        "cpu_ms_per_run": cpu_s / wanted.runs * 1000,
        "megabytes": megabytes,
    }


async def _prepare_peer(peer: Peer, place: Place, python: Path) -> None:
    connection = await asyncpg.connect(place.database_url)
    text = (BENCH / "peers" / "ledger.py").read_text()
    await connection.execute(text.split('SCHEMA = """')[1].split('"""')[0])
    await connection.close()
    if peer.name == "procrastinate":
        command = [str(python.parent / "procrastinate"), "-a", "peers.procrastinate_peer.app", "schema", "--apply"]
        making = await asyncio.create_subprocess_exec(
            *command, env=place.environment(), cwd=BENCH, stdout=asyncio.subprocess.DEVNULL
        )
        if await making.wait():
            raise RuntimeError("procrastinate could not make its schema")


# --- the whole ---------------------------------------------------------------------------------------------------


async def _check_durable(server_url: str) -> None:
    connection = await asyncpg.connect(server_url)
    for setting in ("fsync", "synchronous_commit"):
        if await connection.fetchval(f"show {setting}") != "on":
            raise SystemExit(f"{setting} is off on this server: the figures would mean nothing")
    await connection.close()


async def run(wanted: argparse.Namespace, urls: dict[str, str]) -> None:
    """Every round, every contestant; then the table and the result line."""
    await _check_durable(urls["database"])
    python = peer_python()
    chosen = [one for one in [Ours(), *peers()] if not wanted.only or one.name in wanted.only.split(",")]
    found: dict[str, list[dict[str, float]]] = {one.name: [] for one in chosen}
    for number in range(wanted.rounds):
        for contestant in chosen:
            name = f"bench_{contestant.name}_{uuid.uuid4().hex[:8]}"
            create_vhost(urls["management"], name)
            database_url = await create_database(urls["database"], name)
            folder = Path(tempfile.mkdtemp(prefix=f"bench-{contestant.name}-"))
            amqp_url = urls["amqp"].rsplit("/", 1)[0] + "/" + name
            place = Place(amqp_url, database_url, folder, wanted.processes, wanted.slots)
            try:
                figures = await measure(contestant, place, python, wanted)
            except BaseException:
                print(f"{contestant.name} failed; its logs are in {folder}", file=sys.stderr)
                raise
            finally:
                delete_vhost(urls["management"], name)
                await drop_database(urls["database"], name)
            found[contestant.name].append(figures)
            print(f"round {number + 1} {contestant.name:14}" + _told(figures), flush=True)
    medians = {
        name: {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
        for name, rounds in found.items()
    }
    print(f"\nmedian of {wanted.rounds}, {wanted.processes} processes of {wanted.slots} slots, {wanted.runs} runs")
    for name, figures in medians.items():
        print(f"{name:22}" + _told(figures))
    print("RESULT " + json.dumps(_result(medians)))


def _told(figures: dict[str, float]) -> str:
    return (
        f"{figures['runs_per_s']:8.0f} runs/s   publish to RUNNING p50 {figures['p50_ms']:7.2f} ms"
        f" p99 {figures['p99_ms']:8.2f} ms   CPU {figures['cpu_ms_per_run']:6.2f} ms/run"
        f"   {figures['megabytes']:5.0f} MB"
    )


def _result(medians: dict[str, dict[str, float]]) -> dict[str, Any]:
    result: dict[str, Any] = {
        name: {key: round(value, 2) for key, value in one.items()} for name, one in medians.items()
    }
    others = [figures for name, figures in medians.items() if name != "ours"]
    if others and "ours" in medians:
        best_rate = max(figures["runs_per_s"] for figures in others)
        best_p50 = min(figures["p50_ms"] for figures in others)
        result["throughput_ratio_to_best_peer"] = round(medians["ours"]["runs_per_s"] / best_rate, 2)
        result["dispatch_p50_ratio_to_best_peer"] = round(medians["ours"]["p50_ms"] / best_p50, 2)
    return result


def main() -> None:
    """Command line; services come from TEST_AMQP_URL, TEST_MANAGEMENT_URL and TEST_DATABASE_URL."""
    parser = argparse.ArgumentParser(prog="bash tests/bench.sh orchestration", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=3000, help="in the backlog")
    parser.add_argument("--rate", type=float, default=50, help="of the trickle, runs a second")
    parser.add_argument("--seconds", type=float, default=6, help="of the trickle")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--slots", type=int, default=32, help="of each process")
    parser.add_argument("--only", default="", help="names, comma-separated")
    urls = {name: os.environ[f"TEST_{name.upper()}_URL"] for name in ("amqp", "management", "database")}
    asyncio.run(run(parser.parse_args(), urls))


if __name__ == "__main__":
    main()
