"""Steps as jobs of a cluster: one job per step, whose outpost talks to its owner through an exchange."""

import asyncio
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from uuid import UUID, uuid4

from schemas.steps import Step, StepSpec
from worker.launchers.cluster import Cluster, Presence, Sighting
from worker.launchers.exchange.interface import Exchange, Exchanges, Order, Question, readable_or
from worker.launchers.interface import EndReason, LauncherUnavailable
from worker.launchers.remote_handle import SILENT_BEATS, RemoteHandle
from worker.launchers.step_rules import Isolation


@dataclass(frozen=True, slots=True)
class RemoteOptions:
    """How steps run on a cluster."""

    command: Sequence[str]
    """The trainer's program on the nodes."""
    outpost: Sequence[str] = (sys.executable, "-m", "worker.launchers.outpost")
    """The program on the nodes that runs a step; the exchange says with which arguments."""
    beat_s: float = 1.0
    """Between two questions for the right to run, and between two looks at a step's exchange."""
    sighting_s: float = 5.0
    """Between two looks at the cluster's list."""
    patience_s: float = 600.0
    memory_limit_bytes: int = 0
    log_limit_bytes: int = 64 * 2**20
    niceness: int = 0
    threads: int | None = None
    processes: int = 1
    """Over how many, on its node, the step ``train`` spreads."""
    added_environment: Mapping[str, str] = field(default_factory=dict)
    garbage_limit: int = 100
    isolation: Isolation = "best_available"
    """Of steps on their nodes, each of which takes what its own kernel has: see ``LocalOptions``."""
    network: bool = False
    readable: Sequence[Path] = ()
    writable: Sequence[Path] = ()


_PREFIX: Final = "speech-"
_UNKNOWN: Final = Sighting(Presence.GONE, "unknown to the cluster")


class RemoteLauncher:
    """Runs each step as a job of a cluster; steps outlive the worker until their right runs out."""

    def __init__(self, cluster: Cluster, exchanges: Exchanges, options: RemoteOptions) -> None:
        self._cluster = cluster
        self._exchanges = exchanges
        self._options = options
        self._handles: set[RemoteHandle] = set()
        self._seen: Mapping[str, Sighting] = {}
        self._seen_at = -float("inf")
        self._looking = asyncio.Lock()

    @property
    def fetches(self) -> bool:
        """See ``Launcher.fetches``."""
        return self._exchanges.fetches

    async def start(self, spec: StepSpec, *, lease_s: float, log: Path) -> RemoteHandle:
        """See ``Launcher.start``."""
        token = uuid4().hex
        exchange = await self._ordered(spec, token)
        command = shlex.join([*self._options.outpost, *await exchange.arguments()])
        name = f"{_PREFIX}{exchange.name}"
        try:
            await self._cluster.submit(name, f"exec {command}", exchange.output)
        except LauncherUnavailable:
            # perhaps it was queued and only the answer is lost: then it finds this, and ends unstarted
            await exchange.command_kill(token)
            raise
        return self._handle(exchange, spec, token, lease_s, log)

    async def adopt(self, run_id: UUID, attempt: int, step: Step, *, lease_s: float, log: Path) -> RemoteHandle | None:
        """See ``Launcher.adopt``."""
        exchange = await self._exchanges.newest(run_id, attempt, step)
        if exchange is None or await exchange.is_closed():
            return None
        sighting = await self._look(exchange)
        ended = await readable_or(None, exchange.ended())
        if ended is None and sighting.presence is Presence.GONE:
            return None
        if ended is not None and ended.reason is not EndReason.EXITED:
            return None
        token = uuid4().hex
        order = await readable_or(None, exchange.order())
        if order is None:  # another version's: to be stopped, not gone on with
            return None
        await exchange.take_over(token)
        return self._handle(exchange, order.spec, token, lease_s, log)

    async def ensure_stopped(self, run_id: UUID, below_attempt: int) -> None:
        """See ``Launcher.ensure_stopped``.

        Told through the exchange, killed by the cluster, and believed when the cluster calls it gone and it has not
        asked for its right for some beats: a cluster that lost its memory does not make us start twice.
        """
        earlier = await self._exchanges.of_earlier_attempts(run_id, below_attempt)
        token = uuid4().hex
        for exchange in earlier:
            await exchange.command_kill(token)
        while alive := self._alive(await self._cluster.sightings(), run_id, below_attempt):
            for name in alive:
                await self._cluster.cancel(name)
            await asyncio.sleep(self._options.beat_s)
        await asyncio.gather(*(self._until_silent(exchange) for exchange in earlier))

    async def sweep(self) -> int:
        """See ``Launcher.sweep``: the exchanges of runs long over."""
        return await self._exchanges.remove_old()

    async def close(self) -> None:
        """Let go of every step without ending it: another worker may adopt it while its right lasts."""
        for handle in tuple(self._handles):
            handle.let_go()

    async def _look(self, exchange: Exchange) -> Sighting:
        """A step as the cluster tells now."""
        return (await self._cluster.sightings()).get(f"{_PREFIX}{exchange.name}", _UNKNOWN)

    async def _glance(self, exchange: Exchange) -> Sighting:
        """A step as the cluster told not long ago: one look serves every step of this worker."""
        async with self._looking:
            if time.monotonic() - self._seen_at >= self._options.sighting_s:
                self._seen = await self._cluster.sightings()
                self._seen_at = time.monotonic()
        return self._seen.get(f"{_PREFIX}{exchange.name}", _UNKNOWN)

    async def _cancel(self, exchange: Exchange) -> None:
        """Have the cluster kill a step, and return when it says that it is gone."""
        while (await self._look(exchange)).presence is Presence.ALIVE:
            await self._cluster.cancel(f"{_PREFIX}{exchange.name}")
            await asyncio.sleep(self._options.beat_s)

    async def _until_silent(self, exchange: Exchange) -> None:
        asked, silent = -1, 0
        while silent < SILENT_BEATS and await readable_or(None, exchange.ended()) is None:
            before, asked = asked, (await readable_or(Question(), exchange.question())).number
            silent = silent + 1 if asked == before else 0
            await asyncio.sleep(self._options.beat_s)

    @staticmethod
    def _alive(seen: Mapping[str, Sighting], run_id: UUID, below_attempt: int) -> list[str]:
        prefix = f"{_PREFIX}{run_id}-"
        return [
            name
            for name, sighting in seen.items()
            if name.startswith(prefix)
            and sighting.presence is Presence.ALIVE
            and int(name.removeprefix(prefix).partition("-")[0]) < below_attempt
        ]

    async def _ordered(self, spec: StepSpec, token: str) -> Exchange:
        options = self._options
        exchange = await self._exchanges.next(spec.run_id, spec.attempt, spec.step)
        await exchange.create(
            Order(
                spec=spec,
                command=tuple(options.command),
                beat_s=options.beat_s,
                patience_s=options.patience_s,
                memory_limit_bytes=options.memory_limit_bytes,
                log_limit_bytes=options.log_limit_bytes,
                niceness=options.niceness,
                threads=options.threads,
                processes=options.processes,
                added_environment=dict(options.added_environment),
                garbage_limit=options.garbage_limit,
                isolation=options.isolation,
                network=options.network,
                readable=tuple(options.readable),
                writable=tuple(options.writable),
            ),
            token,
        )
        return exchange

    def _handle(self, exchange: Exchange, spec: StepSpec, token: str, lease_s: float, log: Path) -> RemoteHandle:
        handle = RemoteHandle(
            exchange,
            spec,
            token,
            lease_s=lease_s,
            log=log,
            beat_s=self._options.beat_s,
            patience_s=self._options.patience_s,
            glance=lambda: self._glance(exchange),
            cancel=lambda: self._cancel(exchange),
        )
        self._handles.add(handle)
        handle.on_end(lambda: self._handles.discard(handle))
        return handle
