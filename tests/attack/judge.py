"""What the attack did: to the victim's waiting times, to its trainings, to its secrets; and what of it was written down."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from tests.attack.deployment import Deployment
    from tests.attack.wire import Answer

MOST_RATIO: Final = 3.0
LEAST_KINDS: Final = 25
_LARGEST_FILE: Final = 16 << 20
_BEFORE_A_REQUEST: Final = frozenset({400, 408, 414, 431, 503})
"""Statuses that a protocol layer answers with before there is a request."""
_FORGED: Final = "forged line"


def percentile(values: Iterable[float], share: float) -> float:
    """The smallest value that so large a share does not exceed; 0 of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


class Leaks:
    """Finds canaries and secrets in bytes.

    Args:
        canary: what every name and sentence of the victim holds.
        secrets: secrets by name.
    """

    def __init__(self, canary: str, secrets: dict[str, str]) -> None:
        self._names = {value: name for name, value in secrets.items() if value} | {canary: "victim's words"}
        self._secrets = re.compile(
            b"|".join(re.escape(value.encode()) for value in self._names if value != canary) or b"(?!)"
        )
        self._all = re.compile(b"|".join(re.escape(value.encode()) for value in self._names))
        self.found: dict[tuple[str, str], int] = Counter()

    def answer(self, what: str, answer: Answer) -> None:
        """An attacker's answer."""
        head = " ".join(f"{name}: {value}" for name, value in answer.headers.items()).encode("utf-8", "replace")
        self._look(what, head + b"\n" + answer.body, self._all)

    def log(self, path: Path) -> None:
        """A log of the platform: the operator may read names there, and never a secret."""
        if path.exists():
            self._look(f"log {path.name}", path.read_bytes(), self._secrets)

    def file(self, path: Path, shown: str) -> None:
        """A file of the attacker's."""
        with path.open("rb") as file:
            self._look(f"file {shown}", file.read(_LARGEST_FILE), self._all)

    def _look(self, where: str, data: bytes, pattern: re.Pattern[bytes]) -> None:
        for hit in set(pattern.findall(data)):
            self.found[where, self._names[hit.decode()]] += 1


@dataclass
class Slice:
    """A stretch of time in which one thing was done to the API."""

    phase: str
    kind: str
    begin: float
    end: float


@dataclass
class Tally:
    """Everything counted, over all parts; ``saved`` and ``loaded`` keep it between invocations."""

    requests: int = 0
    honest_requests: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    latencies: dict[str, list[float]] = field(default_factory=lambda: {"quiet": [], "honest": [], "attack": []})
    worst: dict[str, float] = field(default_factory=dict)
    """The slowest answer to the victim, by kind of attack."""
    leases_lost: int = 0
    runs_failed: int = 0
    runs_succeeded: int = 0
    leaked: dict[str, int] = field(default_factory=dict)
    unlogged: dict[str, int] = field(default_factory=dict)
    reached_inside: list[str] = field(default_factory=list)
    forged_lines: int = 0
    restarts: dict[str, int] = field(default_factory=dict)
    not_prepared: dict[str, str] = field(default_factory=dict)
    stories: list[str] = field(default_factory=list)

    def take_samples(self, samples: Sequence[dict[str, Any]], slices: Sequence[Slice]) -> None:
        """Give every measurement of the victim to the slice in which it began."""
        at = 0
        ordered = sorted(samples, key=lambda sample: sample["at"])
        for one in slices:
            while at < len(ordered) and ordered[at]["at"] < one.begin:
                at += 1
            while at < len(ordered) and ordered[at]["at"] < one.end:
                took = round(float(ordered[at]["s"]), 4)
                self.latencies[one.phase].append(took)
                if one.phase == "attack":
                    self.worst[one.kind] = max(self.worst.get(one.kind, 0.0), took)
                at += 1

    def result(self) -> dict[str, Any]:
        """The line after RESULT."""
        p99 = {phase: percentile(values, 0.99) for phase, values in self.latencies.items()}
        ratio = p99["attack"] / p99["honest"] if p99["honest"] else 0.0
        return {
            "attack_kinds": len(self.kinds),
            "requests": self.requests,
            "victim_p99_s": round(p99["attack"], 3),
            "victim_p99_ratio": round(ratio, 2),
            "leases_lost": self.leases_lost,
            "runs_failed": self.runs_failed,
            "leaked": sum(self.leaked.values()) + len(self.reached_inside) + self.forged_lines,
            "unlogged": sum(self.unlogged.values()),
            "honest_requests": self.honest_requests,
            "quiet_p99_s": round(p99["quiet"], 3),
            "honest_p99_s": round(p99["honest"], 3),
            "victim_requests": {phase: len(values) for phase, values in self.latencies.items()},
            "victim_runs_succeeded": self.runs_succeeded,
            "restarts": self.restarts,
        }

    def faults(self, *, least_kinds: int = LEAST_KINDS, timing: bool = True) -> list[str]:
        """Why this is no success, a sentence each; empty when it is one."""
        result = self.result()
        found = []
        if result["attack_kinds"] < least_kinds:
            found.append(
                f"only {result['attack_kinds']} kinds of attack were made; at least {least_kinds} are asked for"
            )
        if timing and not 0 < result["victim_p99_ratio"] <= MOST_RATIO:
            slow = sorted(self.worst.items(), key=lambda item: -item[1])[:12]
            found.append(
                f"the victim's p99 under attack is {result['victim_p99_ratio']:g} times that under honest load; the slowest"
                f" answers: " + ", ".join(f"{name} {worst:.2f} s" for name, worst in slow)
            )
        if self.leases_lost:
            found.append(f"{self.leases_lost} times a training of the victim lost its lease")
        if self.runs_failed:
            found.append(f"{self.runs_failed} trainings of the victim failed")
        if not self.runs_succeeded:
            found.append("no training of the victim succeeded")
        found += [f"leaked: {where} ({count} times)" for where, count in sorted(self.leaked.items())]
        found += [f"leaked: a webhook to {address} was accepted" for address in self.reached_inside]
        if self.forged_lines:
            found.append(f"leaked: {self.forged_lines} lines of the platform's logs were written by the attacker")
        found += [
            f"unlogged: {count} refused requests of {name}" for name, count in sorted(self.unlogged.items()) if count
        ]
        return found

    def saved(self) -> str:
        """All of it as one JSON line."""
        return json.dumps(self.__dict__)

    @classmethod
    def loaded(cls, line: str) -> Tally:
        """What ``saved`` wrote."""
        return cls(**json.loads(line))


@dataclass
class RecordsAt:
    """Where the API's records stood at some moment."""

    log_bytes: int
    metrics: dict[str, float]


async def records_at(deployment: Deployment) -> RecordsAt:
    """Where the API's log and its counters stand."""
    log = deployment.api.log
    return RecordsAt(log.stat().st_size if log.exists() else 0, await deployment.metrics())


async def untraced(deployment: Deployment, before: RecordsAt, refused: Counter[int], dropped: int) -> int:
    """Refused requests since then that left neither a log line nor a counted metric.

    Args:
        before: where the records stood.
        refused: answers of refusal, by status.
        dropped: connections that were ended without an answer.
    """
    lines: Counter[int] = Counter()
    other_lines = 0
    with deployment.api.log.open("rb") as log:
        log.seek(before.log_bytes)
        for line in log.read(64 << 20).splitlines():
            try:
                fields = json.loads(line)
                status = int(fields.get("status", 0))
            except (ValueError, TypeError, AttributeError):
                continue
            lines[status] += 1
            other_lines += status == 0
    counted: dict[int, float] = defaultdict(float)
    other_counted = 0.0
    for name, value in (await deployment.metrics()).items():
        known = before.metrics.get(name, 0.0)
        grown = value - known if value >= known else value  # a process that was started again begins at zero
        if grown <= 0 or not re.search(r"_(total|count)\b", name):
            continue
        status = re.search(r'(?:status|code)="(\d{3})"', name)
        if status:
            counted[int(status[1])] += grown
        elif "connection" in name:
            other_counted += grown
    left = {status: max(0, asked - max(lines[status], round(counted[status]))) for status, asked in refused.items()}
    # What is no request yet has no route and no status to count by: its connection is counted.
    early = sum(count for status, count in left.items() if status in _BEFORE_A_REQUEST) + dropped
    late = sum(count for status, count in left.items() if status not in _BEFORE_A_REQUEST)
    return late + max(0, early - max(other_lines, round(other_counted)))


def forged_in(path: Path) -> int:
    """Lines of a log that are whole, and the attacker's."""
    count = 0
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        try:
            fields = json.loads(line)
        except ValueError:
            continue
        count += isinstance(fields, dict) and fields.get("event") == _FORGED
    return count


async def what_became_of_trainings(deployment: Deployment, organization: int) -> Tally:
    """The victim's trainings, as the database has them: a tally of nothing else."""
    database, found = deployment.database, Tally()
    lost = await database.fetch(
        "select t.run_id, t.attempt, t.reason_code, t.at from run_transitions t join training_runs r on r.id = t.run_id"
        " where r.organization_id = $1 and t.from_status = 3 and t.to_status = 2 order by t.at",
        organization,
    )
    ends = await database.fetch(
        "select id, status, attempt, failures, failure_class, failure_reason from training_runs"
        " where organization_id = $1 and status in (4, 5)",
        organization,
    )
    failed = [row for row in ends if row["status"] == 5]
    found.leases_lost, found.runs_failed, found.runs_succeeded = len(lost), len(failed), len(ends) - len(failed)
    found.stories = [
        f"{row['at']:%H:%M:%S} run {row['run_id']} attempt {row['attempt']}: {row['reason_code']}" for row in lost
    ]
    found.stories += [
        f"run {row['id']} failed after {row['attempt']} attempts ({row['failures']} counted): {row['failure_class']},"
        f" {row['failure_reason']}"
        for row in failed
    ]
    return found
