"""Every panel's query, against a live Prometheus that scrapes a live worker doing what workers do."""

from __future__ import annotations

import json
import math
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from deploy.grafana.dashboards import TARGET, all_of_them, written
from tests.acceptance.world import until
from worker.intake.dead_letters import count

if TYPE_CHECKING:
    from tests.acceptance.world import World
    from tests.prometheus.live import Prometheus

pytestmark = pytest.mark.prometheus
NO_BETTER = {
    "test": {
        "utterances": 50,
        "base": {"words": 500, "wer": 0.30},
        "custom": {"words": 500, "wer": 0.29},
        "intervals": {"wer_change": [-0.03, 0.01]},
    },
    "general": None,
}


def test_the_dashboards_are_made_from_their_code():
    made = {name: written(dashboard) for name, dashboard in all_of_them().items()}
    stored = {path.name: path.read_text(encoding="utf-8") for path in TARGET.glob("*.json")}
    assert stored == made, "run `python -m deploy.grafana.dashboards`"


def panels() -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (dashboard["title"], panel["title"], panel)
        for dashboard in all_of_them().values()
        for panel in dashboard["panels"]
    ]


def test_panels_say_what_they_answer_and_do_not_overlap():
    for dashboard in all_of_them().values():
        taken = set()
        for panel in dashboard["panels"]:
            assert panel["description"], panel["title"]
            place = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert place["x"] + place["w"] <= 24
            assert not taken & cells, panel["title"]
            taken |= cells


async def busy(world: World, prometheus: Prometheus) -> Any:
    """A worker that has seen success, failure, refusal, cancel and a dead letter, and that is training now."""
    worker = await world.started(WORKER_SLOTS="3", WORKER_RUN_LIMIT_S="600")
    prometheus.target(worker.said("worker started")[0]["observe_port"])
    await until(lambda: prometheus.query("training_slots"), "the worker is scraped")
    runs = [
        await world.ask(steps=8, step_s=0.2, checkpoint_every=3),
        await world.ask(steps=3, figures={"evaluate": NO_BETTER}, rejected=["silent", "too_short"]),
        await world.ask(fake={"prepare": "fail"}),
        await world.ask(fake={"train": {"1": "crash"}}),
    ]
    for run in runs:
        await world.over(run)
    await world.ask(model=(999_999_999, world.organization))
    await until(lambda: count(world.amqp_url), "the dead letter is there")
    under_way = await world.ask(steps=400, step_s=0.2, checkpoint_every=50)
    await world.in_phase(under_way, "train")
    for _ in range(3):
        await world.over(await world.ask(steps=4, step_s=0.3, checkpoint_every=2))
    await until(lambda: prometheus.query("training_audio_seconds_total > 0"), "audio is counted")
    await until(lambda: prometheus.query("max(training_dead_letters) > 0"), "the dead letter is counted", 60)
    return under_way


async def test_every_panel_of_every_dashboard_has_data_and_the_questions_have_answers(
    world: World, prometheus: Prometheus
):
    run = await busy(world, prometheus)
    empty = []
    for title, name, panel in panels():
        for target in panel["targets"]:
            if "rawSql" in target:
                rows = await world.pool.fetch(target["rawSql"].replace("${run:sqlstring}", f"'{run}'"))
                if not rows and name != "Its checkpoints":
                    empty.append(f"{title} / {name}")
                continue
            found = prometheus.query(target["expr"].replace("$__rate_interval", "1m"))
            if not any(math.isfinite(float(series["value"][1])) for series in found):
                empty.append(f"{title} / {name}: {target['expr']} gave {found}")
    if folder := os.environ.get("DASHBOARD_DATA"):  # for deploy/grafana/picture.py
        keep(Path(folder), prometheus)
    assert not empty, "\n".join(empty)
    for query in questions():  # of deploy/metrics.md
        assert prometheus.query(query), query


def questions() -> list[str]:
    """The queries that the metrics page offers, over the minutes that a test has."""
    page = Path("deploy/metrics.md").read_text(encoding="utf-8")
    asked = [
        query
        for line in page.splitlines()
        if line.startswith("| ") and "`" in line and not line.startswith("| `")
        for query in line.split("`")[1::2]
    ]
    assert len(asked) > 12
    return [re.sub(r"\[(1h|5m|10m)\]", "[2m]", query) for query in asked]


def keep(folder: Path, prometheus: Prometheus) -> None:
    """What every panel would draw, as JSON."""
    now = time.time()
    drawn = {}
    for title, name, panel in panels():
        for target in panel["targets"]:
            if "expr" in target:
                expr = target["expr"].replace("$__rate_interval", "15s")
                drawn[f"{title}/{name}/{target['refId']}"] = prometheus.range(expr, now - 60, now, 1)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "drawn.json").write_text(json.dumps(drawn))
