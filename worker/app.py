"""The composition root: the only file that knows everybody. Starts in order, watches, stops in order."""

import asyncio
import contextlib
import os
import random
import secrets
import signal
import socket
from collections.abc import Coroutine
from typing import Any, Final

import structlog

from worker import __version__
from worker.clock import Clock
from worker.domain.moves import Limits
from worker.domain.outcome import Succeeded
from worker.errors import DatabaseAway, WorkerError
from worker.health import HealthServer
from worker.intake.consumer import Intake
from worker.intake.dead_letters import count as count_dead_letters
from worker.intake.topology import declare
from worker.launchers.local import LocalLauncher
from worker.loop_guard import LoopGuard
from worker.metrics import ISOLATED, Metrics
from worker.pipeline.attempt import Attempt
from worker.pipeline.heartbeat import Heartbeat, ProgressWriter
from worker.pipeline.parts import Parts, Timing
from worker.pipeline.patience import until_answered
from worker.pipeline.runner import Runner, Story, train_and_publish
from worker.placement import launcher_of
from worker.service_manager import ServiceManager
from worker.services.dispatcher import Dispatcher
from worker.services.janitor import Janitor, Retention
from worker.services.relay import Relay
from worker.services.rescuer import Rescuer
from worker.services.sweeper import sweep_now_and_then
from worker.services.tidier import Tidier
from worker.services.watchers import devices_held, watch_backlog, watch_dead_letters, watch_host, watch_loop
from worker.settings import Settings
from worker.storage import Storage, StorageOptions, open_storage
from worker.storage.disk import own_folder
from worker.store.data import DataStore
from worker.store.database import Database
from worker.store.janitor import JanitorStore
from worker.store.migrations import check_schema
from worker.store.models import ModelStore
from worker.store.outbox import OutboxStore
from worker.store.runs import RunStore
from worker.store.watching import WatchStore
from worker.store.workers import WorkerStore
from worker.tracing import open_tracing

_WATCH_S: Final = 5.0
_WATCH_DEAD_LETTERS_S: Final = 30.0
_SERVICES_END_S: Final = 10.0
_log = structlog.get_logger(__name__)


async def nothing_to_train(attempt: Attempt, parts: Parts) -> Succeeded:
    """The story under the ``noop`` launcher: measures the orchestration alone, trains nothing, publishes nothing."""
    from schemas.status import Gate  # noqa: PLC0415 - only on this road

    _ = attempt, parts
    return Succeeded(figures={"launcher": "noop"}, gate=Gate.NO_IMPROVEMENT, version=None)


class App:
    """One worker process.

    Args:
        settings: read once.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.worker_id: Final = f"{socket.gethostname()[:40]}-{os.getpid()}-{secrets.token_hex(4)}"
        self.metrics: Final = Metrics()
        self._tracing = open_tracing(settings.traces_url, "speech-training-worker")
        self._manager = ServiceManager()
        # A shorter freeze costs no lease: ending the worker for it would harm runs that it can still save.
        limit_s = settings.frozen_limit_s and max(settings.frozen_limit_s, settings.lease_s)
        self._guard = LoopGuard(limit_s, self._manager)
        self._stop = asyncio.Event()
        self._cut_short = asyncio.Event()
        # The relay ends last: hand-overs have something to tell.
        self._stop_relay = asyncio.Event()
        self._failed: BaseException | None = None
        clock = self._clock = Clock(random=random.SystemRandom().random)
        dsn = settings.database_url.get_secret_value()
        limits = Limits(
            failures=settings.failure_limit,
            hand_overs=settings.hand_over_limit,
            wait_s=settings.wait_limit_s,
            run_s=settings.run_limit_s,
            lost_workers=settings.lost_worker_limit,
        )
        self._database = Database(dsn, size=settings.database_connections, name="training-worker")
        # The heartbeat shares its connection with nobody: no slow statement can make a lease run out.
        # Given up early enough to ask again on a new one, and its road back to the pool may take as long.
        answer_s = max(settings.renew_s / 2, min(settings.renew_s, 1.0))
        self._heart_database = Database(dsn, size=1, answer_s=answer_s, name="training-heartbeat")
        self._look_database = Database(dsn, size=1, answer_s=settings.lease_s / 4, name="training-rescuer")
        self._runs = RunStore(self._database, limits, clock.random)
        self._workers = WorkerStore(self._database)
        self._outbox = OutboxStore(self._database)
        self._storage = storage_of(settings)
        self._launcher = launcher_of(settings, self._storage)
        self._isolation = self._launcher.means if isinstance(self._launcher, LocalLauncher) else None
        if self._isolation is not None:
            for kept_from in ISOLATED:
                self.metrics.isolation.labels(kept_from).set(getattr(self._isolation, kept_from))
        self._heartbeat = Heartbeat(
            RunStore(self._heart_database, limits, clock.random),
            WorkerStore(self._heart_database),
            self.worker_id,
            renew_s=settings.renew_s,
            lease_s=settings.lease_s,
            pause_s=settings.pause_s,
            clock=clock,
            metrics=self.metrics,
        )
        self._progress = ProgressWriter(
            self._runs, self._heartbeat, every_s=settings.progress_s, clock=clock, metrics=self.metrics
        )
        parts = Parts(
            runs=self._runs,
            models=ModelStore(self._database),
            data=DataStore(self._database),
            storage=self._storage,
            launcher=self._launcher,
            metrics=self.metrics,
            clock=clock,
            timing=Timing(settings.lease_s, settings.pause_s, settings.stall_s, settings.run_limit_s),
            minimum_audio_s=settings.minimum_audio_s,
            keep_checkpoints=settings.keep_checkpoints,
            tracing=self._tracing,
        )
        story: Story = nothing_to_train if settings.launcher == "noop" else train_and_publish
        runner = Runner(
            parts, self._heartbeat, story, scratch=settings.scratch / "attempts", hand_over_s=settings.grace_s
        )
        self._dispatcher = Dispatcher(
            self._runs,
            runner,
            self._heartbeat,
            worker_id=self.worker_id,
            slots=settings.slots,
            lease_s=settings.lease_s,
            poll_s=settings.poll_s,
            clock=clock,
            metrics=self.metrics,
        )
        self._rescuer = Rescuer(
            self._runs,
            WorkerStore(self._look_database),
            self.worker_id,
            sweep_s=settings.sweep_s,
            lease_s=settings.lease_s,
            clock=clock,
            metrics=self.metrics,
        )
        self._tidier = Tidier(self._runs, parts.storage, every_s=settings.sweep_s, clock=clock)
        amqp_url = settings.amqp_url.get_secret_value()
        self._relay = Relay(amqp_url, self._outbox, declare, self.metrics, tracing=self._tracing)
        self._intake = Intake(amqp_url, self._runs, self._dispatcher.take_in, self.metrics, tracing=self._tracing)
        self._janitor = Janitor(
            JanitorStore(self._database), self._storage, settings.scratch, retention_of(settings), clock
        )
        self._health = HealthServer(
            self.metrics.registry, self._readiness, settings.observe_host, settings.observe_port
        )

    async def run(self) -> int:
        """Work until SIGTERM, a drain, or something that cannot be mended; the exit code."""
        async with self._guard:
            return await self._run()

    async def _run(self) -> int:
        self._listen_to_signals()
        if not await self._started_before_stop():
            return 0
        services = [asyncio.create_task(self._guarded(name, work), name=name) for name, work in self._beside()]
        dispatching = asyncio.create_task(self._guarded("dispatcher", self._dispatcher.run(self._stop)))
        await self._stop.wait()
        await dispatching
        await self._wind_down(services)
        self._ignore_signals()
        return 0 if self._failed is None else 1

    # --- starting ------------------------------------------------------------------------------------------------

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, self.stop)

    @staticmethod
    def _ignore_signals() -> None:
        """Everything is handed over: an impatient SIGTERM must not turn an orderly end into a violent one."""
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(name)
            signal.signal(name, signal.SIG_IGN)

    async def _started_before_stop(self) -> bool:
        """Start; False: told to stop first, as when the database is away and nothing begins."""
        starting, stopping = asyncio.create_task(self._start()), asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
            return starting.done()
        finally:
            for task in (starting, stopping):
                task.cancel()
            await asyncio.gather(starting, stopping, return_exceptions=True)

    def stop(self) -> None:
        """Hand over and end; asked a second time, without waiting for checkpoints."""
        if self._stop.is_set():
            self._cut_short.set()
        self._stop.set()

    async def _start(self) -> None:
        dsn = self._settings.database_url.get_secret_value()
        self._manager.waiting("the database")
        await until_answered(lambda: check_schema(dsn), self._clock, what="check schema")
        await until_answered(
            lambda: self._workers.sign_on(
                self.worker_id, socket.gethostname(), os.getpid(), __version__, self._settings.slots
            ),
            self._clock,
            what="sign on",
        )
        port = await self._health.open()
        self._manager.started()
        _log.info(
            "worker started",
            worker=self.worker_id,
            version=__version__,
            slots=self._settings.slots,
            launcher=self._settings.launcher,
            trainers="" if self._isolation is None else str(self._isolation),
            observe_port=port,
        )

    def _beside(self) -> list[tuple[str, Coroutine[Any, Any, None]]]:
        """What runs beside the runs."""
        return [
            ("heartbeat", self._heartbeat.run()),
            ("progress", self._progress.run()),
            ("rescuer", self._rescuer.run()),
            ("tidier", self._tidier.run()),
            ("relay", self._relay.run(self._stop_relay)),
            ("intake", self._intake.run(self._stop)),
            ("drain", self._drain_when_asked()),
            ("backlog", self._watch_backlog()),
            ("dead letters", self._watch_dead_letters()),
            ("host", self._watch_host()),
            ("loop", watch_loop(self.metrics)),
            ("janitor", self._janitor.run(self._settings.tidy_s)),
            ("sweeper", sweep_now_and_then(self._launcher, self._settings.tidy_s, self._clock)),
        ]

    async def _watch_backlog(self) -> None:
        await watch_backlog(
            WatchStore(self._database),
            self._outbox,
            self.metrics,
            every_s=_WATCH_S,
            alive_s=self._settings.lease_s,
            clock=self._clock,
        )

    async def _watch_dead_letters(self) -> None:
        amqp_url = self._settings.amqp_url.get_secret_value()
        await watch_dead_letters(
            lambda: count_dead_letters(amqp_url), self.metrics, every_s=_WATCH_DEAD_LETTERS_S, clock=self._clock
        )

    async def _watch_host(self) -> None:
        names = self._settings.device_list()
        await watch_host(
            self._settings.scratch,
            lambda: devices_held(self._settings.device_locks, names),
            self.metrics,
            every_s=_WATCH_S,
            clock=self._clock,
        )

    async def _guarded(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """A service that fails takes the worker down in order: everything is handed over, the exit code says so."""
        try:
            await work
        except Exception as error:  # noqa: BLE001 - whatever it is, the runs are handed over
            _log.exception("service failed: the worker hands over and ends", service=name)
            self._failed = error
            self._stop.set()

    async def _drain_when_asked(self) -> None:
        await self._heartbeat.drain_requested.wait()
        _log.info("asked to drain")
        self._stop.set()

    def _readiness(self) -> dict[str, bool]:
        return {
            "database": bool(self.metrics.database_up._value.get()),  # noqa: SLF001 - a gauge has no public reader
            "intake": self._intake.consuming,
            "not_stopping": not self._stop.is_set(),
        }

    # --- stopping ------------------------------------------------------------------------------------------------

    async def _wind_down(self, services: list[asyncio.Task[None]]) -> None:
        """Hand runs over while leases are still renewed; tell what there is to tell; sign off."""
        _log.info("stopping", under_way=len(self._heartbeat.attempts))
        self._manager.stopping()
        await self._dispatcher.wind_down(self._settings.grace_s, self._cut_short)
        await self._launcher.close()
        self._stop_relay.set()
        # These end by themselves: cut off in the middle of closing a channel, the broker would complain of us.
        await asyncio.wait([task for task in services if task.get_name() in {"relay", "intake"}], timeout=5)
        for task in services:
            task.cancel()
        _, stuck = await asyncio.wait(services, timeout=_SERVICES_END_S)
        if stuck:  # everything is handed over: nothing that hangs may keep the process from ending
            _log.warning("services do not end", services=[task.get_name() for task in stuck])
        with contextlib.suppress(DatabaseAway, WorkerError):
            await self._workers.sign_off(self.worker_id)
        await self._health.close()
        await self._storage.aclose()
        for database in (self._database, self._heart_database, self._look_database):
            await database.close()
        await asyncio.to_thread(self._tracing.close)
        _log.info("worker ended", worker=self.worker_id)


def retention_of(settings: Settings) -> Retention:
    """How long things stay; what was fetched for a run stays for as long as a run may take."""
    oldest_s = max(settings.cache_oldest_s, settings.run_limit_s)
    unused_s = max(settings.run_limit_s, min(Retention.cache_unused_s, oldest_s))
    return Retention(cache_oldest_s=oldest_s, cache_unused_s=unused_s)


def storage_of(settings: Settings) -> Storage:
    """The storage that the settings name.

    Raises:
        StorageRefused: the folder for what is fetched belongs to somebody else.
    """
    if not settings.storage_url.startswith("file:"):
        own_folder(settings.cache, "WORKER_CACHE", settings.mask)
    return open_storage(
        settings.storage_url,
        StorageOptions(
            cache=settings.cache / "storage",
            endpoint=settings.s3_endpoint or None,
            region=settings.s3_region,
            access_key_id=settings.s3_access_key.get_secret_value() or None,
            secret_access_key=settings.s3_secret_key.get_secret_value() or None,
            session_token=settings.s3_session_token.get_secret_value() or None,
            path_style=settings.s3_path_style,
            ca_file=settings.s3_ca_file,
            mask=settings.mask,
            extra=settings.storage_options,
        ),
    )


async def run_worker(settings: Settings) -> int:
    """Start a worker and work; the exit code.

    Raises:
        StorageRefused: a folder of ours belongs to somebody else.
    """
    for name, folder in (("WORKER_SCRATCH", settings.scratch), ("WORKER_CACHE", settings.cache)):
        own_folder(folder, name, settings.mask)
    return await App(settings).run()
