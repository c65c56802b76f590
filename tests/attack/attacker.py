"""The hostile customer: its keys, what it knows of the victim, and the register of everything it tries."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from tests.attack.victim import recording
from tests.attack.wire import NO_ANSWER, Answer, Client, Connection, multipart

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

SOURCE: Final = "127.0.0.66"
SETUP_SOURCE: Final = "127.0.0.67"
PREPARING_S: Final = 8.0
"""Least patience with a request that prepares an attempt, however short the slice."""


@dataclass
class Attacker:
    """One slice's view of the attack.

    Attributes:
        port: of the API.
        chance: the slice's own, from the seed.
        owner, member, reader: the attacker's own organization's keys; anonymous has none.
        preparing: a further key, so that a flood does not keep the next attempt from being prepared.
        organization, language: its own number, and the base language's.
        victim_models, victim_runs, victim_data: ids that are not the attacker's, learned in whatever way.
        until: the monotonic moment when the slice ends.
        extra: requests that no client counted, such as unfinished ones.
        dropped: connections that the server ended without an answer.
        kept: what one slice leaves for later ones of the same kind.
    """

    port: int
    chance: random.Random
    owner: Client
    member: Client
    reader: Client
    anonymous: Client
    preparing: Client
    organization: int
    language: int
    victim_models: list[int]
    victim_runs: list[str]
    victim_data: list[int]
    paths: list[tuple[str, str]]
    until: float = 0.0
    extra: int = 0
    dropped: int = 0
    kept: dict[str, Any] = field(default_factory=dict)
    models: list[int] = field(default_factory=list)
    runs: list[tuple[int, str]] = field(default_factory=list)

    @property
    def clients(self) -> tuple[Client, ...]:
        return (self.owner, self.member, self.reader, self.anonymous, self.preparing)

    @property
    def left_s(self) -> float:
        return max(0.0, self.until - time.monotonic())

    def counted(self) -> Counter[int]:
        """Answers so far, by status."""
        return sum((client.statuses for client in self.clients), Counter())

    async def many(self, asks: Sequence[Callable[[], Awaitable[Any]]], at_once: int) -> None:
        """Do all of it, some at once, until the slice ends."""
        left = list(reversed(asks))

        async def work() -> None:
            while left and self.left_s:
                await left.pop()()

        await asyncio.gather(*(work() for _ in range(at_once)))

    async def repeated(self, ask: Callable[[int], Awaitable[Any]], count: int, at_once: int) -> None:
        """The same, so many times."""
        await self.many([lambda n=n: ask(n) for n in range(count)], at_once)

    # --- the attacker's own things ------------------------------------------------------------------------------

    async def ready(
        self, method: str, path: str, body: bytes | dict[str, Any] | None = None, headers: dict[str, str] | None = None
    ) -> Answer:
        """A request that prepares an attempt: repeated while the API says that there were too many.

        Raises:
            CouldNotPrepare: it is refused for good, or there was no answer within ``PREPARING_S`` or the slice.
        """
        answer, patience_ends = Answer(NO_ANSWER), max(self.until, time.monotonic() + PREPARING_S)
        while (left_s := patience_ends - time.monotonic()) > 0:
            answer = await self.preparing.ask(method, path, body, headers, timeout_s=left_s)
            if answer.status not in (429, 503, NO_ANSWER):
                break
            await asyncio.sleep(0.3)
        if answer.status >= 400 or answer.status == NO_ANSWER:
            raise CouldNotPrepare(f"{method} {path}: {answer.status} {answer.body[:200]!r}")
        return answer

    async def model(self, name: str = "hostile") -> int:
        """A new model; where the attacker may have no more of them, one of its old ones."""
        body = {"name": name, "language_id": self.language, "organization_id": self.organization}
        try:
            made = int((await self.ready("POST", "/custom_models", body)).json()["id"])
        except CouldNotPrepare:
            if not self.models:
                raise
            return self.chance.choice(self.models)
        self.models = [*self.models[-20:], made]
        return made

    async def upload(
        self, model: int, files: Sequence[tuple[str | bytes, bytes]], client: Client | None = None
    ) -> Answer:
        body, headers = multipart(files)
        return await (client or self.owner).ask(
            "POST", f"/custom_models/{model}/data", body, headers, timeout_s=self.left_s + 5
        )

    async def trainable(self, transcript: bytes = b"please train", suffix: str = ".txt", seconds: float = 2.0) -> int:
        """A model with one recording and this transcript."""
        model = await self.model()
        body, headers = multipart([("talk.wav", recording(seconds, model)), ("talk" + suffix, transcript)])
        await self.ready("POST", f"/custom_models/{model}/data", body, headers)
        return model

    async def start(self, model: int) -> str | None:
        """Ask for a training; its id, where it was accepted."""
        asked = await self.owner.ask("POST", f"/custom_models/{model}/run", timeout_s=self.left_s + 5)
        if asked.status != 202:
            return None
        listed = await self.preparing.ask("GET", f"/custom_models/{model}/runs?limit=1")
        found = listed.json().get("result") or [{}]
        run = found[0].get("id") or found[0].get("run_id")
        if run:
            self.runs.append((model, str(run)))
        return run

    async def train(self, model: int) -> str | None:
        """Ask for a training and watch it until the slice ends, reading its log as its owner may."""
        run = await self.start(model)
        while run and self.left_s:
            await asyncio.sleep(min(0.7, self.left_s))
            path = f"/custom_models/{model}/runs/{run}"
            answer = await self.owner.ask("GET", path, timeout_s=self.left_s + 2)
            await self.owner.ask("GET", f"{path}/log?tail=1000", timeout_s=self.left_s + 2)
            if answer.json().get("training_status") in (1, 4, 5):
                await self.owner.ask("GET", f"{path}/report", timeout_s=self.left_s + 2)
                break
        return run

    # --- connections --------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def open(self, count: int, first: bytes = b"", addresses: int = 1) -> AsyncIterator[list[Connection]]:
        """Open connections, from so many addresses, that have sent the beginning of something."""
        opened: list[Connection] = []
        try:
            while len(opened) < count and self.left_s:
                source = SOURCE if addresses == 1 else f"127.0.66.{1 + len(opened) % addresses}"
                try:
                    async with asyncio.timeout(2):
                        one = await Connection.open(self.port, source)
                        opened.append(one)
                        await one.send(first)
                except (OSError, TimeoutError):
                    break
            self.extra += len(opened)
            yield opened
        finally:
            for one in opened:
                one.close()

    async def held(self, opened: Sequence[Connection], trickle: Callable[[int], bytes] | None = None) -> None:
        """Hold connections until the slice ends, with a few bytes now and then; counts those that the server ended."""

        async def hold(one: Connection) -> None:
            n = 0
            reading = asyncio.ensure_future(_read_end(one))
            try:
                while self.left_s and not reading.done():
                    if trickle is not None:
                        await one.send(trickle(n))
                    n += 1
                    await asyncio.wait([reading], timeout=min(1.0, self.left_s))
            except OSError:
                pass
            if reading.done():
                status = reading.result()
                if status == NO_ANSWER:
                    self.dropped += 1
                else:
                    self.anonymous.note("held connection", Answer(status))
            reading.cancel()

        await asyncio.gather(*(hold(one) for one in opened))


class CouldNotPrepare(Exception):  # noqa: N818 - no fault: the product refused what the attempt needs
    """The attempt could not be prepared."""


async def _read_end(connection: Connection) -> int:
    """The status that a server says before it ends a connection; ``NO_ANSWER`` where it says nothing."""
    try:
        status = (await connection.answer()).status
    except (OSError, EOFError, ValueError, IndexError, asyncio.LimitOverrunError):
        return NO_ANSWER
    with contextlib.suppress(OSError):
        await connection.closed_by_peer()
    return status


@dataclass(frozen=True)
class Kind:
    """One kind of attack.

    Attributes:
        name: what it is called in results.
        finding: the finding it stands for.
        refuses: whether the product has to refuse, and so has to leave a trace.
        attempt: makes it.
        slices: how many slices long it is, where one is too short for it.
    """

    name: str
    finding: str
    refuses: bool
    attempt: Callable[[Attacker], Awaitable[None]]
    slices: float = 1.0


KINDS: Final[dict[str, Kind]] = {}


def kind(
    finding: str, *, refuses: bool = False, slices: float = 1.0
) -> Callable[[Callable[[Attacker], Awaitable[None]]], Callable[[Attacker], Awaitable[None]]]:
    """Register an attack under its function's name."""

    def register(attempt: Callable[[Attacker], Awaitable[None]]) -> Callable[[Attacker], Awaitable[None]]:
        KINDS[attempt.__name__] = Kind(attempt.__name__, finding, refuses, attempt, slices)
        return attempt

    return register
