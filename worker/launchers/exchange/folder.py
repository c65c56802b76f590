"""The shared folder through which a worker and a step on another machine talk: small files, each written by one side.

Both see the same file system. Below ``<root>/<run id>/<attempt>-<step>-<serial>/``, where
the serial counts the starts of the same step in the same attempt:

==============  =========  ==================================================================================
file            written    content
==============  =========  ==================================================================================
``order.json``  worker     what to run and how: the StepSpec, the options of the node's own launcher
``owner``       worker     the token of the owner whose grants count; whoever adopts replaces it
``ask``         step       a number, one more at every beat
``grant.json``  worker     the right to run: the newest ``ask`` it answers, the seconds left, stop, kill
``events``      step       event lines
``log``         step       the output, bounded
``started``     step       made once: a cluster that starts a job twice starts it in vain
``ended.json``  step       the facts of the end; the step's last file
``closed``      worker     made by the owner that has taken everything in: nobody adopts the step any more
==============  =========  ==================================================================================

Files replaced as a whole are written beside and renamed. Inputs, outputs and checkpoints need no road of their own:
both sides see them under the same paths.
"""

import asyncio
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final
from uuid import UUID

from schemas.events import Event
from schemas.steps import Step, StepSpec
from worker.launchers.exchange.event_lines import line_of
from worker.launchers.exchange.interface import (
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
from worker.launchers.plain_files import open_plain

_OUTPOST_LOG: Final = "outpost.log"
_READ_BYTES: Final = 262_144
_DETAIL_BYTES: Final = 2_000
_WORD_BYTES: Final = 4_096
"""The most that a token, a question or a grant has."""
_KEPT_S: Final = 7 * 24 * 3600.0


class FolderExchange:
    """One step's folder; see ``exchange.Exchange`` and ``exchange.NodeSide``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = f"{folder.parent.name}-{folder.name}"
        attempt, _, serial = folder.name.split("-")
        self.attempt, self.serial = int(attempt), int(serial)
        self.output: Path | None = folder / _OUTPOST_LOG
        self.log = folder / "log"
        self._events = folder / "events"
        self._read_up_to = 0
        self._appended: BinaryIO | None = None

    # --- the owner's side ----------------------------------------------------------------------------------------

    async def create(self, order: Order, token: str) -> None:
        """See ``Exchange.create``."""

        def lay() -> None:
            self.folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.folder.mkdir(mode=0o700)
            self._write("order.json", order.model_dump_json())
            self._write("owner", token)

        await asyncio.to_thread(lay)

    async def arguments(self) -> list[str]:
        """See ``Exchange.arguments``: the folder, which its user alone can read."""
        return [str(self.folder)]

    async def order(self) -> Order:
        """See ``Exchange.order``."""
        content = await asyncio.to_thread(self._read, "order.json", LONGEST_ORDER)
        return understood(Order, content or "")

    async def take_over(self, token: str) -> None:
        """See ``Exchange.take_over``."""
        await asyncio.to_thread(self._write, "owner", token)

    async def is_taken_from(self, token: str) -> bool:
        """See ``Exchange.is_taken_from``."""
        return await readable_or(None, asyncio.to_thread(self._read, "owner")) not in (None, token)

    async def close(self, token: str) -> None:
        """See ``Exchange.close``."""

        def close() -> None:
            if self._is_owned_by(token):
                self._write("closed", "")

        await asyncio.to_thread(close)

    async def is_closed(self) -> bool:
        """See ``Exchange.is_closed``."""
        return await asyncio.to_thread((self.folder / "closed").exists)

    async def question(self) -> Question:
        """See ``Exchange.question``."""
        content = await asyncio.to_thread(self._read, "ask")
        try:
            return Question(number=int(content or 0))
        except ValueError as error:
            raise UnreadableWord("not the number of a question") from error

    async def grant(self, grant: Grant, question: Question) -> bool:
        """See ``Exchange.grant``. The file waits for whoever comes."""
        del question

        def write() -> None:
            if self._is_owned_by(grant.owner):
                self._write("grant.json", grant.model_dump_json())

        await asyncio.to_thread(write)
        return True

    async def command_kill(self, token: str) -> None:
        """See ``Exchange.command_kill``."""
        await self.take_over(token)
        await self.grant(Grant(owner=token, ask=0, remaining_s=0.0, stop=False, kill=True), Question())

    async def more_events(self) -> bytes:
        """See ``Exchange.more_events``."""

        def read() -> bytes:
            with suppress(FileNotFoundError), open_plain(self._events) as file:
                return os.pread(file.fileno(), _READ_BYTES, self._read_up_to)
            return b""

        data = await asyncio.to_thread(read)
        self._read_up_to += len(data)
        return data

    async def bring_log(self, question: Question, *, whole: bool = False) -> None:
        """See ``Exchange.bring_log``: it lies where both see it."""

    async def ended(self) -> EndFacts | None:
        """See ``Exchange.ended``."""
        content = await asyncio.to_thread(self._read, "ended.json", LONGEST_FACTS)
        return None if content is None else understood(EndFacts, content)

    async def outpost_output(self) -> str:
        """See ``Exchange.outpost_output``."""

        def read() -> str:
            with suppress(FileNotFoundError), open_plain(self.folder / _OUTPOST_LOG) as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - _DETAIL_BYTES))
                return log.read(_DETAIL_BYTES).decode(errors="replace")
            return ""

        return await asyncio.to_thread(read)

    # --- the step's side -----------------------------------------------------------------------------------------

    async def begin(self) -> Order:
        """See ``NodeSide.begin``."""

        def begin() -> None:
            os.close(os.open(self.folder / "started", os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))

        await asyncio.to_thread(begin)
        return await self.order()

    async def ask(self, number: int) -> Grant | None:
        """See ``NodeSide.ask``."""
        await asyncio.to_thread(self._write, "ask", str(number))
        return await self.granted()

    async def granted(self) -> Grant | None:
        """The present owner's newest word."""

        def read() -> Grant | None:
            content = self._read("grant.json")
            if content is None:
                return None
            grant = understood(Grant, content)
            return grant if self._is_owned_by(grant.owner) else None

        return await asyncio.to_thread(read)

    async def fetched(self, spec: StepSpec, scratch: Path) -> StepSpec:
        """See ``NodeSide.fetched``: every path holds here as well."""
        del scratch
        return spec

    async def pass_on(self, event: Event) -> None:
        """See ``NodeSide.pass_on``."""
        if self._appended is None:
            self._appended = self._events.open("ab", buffering=0)
        self._appended.write(line_of(event))

    async def keep_up(self) -> None:
        """See ``NodeSide.keep_up``: what is written is there."""

    def give_up(self) -> None:
        """See ``NodeSide.give_up``: nothing here takes long."""

    async def end(self, facts: EndFacts) -> None:
        """See ``NodeSide.end``."""
        if self._appended is not None:
            self._appended.close()
        await asyncio.to_thread(self._write, "ended.json", facts.model_dump_json())

    # --- files ---------------------------------------------------------------------------------------------------

    def _is_owned_by(self, token: str) -> bool:
        return self._read("owner") == token

    def _write(self, name: str, content: str) -> None:
        # two owners may write at once for a moment: each beside under its own name
        beside = self.folder / f".{name}.{os.getpid()}.{time.monotonic_ns()}"
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(content)
        beside.replace(self.folder / name)

    def _read(self, name: str, limit_bytes: int = _WORD_BYTES) -> str | None:
        try:
            with open_plain(self.folder / name) as file:
                content = file.read(limit_bytes + 1)
            if len(content) > limit_bytes:
                raise UnreadableWord(f"{name} has more than {limit_bytes} bytes")
            return content.decode()
        except FileNotFoundError:
            return None
        except UnicodeDecodeError as error:
            raise UnreadableWord(f"{name} is no text") from error


class FolderExchanges:
    """The folders below one root that workers and nodes see under the same path; see ``exchange.Exchanges``."""

    fetches = False

    def __init__(self, root: Path) -> None:
        self._root = root

    async def newest(self, run_id: UUID, attempt: int, step: Step) -> FolderExchange | None:
        """See ``Exchanges.newest``."""
        return await asyncio.to_thread(self._newest, run_id, attempt, step)

    async def next(self, run_id: UUID, attempt: int, step: Step) -> FolderExchange:
        """See ``Exchanges.next``."""
        newest = await self.newest(run_id, attempt, step)
        serial = newest.serial + 1 if newest is not None and newest.attempt == attempt else 1
        return FolderExchange(self._root / str(run_id) / f"{attempt}-{step}-{serial}")

    async def of_earlier_attempts(self, run_id: UUID, below_attempt: int) -> list[FolderExchange]:
        """See ``Exchanges.of_earlier_attempts``."""
        found = await asyncio.to_thread(self._all, run_id, "*-*-*")
        earlier = [exchange for exchange in found if exchange.attempt < below_attempt]
        return [exchange for exchange in earlier if await readable_or(None, exchange.ended()) is None]

    async def remove_old(self) -> int:
        """See ``Exchanges.remove_old``."""
        return await asyncio.to_thread(self._remove_old)

    def _newest(self, run_id: UUID, attempt: int, step: Step) -> FolderExchange | None:
        return starts_up_to(self._all(run_id, f"*-{step}-*"), attempt)

    def _all(self, run_id: UUID, pattern: str) -> list[FolderExchange]:
        return [FolderExchange(folder) for folder in sorted((self._root / str(run_id)).glob(pattern))]

    def _remove_old(self) -> int:
        limit = time.time() - _KEPT_S
        runs = self._root.glob("*/")
        old = [run for run in runs if max(path.stat().st_mtime for path in [run, *run.glob("*")]) < limit]
        for run in old:
            shutil.rmtree(run, ignore_errors=True)
        return len(old)
