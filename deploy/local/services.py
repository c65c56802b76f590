"""Private RabbitMQ and Postgres for the demo and the tests.

    python -m deploy.local.services run   --folder F [--owner PID]   until it or PID ends; prints JSON
    python -m deploy.local.services start --folder F                 leaves them running; prints the same
    python -m deploy.local.services status|stop --folder F

WORKER_AMQP_URL and WORKER_DATABASE_URL, when both are given, are used instead and nothing is started.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from deploy.local.debs import has_apt, install_rabbitmq
from deploy.local.postgres import Postgres, postgres_programs
from deploy.local.program import LocalServiceError
from deploy.local.rabbitmq_container import RabbitMQContainer
from deploy.local.rabbitmq_node import RabbitMQNode

START_S = 180.0
STOP_S = 60.0


@dataclass(frozen=True)
class Addresses:
    """Where the services are; ports, pids and the road are there only for what we started."""

    amqp_url: str
    database_url: str
    management_url: str | None = None
    prometheus_url: str | None = None
    ports: dict[str, int] = field(default_factory=dict)
    pids: dict[str, int] = field(default_factory=dict)
    postgres_road: str | None = None


class LocalServices:
    """One RabbitMQ node and one Postgres cluster under a folder, on a leash held by this process."""

    def __init__(self, folder: Path, *, consumer_timeout_s: float | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder.absolute()
        self.rabbitmq = (
            RabbitMQNode(install_rabbitmq(), self.folder, consumer_timeout_s=consumer_timeout_s)
            if has_apt()
            else RabbitMQContainer(self.folder, consumer_timeout_s=consumer_timeout_s)
        )
        self.postgres = Postgres(postgres_programs(), self.folder)

    def start(self) -> Addresses:
        """Start both at once; returns when both have answered a real login."""
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            started = [pool.submit(service.start) for service in (self.rabbitmq, self.postgres)]
            concurrent.futures.wait(started)
        try:
            for future in started:
                future.result()
        except BaseException:
            self.stop()
            raise
        return self.addresses()

    def addresses(self) -> Addresses:
        """Addresses and pids as they are now."""
        return Addresses(
            amqp_url=self.rabbitmq.amqp_url(),
            database_url=self.postgres.url(),
            management_url=self.rabbitmq.management_url,
            prometheus_url=self.rabbitmq.prometheus_url,
            ports={**self.rabbitmq.ports, "postgres": self.postgres.port},
            pids={
                **self.rabbitmq.pids(),
                "postgres": self.postgres.server.pid,
                "keeper": os.getpid(),
            },
            postgres_road=self.postgres.road,
        )

    def stop(self) -> None:
        """Stop both cleanly; the data stays in the folder."""
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            for stopped in [pool.submit(service.stop) for service in (self.rabbitmq, self.postgres)]:
                stopped.result()


def given_addresses() -> Addresses | None:
    """The services the environment names, if it names both."""
    amqp, database = os.environ.get("WORKER_AMQP_URL"), os.environ.get("WORKER_DATABASE_URL")
    return Addresses(amqp_url=amqp, database_url=database) if amqp and database else None


def _state_file(folder: Path) -> Path:
    return folder / "services.json"


def _write_state(folder: Path, addresses: Addresses) -> None:
    part = folder / "services.json.part"
    part.touch(0o600)  # it holds passwords
    part.write_text(json.dumps(asdict(addresses)))
    part.rename(_state_file(folder))


def _read_state(folder: Path) -> dict[str, object] | None:
    """The running keeper's state; None when there is none or it is dead."""
    try:
        state: dict[str, dict[str, int]] = json.loads(_state_file(folder).read_text())
        keeper = Path(f"/proc/{state['pids']['keeper']}/cmdline").read_bytes()
    except (OSError, KeyError, ValueError):
        return None
    return dict(state) if b"deploy.local.services" in keeper else None


def run(folder: Path, owner: int | None) -> int:
    """Keep the services until SIGTERM, SIGINT or the owner's end; prints their addresses once, as JSON."""
    wake, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    watched = [wake]
    if owner:
        watched.append(os.pidfd_open(owner))
    services = LocalServices(folder)
    addresses = services.start()
    try:
        _write_state(services.folder, addresses)
        print(json.dumps(asdict(addresses)), flush=True)
        select.select(watched, [], [])
    finally:
        _state_file(services.folder).unlink(missing_ok=True)
        services.stop()
    return 0


def start(folder: Path) -> int:
    """Start a keeper that outlives this command; prints the addresses once the services answer."""
    folder.mkdir(parents=True, exist_ok=True)
    state = _read_state(folder)
    if state is None:
        log = folder / "keeper.log"
        with log.open("wb") as output:
            keeper = subprocess.Popen(
                [sys.executable, "-m", "deploy.local.services", "run", "--folder", str(folder.absolute())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # addresses hold passwords; the state file is private
                stderr=output,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_S
        while (state := _read_state(folder)) is None:
            if keeper.poll() is not None or time.monotonic() > deadline:
                raise LocalServiceError(f"the services did not start; {log} ends:\n{log.read_text()[-2000:]}")
            time.sleep(0.1)
    print(json.dumps(state))
    return 0


def stop(folder: Path) -> int:
    """Stop what `start` or `run` keeps running in this folder; returns when it is gone."""
    state = _read_state(folder)
    if state is None:
        print("not running")
        return 0
    keeper = int(state["pids"]["keeper"])  # type: ignore[index]
    handle = os.pidfd_open(keeper)
    with contextlib.suppress(ProcessLookupError):
        os.kill(keeper, signal.SIGTERM)
    gone, _, _ = select.select([handle], [], [], STOP_S)
    if not gone:
        raise LocalServiceError(f"process {keeper} did not stop the services within {STOP_S:.0f} s")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser(prog="python -m deploy.local.services", description=__doc__)
    parser.add_argument("action", choices=["run", "start", "status", "stop"])
    parser.add_argument("--folder", type=Path, required=True, help="data, logs and state; made when missing")
    parser.add_argument("--owner", type=int, help="end when this process ends (with run)")
    chosen = parser.parse_args(arguments)
    try:
        given = given_addresses()
        if given is not None and chosen.action in {"start", "run", "status"}:
            print(json.dumps(asdict(given)))
            return 0
        if chosen.action == "run":
            return run(chosen.folder, chosen.owner)
        if chosen.action == "start":
            return start(chosen.folder)
        if chosen.action == "stop":
            return stop(chosen.folder)
        print(json.dumps(_read_state(chosen.folder)))
    except (LocalServiceError, RuntimeError) as error:
        print(f"local services: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
