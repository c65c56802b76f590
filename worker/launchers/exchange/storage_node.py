"""Object storage as the road between a worker and a step on a machine that shares no folder with it: the step's side.

It has no credentials: two signed addresses to begin with, and then those that its owner gives it when it asks. See
``storage`` for the objects, and for who could read what.
"""

import asyncio
import os
import time
from pathlib import Path
from typing import Final

import structlog

from schemas.events import DROPPABLE, Checkpoint, Event, Failure, Progress, Result
from schemas.failures import FailureClass
from schemas.steps import StepSpec
from worker.launchers.exchange.event_lines import line_of
from worker.launchers.exchange.interface import EndFacts, Grant, Order, Question, UnreadableWord, understood
from worker.launchers.exchange.sealed import KEY_BYTES, NotForUsError, unseal
from worker.launchers.exchange.signed_addresses import SignedAddresses
from worker.launchers.exchange.signed_http import AbsentError, AddressRefusedError, read_small, write_small
from worker.launchers.exchange.storage_deliveries import DeliveryError, deliver_checkpoint, deliver_result
from worker.launchers.exchange.storage_inputs import fetch_inputs
from worker.launchers.exchange.storage_word import (
    ASK,
    ENDED,
    LOG,
    LONGEST_WORD,
    OWN,
    OWNER,
    PIECE_BYTES,
    WORD,
    InputFile,
    Word,
    event_piece,
)
from worker.launchers.exchange.transfers import Transfers, with_signs_of_life

_log = structlog.get_logger()

_CLAIM_PATIENCE_S: Final = 600.0
"""For the first word after the step was taken: its owner may have died, and another one adopts it."""
_LOOK_S: Final = 0.5
_SIGN_S: Final = 10.0
"""Between two signs of life while something large is stored."""
_PROGRESS_BEATS: Final = 3
"""Beats between two pieces that hold nothing but progress, and between two logs: each is a request, and one more when
it is read."""
_PIECES_AHEAD: Final = 4
_LOG_BYTES_PER_S: Final = 2**20
"""The output is put whole: at most so much of the network is spent on that."""


class StorageNode:
    """See ``exchange.NodeSide``.

    Args:
        claim: signed address to put ``started``.
        word: signed address to read the owner's word.
        scratch: the step's folder on this node.
    """

    def __init__(self, claim: str, word: str, *, scratch: Path) -> None:
        self._claim = claim
        self._key = os.urandom(KEY_BYTES)
        self._addresses = SignedAddresses({OWN + WORD: word})
        self._transfers = Transfers(self._addresses)
        self._inputs: dict[str, list[InputFile]] = {}
        self._patience_s = _CLAIM_PATIENCE_S
        self._beat_s = _LOOK_S
        self._spec: StepSpec | None = None
        self._output = scratch / "output"
        self.log = scratch / "log"
        self._events = (scratch / "events").open("w+b", buffering=0)
        self._piece = 0
        """The piece of the event lines to be put next, from ``_told`` to ``_piece_end``."""
        self._told = self._piece_end = 0
        self._events_due = 0.0
        self._progress = Progress(percent=0)
        self._log_told = 0
        self._log_version = 0
        self._log_due = 0.0
        self._telling = asyncio.Lock()

    async def begin(self) -> Order:
        """See ``NodeSide.begin``.

        Raises:
            TimeoutError: the owner says nothing.
        """
        deadline = time.monotonic() + _CLAIM_PATIENCE_S
        await self._take_the_step(deadline)
        while True:
            try:
                word = await self._read_word()
            except (OSError, UnreadableWord) as error:
                word = None
                _log.warning("no_word_yet", error=str(error))
            if word is not None and word.order is not None:
                self._inputs, self._spec = word.inputs, word.order.spec
                self._patience_s = self._transfers.patience_s = word.order.patience_s
                self._beat_s = word.order.beat_s
                self._want_ahead()
                return word.order
            if time.monotonic() > deadline:
                raise TimeoutError("the step was taken, and its owner says nothing")
            await asyncio.sleep(_LOOK_S)

    async def _take_the_step(self, deadline: float) -> None:
        unsure = False
        while True:
            try:
                return await asyncio.to_thread(write_small, self._claim, self._key, only_if_absent=True)
            except FileExistsError:
                if unsure:  # perhaps by ourselves, and only the answer was lost: the first word tells
                    return None
                raise
            except AddressRefusedError:
                raise
            except OSError:
                unsure = True
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(_LOOK_S)

    async def ask(self, number: int) -> Grant | None:
        """See ``NodeSide.ask``."""
        question = Question(number=number, wants=self._addresses.wants(number), log_version=self._log_version)
        content = question.model_dump_json().encode()
        try:
            await asyncio.to_thread(write_small, self._addresses.at_hand(OWN + ASK), content)
        finally:
            word = await self._read_word()  # even so: it may bring the address that was needed
        if word is None:
            return None
        owner = await asyncio.to_thread(read_small, self._addresses.at_hand(OWN + OWNER), 100)
        return word.grant if owner.decode(errors="replace") == word.grant.owner else None

    async def _read_word(self) -> Word | None:
        try:
            letter = await asyncio.to_thread(read_small, self._addresses.at_hand(OWN + WORD), LONGEST_WORD)
            word = understood(Word, await asyncio.to_thread(unseal, self._key, letter))
        except (AbsentError, NotForUsError):
            return None
        self._addresses.take(word.addresses, word.grant.ask, word.fresh_s)
        return word

    async def fetched(self, spec: StepSpec, scratch: Path) -> StepSpec:
        """See ``NodeSide.fetched``."""
        self._output.mkdir()
        fetched = await fetch_inputs(spec.sources, self._inputs, scratch / "inputs", self._transfers, self._write)
        return spec.model_copy(update={"inputs": spec.inputs | fetched, "sources": {}, "output": str(self._output)})

    async def pass_on(self, event: Event) -> None:
        """See ``NodeSide.pass_on``. A checkpoint that cannot be stored is not told of; the one before it counts."""
        try:
            if isinstance(event, Checkpoint | Result):
                await with_signs_of_life(self._delivered(event), self._transfers, self._tell_the_same, _SIGN_S)
        except DeliveryError as error:
            _log.warning("not_stored", what=event.event, error=str(error))
            if isinstance(event, Result):
                self._write(_not_stored(error))
            return
        if isinstance(event, Progress):
            self._progress = event
        self._write(event)

    async def _delivered(self, event: Checkpoint | Result) -> None:
        assert self._spec is not None, "it has begun"
        if isinstance(event, Checkpoint):
            await deliver_checkpoint(event, self._output, self._transfers)
        else:
            await deliver_result(event, self._output, self._spec.step, self._transfers)

    def _tell_the_same(self) -> None:
        self._write(self._progress.model_copy(update={"note": "storing"}))

    def _write(self, event: Event) -> None:
        if not isinstance(event, DROPPABLE):
            self._events_due = 0.0
        self._events.write(line_of(event))

    async def keep_up(self) -> None:
        """See ``NodeSide.keep_up``."""
        async with self._telling:
            await self._tell_events(last=False)
            await self._tell_log(last=False)

    def give_up(self) -> None:
        """See ``NodeSide.give_up``."""
        self._transfers.give_up()
        self._addresses.give_up()

    async def end(self, facts: EndFacts) -> None:
        """See ``NodeSide.end``."""
        content = facts.model_dump_json().encode()

        async def end() -> None:
            async with self._telling:
                await self._tell_events(last=True)
                await self._tell_log(last=True)
                await self._put(ENDED, content)

        deadline = time.monotonic() + self._patience_s
        while True:
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    return await end()
            except OSError:
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(_LOOK_S)

    async def _tell_events(self, *, last: bool) -> None:
        """Put what is new of the event lines, piece by piece; mere progress not at every beat."""
        if not last and time.monotonic() < self._events_due:
            return
        descriptor = self._events.fileno()
        while (size := os.fstat(descriptor).st_size) > self._told:
            # a piece that failed is tried again with the same bytes
            if self._piece_end == self._told:
                self._piece_end = min(size, self._told + PIECE_BYTES)
            content = await asyncio.to_thread(os.pread, descriptor, self._piece_end - self._told, self._told)
            await self._put(event_piece(self._piece), content)
            self._addresses.forget(OWN + event_piece(self._piece))
            self._told = self._piece_end
            self._piece += 1
            self._want_ahead()
            self._events_due = time.monotonic() + _PROGRESS_BEATS * self._beat_s

    def _want_ahead(self) -> None:
        pieces = range(self._piece, self._piece + _PIECES_AHEAD)
        self._addresses.ahead = [OWN + name for name in (ENDED, LOG, *map(event_piece, pieces))]

    async def _tell_log(self, *, last: bool) -> None:
        """Put the output, if there is more of it; a large one more seldom."""
        if not self.log.exists() or not (last or time.monotonic() >= self._log_due):
            return
        content = await asyncio.to_thread(self.log.read_bytes)
        told = hash(content)
        if told == self._log_told:
            return
        await self._put(LOG, content)
        self._log_told = told
        self._log_version += 1
        pause_s = max(_PROGRESS_BEATS * self._beat_s, len(content) / _LOG_BYTES_PER_S)
        self._log_due = time.monotonic() + pause_s

    async def _put(self, name: str, content: bytes) -> None:
        want = OWN + name
        try:
            await asyncio.to_thread(write_small, await self._addresses.get(want), content)
        except AddressRefusedError:
            self._addresses.forget(want)
            raise


def _not_stored(error: DeliveryError) -> Failure:
    return Failure(
        failure_class=FailureClass.INFRASTRUCTURE,
        code=error.code,
        message="What the training made could not be stored.",
        detail=str(error)[:20_000],
    )
