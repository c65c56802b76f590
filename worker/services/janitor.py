"""Removes what runs leave behind: spent outputs and checkpoints in storage, scratch and cache on this host."""

import asyncio
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final
from uuid import UUID

import structlog

from worker.clock import Clock
from worker.errors import WorkerError
from worker.storage import Storage
from worker.store.janitor import JanitorStore

_AT_ONCE: Final = 50
_KEYS_AT_ONCE: Final = 1_000
_PARTIAL_S: Final = 86_400.0
_STEPS: Final = "steps"
_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Retention:
    """How long things stay.

    Attributes:
        over_s: what only one run could use, after that run is over.
        unused_s: prepared data that later runs could use again.
        cache_bytes: what was fetched from a remote storage, on this host.
        cache_unused_s: nothing that was used within this time is taken from the cache; longer than any run. But what
            was deleted goes as soon as it was not used for `over_s`.
        cache_oldest_s: what was not used for so long is taken from the cache, however much room there is.
    """

    over_s: float = 3_600.0
    unused_s: float = 30 * 86_400.0
    cache_bytes: int = 50 << 30
    cache_unused_s: float = 2 * 86_400.0
    cache_oldest_s: float = 7 * 86_400.0


@dataclass(frozen=True)
class Swept:
    """What one sweep removed."""

    outputs: int = 0
    checkpoints: int = 0
    unnamed: int = 0
    """Files that were stored, and their worker killed before it could register them."""
    scratch: int = 0
    """Folders of attempts and steps that ended without clearing up: their worker was killed."""
    cache_bytes: int = 0


class Janitor:
    """Sweeps now and then. Several may run: the rows are shared out, and each looks after its own host.

    Args:
        store: which bytes are spent.
        storage: where they lie.
        scratch: this host's working folder: attempts in ``attempts/<run>/<attempt>``, their trainers' homes in
            ``steps/<run>-<attempt>-<step>``.
        retention: how long things stay.
        clock: the process's own time.
    """

    def __init__(
        self, store: JanitorStore, storage: Storage, scratch: Path, retention: Retention, clock: Clock
    ) -> None:
        self._store = store
        self._storage = storage
        self._scratch = scratch
        self._retention = retention
        self._clock = clock

    async def run(self, every_s: float) -> None:
        """Sweep until cancelled; what is away is tried again later."""
        while True:
            await self._clock.sleep(every_s * (0.5 + self._clock.random()))
            try:
                swept = await self.sweep()
            except (WorkerError, OSError) as error:
                _log.warning("sweep not finished", error=str(error))
            else:
                if swept != Swept():
                    _log.info("swept", **asdict(swept))

    async def sweep(self) -> Swept:
        """Remove everything that is spent.

        Raises:
            DatabaseAway: the database does not answer; what was removed stays removed.
            StorageAway: storage does not answer.
        """
        keep = self._retention
        outputs = checkpoints = 0
        while found := await self._store.remove_outputs(
            self._delete, over_s=keep.over_s, unused_s=keep.unused_s, most=_AT_ONCE
        ):
            outputs += found
        while found := await self._store.remove_checkpoints(self._delete, over_s=keep.over_s, most=_AT_ONCE):
            checkpoints += found
        scratch = await self._clear_scratch()
        unnamed = 0

        async def sweep_run(run_id: UUID, named: frozenset[str]) -> None:
            nonlocal unnamed
            unnamed += await self._remove_unnamed(run_id, named)

        while await self._store.sweep_runs(sweep_run, over_s=keep.over_s, most=_AT_ONCE):
            pass
        cache_bytes = await self._forget_deleted()
        cache_bytes += await self._storage.tidy(keep.cache_bytes, keep.cache_unused_s, _PARTIAL_S, keep.cache_oldest_s)
        return Swept(outputs, checkpoints, unnamed, scratch, cache_bytes)

    async def _delete(self, prefixes: Sequence[str]) -> None:
        for prefix in prefixes:
            await self._storage.delete_prefix(prefix)

    async def _remove_unnamed(self, run_id: UUID, named: frozenset[str]) -> int:
        keys = [stored.key async for stored in self._storage.listing(f"runs/{run_id}")]
        unnamed = [key for key in keys if not key.endswith("/log.txt") and named.isdisjoint(_folders(key))]
        await self._storage.delete(unnamed)
        return len(unnamed)

    async def _forget_deleted(self) -> int:
        """Recordings, datasets and models on this host whose owner has deleted them, or that storage lost."""
        over_s = self._retention.over_s
        fetched = sorted(await self._storage.fetched(over_s))
        removed = 0
        for start in range(0, len(fetched), _KEYS_AT_ONCE):
            gone = await self._store.deleted_keys(fetched[start : start + _KEYS_AT_ONCE])
            if gone:
                removed += await self._storage.forget_fetched(gone, over_s)
        return removed

    async def _clear_scratch(self) -> int:
        """Folders of attempts that are not under way any more. Those of runs unknown to this database stay."""
        folders = await asyncio.to_thread(_attempts, self._scratch, time.time() - self._retention.over_s)
        under_way = await self._store.attempts_under_way(sorted({run for run, _, _ in folders}))
        spent = [folder for run, attempt, folder in folders if run in under_way and under_way[run] != attempt]
        for folder in spent:
            await asyncio.to_thread(_remove, folder)
        return len(spent)


def _folders(key: str) -> list[str]:
    """The key itself and every prefix that it lies below."""
    parts = key.split("/")
    return ["/".join(parts[:length]) for length in range(1, len(parts) + 1)]


def _attempts(scratch: Path, before: float) -> list[tuple[UUID, int, Path]]:
    """Run, attempt and folder of what has not been touched since `before`."""
    found = []
    for folder in (*scratch.glob("attempts/*/*"), *scratch.glob(f"{_STEPS}/*-*-*")):
        of_step = folder.parent.name == _STEPS
        run, attempt = folder.name.rsplit("-", 2)[:2] if of_step else (folder.parent.name, folder.name)
        try:
            if folder.is_dir() and folder.stat().st_mtime < before:
                found.append((UUID(run), int(attempt), folder))
        except (ValueError, OSError):
            continue  # not ours, or gone meanwhile
    return found


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if folder.parent.name == _STEPS:
        return
    try:
        folder.parent.rmdir()
    except OSError:
        return  # another attempt of the run lies there
