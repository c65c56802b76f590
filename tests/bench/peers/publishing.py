"""Publishes runs for a peer through its own client.

python -m peers.publishing PEER backlog N | trickle RATE SECONDS
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import sys
import time
import uuid
from datetime import UTC, datetime


async def main(peer: str, mode: str, *numbers: str) -> None:
    send = importlib.import_module(f"peers.{peer}").sender()
    if inspect.isasyncgen(send):
        send = await anext(send)

    async def one() -> None:
        answer = send(str(uuid.uuid4()), datetime.now(UTC).isoformat())
        if inspect.isawaitable(answer):
            await answer

    if mode == "backlog":
        for _ in range(int(numbers[0])):
            await one()
    else:
        rate, seconds = float(numbers[0]), float(numbers[1])
        began = time.monotonic()
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
            await one()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
