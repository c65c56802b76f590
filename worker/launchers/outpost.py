"""The worker's stand-in on a cluster's node: runs one step there with the local launcher, inside a granted right.

    python -m worker.launchers.outpost <exchange folder>

It is what a Ray or Slurm job executes, in the trainer's environment. It asks its owner for the right to run through
the exchange folder, feeds the step with what is granted, passes events on, and leaves the facts of the end. Nobody
grants: the step is paused, then killed, by the same supervisor as on the worker's own machine. The outpost is
killed: the supervisor sees its pipe close.
"""

import asyncio
import dataclasses
import os
import signal
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from schemas.events import Event, Stopped, encode
from schemas.steps import STOPPED_EXIT_CODE
from worker.launchers.exchange import Exchange, Order
from worker.launchers.interface import Ended, EndReason, Handle, LauncherUnavailable
from worker.launchers.local import LocalLauncher, LocalOptions
from worker.launchers.supervisor import now

_PASSED_DEVICES = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
"""What the cluster gave this step, by the cluster's own means."""


class Outpost:
    """One step on this node."""

    def __init__(self, exchange: Exchange, order: Order) -> None:
        self._exchange = exchange
        self._order = order
        self._asked_at: dict[int, float] = {}
        self._deadline = now()
        self._stop_asked = False

    async def run(self) -> None:
        """From the first question to the facts of the end."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._on_term)
        with tempfile.TemporaryDirectory(prefix="speech-training-") as scratch:
            launcher = LocalLauncher(self._options(Path(scratch)))
            ended = await self._run_step(launcher)
            await launcher.close()
        facts = dataclasses.asdict(ended)
        del facts["last_word"]  # it is among the events
        self._exchange.end(facts)

    async def _run_step(self, launcher: LocalLauncher) -> Ended:
        began = now()
        while (lease_s := self._right_s()) <= 0:
            if self._wants_kill():
                return _ended_unstarted(EndReason.KILLED)
            if self._wants_stop():
                with self._exchange.events.open("ab") as file:
                    file.write(encode(Stopped()))
                return _ended_unstarted(EndReason.EXITED, exit_code=STOPPED_EXIT_CODE)
            if now() - began > self._order.patience_s:
                return _ended_unstarted(EndReason.UNFED)
            await asyncio.sleep(self._order.beat_s)
        try:
            handle = await launcher.start(self._order.spec, lease_s=lease_s, log=self._exchange.log)
        except LauncherUnavailable as error:
            return _ended_unstarted(EndReason.NOT_STARTED, detail=str(error))
        beating = asyncio.create_task(self._beat(handle))
        with self._exchange.events.open("ab", buffering=0) as file:
            async for event in handle.events():
                self._pass_on(event, file.fileno())
        beating.cancel()
        return await handle.wait()

    async def _beat(self, handle: Handle) -> None:
        told_to_stop = False
        while True:
            with suppress(OSError):  # the shared folder is away: no answer, no right, and perhaps later again
                handle.feed(self._right_s())
                if self._wants_kill():
                    await handle.kill()
                elif self._wants_stop() and not told_to_stop:
                    told_to_stop = True
                    await handle.ask_stop()
            await asyncio.sleep(self._order.beat_s)

    def _right_s(self) -> float:
        """Seconds of right left now; takes in what was granted and asks for more on the way."""
        moment = now()
        number = max(self._asked_at, default=0) + 1
        self._asked_at[number] = moment
        self._exchange.ask(number)
        grant = self._exchange.granted()
        if grant is not None and grant.ask in self._asked_at:
            self._deadline = self._asked_at[grant.ask] + grant.remaining_s
            # earlier questions can never be answered any more
            self._asked_at = {asked: at for asked, at in self._asked_at.items() if asked >= grant.ask}
        return self._deadline - moment

    def _wants_kill(self) -> bool:
        grant = self._exchange.granted()
        return grant is not None and grant.kill

    def _wants_stop(self) -> bool:
        grant = self._exchange.granted()
        return self._stop_asked or (grant is not None and grant.stop)

    def _on_term(self) -> None:
        self._stop_asked = True  # the cluster wants the node: a checkpoint is worth more than nothing

    def _pass_on(self, event: Event, descriptor: int) -> None:
        os.write(descriptor, encode(event))

    def _options(self, scratch: Path) -> LocalOptions:
        order = self._order
        given = {name: os.environ[name] for name in _PASSED_DEVICES if name in os.environ}
        return LocalOptions(
            command=order.command,
            scratch_root=scratch,
            patience_s=order.patience_s,
            memory_limit_bytes=order.memory_limit_bytes,
            log_limit_bytes=order.log_limit_bytes,
            niceness=order.niceness,
            threads=order.threads,
            processes=order.processes,
            added_environment=given | order.added_environment,
            garbage_limit=order.garbage_limit,
        )


def _ended_unstarted(reason: EndReason, *, exit_code: int | None = None, detail: str = "") -> Ended:
    return Ended(
        reason=reason,
        exit_code=exit_code,
        signal=None,
        out_of_memory=False,
        max_rss_bytes=0,
        cpu_s=0.0,
        paused_s=0.0,
        last_word=None,
        detail=detail,
    )


def main() -> None:
    """Entry point.

    Raises:
        FileExistsError: the cluster started the same step a second time; the first one is the step.
    """
    exchange = Exchange(Path(sys.argv[1]))
    exchange.begin()
    asyncio.run(Outpost(exchange, exchange.order()).run())


if __name__ == "__main__":
    main()
