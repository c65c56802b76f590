"""One hostile customer against everybody: what it can do to another one, and what of it is written down.

    python -m tests.attack.suite [--minutes 20] [--seed N] [--tree PATH] [--continue] [--only KIND …]

A running API and two workers; slices of quiet, honest load and attack alternate in the seed's order, so that noise of the
machine hits all alike. ``RESULT {…}`` follows each part and is cumulative. Exit code 1 when the victim waited more than
three times as long under attack as under honest load, lost a lease or a run, when anything leaked or went unrecorded.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import json
import logging
import os
import random
import resource
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.attack.attacker import KINDS, SETUP_SOURCE, SOURCE, Attacker, CouldNotPrepare, Kind
from tests.attack.deployment import ROOT, Deployment, deployed
from tests.attack.judge import Leaks, Slice, Tally, forged_in, records_at, untraced, what_became_of_trainings
from tests.attack.victim import recording
from tests.attack.wire import API, Client, multipart

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

for _kinds in ("texts", "protocol", "pressure", "boundary", "trainings"):
    importlib.import_module(f"tests.attack.kinds.{_kinds}")

ATTACK_S: Final = 6.0
HONEST_S: Final = 4.0
QUIET_S: Final = 2.0
MOST_REQUESTS: Final = 500
"""An attempt is made again until its slice ends or has so many requests: honest load has to keep up."""
AFTERMATH_S: Final = 1.0
OVERTIME_S: Final = 10.0
"""An attempt that does not end with its slice is cut off after so long."""
RESERVE_S: Final = 10.0
"""For the end: to stop everything and to read what was recorded."""
RECOVERY_S: Final = 60.0
"""Longest time for everything to answer again; liveness probes help."""
HONEST_RATE: Final = 120
"""Requests a second at most, over all of the honest organization's keys."""
ROUNDS_IN_A_PART: Final = 16
DEFAULT_RESULTS: Final = Path(tempfile.gettempdir()) / "speech-training-attack.jsonl"


class AttackRun:
    """One deployment under attack.

    Args:
        deployment: what is attacked.
        seed: decides the order of slices and what attempts do.
        tally: where everything is counted.
        say: progress, for people.
    """

    def __init__(self, deployment: Deployment, seed: int, tally: Tally, say: Callable[[str], None]) -> None:
        self._deployment = deployment
        self._chance = random.Random(f"attack {seed}")
        self._seed = seed
        self._tally = tally
        self._earlier = Tally.loaded(tally.saved())
        self._say = say
        self._canary = f"canary-{seed}-{secrets.token_hex(6)}"
        self._slices: list[Slice] = []
        self._victim: asyncio.subprocess.Process | None = None
        self._owed = 0
        """Requests that the attack made and honest load has not yet made."""
        self._honest_keys: list[Client] = []
        self._honest_model = 0
        self._honest_files = honest_files()
        self._samples = deployment.folder / "samples.jsonl"
        self._taken = 0

    async def open(self) -> None:
        """Both organizations, their keys, and the victim's life."""
        deployment = self._deployment
        victim = await deployment.new_organization(f"{self._canary} clinic", {"victim": "member"})
        roles = {"owner": "owner", "member": "member", "reader": "reader", "preparing": "owner"}
        hostile = await deployment.new_organization("hostile", roles)
        busy = await deployment.new_organization("busy", {"h1": "member", "h2": "member", "h3": "member"})
        self.victim_id, self.hostile_id = victim.id, hostile.id
        known = deployment.secrets | {"victim's key": victim.keys["victim"]}
        self.leaks = Leaks(self._canary, known)
        self._key_leaks = Leaks(self._canary, known | {f"key {name}": key for name, key in hostile.keys.items()})
        port = deployment.api_port

        def client(name: str | None, source: str) -> Client:
            return Client(port, source, None if name is None else hostile.keys[name], self.leaks.answer)

        self._honest_keys = [Client(port, f"127.0.0.{70 + n}", busy.keys[f"h{n}"]) for n in (1, 2, 3)]
        self._busy_id = busy.id
        self.attacker = Attacker(
            port=port, chance=self._chance, owner=client("owner", SOURCE), member=client("member", SOURCE), reader=client("reader", SOURCE),
            anonymous=client(None, SOURCE), preparing=client("preparing", SETUP_SOURCE), organization=hostile.id, language=deployment.base,
            victim_models=[], victim_runs=[], victim_data=[], paths=await self._paths(port),
        )  # fmt: skip
        await self._start_victim(victim.keys["victim"])
        self._honest_model = await self._new_honest_model()

    async def _new_honest_model(self) -> int:
        """What honest load works on: of a third organization, which as little as the victim is the attacker."""
        client = self._honest_keys[0]
        body = {"name": "honest", "language_id": self._deployment.base, "organization_id": self._busy_id}
        made = await client.ask("POST", "/custom_models", body)
        files = multipart([("talk.wav", recording(2.0)), ("talk.txt", b"an honest sentence")])
        kept = await client.ask("POST", f"/custom_models/{made.json().get('id')}/data", *files)
        if (made.status, kept.status) != (201, 201):
            raise RuntimeError(f"honest load cannot begin: {made} {kept}")
        return int(made.json()["id"])

    async def _paths(self, port: int) -> list[tuple[str, str]]:
        document = (await Client(port, "127.0.0.9", None).ask("GET", "/openapi.json")).json()
        found = []
        for path, methods in document.get("paths", {}).items():
            found += [
                (method.upper(), path.removeprefix(API))
                for method in methods
                if method in ("get", "put", "post", "patch", "delete")
            ]
        if len(found) < 10:
            raise RuntimeError(f"the API's document names only {len(found)} endpoints")
        return found

    async def _start_victim(self, key: str) -> None:
        plan = self._deployment.folder / "victim.json"
        facts = {
            "port": self._deployment.api_port,
            "key": key,
            "organization": self.victim_id,
            "language": self._deployment.base,
            "canary": self._canary,
            "seed": self._seed,
        }
        plan.touch(0o600)
        plan.write_text(json.dumps(facts))
        log = (self._deployment.folder / "logs" / "victim.log").open("ab")
        self._victim = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.attack.victim", str(plan), str(self._samples), cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)}, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log,
            preexec_fn=_first_in_line,
        )  # fmt: skip
        assert self._victim.stdout is not None
        ready = await asyncio.wait_for(self._victim.stdout.readline(), 60)
        if not ready:
            raise RuntimeError(
                "the victim did not start: " + (self._deployment.folder / "logs" / "victim.log").read_text()[-1500:]
            )
        self.attacker.victim_models = json.loads(ready)["models"]

    async def close(self) -> None:
        """End the victim and read what was measured and recorded."""
        if self._victim is not None and self._victim.stdin is not None:
            self._victim.stdin.close()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._victim.wait(), 10)
            if self._victim.returncode is None:
                self._victim.kill()
        for client in (*self.attacker.clients, *self._honest_keys):
            client.close()

    # --- slices -------------------------------------------------------------------------------------------------

    async def round_of(self, kind: Kind, attack_s: float, honest_s: float, quiet_s: float) -> None:
        """A slice of each phase, in a chanceful order; the attack's kind as given."""
        phases = ["quiet", "honest", "attack"]
        self._chance.shuffle(phases)
        for phase in phases:
            begin = time.monotonic()
            if phase == "quiet":
                await asyncio.sleep(quiet_s)
            elif phase == "honest":
                await self._honest(honest_s)
            else:
                await self._attack(kind, attack_s * kind.slices)
            self._slices.append(Slice(phase, kind.name, begin, time.monotonic()))

    async def _honest(self, seconds: float) -> None:
        """As many requests as the attack made, as customers make them."""
        until = time.monotonic() + seconds
        count = min(self._owed, int(seconds * HONEST_RATE))
        under_way: set[asyncio.Task[Any]] = set()
        for n in range(count):
            due = until - seconds + n * seconds / count
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if time.monotonic() > until:
                break
            under_way.add(asyncio.ensure_future(self._honest_request(n)))
            self._owed -= 1
            self._tally.honest_requests += 1
        if under_way:
            await asyncio.wait(under_way, timeout=10)
        await asyncio.sleep(max(0.0, until - time.monotonic()))

    async def _honest_request(self, n: int) -> None:
        client = self._honest_keys[n % len(self._honest_keys)]
        model = self._honest_model
        lot = self._chance.random()
        if lot < 0.65:
            await client.ask("GET", f"/custom_models/{model}")
        elif lot < 0.80:
            await client.ask("GET", "/speech-to-text/models?limit=25")
        elif lot < 0.88:
            await client.ask("GET", f"/custom_models/{model}/data?limit=25")
        elif lot < 0.99:
            body, headers = multipart(self._honest_files[n % len(self._honest_files)])
            await client.ask("POST", f"/custom_models/{model}/data", body, headers)
        else:
            await client.ask("POST", f"/custom_models/{model}/run")

    async def _attack(self, kind: Kind, seconds: float) -> None:
        attacker, tally = self.attacker, self._tally
        await self._learn_about_victim()
        before, statuses = await records_at(self._deployment), attacker.counted()
        attacker.extra = attacker.dropped = 0
        attacker.until = time.monotonic() + seconds
        attempts, prepared = 0, True
        try:
            async with asyncio.timeout(seconds + OVERTIME_S):
                while attacker.left_s and self._made(statuses) < MOST_REQUESTS:
                    await kind.attempt(attacker)
                    attempts += 1
                await asyncio.sleep(min(attacker.left_s, AFTERMATH_S))
        except CouldNotPrepare as refused:
            prepared = attempts > 0
            tally.not_prepared[kind.name] = str(refused)
        except TimeoutError:
            pass
        for client in attacker.clients:
            client.close()
        answers = attacker.counted()
        answers.subtract(statuses)
        made = sum(answers.values()) + attacker.extra
        if prepared:
            tally.kinds[kind.name] = tally.kinds.get(kind.name, 0) + made
        tally.requests += made
        self._owed += made
        recovered = await self._recover()
        if kind.refuses:
            refused = Counter({status: count for status, count in answers.items() if status >= 400 and count > 0})
            missing = await untraced(self._deployment, before, refused, attacker.dropped)
            tally.unlogged[kind.name] = tally.unlogged.get(kind.name, 0) + missing
        tally.reached_inside = sorted({*tally.reached_inside, *attacker.kept.get("reached", ())})
        shown = " ".join(f"{status or 'none'}:{count}" for status, count in sorted(answers.items()) if count > 0)
        self._say(f"{kind.name:28} {made:5} requests  {shown}" + ("" if recovered else "  (did not recover)"))

    def _made(self, before: Counter[int]) -> int:
        """Requests of the slice so far."""
        return self.attacker.counted().total() - before.total() + self.attacker.extra

    async def _learn_about_victim(self) -> None:
        """Ids that a patient enemy may have come by."""
        database = self._deployment.database
        rows = await database.fetch(
            "select id from training_runs where organization_id = $1 order by id limit 5", self.victim_id
        )
        self.attacker.victim_runs = [str(row["id"]) for row in rows]
        rows = await database.fetch(
            "select id from training_data where organization_id = $1 order by id limit 10", self.victim_id
        )
        self.attacker.victim_data = [row["id"] for row in rows]

    async def _recover(self) -> bool:
        """End what the attempt left behind, and wait until everything answers: until then the attack goes on."""
        deadline = time.monotonic() + RECOVERY_S
        attacker = self.attacker
        while time.monotonic() < deadline:
            if not await self._deployment.healthy(deadline - time.monotonic()):
                break
            rows = await self._deployment.database.fetch(
                "select id, custom_model_id, status from training_runs where organization_id = $1 and status in (2, 3)",
                self.hostile_id,
            )
            if not rows:
                return True
            attacker.until = time.monotonic() + 5
            for row in rows:
                with contextlib.suppress(CouldNotPrepare):
                    await attacker.ready("POST", f"/custom_models/{row['custom_model_id']}/runs/{row['id']}/cancel")
            await asyncio.sleep(0.3)
        return False

    # --- the end ------------------------------------------------------------------------------------------------

    async def count(self) -> None:
        """Bring the tally up to now."""
        tally, earlier = self._tally, self._earlier
        lines = self._samples.read_text().splitlines() if self._samples.exists() else []
        samples = []
        for line in lines:
            with contextlib.suppress(ValueError):
                samples.append(json.loads(line))
        tally.take_samples(samples, self._slices[self._taken :])
        self._taken = len(self._slices)
        found = await what_became_of_trainings(self._deployment, self.victim_id)
        tally.leases_lost = earlier.leases_lost + found.leases_lost
        tally.runs_failed = earlier.runs_failed + found.runs_failed
        tally.runs_succeeded = earlier.runs_succeeded + found.runs_succeeded
        tally.stories = earlier.stories + found.stories
        forged = 0
        for process in self._deployment.processes:
            self._key_leaks.log(process.log)
            forged += forged_in(process.log)
            tally.restarts[process.name] = earlier.restarts.get(process.name, 0) + process.restarts
        tally.forged_lines = earlier.forged_lines + forged
        await asyncio.to_thread(self._look_through_files)
        here = Counter(
            {f"{what} in {where}": 1 for leaks in (self.leaks, self._key_leaks) for where, what in leaks.found}
        )
        tally.leaked = dict(here + Counter(earlier.leaked))

    def _look_through_files(self) -> None:
        """Everything in storage that is the attacker's."""
        storage = self._deployment.folder / "storage"
        runs = {run for _, run in self.attacker.runs}
        for path in storage.rglob("*"):
            shown = str(path.relative_to(storage))
            if path.is_file() and (f"organizations/{self.hostile_id}/" in shown or any(run in shown for run in runs)):
                self.leaks.file(path, shown)


def honest_files() -> list[list[tuple[str | bytes, bytes]]]:
    """What customers upload: mostly short recordings and sentences, now and then a minute of speech or a list."""
    names = b"\n".join(b'{"audio_filepath":"call-%05d.wav","text":"an honest sentence"}' % n for n in range(2_000))
    files: list[list[tuple[str | bytes, bytes]]] = [
        [(f"note-{n}.wav", recording(3.0, n)), (f"note-{n}.txt", b"an honest sentence")] for n in range(20)
    ]
    return [*files, [("minute.wav", recording(60.0))], [("calls.jsonl", names)]]


def _first_in_line() -> None:
    """The victim's clock must not wait for a processor that the attack has."""
    with contextlib.suppress(OSError):
        os.nice(-10)


def in_order(kinds: Sequence[Kind], known: dict[str, int], chance: random.Random) -> list[Kind]:
    """Kinds in the seed's order, those that were never made first."""
    mixed = list(kinds)
    chance.shuffle(mixed)
    return sorted(mixed, key=lambda one: one.name in known)


async def attack(
    folder: Path, tree: Path, seed: int, seconds: float, tally: Tally, *,
    kinds: Sequence[Kind], lengths: tuple[float, float, float] = (ATTACK_S, HONEST_S, QUIET_S), quiet: bool = False,
) -> None:  # fmt: skip
    """Attack a tree for so long; counts into the tally, and prints RESULT after each part."""
    began = time.monotonic()

    def say(text: str) -> None:
        if not quiet:
            print(f"{time.monotonic() - began:6.0f} s  {text}", flush=True)

    async with deployed(folder, tree, seed) as deployment:
        run = AttackRun(deployment, seed, tally, say)
        looking_after = asyncio.ensure_future(deployment.look_after())
        try:
            await run.open()
            order: list[Kind] = []
            made = 0
            while True:
                order = order or in_order(kinds, tally.kinds, random.Random(f"order {seed} {made}"))
                left_s = seconds - (time.monotonic() - began) - RESERVE_S
                fitting = next((one for one in order if lengths[0] * one.slices + sum(lengths[1:]) < left_s), None)
                if fitting is None:
                    break
                order.remove(fitting)
                await run.round_of(fitting, *lengths)
                made += 1
                if made % ROUNDS_IN_A_PART == 0 and not quiet:
                    await run.count()
                    print(f"RESULT {json.dumps(tally.result())}", flush=True)
                if quiet and made == len(kinds):
                    break
            await run.close()
            await run.count()
        finally:
            looking_after.cancel()
            await asyncio.gather(looking_after, return_exceptions=True)
            await run.close()


def main(arguments: list[str] | None = None) -> int:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, help="default: 1, or the next one with --continue")
    parser.add_argument("--tree", type=Path, default=ROOT, help="another checkout to attack, with the same environment")
    parser.add_argument("--continue", dest="go_on", action="store_true", help="add to the results of earlier parts")
    parser.add_argument(
        "--only", nargs="+", choices=sorted(KINDS), metavar="KIND", help="kinds of attack; default: all"
    )
    parser.add_argument("--results", type=Path, default=DEFAULT_RESULTS)
    parser.add_argument("--keep", action="store_true", help="keep the folder with every log")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # everything that was started ends with us
    for library in ("asyncpg", "asyncio", "aio_pika", "aiormq"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    open_enough_files()
    if not options.go_on:
        options.results.unlink(missing_ok=True)
    earlier = options.results.read_text().splitlines() if options.results.exists() else []
    tally = Tally.loaded(earlier[-1]) if earlier else Tally()
    seed = options.seed or len(earlier) + 1
    kinds = [KINDS[name] for name in options.only or sorted(KINDS)]
    folder = Path(tempfile.mkdtemp(prefix=f"attack-{seed}-"))
    seconds = options.minutes * 60

    print(f"attacking {options.tree.resolve()} with seed {seed} and {len(kinds)} kinds of attack", flush=True)

    async def bounded() -> None:
        async with asyncio.timeout(seconds + 3 * RECOVERY_S):
            await attack(folder, options.tree.resolve(), seed, seconds, tally, kinds=kinds)

    problem = None
    try:
        asyncio.run(bounded())
    except TimeoutError:
        problem = "the suite did not end in time"
    with options.results.open("a") as file:
        file.write(tally.saved() + "\n")
    for story in tally.stories[-20:]:
        print(story)
    for name, why in tally.not_prepared.items():
        print(f"not prepared: {name}: {why}")
    faults = tally.faults(least_kinds=min(len(kinds), 25)) + ([problem] if problem else [])
    for fault in faults:
        print(fault)
    print(f"RESULT {json.dumps(tally.result())}", flush=True)
    if options.keep:
        print(f"everything lies in {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return int(bool(faults))


def open_enough_files() -> None:
    """More connections than the service may have, and the suite's own."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8_192), hard))


if __name__ == "__main__":
    sys.exit(main())
