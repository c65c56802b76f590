"""The worker's stand-in on a cluster's node: runs one step there with the local launcher, inside a granted right.

    python -m worker.launchers.outpost <exchange folder>
    python -m worker.launchers.outpost <signed address to claim the step> <signed address of the owner's word>

It is what a Ray or Slurm job executes, in the trainer's environment. It asks its owner for the right to run through
the exchange, feeds the step with what is granted, passes events on, and leaves the facts of the end. Nobody
grants: the step is paused, then killed, by the same supervisor as on the worker's own machine. The outpost is
killed: the supervisor sees its pipe close.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from schemas.events import Failure, Stopped
from schemas.failures import FailureClass
from schemas.steps import FAILURE_EXIT_CODE, STOPPED_EXIT_CODE, StepSpec
from worker.confinement import IsolationUnavailable
from worker.launchers.exchange.folder import FolderExchange
from worker.launchers.exchange.interface import EXCHANGE_AWAY, EndFacts, Grant, InputError, NodeSide, Order
from worker.launchers.exchange.storage_node import StorageNode
from worker.launchers.interface import Ended, EndReason, Handle, LauncherUnavailable
from worker.launchers.local import LocalLauncher, LocalOptions
from worker.launchers.node_scratch import node_scratch
from worker.launchers.supervisor import now

_log = structlog.get_logger()

_PASSED_DEVICES = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
"""What the cluster gave this step, by the cluster's own means."""


class Outpost:
    """One step on this node."""

    def __init__(self, side: NodeSide, order: Order, scratch: Path) -> None:
        self._side = side
        self._order = order
        self._scratch = scratch
        self._asked_at: dict[int, float] = {}
        self._deadline = self._fed_at = now()
        self._word: Grant | None = None
        self._handle: Handle | None = None
        self._stop_asked = False

    async def run(self) -> None:
        """From the first question to the facts of the end."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._on_term)
        try:
            launcher = LocalLauncher(self._options())
        except IsolationUnavailable as error:  # this node's kernel has not what the operator requires
            await self._side.end(EndFacts.of(_ended_unstarted(EndReason.NOT_STARTED, detail=str(error))))
            return
        beside = [asyncio.create_task(self._beat()), asyncio.create_task(self._keep_up())]
        ended = await self._run_step(launcher)
        await launcher.close()
        await self._side.end(EndFacts.of(ended))
        for task in beside:
            task.cancel()

    async def _run_step(self, launcher: LocalLauncher) -> Ended:
        ready = asyncio.create_task(self._ready())
        over = asyncio.create_task(self._over_before_it_began())
        await asyncio.wait({ready, over}, return_when=asyncio.FIRST_COMPLETED)
        over.cancel()
        if not ready.done():
            self._side.give_up()
            ready.cancel()
            if over.result().exit_code == STOPPED_EXIT_CODE:
                await self._side.pass_on(Stopped())
            return over.result()
        try:
            spec = ready.result()
            lease_s = self._deadline - now()
            self._handle = await launcher.start(spec, lease_s=lease_s, log=self._side.log)
        except InputError as error:
            await self._side.pass_on(_unreachable(error))
            return _ended_unstarted(EndReason.EXITED, exit_code=FAILURE_EXIT_CODE, detail=str(error))
        except LauncherUnavailable as error:
            return _ended_unstarted(EndReason.NOT_STARTED, detail=str(error))
        async for event in self._handle.events():
            await self._side.pass_on(event)
        return await self._handle.wait()

    async def _ready(self) -> StepSpec:
        """Everything is here, and the right to run."""
        spec = await self._side.fetched(self._order.spec, self._scratch)
        while self._deadline <= now():  # noqa: ASYNC110 - the beat finds out; there is nothing else to wait for
            await asyncio.sleep(self._order.beat_s / 2)
        return spec

    async def _over_before_it_began(self) -> Ended:
        """Wait for a kill, a wish to stop, or the end of the patience without a right."""
        while True:
            if self._wants_kill():
                return _ended_unstarted(EndReason.KILLED)
            if self._wants_stop():
                return _ended_unstarted(EndReason.EXITED, exit_code=STOPPED_EXIT_CODE)
            if now() - max(self._fed_at, self._deadline) > self._order.patience_s:
                return _ended_unstarted(EndReason.UNFED)
            await asyncio.sleep(self._order.beat_s / 2)

    async def _beat(self) -> None:
        told_to_stop = False
        while True:
            with _perhaps_later():  # the road is cut: no answer, no right
                await self._ask()
                if self._handle is not None:
                    self._handle.feed(self._deadline - now())
                    if self._wants_kill():
                        self._side.give_up()
                        await self._handle.kill()
                    elif self._wants_stop() and not told_to_stop:
                        told_to_stop = True
                        await self._handle.ask_stop()
            await asyncio.sleep(self._order.beat_s)

    async def _keep_up(self) -> None:
        while True:
            with _perhaps_later():
                await self._side.keep_up()
            await asyncio.sleep(self._order.beat_s)

    async def _ask(self) -> None:
        """Ask for the right, and take in what was granted."""
        number = max(self._asked_at, default=0) + 1
        self._asked_at[number] = now()
        self._word = word = await self._side.ask(number)
        if word is not None and word.ask in self._asked_at:
            self._deadline = self._asked_at[word.ask] + word.remaining_s
            # earlier questions can never be answered any more
            self._asked_at = {asked: at for asked, at in self._asked_at.items() if asked >= word.ask}

    def _wants_kill(self) -> bool:
        return self._word is not None and self._word.kill

    def _wants_stop(self) -> bool:
        return self._stop_asked or (self._word is not None and self._word.stop)

    def _on_term(self) -> None:
        self._stop_asked = True  # the cluster wants the node: a checkpoint is worth more than nothing

    def _options(self) -> LocalOptions:
        order = self._order
        given = {name: os.environ[name] for name in _PASSED_DEVICES if name in os.environ}
        return LocalOptions(
            command=order.command,
            scratch_root=self._scratch,
            patience_s=order.patience_s,
            memory_limit_bytes=order.memory_limit_bytes,
            log_limit_bytes=order.log_limit_bytes,
            niceness=order.niceness,
            threads=order.threads,
            processes=order.processes,
            added_environment=given | order.added_environment,
            garbage_limit=order.garbage_limit,
            isolation=order.isolation,
            network=order.network,
            readable=order.readable,
            writable=order.writable,
        )


@contextmanager
def _perhaps_later() -> Iterator[None]:
    """What fails within is tried again at the next beat: a step without a beat is as good as dead."""
    try:
        yield
    except EXCHANGE_AWAY:
        pass
    except Exception:  # noqa: BLE001 - logged; whatever it is, the step's right decides how long that may go on
        _log.exception("beat_failed")


def _unreachable(error: InputError) -> Failure:
    return Failure(
        failure_class=FailureClass.INFRASTRUCTURE,
        code=error.code,
        message="A file this training needs could not be brought to its machine.",
        detail=error.detail,
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


def _side(arguments: list[str], scratch: Path) -> NodeSide:
    return FolderExchange(Path(arguments[0])) if len(arguments) == 1 else StorageNode(*arguments, scratch=scratch)


async def run_step(arguments: list[str]) -> None:
    """Run the step that the arguments lead to.

    Raises:
        FileExistsError: the cluster started the same step a second time; the first one is the step.
    """
    with node_scratch() as scratch:
        side = _side(arguments, scratch)
        await Outpost(side, await side.begin(), scratch).run()


def main() -> None:
    """Entry point."""
    asyncio.run(run_step(sys.argv[1:]))


if __name__ == "__main__":
    main()
