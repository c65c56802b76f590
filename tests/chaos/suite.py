"""Break everything at once, thousands of times, and count.

    python -m tests.chaos.suite [--runs 500] [--faults 200] [--seed N] [--continue] [--parts N] [--results FILE]

One part is one seed. ``RESULT {…}`` follows each part, with the sums over all parts of the results file when it was
continued. Exit code 1 when any counter of harm is above zero.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

from tests.chaos.faults import FAULTS
from tests.chaos.field import Field, field_at
from tests.chaos.judge import COUNTERS, Verdict, judge
from tests.chaos.schedule import schedule

BACKLOG: Final = 14
"""Runs waiting or under way, about."""
STUCK_S: Final = 60.0
"""After the last fault."""
LEAST_PAUSE_S: Final = 0.25
LONGEST_PAUSE_S: Final = 4.0
TRIES: Final = 40
DEFAULT_RESULTS: Final = Path(tempfile.gettempdir()) / "speech-training-chaos.jsonl"


class Part:
    """One seed's runs and faults."""

    def __init__(self, field: Field, runs: int, faults: list[str], seed: int, *, quiet: bool) -> None:
        self._field = field
        self._runs = runs
        self._faults = faults
        self._chance = random.Random(f"part {seed}")
        self._quiet = quiet
        self.hit: Counter[str] = Counter()
        self.missed: Counter[str] = Counter()

    async def play(self) -> Verdict:
        """Ask, break, mend, wait, look."""
        field = self._field
        beside = [asyncio.ensure_future(work) for work in (field.keep_crowd(), field.hurry())]
        try:
            asking = asyncio.ensure_future(self._ask_all())
            await self._break_all(asking)
            await asking
            await field.mended()
            late = await self._wait_for_the_end()
            field.restarting = False
            await self._stop_workers()
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
        verdict = await judge(field, late)
        for process in await asyncio.to_thread(self._left_over):
            verdict.harm("orphan_processes", process)
        return verdict

    async def _ask_all(self) -> None:
        for _ in range(self._runs):
            while await self._field.unfinished() >= BACKLOG:
                await asyncio.sleep(0.1)
            await self._field.ask()

    async def _break_all(self, asking: asyncio.Task[None]) -> None:
        """Faults keep pace with runs, so that they end together."""
        left = list(self._faults)
        total = len(left)
        tries: Counter[str] = Counter()
        while left:
            began = time.monotonic()
            while not asking.done() and time.monotonic() - began < LONGEST_PAUSE_S:
                finished = len(self._field.accepted) - await self._field.unfinished()
                if (total - len(left)) / total <= finished / max(1, self._runs):
                    break
                await asyncio.sleep(0.1)
            await asyncio.sleep(LEAST_PAUSE_S * (0.5 + self._chance.random()))
            kind = left.pop(0)
            if await FAULTS[kind](self._field, self._chance):
                self.hit[kind] += 1
                self._say(f"{sum(self.hit.values()):4}/{total} {kind:18} runs {len(self._field.accepted)}/{self._runs}")
                continue
            tries[kind] += 1
            if tries[kind] < TRIES * self._faults.count(kind) and (not asking.done() or await self._field.unfinished()):
                left.insert(self._chance.randint(0, min(5, len(left))), kind)
            else:
                self.missed[kind] += 1

    async def _wait_for_the_end(self) -> list[Any]:
        deadline = time.monotonic() + STUCK_S
        while time.monotonic() < deadline:
            rows = await self._field.database.fetch("select id from training_runs where status in (1, 4, 5)")
            late = self._field.accepted.keys() - {row["id"] for row in rows}
            if not late and not await self._field.database.value("select count(*) from outbox"):
                return []
            await asyncio.sleep(0.2)
        return list(late)

    async def _stop_workers(self) -> None:
        workers = self._field.workers()
        for worker in workers:
            self._field.ended_by_us.add(worker.pid)
            worker.terminate()
        for worker in workers:
            await worker.exit_code(60)
        await asyncio.sleep(0.3)  # the keeper notes how they ended

    def _left_over(self) -> list[str]:
        deadline = time.monotonic() + 5
        while True:
            left = [*self._field.trainers(), *self._field.trainers(supervisors=True)]
            if not left or time.monotonic() > deadline:
                return [f"pid {found.process.pid} of run {found.run_id}:{found.attempt} still lives" for found in left]
            time.sleep(0.1)

    def _say(self, text: str) -> None:
        if not self._quiet:
            print(text, flush=True)


async def play_part(
    folder: Path,
    seed: int,
    runs: int,
    faults: list[str],
    *,
    module: str = "worker",
    crowd: int = 3,
    slots: int = 3,
    long_share: float = 0.15,
    long_plan: dict[str, Any] | None = None,
    quiet: bool = False,
) -> tuple[Verdict, dict[str, Any]]:
    """One part in a folder of its own; the verdict, and the line for RESULT."""
    began = time.monotonic()
    async with field_at(folder, seed, module=module, crowd=crowd, slots=slots) as field:
        field.long_share = long_share
        field.long_plan |= long_plan or {}
        part = Part(field, runs, faults, seed, quiet=quiet)
        verdict = await part.play()
    result = {
        "seed": seed,
        "runs": len(field.accepted),
        "faults": sum(part.hit.values()),
        **{counter: verdict.counts[counter] for counter in COUNTERS},
        **verdict.facts,
        "hit": dict(sorted(part.hit.items())),
        "missed": dict(part.missed),
        "workers_started": len(field.world.workers),
        "seconds": round(time.monotonic() - began),
    }
    return verdict, result


def _summed(results: list[dict[str, Any]]) -> dict[str, Any]:
    hit: Counter[str] = Counter()
    for result in results:
        hit.update(result["hit"])
    numbers = ("runs", "faults", *COUNTERS, "attempts", "succeeded", "cancelled", "failed", "seconds")
    return {
        "seeds": [result["seed"] for result in results],
        **{n: sum(r[n] for r in results) for n in numbers},
        "hit": dict(hit),
    }


def main(arguments: list[str] | None = None) -> int:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, help="default: 1, or the next one with --continue")
    parser.add_argument("--parts", type=int, default=1, help="seeds, one after the other")
    parser.add_argument("--continue", dest="go_on", action="store_true", help="add to the earlier parts' results")
    parser.add_argument("--results", type=Path, default=DEFAULT_RESULTS)
    parser.add_argument("--crowd", type=int, default=3, help="workers at once")
    parser.add_argument("--apart", action="store_true", help="as if each worker had a host of its own")
    parser.add_argument("--keep", action="store_true", help="keep the folder with every log")
    options = parser.parse_args(arguments)
    for library in ("asyncpg", "aio_pika", "aiormq"):
        logging.getLogger(library).setLevel(logging.CRITICAL)  # the suite's own connections: outages are no news here
    os.environ["CHAOS_BROKEN_BUILD"] = "hosts_apart"  # read by that module only
    module = "tests.chaos.broken" if options.apart else "worker"
    if not options.go_on:
        options.results.unlink(missing_ok=True)
    known = [json.loads(line) for line in options.results.read_text().splitlines()] if options.results.exists() else []
    first = options.seed or max((result["seed"] for result in known), default=0) + 1
    harmed = False
    for seed in range(first, first + options.parts):
        folder = Path(tempfile.mkdtemp(prefix=f"chaos-{seed}-"))
        verdict, result = asyncio.run(
            play_part(folder, seed, options.runs, schedule(seed, options.faults), module=module, crowd=options.crowd)
        )
        for sentence in verdict.sentences[:40]:
            print(sentence)
        print(f"RESULT {json.dumps(result)}", flush=True)
        known.append(result)
        with options.results.open("a") as file:
            file.write(json.dumps(result) + "\n")
        harmed = harmed or not verdict.clean
        if verdict.clean and not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            print(f"everything lies in {folder}")
    if len(known) > 1:
        print(f"RESULT {json.dumps(_summed(known))}", flush=True)
    return int(harmed)


if __name__ == "__main__":
    sys.exit(main())
