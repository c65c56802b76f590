"""Counters of harm, from witnesses that the worker does not control.

Trainers write a file themselves; the broker's confirms and the clients' answers are the suite's own list; the
events come out of a queue; the rows are what everybody was promised.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from tests.chaos.steady import drained

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.chaos.field import Field

LEGAL = {(None, 2), (2, 3), (3, 4), (3, 5), (3, 2), (2, 5), (2, 1), (3, 1)}
COUNTERS = (
    "lost", "doubled", "stuck", "illegal_transitions", "orphan_processes", "over_cap", "untold", "unexplained",
)  # fmt: skip


class Verdict:
    """The counters, with a sentence for each harm."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.sentences: list[str] = []
        self.facts: dict[str, Any] = {}

    def harm(self, counter: str, sentence: str) -> None:
        assert counter in COUNTERS
        self.counts[counter] += 1
        self.sentences.append(f"{counter}: {sentence}")

    @property
    def clean(self) -> bool:
        return not self.counts


async def judge(field: Field, waited_for: Sequence[Any]) -> Verdict:
    """Everything that can be seen once the field is still; ``waited_for`` are runs that had not ended in time."""
    verdict = Verdict()
    rows = await field.database.fetch(
        "select r.*, m.deleted_at as model_deleted_at from training_runs r join custom_models m on m.id = r.custom_model_id"
    )
    runs = {row["id"]: row for row in rows}
    _terminal(field, runs, waited_for, verdict)
    lines = field.world.witnessed()
    _doubled(lines, verdict)
    _caps(field, lines, verdict)
    await _published(field, runs, verdict)
    await _history(field, runs, verdict)
    await _charged(field, runs, verdict)
    await _told(field, verdict)
    _workers(field, verdict)
    verdict.facts |= {
        "attempts": sum(row["attempt"] for row in rows),
        "succeeded": sum(row["status"] == 4 for row in rows),
        "cancelled": sum(row["status"] == 1 for row in rows),
        "failed": sum(row["status"] == 5 for row in rows),
        "steps_witnessed": sum(line["what"] == "start" for line in lines),
        "bystander_losses": sum(row["bystander_losses"] for row in rows),
        "most_lost_workers_at_one_point": max((row["worker_losses"] for row in rows), default=0),
        "failures_by_class": dict(Counter(row["failure_class"] for row in rows if row["status"] == 5)),
    }
    return verdict


def _terminal(field: Field, runs: dict[Any, Any], waited_for: Sequence[Any], verdict: Verdict) -> None:
    for run, asked in field.accepted.items():
        row = runs.get(run)
        if row is None:
            verdict.harm("lost", f"run {run} was accepted and has no row")
        elif row["status"] not in (1, 4, 5):
            verdict.harm("stuck" if run in waited_for else "lost", f"run {run} is in status {row['status']}")
        elif row["status"] == 5:
            verdict.harm(
                "unexplained",
                f"run {run} failed: {row['failure_class']}/{row['failure_code']}: {str(row['failure_detail'])[-600:]}",
            )
        elif asked.cancel_answered and row["status"] != 1:
            verdict.harm("unexplained", f"run {run}: the cancel was answered yes and it ended in {row['status']}")
        elif row["status"] == 1 and row["cancel_requested_at"] is row["model_deleted_at"] is None:
            verdict.harm("unexplained", f"run {run} was cancelled by nobody")
    for run in runs.keys() - field.accepted.keys():
        verdict.harm("unexplained", f"run {run} was asked for by nobody")


def _intervals(lines: Sequence[dict[str, Any]]) -> dict[tuple[str, int, int], tuple[float, float]]:
    """When each process of a step acted: (run, attempt, pid) to first and last line."""
    found: dict[tuple[str, int, int], tuple[float, float]] = {}
    for line in lines:
        if line["what"] == "tick":  # a grandchild's, which keeps no clock
            continue
        key = (line["run"], line["attempt"], line["pid"])
        first, _ = found.get(key, (line["at"], line["at"]))
        found[key] = first, line["at"]
    return found


def _doubled(lines: Sequence[dict[str, Any]], verdict: Verdict) -> None:
    by_run: dict[str, list[tuple[float, float, int, int]]] = defaultdict(list)
    for (run, attempt, pid), (first, last) in _intervals(lines).items():
        by_run[run].append((first, last, attempt, pid))
    for run, acted in by_run.items():
        acted.sort()
        for (_, end, attempt, pid), (begin, _, later_attempt, later_pid) in pairwise(acted):
            if begin < end:
                verdict.harm(
                    "doubled",
                    f"run {run}: attempt {attempt} (pid {pid}) acted {end - begin:.2f} s beyond the begin of"
                    f" attempt {later_attempt} (pid {later_pid})",
                )


def _caps(field: Field, lines: Sequence[dict[str, Any]], verdict: Verdict) -> None:
    """Runs of an organization whose trainers acted at the same moment."""
    owner = {str(asked.run): asked.organization for asked in field.accepted.values()}
    moments: dict[int, list[tuple[float, int, str]]] = defaultdict(list)
    for (run, _, _), (first, last) in _intervals(lines).items():
        if run in owner:
            moments[owner[run]] += [(first, 1, run), (last, -1, run)]
    for organization, changes in moments.items():
        active: Counter[str] = Counter()
        for _, change, run in sorted(changes):
            active[run] += change
            now = sum(count > 0 for count in active.values())
            if now > field.organizations[organization]:
                verdict.harm("over_cap", f"organization {organization} had {now} runs acting at once")
                break


async def _published(field: Field, runs: dict[Any, Any], verdict: Verdict) -> None:
    versions = await field.database.fetch("select run_id, attempt, address, custom_model_id from model_versions")
    published = Counter(row["run_id"] for row in versions)
    for row in versions:
        run = runs[row["run_id"]]
        if published[row["run_id"]] > 1 or run["status"] != 4 or run["attempt"] != row["attempt"]:
            verdict.harm(
                "doubled",
                f"run {row['run_id']}: attempt {row['attempt']} published, the run is in status {run['status']},"
                f" attempt {run['attempt']}",
            )
            continue
        made = json.loads((field.folder / "storage" / row["address"] / "attempt.json").read_text())
        if made["run"] != str(row["run_id"]):
            verdict.harm("doubled", f"run {row['run_id']} published what {made} made")
    for run, row in runs.items():
        if row["status"] == 4 and row["gate"] == "published" and run not in published:
            verdict.harm("lost", f"run {run} succeeded and its model is not there")


async def _history(field: Field, runs: dict[Any, Any], verdict: Verdict) -> None:
    moves = await field.database.fetch(
        "select run_id, sequence, from_status, to_status, attempt from run_transitions order by run_id, sequence"
    )
    by_run = defaultdict(list)
    for move in moves:
        by_run[move["run_id"]].append(move)
    for run, found in by_run.items():
        status, attempt = None, 0
        for at, move in enumerate(found, 1):
            attempt += move["to_status"] == 3
            wrong = (
                (move["from_status"], move["to_status"]) not in LEGAL
                or move["from_status"] != status
                or move["sequence"] != at
                or move["attempt"] != attempt
            )
            if wrong:
                verdict.harm("illegal_transitions", f"run {run}: {dict(move)} after status {status}")
            status = move["to_status"]
        if status != runs[run]["status"]:
            verdict.harm("illegal_transitions", f"run {run} stands in {runs[run]['status']}, its history in {status}")


async def _charged(field: Field, runs: dict[Any, Any], verdict: Verdict) -> None:
    """Lost workers and hand-overs are counted as such, each once, and charge nobody a failure."""
    moves = await field.database.fetch(
        "select run_id, count(*) filter (where reason_code = any ($1::text[])) as moved, count(*) as ended"
        " from run_transitions where from_status = 3 group by run_id",
        ["handed_over", "lease_expired", "bystander_of_lost_worker"],
    )
    for move in moves:
        row = runs[move["run_id"]]
        if row["status"] == 1:
            continue  # the cancel's own reason stands in the place of what ended the last attempt
        if (
            row["hand_overs"] + row["bystander_losses"] != move["moved"]
            or row["failures"] > move["ended"] - move["moved"]
        ):
            verdict.harm(
                "unexplained",
                f"run {row['id']} was moved {move['moved']} times in {move['ended']} attempts that ended, and has"
                f" {row['hand_overs']} hand-overs, {row['bystander_losses']} losses beside others and"
                f" {row['failures']} failures",
            )


async def _told(field: Field, verdict: Verdict) -> None:
    """Every move was told at least once, a run's first tellings in order; garbage lies among the dead letters."""
    left = await field.database.value("select count(*) from outbox")
    if left:
        verdict.harm("untold", f"{left} rows are still in the outbox")
    told: dict[str, list[int]] = defaultdict(list)
    for message in await drained(field.world.amqp_url, "events"):
        event = json.loads(message.body)
        if event["sequence"] not in told[event["run_id"]]:
            told[event["run_id"]].append(event["sequence"])
    for row in await field.database.fetch("select id, sequence from training_runs"):
        heard = told[str(row["id"])]
        if heard != list(range(1, row["sequence"] + 1)):
            verdict.harm("untold", f"run {row['id']} made {row['sequence']} moves, in the queue are {heard}")
    dead = await drained(field.world.amqp_url, "training.runs.dead")
    reasons = Counter(str((message.headers or {}).get("x-reason")) for message in dead)
    verdict.facts["dead_letters"] = dict(reasons)
    if len(dead) < field.garbage_sent:
        verdict.harm("lost", f"{field.garbage_sent} messages of garbage were confirmed, {len(dead)} are dead letters")


def _workers(field: Field, verdict: Verdict) -> None:
    """Workers end when somebody ends them, and their logs hold no surprise."""
    for name, code, by_us in field.ends:
        if not by_us or code not in (0, -9):
            verdict.harm(
                "unexplained", f"worker {name} ended with {code}{'' if by_us else ', and nobody had ended it'}"
            )
    for worker in field.world.workers:
        for line in worker.lines():
            if "PoolConnectionHolder.release" in str(line.get("event")):
                continue  # asyncpg gives a connection back in a task of its own, which nobody hears fail
            if line.get("level") in ("error", "critical") or ("text" in line and "Traceback" in line["text"]):
                verdict.harm("unexplained", f"worker {worker.name} says: {json.dumps(line)[:1500]}")
