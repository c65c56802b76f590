"""A process whose event loop stands still ends itself and says where; one that was only stopped goes on."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import uuid
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from tests.acceptance.freezing import KINDS
from tests.acceptance.world import ROOT, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from tests.acceptance.world import World

LIMIT_S = 0.4
SHORT = {
    "WORKER_FROZEN_LIMIT_S": "1", "WORKER_API_FROZEN_LIMIT_S": "1", "WORKER_LEASE_S": "1.5",
    "WORKER_RENEW_S": "0.2", "WORKER_PAUSE_S": "0.4", "WORKER_API_PORT": "0", "WORKER_SLOTS": "0",
}  # fmt: skip


class Listener:
    """What systemd would hear."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.name = f"speech-training-test-{uuid.uuid4().hex}"
        self.socket.bind(f"\0{self.name}")
        self.socket.settimeout(0)
        self.heard: list[str] = []

    def environment(self) -> dict[str, str]:
        return {"NOTIFY_SOCKET": f"@{self.name}", "WATCHDOG_USEC": "90000000"}

    def hears(self, word: str) -> bool:
        with suppress(BlockingIOError):
            while True:
                self.heard += self.socket.recv(4096).decode().splitlines()
        return word in self.heard

    def forget(self) -> None:
        self.hears("")
        self.heard.clear()


class Process:
    """One process of the program, with everything that it printed."""

    def __init__(self, log: Path, environment: Mapping[str, str], arguments: tuple[str, ...]) -> None:
        self.log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.acceptance.freezing", *arguments],
                env=environment, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip

    @property
    def code(self) -> int | None:
        return self._process.poll()

    @property
    def ended(self) -> bool:
        return self.code is not None

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)
        if number is signal.SIGSTOP:
            os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WNOWAIT)

    def kill(self) -> None:
        if not self.ended:
            self._process.kill()
        self._process.wait()

    def text(self) -> str:
        return self.log.read_text(errors="replace")


@asynccontextmanager
async def started(
    log: Path, environment: Mapping[str, str], *arguments: str
) -> AsyncIterator[tuple[Process, Listener]]:
    listener = Listener()
    made = Process(log, environment | listener.environment(), arguments)
    try:
        await until(lambda: listener.hears("READY=1") or made.ended, f"{arguments} has started")
        assert not made.ended, made.text()
        yield made, listener
    finally:
        made.kill()
        listener.socket.close()


def bare(tmp_path: Path, kind: str, limit_s: float = LIMIT_S):
    return started(tmp_path / "log", os.environ, kind, "bare", str(limit_s))


def says_where(process: Process, kind: str) -> bool:
    text = process.text()
    return "(most recent call first)" in text and f" in {kind}\n" in text


@pytest.mark.parametrize("kind", sorted(KINDS))
async def test_loop_that_stands_still_ends_its_process_and_the_log_says_where(tmp_path: Path, kind: str) -> None:
    async with bare(tmp_path, kind) as (process, _):
        process.send(signal.SIGUSR1)
        await until(lambda: process.ended, "the process ends itself")
        assert process.code in (1, -signal.SIGPROF)
        assert says_where(process, kind), process.text()


@pytest.mark.parametrize(("command", "kind"), [("run", "wait"), ("run", "compute"), ("api", "compute")])
async def test_worker_and_api_are_guarded(world: World, command: str, kind: str) -> None:
    async with started(world.folder / "log", world.environment(**SHORT), kind, command) as (process, _):
        process.send(signal.SIGUSR1)
        await until(lambda: process.ended, "the process ends itself")
        assert process.code in (1, -signal.SIGPROF)
        assert says_where(process, kind), process.text()


async def test_process_that_was_stopped_for_longer_goes_on_when_it_is_continued(tmp_path: Path) -> None:
    async with bare(tmp_path, "wait") as (process, listener):
        for _ in range(2):
            process.send(signal.SIGSTOP)
            await asyncio.sleep(3 * LIMIT_S)  # the length of the pause is what is tested
            listener.forget()
            process.send(signal.SIGCONT)
            for _ in range(3):
                await until(lambda: listener.hears("WATCHDOG=1") or process.ended, "the loop turns")
                assert not process.ended, process.text()
                listener.forget()
        process.send(signal.SIGUSR1)
        await until(lambda: process.ended, "it is still guarded")


async def test_a_log_that_nobody_reads_does_not_keep_a_frozen_process_alive(tmp_path: Path) -> None:
    """The pipe is full, and whatever writes to it waits: a cause of standing still by itself."""
    os.mkfifo(tmp_path / "log")
    reader = os.open(tmp_path / "log", os.O_RDONLY | os.O_NONBLOCK)
    try:
        async with bare(tmp_path, "wait") as (process, _):
            writer = os.open(tmp_path / "log", os.O_WRONLY | os.O_NONBLOCK)
            with suppress(BlockingIOError):
                while True:
                    os.write(writer, b"x" * 4096)
            os.close(writer)
            process.send(signal.SIGUSR1)
            await until(lambda: process.ended, "the process ends itself")
            assert process.code == 1
    finally:
        os.close(reader)


async def test_limit_of_zero_guards_nothing_and_still_tells_the_service_manager(tmp_path: Path) -> None:
    async with bare(tmp_path, "wait", 0) as (process, listener):
        await until(lambda: listener.hears("WATCHDOG=1"), "it is alive")
        process.send(signal.SIGPROF)  # nobody has asked for it: its default action
        await until(lambda: process.ended, "the signal ends it")
        assert "most recent call first" not in process.text()


async def test_service_manager_hears_of_start_life_and_stop(world: World) -> None:
    async with started(world.folder / "log", world.environment(**SHORT), "wait", "run") as (process, listener):
        await until(lambda: listener.hears("WATCHDOG=1"), "it is alive")
        assert "STATUS=waiting for the database" in listener.heard
        assert "STOPPING=1" not in listener.heard
        process.send(signal.SIGTERM)
        await until(lambda: process.ended, "it ends in order")
        assert process.code == 0
        assert listener.hears("STOPPING=1")


async def test_service_manager_that_went_away_harms_nobody(tmp_path: Path) -> None:
    async with bare(tmp_path, "wait") as (process, listener):
        listener.socket.close()
        await until(lambda: "service manager not told" in process.text(), "it notices")
        assert not process.ended
