"""``python -m tests.acceptance.freezing KIND run|api``: the same program, whose event loop stands still on SIGUSR1.

``bare LIMIT_S`` in the place of ``run``: a loop and its guard, nothing else.

The handler runs in the main thread, between two steps of the loop, and does not come back:
``compute`` one call into C that holds the GIL for hours, as a normalization of hostile text did;
``loop`` Python that never ends; ``wait`` a blocking call.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
import unicodedata

from worker.loop_guard import LoopGuard
from worker.service_manager import ServiceManager


def compute() -> None:
    unicodedata.normalize("NFC", "a" + "\u0301\u0327" * 2**21)


def loop() -> None:
    while True:
        pass


def wait() -> None:
    time.sleep(3600)


KINDS = {"compute": compute, "loop": loop, "wait": wait}


async def bare(limit_s: float) -> None:
    manager = ServiceManager()
    async with LoopGuard(limit_s, manager):
        manager.started()
        await asyncio.Event().wait()


if __name__ == "__main__":
    stand_still = KINDS[sys.argv[1]]
    signal.signal(signal.SIGUSR1, lambda *_: stand_still())
    if sys.argv[2] == "bare":
        asyncio.run(bare(float(sys.argv[3])))
    else:
        from worker.cli.parser import main

        sys.exit(main(sys.argv[2:]))
