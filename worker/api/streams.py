"""Answers that take long to send: a slow reader holds an open file and memory, so their number is bounded."""

from collections.abc import AsyncIterator, Hashable, Mapping, Sequence
from contextlib import ExitStack, aclosing
from typing import Final

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from worker.api.api import Api
from worker.api.problems import Refused
from worker.fair import FairShares
from worker.store.api_keys import Key

_PIECE: Final = 64 << 10
"""Bytes that are given to the connection at once: what it holds more makes us wait until its client has taken them."""


class BoundedStream(StreamingResponse):
    """A stream whose places are taken when it begins and given back when it ends, however it ends.

    Args:
        pieces: of the body.
        places: what it needs one place of each, and for whom.
        refused: the answer where there is none.
        headers: of the answer.
        media_type: of the body.
        status: of the answer.
    """

    def __init__(  # noqa: PLR0913 - an answer, and its places
        self,
        pieces: AsyncIterator[bytes],
        places: Sequence[tuple[FairShares, Hashable]],
        refused: Refused,
        headers: Mapping[str, str],
        media_type: str,
        status: int = 200,
    ) -> None:
        super().__init__(pieces, status, headers, media_type)
        self._places = places
        self._refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, or the refusal."""
        with ExitStack() as held:
            if all(held.enter_context(shares.place(holder)) for shares, holder in self._places):
                await super().__call__(scope, receive, send)
                return
        await self._refused.response()(scope, receive, send)


def download(  # noqa: PLR0913 - an answer, and whose place it takes
    api: Api,
    key: Key,
    body: AsyncIterator[bytes] | bytes,
    headers: Mapping[str, str],
    media_type: str,
    status: int = 200,
) -> BoundedStream:
    """A log or a report on its way to a client, however slowly that reads."""
    detail = "Too many logs and reports are being read at the moment."
    return BoundedStream(
        _small_pieces(body),
        [(api.limits.downloads, key.holder)],
        Refused("unavailable", detail, headers={"Retry-After": "5"}),
        headers,
        media_type,
        status,
    )


async def _small_pieces(body: AsyncIterator[bytes] | bytes) -> AsyncIterator[bytes]:
    if isinstance(body, bytes):
        for start in range(0, len(body), _PIECE):
            yield body[start : start + _PIECE]
        return
    async with aclosing(body) as pieces:  # type: ignore[type-var]  # every stream of storage is a generator
        async for piece in pieces:
            for start in range(0, len(piece), _PIECE):
                yield piece[start : start + _PIECE]
