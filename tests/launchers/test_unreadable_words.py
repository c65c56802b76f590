"""Whatever a step or a stranger leaves where an owner reads: the step's end is known, and the next attempt begins."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from schemas.steps import Source, Step, StepSpec
from worker.errors import NotStored, StorageAway
from worker.launchers.cluster import Presence, Sighting
from worker.launchers.exchange import storage as road
from worker.launchers.exchange.folder import FolderExchanges
from worker.launchers.exchange.interface import EndFacts, Question, UnreadableWord, understood
from worker.launchers.exchange.sealed import KEY_BYTES
from worker.launchers.exchange.storage import StorageExchange, StorageExchanges
from worker.launchers.interface import EndReason
from worker.launchers.remote import RemoteLauncher, RemoteOptions
from worker.storage import FileStorage, check_key

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from worker.launchers.exchange.interface import Exchanges

KEY = os.urandom(KEY_BYTES)
ASK = Question(number=1).model_dump_json().encode()
LONG_NAME = "/".join(["train", *["a" * 200] * 4, "b" * 80])
"""A storage key by itself, and too long below an attempt's prefix."""


class SigningFiles(FileStorage):
    """Signs, so that steps may be told to use it; counts what is read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.read: list[str] = []

    async def signed_url(self, key: str, expires_s: float, method: str = "GET") -> str:
        return f"https://storage/{check_key(key)}?Signature={method}"

    async def get_bytes(self, key: str, limit_bytes: int) -> bytes:
        self.read.append(key)
        return await super().get_bytes(key, limit_bytes)


class Jobs:
    """A cluster of jobs that do nothing."""

    def __init__(self) -> None:
        self.alive: dict[str, bool] = {}

    async def submit(self, name: str, command: str, output: Path | None) -> None:
        self.alive[name] = True

    async def sightings(self) -> dict[str, Sighting]:
        seen = {True: Presence.ALIVE, False: Presence.GONE}
        return {name: Sighting(seen[alive], "a word") for name, alive in self.alive.items()}

    async def cancel(self, name: str) -> None:
        self.alive[name] = False

    def end(self) -> None:
        self.alive = dict.fromkeys(self.alive, False)


@pytest.fixture
def jobs() -> Jobs:
    return Jobs()


@pytest.fixture
def spec() -> StepSpec:
    return StepSpec(run_id=uuid4(), attempt=1, step=Step.TRAIN, recipe="r", recipe_version="1", seed=0, output="/o")


@pytest.fixture
async def launcher(jobs: Jobs) -> AsyncIterator[Callable[[Exchanges], RemoteLauncher]]:
    made: list[RemoteLauncher] = []

    def launch(exchanges: Exchanges) -> RemoteLauncher:
        options = RemoteOptions(command=("x",), beat_s=0.02, sighting_s=0.02, patience_s=1)
        made.append(RemoteLauncher(jobs, exchanges, options))
        return made[-1]

    yield launch
    for one in made:
        await one.close()


async def the_next_attempt_begins(launcher: RemoteLauncher, spec: StepSpec, log: Path) -> None:
    assert await launcher.adopt(spec.run_id, 2, spec.step, lease_s=60, log=log) is None
    async with asyncio.timeout(10):
        await launcher.ensure_stopped(spec.run_id, 2)


IN_STORAGE = {
    "one byte as the key, put by a stranger": {"started": b"x"},
    "a key too long": {"started": b"x" * (KEY_BYTES + 1)},
    "an ask that is no question": {"started": KEY, "ask": b"{"},
    "an ask too large": {"started": KEY, "ask": b" " * 600 * 1024},
    "facts of an end that are none": {"started": KEY, "ask": ASK, "ended.json": b"{}"},
    "a piece of events too large": {"started": KEY, "ask": ASK, "events/00000": b" " * 300_000},
    "a want that can be no key": {
        "started": KEY,
        "ask": Question(number=1, wants=("put:" + LONG_NAME,)).model_dump_json().encode(),
    },
}


@pytest.mark.parametrize("end", ["the cluster's", "ours"])
@pytest.mark.parametrize("what", IN_STORAGE)
async def test_unreadable_object_does_not_hide_the_end_of_a_step(launcher, jobs, spec, tmp_path, what, end):
    storage = SigningFiles(tmp_path / "storage")
    exchanges = StorageExchanges(storage, tmp_path / "logs")
    handle = await launcher(exchanges).start(spec, lease_s=60, log=tmp_path / "log")
    for name, content in IN_STORAGE[what].items():
        await storage.put_bytes(f"steps/{spec.run_id}/1-train-1/{name}", content)
    async with asyncio.timeout(10):
        if end == "ours":
            await asyncio.sleep(0.1)
            await handle.kill()
            assert (await handle.wait()).reason is EndReason.KILLED
        else:
            jobs.end()
            assert (await handle.wait()).reason is EndReason.SUPERVISOR_LOST
    await the_next_attempt_begins(launcher(exchanges), spec, tmp_path / "log")


async def test_an_owner_that_died_leaves_nothing_unreadable_to_the_next_attempt(launcher, jobs, spec, tmp_path):
    storage = SigningFiles(tmp_path / "storage")
    exchanges = StorageExchanges(storage, tmp_path / "logs")
    handle = await launcher(exchanges).start(spec, lease_s=60, log=tmp_path / "log")
    handle.let_go()
    jobs.end()
    for name, content in {"started": KEY, "ask": b"{", "ended.json": b"{}", "order.json": b"{}"}.items():
        await storage.put_bytes(f"steps/{spec.run_id}/1-train-1/{name}", content)
    await the_next_attempt_begins(launcher(exchanges), spec, tmp_path / "log")


async def test_log_that_vanishes_while_it_is_brought_keeps_nothing_else(launcher, jobs, spec, tmp_path):
    class Vanishing(SigningFiles):
        async def size(self, key: str) -> int | None:
            return 1 if key.endswith("/log") else await super().size(key)

        async def stream(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
            raise NotStored(key)
            yield

    storage = Vanishing(tmp_path / "storage")
    exchanges = StorageExchanges(storage, tmp_path / "logs")
    handle = await launcher(exchanges).start(spec, lease_s=60, log=tmp_path / "log")
    await storage.put_bytes(f"steps/{spec.run_id}/1-train-1/started", KEY)
    asked = Question(number=1, log_version=1).model_dump_json().encode()
    await storage.put_bytes(f"steps/{spec.run_id}/1-train-1/ask", asked)
    jobs.end()
    async with asyncio.timeout(10):
        assert (await handle.wait()).reason is EndReason.SUPERVISOR_LOST


async def test_no_more_of_a_log_is_brought_than_its_bound(spec, tmp_path, monkeypatch):
    class Growing(SigningFiles):
        async def size(self, key: str) -> int | None:
            return 1 if key.endswith("/log") else await super().size(key)

    monkeypatch.setattr(road, "_LARGEST_LOG", 10)
    storage = Growing(tmp_path / "storage")
    exchange = StorageExchange(storage, str(spec.run_id), "1-train-1", tmp_path / "logs")
    await storage.put_bytes(f"steps/{spec.run_id}/1-train-1/log", b"x" * 100)
    await exchange.bring_log(Question(), whole=True)
    assert exchange.log.read_bytes() == b"x" * 10


@pytest.mark.parametrize(("model", "content"), [(Question, b'{"number": "words"}'), (EndFacts, b'{"detail": "words"}')])
def test_what_a_step_said_is_no_part_of_the_error(model, content):
    with pytest.raises(UnreadableWord) as told:
        understood(model, content)
    assert "words" not in str(told.value)


async def test_error_that_nobody_foresaw_neither_ends_the_watch_nor_keeps_a_kill_waiting(
    launcher, jobs, spec, tmp_path, monkeypatch
):
    async def fails(exchange: StorageExchange) -> Question:
        raise ZeroDivisionError

    monkeypatch.setattr(StorageExchange, "question", fails)
    exchanges = StorageExchanges(SigningFiles(tmp_path / "storage"), tmp_path / "logs")
    handle = await launcher(exchanges).start(spec, lease_s=60, log=tmp_path / "log")
    async with asyncio.timeout(10):
        await handle.kill()
    assert (await handle.wait()).reason is EndReason.KILLED


async def test_manifest_that_is_not_what_it_was_gives_no_address(launcher, spec, tmp_path):
    storage = SigningFiles(tmp_path / "storage")
    exchange = StorageExchange(storage, str(spec.run_id), "1-train-1", tmp_path / "logs")
    sources = {"manifest": Source(address="manifest.jsonl", sha256="0" * 64, lists_recordings=True)}
    listing = spec.model_copy(update={"sources": sources})
    assert await exchange._rights.signed(listing, "get:organizations/1/x") is None
    for content in (b"something else", b"no manifest"):
        await storage.put_bytes("manifest.jsonl", content)
        assert await exchange._rights.signed(listing, "get:organizations/1/x") is None


# --- events --------------------------------------------------------------------------------------------------------


async def test_pieces_of_events_are_read_some_at_a_time_and_none_is_lost(spec, tmp_path):
    storage = SigningFiles(tmp_path / "storage")
    exchange = StorageExchange(storage, str(spec.run_id), "1-train-1", tmp_path / "logs")
    pieces = [f"line {n}\n".encode() for n in range(100)]
    for n, piece in enumerate(pieces):
        await storage.put_bytes(f"steps/{spec.run_id}/1-train-1/events/{n:05d}", piece)
    looks = []
    while data := await exchange.more_events():
        looks.append(data)
        assert len(storage.read) <= 17
        storage.read.clear()
    assert b"".join(looks) == b"".join(pieces)


async def test_pieces_that_came_before_the_storage_went_away_are_not_lost(spec, tmp_path):
    class Flapping(SigningFiles):
        async def get_bytes(self, key: str, limit_bytes: int) -> bytes:
            if key.endswith("2") and key not in self.read:
                self.read.append(key)
                raise StorageAway("for a moment")
            return await super().get_bytes(key, limit_bytes)

    storage = Flapping(tmp_path / "storage")
    exchange = StorageExchange(storage, str(spec.run_id), "1-train-1", tmp_path / "logs")
    for n in range(4):
        await storage.put_bytes(f"steps/{spec.run_id}/1-train-1/events/{n:05d}", b"%d\n" % n)
    assert await exchange.more_events() + await exchange.more_events() == b"0\n1\n2\n3\n"


# --- in a shared folder --------------------------------------------------------------------------------------------

IN_A_FOLDER = {
    "bytes that are no number": {"ask": b"\0\0"},
    "bytes that are no text": {"ask": b"\xff\xfe"},
    "a number below every question": {"ask": b"-5"},
    "a number too long": {"ask": b"9" * 10_000},
    "facts of an end that are none": {"ended.json": b"{}"},
    "facts of an end that are no text": {"ended.json": b"\xff"},
}


@pytest.mark.parametrize("what", IN_A_FOLDER)
async def test_unreadable_file_does_not_hide_the_end_of_a_step(launcher, jobs, spec, tmp_path, what):
    exchanges = FolderExchanges(tmp_path)
    handle = await launcher(exchanges).start(spec, lease_s=60, log=tmp_path / "log")
    for name, content in IN_A_FOLDER[what].items():
        (tmp_path / str(spec.run_id) / "1-train-1" / name).write_bytes(content)
    jobs.end()
    async with asyncio.timeout(10):
        assert (await handle.wait()).reason is EndReason.SUPERVISOR_LOST
    await the_next_attempt_begins(launcher(exchanges), spec, tmp_path / "log")


@pytest.mark.parametrize("name", ["ask", "ended.json", "events", "log", "outpost.log"])
async def test_no_link_is_followed_and_no_pipe_waited_for(launcher, jobs, spec, tmp_path, name):
    exchanges = FolderExchanges(tmp_path)
    secret = tmp_path / "secret"
    secret.write_text("not for the step")
    for attempt, lay in ((1, lambda path: path.symlink_to(secret)), (2, os.mkfifo)):
        mine = spec.model_copy(update={"attempt": attempt})
        handle = await launcher(exchanges).start(mine, lease_s=60, log=tmp_path / "log")
        lay(tmp_path / str(spec.run_id) / f"{attempt}-train-1" / name)
        await asyncio.sleep(0.1)
        jobs.end()
        async with asyncio.timeout(10):
            assert "not for the step" not in (await handle.wait()).detail
    assert not (tmp_path / "log").exists() or "not for the step" not in (tmp_path / "log").read_text()


async def test_larger_words_than_there_are_are_not_read(launcher, spec, tmp_path):
    exchanges = FolderExchanges(tmp_path)
    await launcher(exchanges).start(spec, lease_s=60, log=tmp_path / "log")
    exchange = await exchanges.newest(spec.run_id, 1, spec.step)
    assert exchange is not None
    with (exchange.folder / "ended.json").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(UnreadableWord, match="more than"):
        await exchange.ended()
