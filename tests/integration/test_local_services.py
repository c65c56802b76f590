"""The private broker and server that the demo and the tests run on."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import aio_pika
import asyncpg
import pytest

from deploy.local.leash import descendants, signal_tree
from deploy.local.postgres import Postgres, create_database, postgres_programs
from deploy.local.rabbitmq_node import RabbitMQNode

if TYPE_CHECKING:
    from deploy.local.services import LocalServices

ROOT = Path(__file__).resolve().parents[2]
LISTEN = "0A"
LOOPBACK = {"0100007F", "00000000000000000000000001000000"}  # 127.0.0.1 and ::1 as /proc/net/tcp writes them
PATIENCE_S = 60.0


def _listening_addresses(pids: list[int]) -> set[tuple[str, int]]:
    """Where these processes accept connections: (address in hex, port), read from /proc."""
    sockets = set()
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            try:
                sockets.add(str(descriptor.readlink()))
            except FileNotFoundError:
                continue
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTEN and f"socket:[{fields[9]}]" in sockets:
                address, port = fields[1].split(":")
                found.add((address, int(port, 16)))
    return found


def _wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while alive := [pid for pid in pids if _alive(pid)]:
        assert time.monotonic() < deadline, f"still running: {alive}"
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


async def _published(url: str, queue: str, body: bytes) -> None:
    connection = await aio_pika.connect(url)
    async with connection:
        channel = await connection.channel()
        await channel.declare_queue(queue, durable=True, arguments={"x-queue-type": "quorum"})
        await channel.default_exchange.publish(
            aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT), routing_key=queue
        )


async def _taken(url: str, queue: str) -> bytes:
    connection = await aio_pika.connect(url)
    async with connection:
        channel = await connection.channel()
        kept = await channel.get_queue(queue)
        message = await kept.get(no_ack=True, timeout=30)
        assert message is not None
        return message.body


def test_everything_listens_on_loopback_only(private_services: LocalServices):
    pids = private_services.addresses().pids
    ours = [pids["rabbitmq"], pids["epmd"], pids["postgres"]]
    found = _listening_addresses([member for pid in ours for member in (pid, *descendants(pid))])
    assert {address for address, _ in found} <= LOOPBACK
    ports = private_services.addresses().ports
    assert {port for _, port in found} == {
        ports[name] for name in ("amqp", "distribution", "epmd", "management", "prometheus", "postgres")
    }


async def test_confirmed_message_survives_kill_9_and_a_restart_on_the_same_port(
    private_services: LocalServices,
):
    rabbitmq = private_services.rabbitmq
    url = await asyncio.to_thread(rabbitmq.create_vhost, "durable")
    await _published(url, "kept", b"still here")
    await asyncio.to_thread(rabbitmq.wait_until_queues_are_on_disk)
    await asyncio.to_thread(rabbitmq.kill)
    with pytest.raises(aio_pika.exceptions.AMQPConnectionError):
        await aio_pika.connect(url, timeout=5)
    rabbitmq.consumer_timeout_s = 120
    await asyncio.to_thread(rabbitmq.start)
    assert await _taken(url, "kept") == b"still here"
    assert "{ok,120000}" in rabbitmq.control("eval", "application:get_env(rabbit, consumer_timeout).")


async def test_committed_row_survives_kill_9_of_the_postmaster(private_services: LocalServices):
    postgres = private_services.postgres
    url = await create_database(postgres.url(), "durable")
    connection = await asyncpg.connect(url)
    await connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    await asyncio.to_thread(postgres.kill)
    await asyncio.to_thread(postgres.start)
    connection.terminate()
    again = await asyncpg.connect(url)
    assert await again.fetchval("SELECT answer FROM kept") == 42
    await again.close()


async def test_frozen_server_is_silent_and_thaws_with_its_sessions(private_services: LocalServices):
    postgres = private_services.postgres
    connection = await asyncpg.connect(postgres.url())
    postgres.server.freeze()
    with pytest.raises(TimeoutError):
        await asyncpg.connect(postgres.url(), timeout=1)
    answer = asyncio.create_task(connection.fetchval("SELECT 7"))
    postgres.server.thaw()
    assert await answer == 7
    await connection.close()


async def test_database_made_from_a_template_has_its_tables(private_services: LocalServices):
    server = private_services.postgres.url()
    template = await create_database(server, "a_template")
    connection = await asyncpg.connect(template)
    await connection.execute("CREATE TABLE shape (id int)")
    await connection.close()
    copied = await asyncpg.connect(await create_database(server, "a_copy", template="a_template"))
    assert await copied.fetchval("SELECT count(*) FROM shape") == 0
    await copied.close()


def test_second_controller_of_a_folder_finds_the_same_ports_passwords_and_data(
    private_services: LocalServices,
):
    postgres, rabbitmq = private_services.postgres, private_services.rabbitmq
    assert Postgres(postgres.programs, private_services.folder).url() == postgres.url()
    assert isinstance(rabbitmq, RabbitMQNode)
    assert RabbitMQNode(rabbitmq.program, private_services.folder).amqp_url() == rabbitmq.amqp_url()


def test_frozen_program_can_still_be_stopped(tmp_path: Path):
    postgres = Postgres(postgres_programs(), tmp_path)
    postgres.start()
    members = [postgres.server.pid, *descendants(postgres.server.pid)]
    postgres.server.freeze()
    postgres.stop()
    _wait_until_gone(members)
    postgres.remove()


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user runs Postgres directly")
def test_root_without_user_namespaces_runs_postgres_as_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path / "no-programs-here"))  # unshare is not found
    postgres = Postgres(postgres_programs(), tmp_path)
    postgres.start()
    assert postgres.road == "other-uid"
    assert Path(f"/proc/{postgres.server.pid}").stat().st_uid == 65534
    elsewhere = (tmp_path / "postgres" / "elsewhere").readlink()
    postgres.kill()
    postgres.start()  # the same data, though user namespaces might work by now
    assert postgres.road == "other-uid"
    postgres.remove()
    assert not elsewhere.exists()


def test_kill_9_of_the_script_that_started_the_services_leaves_nothing_running(tmp_path: Path):
    # The shell stands for demo.sh and tests/run.sh.
    script = f'"{sys.executable}" -m deploy.local.services run --folder "{tmp_path}" --owner $$ & wait'
    with subprocess.Popen(
        ["bash", "-c", script], cwd=ROOT, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}
    ) as shell:
        assert shell.stdout is not None
        pids: dict[str, int] = json.loads(shell.stdout.readline())["pids"]
        everything = [member for pid in pids.values() for member in (pid, *descendants(pid))]
        shell.kill()
        _wait_until_gone(everything)


@pytest.mark.parametrize("frozen", [False, True], ids=["awake", "frozen"])
def test_kill_9_of_the_owner_ends_the_program_and_what_it_started(tmp_path: Path, *, frozen: bool):
    owner_code = (
        "import sys, time, os; from pathlib import Path; from deploy.local.program import Program;"
        "p = Program('sleeper', Path(sys.argv[1]));"
        "p.start(['sh', '-c', 'sleep 1000 & wait'], os.environ); print(p.pid, flush=True); time.sleep(1000)"
    )
    command = [sys.executable, "-c", owner_code, str(tmp_path / "log")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
    ) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        while not (members := descendants(pid)):
            time.sleep(0.01)
        if frozen:
            signal_tree(pid, signal.SIGSTOP)
        owner.kill()
        _wait_until_gone([pid, *members])


def test_left_running_services_are_found_and_stopped_by_their_folder(tmp_path: Path):
    def control(action: str) -> str:
        command = [sys.executable, "-m", "deploy.local.services", action, "--folder", str(tmp_path)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout

    started = json.loads(control("start"))
    assert json.loads(control("start")) == started
    assert json.loads(control("status")) == started
    control("stop")
    _wait_until_gone(list(started["pids"].values()))
    assert json.loads(control("status")) is None
    assert (tmp_path / "services.json").exists() is False
