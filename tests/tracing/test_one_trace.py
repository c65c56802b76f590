"""One trace for each run: from POST run through the message, the claim and each phase to the terminal write."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import uuid
from typing import TYPE_CHECKING

import httpx
import pytest
from pydantic import SecretStr

pytest.importorskip("opentelemetry.sdk", reason="the extra otel is not installed")

from tests.acceptance.world import World, until, world_at
from tests.api.conftest import serving, wav
from tests.tracing.collector import Collector, Span
from worker.api import keys
from worker.api.settings import ApiSettings
from worker.storage import FileStorage
from worker.store.api_keys import KeyStore
from worker.store.database import Database

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

PHASES = ["phase load", "phase prepare", "phase train", "phase evaluate", "phase publish"]


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


@pytest.fixture
async def world(tmp_path: Path, vhost: str, database_url: str, collector: Collector) -> AsyncIterator[World]:
    async with world_at(tmp_path, vhost, database_url, WORKER_TRACES_URL=collector.url) as made:
        yield made


async def asked_over_http(world: World, collector: Collector, traceparent: str) -> uuid.UUID:
    """A run as a customer starts it: model, data and POST run, each a request."""
    settings = ApiSettings(
        database_url=SecretStr(world.database_url),
        api_upload_folder=world.folder / "uploads",
        traces_url=collector.url,
    )
    database = Database(world.database_url, size=2, name="test")
    key = await keys.create(KeyStore(database), world.organization, "owner", "test")
    storage = FileStorage(world.folder / "storage")
    async with serving(settings, storage) as (url, app):
        headers = {"Authorization": f"Bearer {key.secret}"}
        async with httpx.AsyncClient(base_url=f"{url}/api/v3", headers=headers, trust_env=False) as client:
            body = {"name": "Clinic", "language_id": world.base, "organization_id": world.organization}
            model = (await client.post("/custom_models", json=body)).json()["id"]
            files = [("file", ("a.wav", wav(61))), ("file", ("a.txt", b"some words"))]
            await client.post(f"/custom_models/{model}/data", files=files)
            answer = await client.post(f"/custom_models/{model}/run", headers={"traceparent": traceparent})
            assert answer.status_code == 202, answer.text
        await asyncio.to_thread(app.state.tracing.close)
    await database.close()
    await storage.aclose()
    return await world.pool.fetchval("select id from training_runs")


async def told(world: World) -> bool:
    return await world.pool.fetchval("select count(*) from outbox") == 0


def named(spans: list[Span], name: str) -> Span:
    [found] = [span for span in spans if span.name == name]
    return found


async def test_one_trace_from_the_request_to_the_terminal_write(world: World, collector: Collector):
    trace, caller = uuid.uuid4().hex, "00f067aa0ba902b7"
    worker = await world.started()
    run = await asked_over_http(world, collector, f"00-{trace}-{caller}-01")
    row = await world.over(run)
    assert row["status"] == 4, (dict(row), worker.tail())
    await until(lambda: told(world), "everything is told")
    worker.terminate()
    assert await worker.exit_code() == 0

    spans = [span for span in collector.spans if span.trace_id == trace]
    request = named(spans, "POST /api/v3/custom_models/{id}/run")
    assert request.parent_id == caller
    assert (request.service, request.attributes["http.response.status_code"]) == ("speech-training-api", 202)
    attempt = named(spans, "attempt")
    for name in ("publish request", "take in", "wait for a slot", "attempt"):
        span = named(spans, name)
        assert span.parent_id == request.span_id, name
        assert span.service == "speech-training-worker"
        assert span.attributes["training.run"] == str(run)
    phases = sorted((span for span in spans if span.name.startswith("phase ")), key=lambda span: span.begin_ns)
    assert [span.name for span in phases] == PHASES
    assert {span.parent_id for span in phases} == {attempt.span_id}
    for step, phase in (("prepare", "prepare"), ("train", "train"), ("evaluate", "evaluate"), ("export", "publish")):
        assert named(spans, f"step {step}").parent_id == named(spans, f"phase {phase}").span_id
    settle = named(spans, "settle")
    assert (settle.parent_id, settle.attributes["training.to"]) == (attempt.span_id, "SUCCESS")
    assert settle.begin_ns >= phases[-1].end_ns
    assert sum(span.name == "publish event" for span in spans) == 3, "queued, running and succeeded were told"


async def test_attempts_of_a_run_that_brought_no_trace_share_one_whose_id_is_the_runs(
    world: World, collector: Collector
):
    worker = await world.started()
    run = await world.ask(fake={"train": {"1": "crash"}})
    assert (await world.over(run))["status"] == 4
    worker.terminate()
    assert await worker.exit_code() == 0
    attempts = [span for span in collector.spans if span.name == "attempt"]
    assert [span.attributes["training.attempt"] for span in attempts] == [1, 2]
    assert {span.trace_id for span in attempts} == {run.hex}


async def test_a_collector_that_is_away_loses_spans_and_no_run(tmp_path: Path, vhost: str, database_url: str):
    async with world_at(tmp_path, vhost, database_url, WORKER_TRACES_URL="http://127.0.0.1:9/v1/traces") as world:
        worker = await world.started()
        assert (await world.over(await world.ask()))["status"] == 4
        worker.terminate()
        assert await worker.exit_code() == 0


def test_without_an_address_the_extra_is_not_even_imported():
    code = "import sys, worker.app as app; app.open_tracing('', 'x'); assert 'opentelemetry' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=".")
