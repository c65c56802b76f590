"""The honest customer whose days are measured: a process of its own, so that no attack's work delays its clock.

    python -m tests.attack.victim PLAN.json SAMPLES.jsonl      until its standard input ends

Requests start by the clock, whether or not earlier ones were answered: whoever waits for slow answers before asking
again does not see how slow they are. Each sample says when a request began, by which it belongs to a slice, what it
was, how long it took and how it ended. One without a good answer counts as ``LOST_S``.
"""

from __future__ import annotations

import asyncio
import json
import random
import struct
import sys
import time
from pathlib import Path
from typing import Any, Final

from tests.attack.wire import NO_ANSWER, Client, multipart

EVERY_S: Final = 0.08
LOST_S: Final = 30.0
MOST_OPEN: Final = 400
NEW_CONNECTIONS: Final = 0.3
"""Share of requests on a connection of their own: an API that accepts no new ones still answers on old ones."""
SOURCE: Final = "127.0.0.2"
_GOOD: Final = frozenset({200, 201, 202, 204, 304})


def recording(seconds: float, seed: int = 0, rate: int = 8_000) -> bytes:
    """Quiet noise as a wav file."""
    data = random.Random(seed).randbytes(int(seconds * rate) * 2)
    head = struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF",
        36 + len(data),
        b"WAVE",
        b"fmt ",
        16,
        1,
        1,
        rate,
        rate * 2,
        2,
        16,
        b"data",
        len(data),
    )
    return head + data


class Victim:
    """Polls, lists, small uploads and trainings.

    Args:
        plan: port, key, organization, language, canary, seed.
        samples: where measurements go, a line each.
    """

    def __init__(self, plan: dict[str, Any], samples: Path) -> None:
        self._plan = plan
        self._client = Client(plan["port"], SOURCE, plan["key"], keep=32)
        self._newcomer = Client(plan["port"], SOURCE, plan["key"], keep=0)
        self._chance = random.Random(f"victim {plan['seed']}")
        self._samples = samples.open("a", buffering=1)
        self._tags: dict[str, str] = {}
        self._models: list[int] = []
        self._open = 0
        self._uploads = 0

    async def prepare(self) -> None:
        """Three models with recordings: two that train, one that grows. Patient: a busy start is no attack."""
        for n in range(3):
            name = f"{self._plan['canary']}-model-{n}"
            body = {"name": name, "language_id": self._plan["language"], "organization_id": self._plan["organization"]}
            made = await self._client.ask("POST", "/custom_models", body)
            assert made.status == 201, made
            self._models.append(made.json()["id"])
            files = [
                (f"{self._plan['canary']}-talk-{n}.wav", recording(2.0, n)),
                (f"{self._plan['canary']}-talk-{n}.txt", f"{self._plan['canary']} said the patient".encode()),
            ]
            kept = await self._client.ask("POST", f"/custom_models/{self._models[-1]}/data", *multipart(files))
            assert kept.status == 201, kept
        print(json.dumps({"models": self._models}), flush=True)

    async def live(self, ended: asyncio.Event) -> None:
        """Requests by the clock and trainings one after the other, until the suite ends."""
        trainings = [asyncio.ensure_future(self._train(model, ended)) for model in self._models[:2]]
        under_way: set[asyncio.Task[None]] = set()
        due = time.monotonic()
        while not ended.is_set():
            due += EVERY_S
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if self._open < MOST_OPEN:
                task = asyncio.ensure_future(self._one())
                under_way.add(task)
                task.add_done_callback(under_way.discard)
        for task in (*trainings, *under_way):
            task.cancel()
        await asyncio.gather(*trainings, *under_way, return_exceptions=True)

    async def _one(self) -> None:
        model = self._chance.choice(self._models)
        lot = self._chance.random()
        if lot < 0.60:
            await self._poll(f"/custom_models/{model}", "poll")
        elif lot < 0.70:
            await self._poll("/speech-to-text/models?limit=25", "list")
        elif lot < 0.78:
            await self._poll(f"/custom_models/{model}/data", "data")
        elif lot < 0.86:
            await self._poll(f"/custom_models/{model}/runs?limit=3", "runs")
        else:
            await self._upload()

    async def _poll(self, path: str, what: str) -> None:
        headers = {"If-None-Match": self._tags[path]} if path in self._tags else {}
        answer = await self._timed(what, "GET", path, None, headers)
        if "etag" in answer.headers:
            self._tags[path] = answer.headers["etag"]

    async def _upload(self) -> None:
        self._uploads += 1
        name = f"{self._plan['canary']}-note-{self._uploads % 50}.txt"
        body, headers = multipart([(name, f"{self._plan['canary']} sentence {self._uploads}".encode())])
        await self._timed("upload", "POST", f"/custom_models/{self._models[2]}/data", body, headers)

    async def _train(self, model: int, ended: asyncio.Event) -> None:
        path = f"/custom_models/{model}"
        while not ended.is_set():
            started = await self._timed("run", "POST", f"{path}/run", None, {})
            if started.status not in (202, 409):
                await asyncio.sleep(1)
                continue
            while not ended.is_set():
                await asyncio.sleep(1)
                answer = await self._timed("poll", "GET", path, None, {})
                log = answer.json().get("training_log") if answer.status == 200 else None
                if log and log["training_status"] in (1, 4, 5):
                    break

    async def _timed(self, what: str, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Any:
        self._open += 1
        client = self._newcomer if self._chance.random() < NEW_CONNECTIONS else self._client
        began = time.monotonic()
        try:
            answer = await client.ask(method, path, body, headers, LOST_S)
        finally:
            self._open -= 1
        took = time.monotonic() - began
        good = answer.status in _GOOD or (what == "run" and answer.status == 409)
        sample = {"at": began, "what": what, "s": took if good else LOST_S, "status": answer.status or NO_ANSWER}
        self._samples.write(json.dumps(sample) + "\n")
        return answer


async def main(plan: Path, samples: Path) -> None:
    """Prepare, say so, and live until standard input ends."""
    victim = Victim(json.loads(plan.read_text()), samples)
    await victim.prepare()
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    reading = loop.run_in_executor(None, sys.stdin.read)
    reading.add_done_callback(lambda _: ended.set())
    await victim.live(ended)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
