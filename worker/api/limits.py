"""How much of one API process anybody may have: derived once, from the settings and what the system allows."""

import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from worker.api.problems import Refused
from worker.api.settings import ApiSettings
from worker.fair import FairShares

OTHER_DESCRIPTORS: Final = 128
"""Open files that are no customer's connection: the log, libraries, storage, and some in reserve."""
DESCRIPTORS_PER_UPLOAD: Final = 4
"""A spooled file, the one that storage writes, a folder being removed, and one in reserve."""
LEAST_FREE_BYTES: Final = 256 << 20
"""What an upload leaves free on its disk, for the log and everybody else."""
MOST_WATCHERS: Final = 2_000
MOST_DOWNLOADS: Final = 64
"""Logs and reports on their way; each has an open file and a piece of it in memory for as long as its client reads."""
_CHECK_EVERY: Final = 16 << 20
_FULL: Final = "Too many bytes of unfinished uploads at the moment."


@dataclass(frozen=True)
class Limits:
    """Places of one API process, and who may have how many.

    Attributes:
        connections: open connections, all together.
        per_address: of one address.
        requests: under way, by organization.
        clients: the same by address, where proxies are trusted: their connections say nothing about clients.
        database: connections to the database, by organization; two stay for polls and look-ups of keys.
        slots: uploads under way, by organization.
        upload_bytes: bytes of unfinished uploads, by organization.
        watchers: open streams of changes, by organization.
        watchers_of_key: the same, by key.
        downloads: logs and reports that are being read, by organization.
        largest_request_bytes: what one request may bring: no more than an organization's share of the room.
    """

    connections: int
    per_address: int
    requests: FairShares
    clients: FairShares | None
    database: FairShares
    slots: FairShares
    upload_bytes: FairShares
    watchers: FairShares
    watchers_of_key: FairShares
    downloads: FairShares
    largest_request_bytes: int


def limits_of(settings: ApiSettings) -> Limits:
    """What the settings allow, within what the system does."""
    connections = min(settings.api_connections, connections_for(_open_files(), settings))
    per_address = min(settings.api_connections_per_address, max(1, connections // 2))
    uploads, room = settings.api_uploads_at_once, settings.api_upload_bytes
    database = max(1, settings.api_database_connections - 2)
    # A stream holds its connection for minutes, so all streams together get a part of the connections only.
    watchers = max(1, min(MOST_WATCHERS, connections // 2))
    return Limits(
        connections=connections,
        per_address=per_address,
        # More places than connections: only the share of one counts, the connections are counted themselves.
        requests=FairShares(2 * connections + 2, connections // 4),
        clients=FairShares(2 * connections + 2, per_address) if settings.trusted_proxies else None,
        database=FairShares(database, database // 2, reserve=database // 4),
        slots=FairShares(uploads, uploads // 2, reserve=uploads // 4),
        upload_bytes=FairShares(room, room // 3),
        watchers=FairShares(watchers, watchers // 4, reserve=watchers // 8),
        watchers_of_key=FairShares(2 * watchers + 2, watchers // 8),
        downloads=FairShares(MOST_DOWNLOADS, MOST_DOWNLOADS // 4, reserve=MOST_DOWNLOADS // 8),
        largest_request_bytes=min(settings.api_largest_request_bytes, max(1, room // 3)),
    )


def connections_for(open_files: int, settings: ApiSettings) -> int:
    """Connections that a limit of open files leaves room for."""
    return max(16, open_files - min(_other_files(settings), open_files // 2))


def raise_open_files(settings: ApiSettings) -> None:
    """The soft limit of open files up to what we need, where the hard one allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = settings.api_connections + _other_files(settings)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _other_files(settings: ApiSettings) -> int:
    uploads = settings.api_uploads_at_once * DESCRIPTORS_PER_UPLOAD
    return OTHER_DESCRIPTORS + settings.api_database_connections + uploads + MOST_DOWNLOADS


def _open_files() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft != resource.RLIM_INFINITY else 1 << 30


class Room:
    """Bytes of the upload folder that one request holds; they are free again when the block of `room_for` ends."""

    def __init__(self, limits: Limits, organization_id: int, folder: Path) -> None:
        self._shares = limits.upload_bytes
        self._organization_id = organization_id
        self._folder = folder
        self._held = 0
        self._unchecked = 0

    def expect(self, size: int) -> None:
        """Look whether so many bytes could come; nothing is kept for them.

        Raises:
            Refused: they could not.
        """
        if not self._shares.try_take(self._organization_id, size):
            raise _no_room(_FULL)
        self._shares.release(self._organization_id, size)

    def take(self, size: int) -> None:
        """More bytes arrive.

        Raises:
            Refused: the organization's share, the folder or the disk is full.
        """
        if not self._shares.try_take(self._organization_id, size):
            raise _no_room(_FULL)
        self._held += size
        self._unchecked += size
        if self._unchecked >= _CHECK_EVERY:
            self.check_disk()

    def check_disk(self) -> None:
        """Look at the disk itself, which others fill too.

        Raises:
            Refused: it is nearly full.
        """
        self._unchecked = 0
        if shutil.disk_usage(self._folder).free < LEAST_FREE_BYTES:
            raise _no_room("The folder for uploads is nearly full.")

    def give_back(self) -> None:
        """Everything is gone from the folder."""
        self._shares.release(self._organization_id, self._held)
        self._held = 0


def _no_room(detail: str) -> Refused:
    return Refused("unavailable", detail, headers={"Retry-After": "30"})


@contextmanager
def room_for(limits: Limits, organization_id: int, folder: Path) -> Iterator[Room]:
    """Room in the upload folder for as long as the block lasts.

    Raises:
        Refused: there is none.
    """
    room = Room(limits, organization_id, folder)
    try:
        room.check_disk()
        yield room
    finally:
        room.give_back()
