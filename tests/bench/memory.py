"""Whether the worker keeps what it should forget: resident memory after 2,000 and after 20,000 no-op runs.

    bash tests/bench.sh memory [--first 2000] [--last 20000]

One worker with the launcher that starts no process takes, runs and tells them all. Prints one last line
`RESULT {…}` with the growth in megabytes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import uuid
from pathlib import Path

import asyncpg

from deploy.local.postgres import create_database, drop_database
from deploy.local.rabbitmq import create_vhost, delete_vhost
from tests.bench.contestants import Ours, Place
from tests.bench.orchestration import OurPublisher, ended, prepare_ours, stop, usage

SETTLED_S = 3.0


async def run(wanted: argparse.Namespace) -> None:
    """Both marks; then the result line."""
    management, server = os.environ["TEST_MANAGEMENT_URL"], os.environ["TEST_DATABASE_URL"]
    name = f"bench_memory_{uuid.uuid4().hex[:8]}"
    create_vhost(management, name)
    dsn = await create_database(server, name)
    amqp_url = os.environ["TEST_AMQP_URL"].rsplit("/", 1)[0] + "/" + name
    place = Place(amqp_url, dsn, Path(tempfile.mkdtemp(prefix="bench-memory-")), 1, wanted.slots)
    contestant, marks, done = Ours(), {}, 0
    connection = await asyncpg.connect(dsn)
    try:
        await prepare_ours(place, wanted.last)
        contestant.start(place, Path())
        for runs in (wanted.first, wanted.last):
            async with OurPublisher(place, done) as publisher:
                while done < runs:
                    step = min(500, runs - done)
                    await publisher.backlog(step)
                    done += step
                    await ended(connection, done, contestant.running, ours=True)
            await asyncio.sleep(SETTLED_S)
            _, marks[runs] = usage(contestant.running)
            print(f"{runs} runs: {marks[runs]:.1f} MB", flush=True)
    finally:
        stop(contestant.running)
        await connection.close()
        delete_vhost(management, name)
        await drop_database(server, name)
    growth = marks[wanted.last] - marks[wanted.first]
    print(
        "RESULT " + json.dumps({"megabytes": {str(runs): round(mb, 1) for runs, mb in marks.items()}, "growth": growth})
    )


def main() -> None:
    """Command line; services come from TEST_AMQP_URL, TEST_MANAGEMENT_URL and TEST_DATABASE_URL."""
    parser = argparse.ArgumentParser(prog="bash tests/bench.sh memory", description=__doc__)
    parser.add_argument("--first", type=int, default=2_000)
    parser.add_argument("--last", type=int, default=20_000)
    parser.add_argument("--slots", type=int, default=32)
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
