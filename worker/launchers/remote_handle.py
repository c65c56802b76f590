"""One step on a cluster seen from the worker: its exchange, its right to run, its end."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

import structlog

from schemas.events import Event
from schemas.steps import StepSpec
from worker.errors import StorageAway
from worker.launchers.cluster import Presence, Sighting
from worker.launchers.event_stream import EventStream
from worker.launchers.exchange.interface import EXCHANGE_AWAY, EndFacts, Exchange, Grant, Question
from worker.launchers.interface import Ended, EndReason, LauncherUnavailable
from worker.launchers.log_copy import LogCopy

_log = structlog.get_logger()
Found = TypeVar("Found")

SILENT_BEATS: Final = 10
"""So many beats without a question from a step that its cluster calls gone: it is lost. Also the time that a step
has to obey a kill before its cluster is asked to do it."""
_MARGIN_S: Final = 10.0
"""For what no clock measures: a node under load, a file system that shows a file late."""


class RemoteHandle:
    """See ``worker.launchers.interface.Handle``."""

    def __init__(  # noqa: PLR0913 - made in one place
        self,
        exchange: Exchange,
        spec: StepSpec,
        token: str,
        *,
        lease_s: float,
        log: Path,
        beat_s: float,
        patience_s: float,
        glance: Callable[[], Awaitable[Sighting]],
        cancel: Callable[[], Awaitable[None]],
    ) -> None:
        self._exchange = exchange
        self._spec = spec
        self._token = token
        self._beat_s = beat_s
        self._patience_s = patience_s
        self._glance = glance
        self._cancel = cancel
        self._loop = asyncio.get_running_loop()
        self._deadline = self._loop.time() + lease_s
        self._stop = False
        self._kill = False
        self._question = Question()
        """The newest that was seen."""
        self._asked_at = self._loop.time()
        """When it was first seen."""
        self._longest_right_s = lease_s
        """The longest right that was ever granted at once."""
        self._told = False
        """Whether the newest question and the newest decision are answered."""
        self._noted = False
        """Whether something that nobody foresaw was logged: once is enough."""
        self._log_copy = LogCopy(exchange.log, log)
        self._stream = EventStream()
        self._changed = asyncio.Event()
        self._looking = asyncio.Lock()
        self._ended: asyncio.Future[Ended] = self._loop.create_future()
        self._at_end: list[Callable[[], None]] = []
        self._watching = self._loop.create_task(self._watch())

    @property
    def spec(self) -> StepSpec:
        """See ``Handle.spec``."""
        return self._spec

    @property
    def waits(self) -> bool:
        """See ``Handle.waits``."""
        return self._question.number == 0

    def on_end(self, call: Callable[[], None]) -> None:
        """Have this called when the step has ended."""
        self._at_end.append(call)

    def events(self) -> AsyncIterator[Event]:
        """See ``Handle.events``."""
        return self._stream.events()

    def feed(self, remaining_s: float) -> None:
        """See ``Handle.feed``."""
        self._deadline = self._loop.time() + remaining_s
        self._speak()

    async def ask_stop(self) -> None:
        """See ``Handle.ask_stop``."""
        self._stop = True
        self._speak()

    async def kill(self) -> None:
        """See ``Handle.kill``. While neither exchange nor cluster answers, this waits: nobody could know."""
        self._kill = True
        self._speak()
        await asyncio.wait([self._ended], timeout=SILENT_BEATS * self._beat_s)
        while not self._ended.done():
            try:
                await self._end_taken_over_or(self._cancel_it)
            except (LauncherUnavailable, *EXCHANGE_AWAY):
                await asyncio.sleep(self._beat_s)
        await self.wait()
        with suppress(*EXCHANGE_AWAY):
            await self._exchange.close(self._token)

    async def wait(self) -> Ended:
        """See ``Handle.wait``."""
        return await asyncio.shield(self._ended)

    def let_go(self) -> None:
        """Stop looking and granting; the step goes on until its right ends or somebody adopts it."""
        self._watching.cancel()

    def _speak(self) -> None:
        self._told = False
        self._changed.set()

    async def _watch(self) -> None:
        while not self._ended.done():
            try:
                facts = await self._take_in_unless_away()
                if facts is not None:
                    await self._end(self._conclude(facts))
                else:
                    await self._end_taken_over_or(self._doubt_silence)
            except Exception as error:  # noqa: BLE001 - without a watch nobody would ever know the end
                self._note(error)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), self._beat_s)
            self._changed.clear()

    def _note(self, error: Exception) -> None:
        if isinstance(error, EXCHANGE_AWAY):
            _log.warning("exchange_away", exchange=self._exchange.name, error=str(error))
        elif not self._noted:
            self._noted = True
            _log.error("exchange_not_understood", exchange=self._exchange.name, exc_info=error)

    async def _perhaps(self, reading: Awaitable[Found]) -> Found | None:
        """What a look finds; None when it fails, for whatever lies there, somebody else may have put it."""
        try:
            return await reading
        except Exception as error:  # noqa: BLE001 - see above
            self._note(error)
            return None

    async def _take_in_unless_away(self) -> EndFacts | None:
        """``_take_in``, where what cannot be read says nothing: then the cluster, and the silence, tell of the end."""
        try:
            return await self._take_in()
        except (OSError, StorageAway):
            raise
        except Exception as error:  # noqa: BLE001 - the step may have left anything
            self._note(error)
            return None

    async def _take_in(self) -> EndFacts | None:
        """Read everything new; the facts of the end, if it has ended."""
        async with self._looking:
            while True:
                facts, data = await self._look_and_answer()
                self._stream.push(data)
                if not data:
                    return None if self._stream.full else facts

    def _silent_s(self) -> float:
        """Seconds since its newest question was first seen."""
        return self._loop.time() - self._asked_at

    async def _look_and_answer(self) -> tuple[EndFacts | None, bytes]:
        """One look at the exchange: the facts of the end if there are any, and new event bytes."""
        question = await self._exchange.question()
        if question.number != self._question.number:
            self._question, self._asked_at, self._told = question, self._loop.time(), False
        if not self._told:
            self._told = True  # before the answer is on its way: what is said meanwhile wants another
            if not await self._answer(question):
                self._told = False
        facts = await self._exchange.ended()  # before the events: it is written after them
        await self._bring_log(whole=False)
        data = b""
        if not self._stream.full:
            data = await self._exchange.more_events()
        return facts, data

    async def _answer(self, question: Question) -> bool:
        remaining_s = self._deadline - self._loop.time()
        self._longest_right_s = max(self._longest_right_s, remaining_s)
        grant = Grant(owner=self._token, ask=question.number, remaining_s=remaining_s, stop=self._stop, kill=self._kill)
        try:
            return await self._exchange.grant(grant, question)
        except Exception:
            self._told = False
            raise

    async def _bring_log(self, *, whole: bool) -> None:
        """Make the log current. It is for people: what is wrong with it keeps nothing else."""
        await self._perhaps(self._exchange.bring_log(self._question, whole=whole))
        await self._perhaps(asyncio.to_thread(self._log_copy.finish if whole else self._log_copy.follow))

    async def _end_taken_over_or(self, act: Callable[[], Awaitable[None]]) -> None:
        """What another owner has taken is over for us, and never to be killed; else act."""
        if await self._exchange.is_taken_from(self._token):
            await self._end(self._without_facts(EndReason.TAKEN_OVER, "another owner has taken over"))
        else:
            await act()

    async def _cancel_it(self) -> None:
        await self._cancel()
        await self._end_lost("cancelled")

    async def _doubt_silence(self) -> None:
        if self._silent_s() > SILENT_BEATS * self._beat_s:
            await self._doubt()

    async def _doubt(self) -> None:
        """The step has been silent: ask its cluster. Silent and gone is lost; silent and waiting is waiting.

        A cluster that does not answer either is waited for, but not for ever: a step that has not asked for so
        long has no right left, and its own supervisor has paused it and then ended it.
        """
        try:
            sighting = await self._glance()
        except LauncherUnavailable as error:
            if self._silent_s() > self._longest_right_s + self._patience_s + _MARGIN_S:
                await self._end_lost(f"nothing ({error.detail}), and the step's right ended long ago")
        else:
            if sighting.presence is Presence.GONE:
                await self._end_lost(sighting.word)

    async def _end_lost(self, word: str) -> None:
        """It ended without leaving facts. What it said until then is kept."""
        facts = await self._perhaps(self._take_in())
        if facts is not None:  # it did leave them, just now
            await self._end(self._conclude(facts))
            return
        if self._kill:
            reason = EndReason.KILLED
        elif "OUT_OF_MEMORY" in word:
            reason = EndReason.MEMORY_LIMIT
        else:
            reason = EndReason.SUPERVISOR_LOST
        said = await self._perhaps(self._exchange.outpost_output()) or ""
        await self._end(self._without_facts(reason, f"the cluster says: {word}\n{said}".strip()))

    def _without_facts(self, reason: EndReason, detail: str) -> Ended:
        return Ended(
            reason=reason,
            exit_code=None,
            signal=None,
            out_of_memory=reason is EndReason.MEMORY_LIMIT,
            max_rss_bytes=0,
            cpu_s=0.0,
            paused_s=0.0,
            last_word=self._stream.last_word,
            garbage_lines=self._stream.garbage_lines,
            dropped_events=self._stream.dropped,
            detail=detail,
        )

    def _conclude(self, facts: EndFacts) -> Ended:
        dropped = facts.dropped_events + self._stream.dropped
        return Ended(**facts.model_dump() | {"dropped_events": dropped}, last_word=self._stream.last_word)

    async def _end(self, ended: Ended) -> None:
        if self._ended.done():
            return
        await self._bring_log(whole=True)
        self._stream.close()
        if not self._ended.done():
            self._ended.set_result(ended)
            for call in self._at_end:
                call()
