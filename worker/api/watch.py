"""Changes at once: one look a second at every watched model, however many watch it."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable

from worker.errors import DatabaseAway
from worker.store.api import ApiStore

LOOK_S = 1.0
_ALIVE_S = 15.0
LONGEST_WATCH_S = 600.0
"""After this the watcher comes again."""


class Watcher:
    """Tells those who watch a model that it changed.

    Args:
        store: asked once a second about all watched models together.
    """

    def __init__(self, store: ApiStore) -> None:
        self._store = store
        self._watching: Counter[int] = Counter()
        self._seen: dict[int, tuple[object, ...] | None] = {}
        self._changed = asyncio.Condition()
        self._keys_changed = 0
        self._waking: asyncio.Task[None] | None = None

    async def look(self) -> None:
        """Look for ever."""
        while True:
            await asyncio.sleep(LOOK_S)
            if not self._watching:
                continue
            try:
                found = await self._store.watched(list(self._watching))
            except DatabaseAway:
                continue
            async with self._changed:
                self._seen = {model_id: found.get(model_id) for model_id in self._watching}
                self._changed.notify_all()

    def watching(self) -> int:
        """How many are being told."""
        return self._watching.total()

    def wake(self) -> None:
        """A key changed: every stream looks at its own again, now."""
        self._keys_changed += 1
        if self._watching and (self._waking is None or self._waking.done()):
            self._waking = asyncio.ensure_future(self._wake())

    async def _wake(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def changes(self, model_id: int, still_valid: Callable[[], Awaitable[bool]]) -> AsyncIterator[bool | None]:
        """Yield True at the start and whenever the model changed, False as a sign of life.

        None at the end says that the model is gone; without it the watcher may come again, with a key that is valid.

        Args:
            model_id: to be watched.
            still_valid: whether the watcher's key is; asked again when a key changed, before everything that is told.
        """
        ends_at = asyncio.get_running_loop().time() + LONGEST_WATCH_S
        self._watching[model_id] += 1
        try:
            last = self._seen.get(model_id)
            keys = -1  # so that the first look at the key follows at once
            yield True
            while asyncio.get_running_loop().time() < ends_at:
                changed = await self._next(model_id, last, keys)
                keys = self._keys_changed
                if not await still_valid():
                    return
                if changed:
                    last = self._seen.get(model_id)
                    if last is None:
                        yield None
                        return
                    yield True
                elif changed is None:
                    yield False
        finally:
            self._watching[model_id] -= 1
            if not self._watching[model_id]:
                del self._watching[model_id]
                self._seen.pop(model_id, None)

    async def _next(self, model_id: int, last: tuple[object, ...] | None, keys: int) -> bool | None:
        """What comes first: True: the model changed. False: a key did. None: nothing for a while."""
        try:
            async with asyncio.timeout(_ALIVE_S), self._changed:
                while not self._differs(model_id, last):
                    if self._keys_changed != keys:
                        return False
                    await self._changed.wait()
        except TimeoutError:
            return None
        return True

    def _differs(self, model_id: int, last: tuple[object, ...] | None) -> bool:
        return model_id in self._seen and self._seen[model_id] != last
