"""Runs and workers, for an operator."""

import argparse
from datetime import UTC, datetime
from uuid import UUID, uuid4

from pydantic import ValidationError

from schemas.messages import RunRequested
from schemas.recipes import recipes, validated
from schemas.status import TrainingStatus
from worker.cli.opened import stores
from worker.cli.show import as_json, complain, rows, said
from worker.cli.values import parameters
from worker.domain.run import Fence, Request
from worker.intake.request import publish_request
from worker.settings import Settings


async def request_run(settings: Settings, options: argparse.Namespace) -> int:
    """Publish a request, confirmed. Settings of the run go into its row first: a message carries ids only."""
    async with stores(settings) as opened:
        model = await opened.models.model(options.model)
        if model is None or model["deleted_at"] is not None:
            return complain(f"no custom model {options.model!r}: see `python -m worker model-add`")
        try:
            wanted = parameters(options.set)
            base = await opened.models.base_language(model["base_language_id"])
            if base is not None and base.recipe in recipes():
                validated(base.recipe, base.hyper_parameters | wanted)
        except (ValueError, ValidationError) as error:
            return complain(f"these settings cannot be used: {error}")
        request = Request(
            uuid4(), model["id"], model["organization_id"], datetime.now(UTC), None, wanted, options.priority
        )
        if (wanted or options.priority) and await opened.runs.register([request]) == [False]:
            return complain(f"{options.model} is training already: `python -m worker runs --model {options.model}`")
    message = RunRequested(
        run_id=request.run_id,
        custom_model_id=request.custom_model_id,
        organization_id=request.organization_id,
        requested_at=request.requested_at,
    )
    await publish_request(settings.amqp_url.get_secret_value(), message)
    said(f"requested run {request.run_id}", json_wanted=options.json, run_id=str(request.run_id))
    return 0


_COLUMNS = (
    "id",
    "model_key",
    "status",
    "phase",
    "percent",
    "attempt",
    "created_at",
    "ended_at",
    "gate",
    "failure_reason",
)


async def list_runs(settings: Settings, options: argparse.Namespace) -> int:
    """List runs, or tell all about one."""
    async with stores(settings) as opened:
        if options.run is not None:
            run_id = _run_id(options.run)
            found = None if run_id is None else await opened.runs.by_id(run_id)
            if found is None:
                return complain(f"no run {options.run!r}")
            transitions = [dict(row) for row in await opened.runs.transitions(found["id"])]
            if options.json:
                as_json(dict(found) | {"transitions": transitions})
                return 0
            for name, value in found.items():
                if value is not None and name not in {"inputs", "live"}:
                    print(f"{name:22} {value}")
            rows(
                "transitions",
                transitions,
                ("at", "from_status", "to_status", "attempt", "worker_id", "reason_code"),
                json_wanted=False,
            )
            return 0
        model_id = None
        if options.model is not None:
            model = await opened.models.model(options.model)
            if model is None:
                return complain(f"no custom model {options.model!r}")
            model_id = model["id"]
        listed = [dict(row) for row in await opened.runs.list(options.status, model_id, options.most)]
        rows("runs", listed, _COLUMNS, json_wanted=options.json)
        return 0


async def cancel(settings: Settings, options: argparse.Namespace) -> int:
    """Ask a run to stop; a queued one ends here."""
    async with stores(settings) as opened:
        run_id = _run_id(options.run)
        asked = None if run_id is None else await opened.runs.request_cancel(run_id)
        if asked is None or run_id is None:
            return complain(f"no run {options.run!r}")
        if not asked["asked"]:
            return complain(f"run {run_id} is over ({TrainingStatus(asked['status']).name})")
        if asked["status"] == TrainingStatus.READY_TO_RUN:
            await opened.runs.settle(opened.runs.moves.cancel_queued(Fence(run_id, asked["attempt"])))
            said(f"run {run_id} is cancelled", json_wanted=options.json, run_id=str(run_id), cancelled=True)
        else:
            said(
                f"run {run_id} was asked to stop",
                json_wanted=options.json,
                run_id=str(run_id),
                cancelled=False,
            )
        return 0


async def list_workers(settings: Settings, options: argparse.Namespace) -> int:
    """Who works."""
    async with stores(settings) as opened:
        found = [dict(row) for row in await opened.workers.list(everybody=options.all)]
        columns = (
            "id",
            "version",
            "slots",
            "running",
            "started_at",
            "seen_at",
            "drain_requested_at",
            "stopped_at",
        )
        rows("workers", found, columns, json_wanted=options.json)
        return 0


async def drain(settings: Settings, options: argparse.Namespace) -> int:
    """Ask one worker to hand over and end, through its row."""
    async with stores(settings) as opened:
        if not await opened.workers.request_drain(options.worker):
            return complain(f"no worker {options.worker!r} that still works: see `python -m worker workers`")
        said(f"worker {options.worker} was asked to drain", json_wanted=options.json, worker=options.worker)
        return 0


def _run_id(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None
