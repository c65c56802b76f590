"""Changes at once: one look a second at every watched model, however many watch it."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

from worker.errors import DatabaseAway
from worker.store.api import ApiStore

LOOK_S = 1.0
_ALIVE_S = 15.0
LONGEST_WATCH_S = 600.0
"""After this the watcher comes again, with a key that is looked at again."""
MOST_WATCHERS = 5_000
_SHARES = 4


class Watcher:
    """Tells those who watch a model that it changed.

    Args:
        store: asked once a second about all watched models together.
    """

    def __init__(self, store: ApiStore) -> None:
        self._store = store
        self._watching: Counter[int] = Counter()
        self._organizations: Counter[int] = Counter()
        self._seen: dict[int, tuple[object, ...] | None] = {}
        self._changed = asyncio.Condition()

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

    def full(self, organization_id: int) -> bool:
        """True where nobody more can be told, or nobody more of an organization: one may be a quarter of all."""
        return (
            self._watching.total() >= MOST_WATCHERS or self._organizations[organization_id] >= MOST_WATCHERS // _SHARES
        )

    async def changes(self, model_id: int, organization_id: int) -> AsyncIterator[bool | None]:
        """Yield True at the start and whenever the model changed, False as a sign of life.

        None at the end says that the model is gone; without it the watcher may come again.
        """
        ends_at = asyncio.get_running_loop().time() + LONGEST_WATCH_S
        self._watching[model_id] += 1
        self._organizations[organization_id] += 1
        try:
            last = self._seen.get(model_id)
            yield True
            while asyncio.get_running_loop().time() < ends_at:
                try:
                    async with asyncio.timeout(_ALIVE_S), self._changed:
                        while not self._differs(model_id, last):
                            await self._changed.wait()
                except TimeoutError:
                    yield False
                    continue
                last = self._seen[model_id]
                if last is None:
                    yield None
                    return
                yield True
        finally:
            self._organizations[organization_id] -= 1
            if not self._organizations[organization_id]:
                del self._organizations[organization_id]
            self._watching[model_id] -= 1
            if not self._watching[model_id]:
                del self._watching[model_id]
                self._seen.pop(model_id, None)

    def _differs(self, model_id: int, last: tuple[object, ...] | None) -> bool:
        return model_id in self._seen and self._seen[model_id] != last
