"""Object storage as the road between a worker and a step on a machine that shares no folder with it: the worker's side.

The worker has the credentials of the storage; a node has none, and reaches single objects by signed addresses.
Below ``steps/<run id>/<attempt>-<step>-<serial>/``:

================  =========  ================================================================================
object            written    content
================  =========  ================================================================================
``order.json``    worker     what to run and how; never read by the step
``owner``         worker     the token of the owner whose words count; whoever adopts replaces it
``started``       step       put if absent: a fresh secret key of the step's own
``key``           worker     that key as the first owner saw it; a later ``started`` changes nothing
``ask``           step       its newest question: a number, and what it wants addresses for
``word``          worker     sealed with the key: the right to run, addresses; first of all the order
``events/00000``  step       a piece of the event lines; never put again with other bytes
``log``           step       the output, bounded; put whole, ever less often as it grows
``ended.json``    step       the facts of the end; the step's last object
``closed``        worker     made by the owner that has taken everything in
================  =========  ================================================================================

Inputs are read where they lie; outputs and checkpoints are written below ``runs/<run id>/<attempt>/`` (see
``schemas.steps``), all by addresses that the step asks for by name and the owner signs, for a quarter of an hour, when
the step may have them (``storage_rights``).

Who could read what, for how long. The command line of a job, which a cluster shows to its users and remembers, holds
two addresses: one to put ``started``, one to read ``word``. The second reads what only the step's key opens; the key
was never on a command line or in an environment, and the address that puts it cannot read it. So whoever sees the
command line once the owner has seen the step begin can read nothing. The first address is not spent by its use: only
where it leads is signed, not that nothing may lie there, so its bearer can put another ``started`` for a week; but
nobody reads that any more once the owner has kept the ``key``. Whoever puts one before that can take the step in its
job's place, with everything that it may read; the job then finds it begun and ends, the run fails with
``supervisor_lost``, and somebody asks why. Whoever can run programs as the job's user on its node can read what the
step reads while it runs, as on any road, and use its addresses for a quarter of an hour. Nobody can write anything but
what the step could: its own outputs and checkpoints, its own side of the exchange. Worker and nodes must talk TLS to
the storage, or the wire shows it all.

Whatever lies in an object that the step writes, its owner reads it bounded, and takes what cannot be read for nothing
said: then the cluster, and the silence, tell of the step's end.
"""

import asyncio
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final
from uuid import UUID

from schemas.steps import Step
from worker.errors import NotStored, TooLarge
from worker.launchers.exchange.interface import (
    EXCHANGE_AWAY,
    LONGEST_FACTS,
    LONGEST_ORDER,
    EndFacts,
    Grant,
    Order,
    Question,
    UnreadableWord,
    readable_or,
    starts_up_to,
    understood,
)
from worker.launchers.exchange.sealed import KEY_BYTES, seal
from worker.launchers.exchange.storage_rights import CLAIM_S, FRESH_S, StepRights
from worker.launchers.exchange.storage_word import (
    ASK,
    ENDED,
    LOG,
    LONGEST_QUESTION,
    OWNER,
    PIECE_BYTES,
    ROOT,
    STARTED,
    WORD,
    Word,
    event_piece,
    exchange_prefix,
)
from worker.storage import Storage
from worker.storage.disk import remove_older

_KEPT_S: Final = 7 * 24 * 3600.0
_LARGEST_LOG: Final = 256 * 2**20
_KEY: Final = "key"
_PIECES_AT_ONCE: Final = 16
"""Pieces of the event lines in one look: an owner that catches up answers questions in between."""


class StorageExchange:
    """One step's objects; see ``exchange.Exchange``."""

    output: Path | None = None

    def __init__(self, storage: Storage, run_id: str, folder: str, logs: Path) -> None:
        self._storage = storage
        self._prefix = f"{exchange_prefix(run_id)}/{folder}"
        self.name = f"{run_id}-{folder}"
        attempt, _, serial = folder.split("-")
        self.attempt, self.serial = int(attempt), int(serial)
        self.log = logs / f"{self.name}-{os.getpid()}-{time.monotonic_ns()}"
        self._log_version = 0
        self._pieces = 0
        """Of the event lines: so many were read."""
        self._order: Order | None = None
        self._key: bytes | None = None
        self._rights = StepRights(storage, self._prefix)

    def _at(self, name: str) -> str:
        return f"{self._prefix}/{name}"

    async def create(self, order: Order, token: str) -> None:
        """See ``Exchange.create``."""
        content = order.model_dump_json().encode()
        if not await self._storage.put_bytes(self._at("order.json"), content, only_if_absent=True):
            raise FileExistsError(self.name)
        self._order = order
        await self.take_over(token)

    async def arguments(self) -> list[str]:
        """See ``Exchange.arguments``: where to take the step, and where to read what only its taker can open."""
        return [
            await self._storage.signed_url(self._at(STARTED), CLAIM_S, "PUT"),
            await self._storage.signed_url(self._at(WORD), CLAIM_S),
        ]

    async def order(self) -> Order:
        """See ``Exchange.order``."""
        if self._order is None:
            self._order = understood(Order, await self._read("order.json", LONGEST_ORDER) or b"")
        return self._order

    async def take_over(self, token: str) -> None:
        """See ``Exchange.take_over``."""
        await self._storage.put_bytes(self._at(OWNER), token.encode())

    async def is_taken_from(self, token: str) -> bool:
        """See ``Exchange.is_taken_from``."""
        return await readable_or(None, self._read(OWNER, 100)) not in (None, token.encode())

    async def close(self, token: str) -> None:
        """See ``Exchange.close``."""
        await asyncio.to_thread(self.log.unlink, missing_ok=True)
        if not await self.is_taken_from(token):
            await self._storage.put_bytes(self._at("closed"), b"")

    async def is_closed(self) -> bool:
        """See ``Exchange.is_closed``."""
        return await self._storage.size(self._at("closed")) is not None

    async def question(self) -> Question:
        """See ``Exchange.question``."""
        content = await self._read(ASK, LONGEST_QUESTION)
        return Question() if content is None else understood(Question, content)

    async def grant(self, grant: Grant, question: Question) -> bool:
        """See ``Exchange.grant``."""
        key = await self._key_of_the_step()
        if key is None:
            return False
        if await self.is_taken_from(grant.owner):
            return True
        order, first = await self.order(), question.number == 0
        word = Word(
            grant=grant,
            addresses=await self._rights.addresses(order.spec, question),
            fresh_s=FRESH_S,
            order=order if first else None,
            inputs=await self._rights.inputs(order.spec) if first else {},
        )
        await self._storage.put_bytes(self._at(WORD), seal(key, word.model_dump_json().encode()))
        return True

    async def command_kill(self, token: str) -> None:
        """See ``Exchange.command_kill``. What has not begun is taken, so that its job finds it begun and ends."""
        await self.take_over(token)
        await self._storage.put_bytes(self._at(STARTED), os.urandom(KEY_BYTES), only_if_absent=True)
        question = await readable_or(Question(), self.question())
        grant = Grant(owner=token, ask=0, remaining_s=0.0, stop=False, kill=True)
        await readable_or(None, self.grant(grant, question))  # without an order it is for the cluster alone to end

    async def more_events(self) -> bytes:
        """See ``Exchange.more_events``."""
        pieces: list[bytes] = []
        try:
            while len(pieces) < _PIECES_AT_ONCE and sum(map(len, pieces)) < PIECE_BYTES:
                piece = await self._read(event_piece(self._pieces + len(pieces)), PIECE_BYTES)
                if not piece:
                    break
                pieces.append(piece)
        except EXCHANGE_AWAY:
            if not pieces:  # else those that came first are taken in first
                raise
        self._pieces += len(pieces)
        return b"".join(pieces)

    async def bring_log(self, question: Question, *, whole: bool = False) -> None:
        """See ``Exchange.bring_log``."""
        if question.log_version == self._log_version and not whole:
            return
        if (await self._storage.size(self._at(LOG)) or _LARGEST_LOG) < _LARGEST_LOG:
            await asyncio.to_thread(self.log.parent.mkdir, parents=True, exist_ok=True, mode=0o700)
            with suppress(NotStored), await asyncio.to_thread(self.log.open, "wb") as file:
                # the step may have put a larger one, or none, since its size was asked for
                async for piece in self._storage.stream(self._at(LOG), end=_LARGEST_LOG):
                    await asyncio.to_thread(file.write, piece)
        self._log_version = question.log_version

    async def ended(self) -> EndFacts | None:
        """See ``Exchange.ended``."""
        content = await self._read(ENDED, LONGEST_FACTS)
        return None if content is None else understood(EndFacts, content)

    async def outpost_output(self) -> str:
        """See ``Exchange.outpost_output``: the cluster's own log of the job has it."""
        return ""

    async def _key_of_the_step(self) -> bytes | None:
        """The key that the step made when it began; None: it has not, or a stranger took it with what is no key."""
        if self._key is None:
            self._key = await self._key_at(_KEY)
        if self._key is None and (told := await self._key_at(STARTED)) is not None:
            await self._storage.put_bytes(self._at(_KEY), told, only_if_absent=True)
            self._key = await self._key_at(_KEY)  # another owner's look may have been the first
        return self._key

    async def _key_at(self, name: str) -> bytes | None:
        key = await readable_or(None, self._read(name, KEY_BYTES))
        return key if key is not None and len(key) == KEY_BYTES else None

    async def _read(self, name: str, limit_bytes: int) -> bytes | None:
        try:
            return await self._storage.get_bytes(self._at(name), limit_bytes)
        except NotStored:
            return None
        except TooLarge as error:
            raise UnreadableWord(str(error)) from error


class StorageExchanges:
    """The exchanges below ``steps/`` in a storage that signs addresses; see ``exchange.Exchanges``.

    Args:
        storage: the worker's own.
        logs: folder on this host for outputs of steps under way.
    """

    fetches = True

    def __init__(self, storage: Storage, logs: Path) -> None:
        self._storage = storage
        self._logs = logs

    async def newest(self, run_id: UUID, attempt: int, step: Step) -> StorageExchange | None:
        """See ``Exchanges.newest``."""
        return starts_up_to(await self._all(run_id, step), attempt)

    async def next(self, run_id: UUID, attempt: int, step: Step) -> StorageExchange:
        """See ``Exchanges.next``."""
        newest = await self.newest(run_id, attempt, step)
        serial = newest.serial + 1 if newest is not None and newest.attempt == attempt else 1
        return StorageExchange(self._storage, str(run_id), f"{attempt}-{step}-{serial}", self._logs)

    async def of_earlier_attempts(self, run_id: UUID, below_attempt: int) -> Sequence[StorageExchange]:
        """See ``Exchanges.of_earlier_attempts``."""
        earlier = [exchange for exchange in await self._all(run_id) if exchange.attempt < below_attempt]
        return [exchange for exchange in earlier if await readable_or(None, exchange.ended()) is None]

    async def remove_old(self) -> int:
        """See ``Exchanges.remove_old``."""
        newest: dict[str, float] = {}
        async for stored in self._storage.listing(ROOT):
            run = stored.key.split("/")[1]
            newest[run] = max(newest.get(run, 0.0), stored.modified.timestamp())
        old = [run for run, at in newest.items() if at < time.time() - _KEPT_S]
        for run in old:
            await self._storage.delete_prefix(exchange_prefix(run))
        if self._logs.exists():  # of workers that were killed
            await asyncio.to_thread(remove_older, self._logs, _KEPT_S)
        return len(old)

    async def _all(self, run_id: UUID, step: Step | None = None) -> list[StorageExchange]:
        folders = {stored.key.split("/")[2] async for stored in self._storage.listing(exchange_prefix(run_id))}
        wanted = [folder for folder in sorted(folders) if step is None or folder.split("-")[1] == step]
        return [StorageExchange(self._storage, str(run_id), folder, self._logs) for folder in wanted]
