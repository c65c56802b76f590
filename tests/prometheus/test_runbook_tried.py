"""The runbook, tried: each alert is caused on purpose on live workers, its entry followed, and the alert seen to end.

The rules are the real ones with their time made short (an hour is some seconds) and, where a threshold is a length of
time, that one, too. Nothing else is changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import socket
import subprocess
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.acceptance.world import WorkerProcess, World, until, world_at
from tests.api.api_process import ApiProcess, api_process
from tests.chaos.proxy import Proxy
from tests.prometheus.live import Prometheus, prometheus_at
from tests.prometheus.test_dashboards import NO_BETTER
from worker.api import keys
from worker.store.api_keys import KeyStore
from worker.store.database import Database

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = [pytest.mark.prometheus, pytest.mark.timeout(300)]
SHORT_WINDOWS = {
    "5m": "8s",
    "10m": "10s",
    "30m": "60s",
    "1h": "12s",
    "2h": "12s",
    "6h": "14s",
    "1d": "14s",
    "3d": "16s",
}
SHORT_THRESHOLDS = {
    'cause="slot"}) > 1800': 'cause="slot"}) > 3',
    "renewal_age_seconds) > 45": "renewal_age_seconds) > 2",
    "oldest_progress_seconds) > 600": "oldest_progress_seconds) > 3",
    "outbox_oldest_seconds) > 300": "outbox_oldest_seconds) > 3",
    "timestamp_seconds) > 900": "timestamp_seconds) > 10",
    "reconnects_total[10s])) > 10": "reconnects_total[10s])) > 2",
    ">= 100": ">= 5",
    ">= 10": ">= 3",
}


def short_rules() -> str:
    text = Path("deploy/prometheus/rules.yaml").read_text(encoding="utf-8")
    text = re.sub(r"\[(\w+)\]", lambda found: f"[{SHORT_WINDOWS[found[1]]}]", text)
    text = re.sub(r"for: \w+", "for: 1s", text).replace("interval: 30s", "interval: 1s")
    for long, short in SHORT_THRESHOLDS.items():
        assert long in text, long
        text = text.replace(long, short)
    return text


@pytest.fixture
async def prometheus(tmp_path: Path) -> AsyncIterator[Prometheus]:
    async with prometheus_at(tmp_path / "prometheus", short_rules()) as server:
        yield server


async def fires(prometheus: Prometheus, *alerts: str, patience_s: float = 60) -> None:
    for alert in alerts:
        await until(lambda alert=alert: alert in prometheus.firing(), f"{alert} fires", patience_s)


async def ends(prometheus: Prometheus, *alerts: str, patience_s: float = 60) -> None:
    for alert in alerts:
        await until(lambda alert=alert: alert not in prometheus.firing(), f"{alert} is resolved", patience_s)


def port_of(worker: WorkerProcess) -> int:
    return worker.said("worker started")[0]["observe_port"]


def scrape(prometheus: Prometheus, *workers: WorkerProcess) -> None:
    prometheus.target(*(port_of(worker) for worker in workers))


async def test_no_workers_and_runs_that_wait_too_long(world: World, prometheus: Prometheus):
    await fires(prometheus, "TrainingNoWorkers")
    worker = await world.started(WORKER_SLOTS="1")  # the entry says: start one
    scrape(prometheus, worker)
    await ends(prometheus, "TrainingNoWorkers")

    long = await world.ask(steps=600, step_s=0.1)
    await world.in_phase(long, "train")
    waiting = await world.ask(steps=2)
    await fires(prometheus, "TrainingRunsWaitTooLong")
    another = await world.started(WORKER_SLOTS="1")  # more workers
    scrape(prometheus, worker, another)
    await world.over(waiting)
    await ends(prometheus, "TrainingRunsWaitTooLong")


async def test_runs_that_start_late(world: World, prometheus: Prometheus):
    worker = await world.started(WORKER_SLOTS="0")  # too few slots: it only takes messages in
    scrape(prometheus, worker)
    runs = [await world.ask(steps=2) for _ in range(6)]
    await until(lambda: queued(world, 6), "all are queued")
    await world.pool.execute(
        "update training_runs set due_at = due_at - interval '400 s', created_at = created_at - interval '400 s'"
    )
    more = await world.started(WORKER_SLOTS="2")
    scrape(prometheus, worker, more)
    await until(lambda: prometheus.query("sum(training_start_seconds_count) > 0"), "starts are counted")
    for run in runs:
        await world.over(run)
    await late_starts_again(world, prometheus)
    await ends(prometheus, "TrainingStartsLateFast", "TrainingStartsLateSlow", patience_s=90)


async def late_starts_again(world: World, prometheus: Prometheus) -> None:
    """A window needs a count before and after: two crowds of late runs."""
    before = await world.pool.fetchval("select count(*) from training_runs")
    model_runs = [await world.new_model() for _ in range(6)]
    for model, owner in model_runs:
        await world.pool.execute(
            "with run as (insert into training_runs (id, custom_model_id, organization_id, base_language_id, requested_at, due_at)"
            " values (gen_random_uuid(), $1, $2, $3, now(), now() - interval '400 s') returning id)"
            " insert into run_transitions (id, run_id, sequence, to_status, attempt) select gen_random_uuid(), id, 1, 2, 0 from run",
            model, owner, world.base,
        )  # fmt: skip
    await until(lambda: started(world, before + 6), "all have started")
    await fires(prometheus, "TrainingStartsLateFast", "TrainingStartsLateSlow")


async def queued(world: World, number: int) -> bool:
    return await world.pool.fetchval("select count(*) from training_runs where status = 2") >= number


async def started(world: World, number: int) -> bool:
    return await world.pool.fetchval("select count(*) from training_runs where attempt > 0") >= number


async def ended(world: World, prometheus: Prometheus, number: int, **plan: Any) -> None:
    """So many runs with this plan, all over."""
    for run in [await world.ask(steps=1, **plan) for _ in range(number)]:
        await world.over(run)


async def test_runs_that_fail_and_models_that_do_not_improve(world: World, prometheus: Prometheus):
    worker = await world.started(WORKER_SLOTS="4", WORKER_FAILURE_LIMIT="1", WORKER_STALL_S="12")
    scrape(prometheus, worker)
    await until(lambda: prometheus.query("training_slots"), "the worker is scraped")
    await ended(world, prometheus, 6, fake={"train": "exit_3"})
    await ended(world, prometheus, 2, fake={"train": "no_result"})
    await fires(prometheus, "TrainingRunsFailFast", "TrainingRunsFailSlow", "TrainingBugs")
    failed = world.command("runs", "--status", "5", "--json").stdout  # look
    assert '"failure_code": "exit_3"' in failed
    assert '"failure_code": "no_result"' in failed
    await ended(world, prometheus, 4, fake={"train": "memory_error"})
    await fires(prometheus, "TrainingOutOfMemory")
    await ends(
        prometheus, "TrainingRunsFailFast", "TrainingRunsFailSlow", "TrainingBugs", "TrainingOutOfMemory", patience_s=90
    )

    await ended(world, prometheus, 5, figures={"evaluate": NO_BETTER}, rejected=["silent"] * 3)
    await fires(prometheus, "TrainingModelsDoNotImprove", "TrainingFilesRefused")
    reasons = prometheus.query("topk(1, sum by (reason) (increase(training_rejected_files_total[1m])))")
    assert reasons[0]["metric"] == {"reason": "silent"}
    await ends(prometheus, "TrainingModelsDoNotImprove", "TrainingFilesRefused")

    stalls = await world.ask(fake={"train": "stall"})
    await fires(prometheus, "TrainingRunStalls")
    [stalled] = [
        line for line in world.command("runs", "--status", "3", "--json").stdout.splitlines() if str(stalls) in line
    ]
    assert "since_progress_s" in stalled
    row = await world.over(stalls)  # it ends by itself
    assert row["failure_code"] == "stalled_in_train"
    await ends(prometheus, "TrainingRunStalls")


async def test_dead_letters_and_a_full_disk(world: World, prometheus: Prometheus, tmp_path: Path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", small], check=False, capture_output=True)
    try:
        environment = {"WORKER_SCRATCH": str(small / "scratch")} if mounted.returncode == 0 else {}
        worker = await world.started(**environment)
        scrape(prometheus, worker)
        await world.ask(model=(999_999_999, world.organization))
        if environment:
            (small / "full").write_bytes(b"x" * (2**20 - 40_960))
            await fires(prometheus, "TrainingScratchFull")
            (small / "full").unlink()
            await ends(prometheus, "TrainingScratchFull")
        await fires(prometheus, "TrainingDeadLetters")
        assert "model_unknown" in world.command("dead-letters").stdout
        assert world.command("dead-letters", "discard").returncode == 0
        await ends(prometheus, "TrainingDeadLetters")
    finally:
        for running in world.workers:
            running.kill()
        if mounted.returncode == 0:
            subprocess.run(["umount", "-l", small], check=False)


async def test_a_database_that_is_away(tmp_path: Path, vhost: str, database_url: str, prometheus: Prometheus):
    async with Proxy(database_url) as wire, world_at(tmp_path / "world", vhost, database_url) as world:
        worker = await world.started(WORKER_DATABASE_URL=wire.url, WORKER_PATIENCE_S="240")
        scrape(prometheus, worker)
        run = await world.ask(steps=400, step_s=0.1)
        await world.in_phase(run, "train")
        wire.pause()
        await world.ask()  # a message that cannot be registered
        await fires(
            prometheus,
            "TrainingLeasesNotRenewed",
            "TrainingDatabaseAway",
            "TrainingBacklogNotSeen",
            "TrainingIntakeStopped",
        )
        wire.resume()  # bring it back, do nothing to the workers
        await ends(
            prometheus,
            "TrainingLeasesNotRenewed",
            "TrainingDatabaseAway",
            "TrainingBacklogNotSeen",
            "TrainingIntakeStopped",
        )
        row = await world.row(run)
        assert (row["status"], row["attempt"], row["failures"]) == (3, 1, 0), "an outage is no failure"


async def test_a_broker_that_is_away(tmp_path: Path, vhost: str, database_url: str, prometheus: Prometheus):
    async with Proxy(vhost, postgres=False) as wire, world_at(tmp_path / "world", vhost, database_url) as world:
        worker = await world.started(WORKER_AMQP_URL=wire.url)
        scrape(prometheus, worker)
        run = await world.ask(steps=3)
        await world.over(run)
        for _ in range(6):
            wire.cut()
            await asyncio.sleep(0.7)
        await fires(prometheus, "TrainingBrokerFlaps")
        assert worker.said("broker_lost")
        wire.pause()
        await world.pool.execute("insert into outbox (run_id, sequence, kind) values ($1, 1, 'event')", run)
        await fires(prometheus, "TrainingOutboxOld", "TrainingIntakeStopped", patience_s=90)
        wire.resume()
        wire.cut()
        await ends(prometheus, "TrainingOutboxOld", "TrainingIntakeStopped", "TrainingBrokerFlaps")


async def test_workers_that_freeze_and_come_back(world: World, prometheus: Prometheus):
    first = await world.started(WORKER_SLOTS="3")
    second = await world.started(WORKER_SLOTS="3", WORKER_SWEEP_S="25")  # late to rescue
    scrape(prometheus, first, second)
    runs = [await world.ask(steps=400, step_s=0.1) for _ in range(3)]
    for run in runs:
        await world.in_phase(run, "train")
    owners = {
        row["worker_id"] for row in await world.pool.fetch("select worker_id from training_runs where status = 3")
    }
    frozen, other = (first, second) if any(str(first.pid) in owner for owner in owners) else (second, first)
    assert other.alive
    frozen.freeze()
    await fires(prometheus, "TrainingExpiredLeases")
    await ends(prometheus, "TrainingExpiredLeases")  # rescued by itself
    frozen.thaw()
    for _ in range(5):  # and blocked again and again
        frozen.freeze()
        await asyncio.sleep(1.5)
        frozen.thaw()
        await asyncio.sleep(0.6)
    await fires(prometheus, "TrainingLoopBlocked")
    await ends(prometheus, "TrainingLoopBlocked")


async def test_a_worker_that_is_started_again_and_again(world: World, prometheus: Prometheus):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    worker = await world.started(WORKER_OBSERVE_PORT=str(port))
    scrape(prometheus, worker)
    while "TrainingWorkerRestarts" not in prometheus.firing():
        scraped = prometheus.query(f'process_start_time_seconds{{instance="127.0.0.1:{port}"}}')
        worker.kill()
        worker = await world.started(WORKER_OBSERVE_PORT=str(port))
        await until(lambda seen=scraped: newly_scraped(prometheus, port, seen), "the new process is scraped")
    await ends(prometheus, "TrainingWorkerRestarts", patience_s=90)


def newly_scraped(prometheus: Prometheus, port: int, before: list[dict[str, Any]]) -> bool:
    now = prometheus.query(f'process_start_time_seconds{{instance="127.0.0.1:{port}"}}')
    return bool(now) and (not before or now[0]["value"][1] != before[0]["value"][1])


async def test_runs_that_are_lost_to_others(world: World, prometheus: Prometheus):
    first = await world.started(WORKER_SLOTS="4")
    scrape(prometheus, first)
    for run in [await world.ask(steps=400, step_s=0.1) for _ in range(4)]:
        await world.in_phase(run, "train")
    second = await world.started(WORKER_SLOTS="4")
    scrape(prometheus, first, second)
    first.freeze()
    await until(lambda: taken(world), "others have taken the runs")
    first.thaw()
    await fires(prometheus, "TrainingRunsLost")
    await ends(prometheus, "TrainingRunsLost", patience_s=90)


async def test_a_run_that_stops_its_workers(world: World, prometheus: Prometheus):
    rescuer = await world.started(WORKER_SLOTS="0", WORKER_LOST_WORKER_LIMIT="2")
    scrape(prometheus, rescuer)
    await until(lambda: prometheus.query("training_rescued_runs_total"), "the rescuer is scraped")
    runs = [await world.ask(fake={"train": "kills_its_worker"}) for _ in range(4)]
    for run in runs:
        while await world.status(run) != 5:
            worker = await world.started(WORKER_SLOTS="1")
            await until(lambda worker=worker: not worker.alive, "the run stops its worker")
            await until(lambda: nobody_runs(world), "the run is rescued")
            await world.hurry()
    await fires(prometheus, "TrainingRunStopsWorkers", "TrainingWorkersLost")
    assert "lost_worker_repeatedly" in world.command("runs", "--status", "5", "--json").stdout  # look
    assert rescuer.said("rescued", reason="lost_worker_repeatedly")
    await ends(prometheus, "TrainingRunStopsWorkers", "TrainingWorkersLost", patience_s=90)


async def nobody_runs(world: World) -> bool:
    return not await world.pool.fetchval("select count(*) from training_runs where status = 3")


async def taken(world: World) -> bool:
    return await world.pool.fetchval("select count(*) from training_runs where status = 3 and attempt = 2") >= 3


class Attack:
    """Requests of a hostile customer and of a stranger, some of each kind again and again while it lasts."""

    def __init__(self, api: ApiProcess, key: str, other_key: str, report: str) -> None:
        self._api = api
        self._key = {"Authorization": f"Bearer {key}"}
        self._other_key = {"Authorization": f"Bearer {other_key}"}
        self._report = report

    async def lasts(self) -> None:
        async with httpx.AsyncClient(base_url=self._api.url + "/api/v3", timeout=20, trust_env=False) as http:
            number = 0
            while True:
                number += 1
                await http.get("/caller", headers={"Authorization": f"Bearer stk_{number}"})
                for _ in range(6):
                    await http.get(f"/custom_models/{4_000_000_000 + number}", headers=self._key)
                await http.get(self._report, headers=self._other_key)
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", self._api.port)
                    writer.write(b"no http\r\n\r\n")
                    await writer.drain()
                    writer.close()
                await asyncio.sleep(0.1)


async def run_of(world: World, customer_model: int, organization: int) -> uuid.UUID:
    """A queued run, written as the API would."""
    run = uuid.uuid4()
    async with world.pool.acquire() as connection, connection.transaction():
        await connection.execute(
            "insert into training_runs (id, custom_model_id, organization_id, base_language_id, requested_at, due_at)"
            " select $1, id, $3, base_language_id, now(), now() from custom_models where id = $2",
            run, customer_model, organization,
        )  # fmt: skip
        await connection.execute(
            "insert into run_transitions (id, run_id, sequence, to_status, attempt) values (gen_random_uuid(), $1, 1, 2, 0)",
            run,
        )
    return run


async def test_an_attack_on_the_api(world: World, prometheus: Prometheus, tmp_path: Path):
    await fires(prometheus, "TrainingApiNotSeen")
    model, organization = await world.new_model()
    run = await run_of(world, model, organization)
    database = Database(world.database_url, size=1)
    key, other = [await keys.create(KeyStore(database), organization, "owner", "hostile") for _ in range(2)]
    await database.close()
    rates = {"WORKER_API_RATE_PER_S": "10", "WORKER_API_BURST": "20", "WORKER_LOG_LEVEL": "info"}
    async with api_process(tmp_path / "api", world.database_url, **rates) as api:
        prometheus.target(api.metrics_port, job="training-api")
        await ends(prometheus, "TrainingApiNotSeen")
        await world.pool.execute(
            "alter table audit_log add constraint full_disk check (action <> 'read_report') not valid"
        )
        attack = asyncio.create_task(
            Attack(api, key.secret, other.secret, f"/custom_models/{model}/runs/{run}/report").lasts()
        )
        await fires(
            prometheus, "TrainingApiWrongKeys", "TrainingApiForbidden", "TrainingApiRateLimited", "TrainingApiBadRequests",
            "TrainingApiFails", "TrainingApiAuditFails",
        )  # fmt: skip
        assert {line["key"] for line in api.told("request") if line["code"] == "not_found"} == {key.id}
        assert api.told("audit entry not taken")
        await world.pool.execute("alter table audit_log drop constraint full_disk")  # the entry says: mend the cause
        attack.cancel()  # its key is revoked, its address is blocked
        await ends(
            prometheus, "TrainingApiWrongKeys", "TrainingApiForbidden", "TrainingApiRateLimited", "TrainingApiBadRequests",
            "TrainingApiFails", "TrainingApiAuditFails",
        )  # fmt: skip


async def test_an_api_that_is_slow_and_one_that_is_blocked(world: World, prometheus: Prometheus, tmp_path: Path):
    _, organization = await world.new_model()
    database = Database(world.database_url, size=1)
    key = await keys.create(KeyStore(database), organization, "owner", "clinic")
    await database.close()
    async with api_process(tmp_path / "api", world.database_url) as api:
        prometheus.target(api.metrics_port, job="training-api")
        headers = {"Authorization": f"Bearer {key.secret}"}
        async with httpx.AsyncClient(
            base_url=api.url + "/api/v3", headers=headers, timeout=30, trust_env=False
        ) as http:
            await http.get("/base_languages")
            slow = asyncio.create_task(fires(prometheus, "TrainingApiSlow"))
            while not slow.done():
                async with world.pool.acquire() as connection, connection.transaction():
                    await connection.execute("lock table base_languages in access exclusive mode")
                    read = asyncio.create_task(http.get("/base_languages"))
                    await asyncio.sleep(1.5)
                await read
            await slow
        await ends(prometheus, "TrainingApiSlow")
        blocked = asyncio.create_task(fires(prometheus, "TrainingApiLoopBlocked"))
        while not blocked.done():  # something computes on its loop, again and again
            api.process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(1.2)
            api.process.send_signal(signal.SIGCONT)
            await asyncio.sleep(0.6)
        await blocked
        await ends(prometheus, "TrainingApiLoopBlocked")


def test_every_alert_is_tried_here():
    text = Path(__file__).read_text(encoding="utf-8")
    alerts = set(re.findall(r"- alert: (\w+)", Path("deploy/prometheus/rules.yaml").read_text(encoding="utf-8")))
    assert not {alert for alert in alerts if f'"{alert}"' not in text}
