# ruff: noqa: E501 - a printed line is a line
"""A simulated day: ``python -m deploy.capacity.simulate --runs 1000000 --organizations 100000 --slots 20000``.

Arrivals follow a working day, organizations differ as customers do (a few ask for much), trainings last a lognormal
time. Slots are given in the order of the claim: the organization with the fewest running runs, least recently served,
first; caps hold. What comes out: how long runs wait, and how many statements a second Postgres must take, from what
one run and one worker were measured to ask of it.
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
from collections import deque
from dataclasses import dataclass, field

DAY_S = 86_400


@dataclass(frozen=True)
class Demand:
    """Who asks for what."""

    runs: int
    organizations: int
    cap: int
    mean_s: float
    """Mean time of a training."""
    spread: float = 1.0
    """Sigma of its logarithm."""
    skew: float = 1.05
    """Zipf exponent: the larger, the more the largest organizations ask for."""


@dataclass(frozen=True)
class Costs:
    """What was measured, see capacity.md."""

    statements_a_run: float
    renew_s: float = 15
    progress_s: float = 1
    slots_a_worker: int = 1


@dataclass
class Organization:
    """One customer's runs."""

    waiting: deque[tuple[float, float]] = field(default_factory=deque)
    running: int = 0
    served_at: float = -1


def rate(at_s: float) -> float:
    """Arrivals relative to the mean: a working day with its peak at two in the afternoon; mean 1 over a day."""
    return 1 - 0.8 * math.cos(2 * math.pi * (at_s - 2 * 3600) / DAY_S)


def arrivals(demand: Demand, chance: random.Random) -> list[tuple[float, int, float]]:
    """Time, organization and training time of every run of the day, in order."""
    weights = [1 / (rank + 10) ** demand.skew for rank in range(demand.organizations)]
    owners = chance.choices(range(demand.organizations), weights, k=demand.runs)
    mu = math.log(demand.mean_s) - demand.spread**2 / 2
    found = []
    for owner in owners:
        while True:  # thinning
            at = chance.uniform(0, DAY_S)
            if chance.uniform(0, 1.8) < rate(at):
                break
        found.append((at, owner, chance.lognormvariate(mu, demand.spread)))
    return sorted(found)


@dataclass
class Day:
    """What happened."""

    waits_s: list[float]
    held_s: list[float]
    """Waits of runs whose organization was at its cap: its own affair."""
    most_running: int
    most_starts_a_second: float


def simulate(demand: Demand, slots: int, seed: int = 1) -> Day:
    """Let the day pass."""
    organizations: dict[int, Organization] = {}
    ends: list[tuple[float, int]] = []
    fair: list[tuple[int, float, int]] = []
    day = Day([], [], 0, 0)
    running = 0
    starts: dict[int, int] = {}

    def offer(owner: int) -> None:
        one = organizations[owner]
        if one.waiting and one.running < demand.cap:
            heapq.heappush(fair, (one.running, one.served_at, owner))

    def claim(now: float) -> None:
        nonlocal running
        while running < slots and fair:
            key = heapq.heappop(fair)
            one = organizations[key[2]]
            if not one.waiting or one.running >= demand.cap or (one.running, one.served_at) != key[:2]:
                if (one.running, one.served_at) != key[:2]:
                    continue  # a newer offer of the same organization lies in the heap
                continue
            at, lasts = one.waiting.popleft()
            waited = now - at
            (day.waits_s if one.running == 0 or waited < 1 else day.held_s).append(waited)
            one.running += 1
            one.served_at = now
            running += 1
            starts[int(now)] = starts.get(int(now), 0) + 1
            heapq.heappush(ends, (now + lasts, key[2]))
            offer(key[2])
        day.most_running = max(day.most_running, running)

    def pass_until(now: float) -> None:
        nonlocal running
        while ends and ends[0][0] <= now:
            at, owner = heapq.heappop(ends)
            organizations[owner].running -= 1
            running -= 1
            offer(owner)
            claim(at)

    for at, owner, lasts in arrivals(demand, random.Random(seed)):  # noqa: S311 - a simulation
        pass_until(at)
        organizations.setdefault(owner, Organization()).waiting.append((at, lasts))
        offer(owner)
        claim(at)
    pass_until(math.inf)
    day.most_starts_a_second = max(sum(starts.get(second + more, 0) for more in range(60)) / 60 for second in starts)
    return day


def statements_a_second(day: Day, costs: Costs) -> dict[str, float]:
    """What Postgres must take at the day's worst minute, by cause."""
    workers = day.most_running / costs.slots_a_worker
    return {
        "runs (register, claim, settle, outbox …)": day.most_starts_a_second * costs.statements_a_run,
        "lease renewals": 2 * workers / costs.renew_s,
        "progress": workers / costs.progress_s,
    }


def quantile(values: list[float], part: float) -> float:
    """The value below which this part lies; 0 of nothing."""
    return sorted(values)[min(len(values) - 1, int(part * len(values)))] if values else 0.0


def main() -> None:
    """Simulate what was asked for and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--organizations", type=int, default=10_000)
    parser.add_argument("--cap", type=int, default=10)
    parser.add_argument("--slots", type=int, default=2_000)
    parser.add_argument("--mean-s", type=float, default=900)
    parser.add_argument("--statements-a-run", type=float, default=12)
    parser.add_argument("--slots-a-worker", type=int, default=1)
    parser.add_argument("--progress-s", type=float, default=1)
    wanted = parser.parse_args()
    day = simulate(Demand(wanted.runs, wanted.organizations, wanted.cap, wanted.mean_s), wanted.slots)
    everything = day.waits_s + day.held_s
    late = sum(wait > 300 for wait in everything) / len(everything)  # noqa: PLR2004 - the promise
    print(
        f"{wanted.runs:,} runs of {wanted.organizations:,} organizations on {wanted.slots:,} slots, {wanted.mean_s:g} s each"
    )
    print(f"most running at once {day.most_running:,}; most starts a second {day.most_starts_a_second:.1f}")
    print(
        f"wait of an organization's first run: half {quantile(day.waits_s, 0.5):.1f} s, 99 % {quantile(day.waits_s, 0.99):.1f} s"
    )
    print(f"wait of its further ones: half {quantile(day.held_s, 0.5):.1f} s, 99 % {quantile(day.held_s, 0.99):.1f} s")
    print(f"started later than 5 minutes: {late:.2%}")
    costs = Costs(wanted.statements_a_run, progress_s=wanted.progress_s, slots_a_worker=wanted.slots_a_worker)
    for cause, number in statements_a_second(day, costs).items():
        print(f"Postgres, worst minute: {number:8,.0f} a second for {cause}")


if __name__ == "__main__":
    main()
