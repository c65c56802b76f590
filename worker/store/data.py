"""Training data: what a model may train on, and what runs found out about it."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from itertools import islice
from typing import Final

from schemas.splits import RowKey, Split
from schemas.steps import Verdict
from worker.domain.data import DataItem
from worker.domain.run import Fence
from worker.store.api_data import hold
from worker.store.database import Database, queries

_Q: Final = queries("data")
_PAGE: Final = 1_000
_SPLITS_PAGE: Final = 10_000


class DataStore:
    """Every statement on training data, for the worker and its operators."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(  # noqa: PLR0913 - a row has that many columns
        self,
        model_id: int,
        organization_id: int,
        *,
        name: str,
        stem: str,
        kind: str,
        size: int,
        sha256: str,
        address: str,
        duration_s: float | None = None,
        split: str | None = None,
        speaker: str | None = None,
        verdict: str = "waiting_for_pair",
        reason_code: str | None = None,
        reason: str | None = None,
    ) -> int:
        """Add a file to a model, replacing one of the same name; its id."""
        row = await self._database.fetch_row(
            _Q["add_data"],
            model_id,
            organization_id,
            name,
            stem,
            kind,
            size,
            sha256,
            address,
            duration_s,
            split,
            speaker,
            verdict,
            reason_code,
            reason,
        )
        assert row is not None
        return int(row["id"])

    async def of_model(self, model_id: int) -> AsyncIterator[DataItem]:
        """Every file of a model, in a fixed order, read a page at a time."""
        last = 0
        while rows := await self._database.fetch(_Q["data_of_model"], model_id, last, _PAGE):
            for row in rows:
                yield DataItem(
                    id=row["id"],
                    name=row["name"],
                    stem=row["stem"],
                    kind=row["kind"],
                    bytes=row["bytes"],
                    sha256=row["sha256"],
                    address=row["address"],
                    duration_s=row["duration_s"],
                    split=row["split"],
                    speaker=row["speaker"],
                )
            last = rows[-1]["id"]

    async def splits_of(self, model_id: int) -> dict[RowKey, Split]:
        """What the rows of a model were in its trainings so far."""
        splits: dict[RowKey, Split] = {}
        last: RowKey = (b"", -1)
        while rows := await self._database.fetch(_Q["splits_of_model"], model_id, *last, _SPLITS_PAGE):
            splits |= {(row["recording"], row["start_ms"]): row["split"] for row in rows}
            last = (rows[-1]["recording"], rows[-1]["start_ms"])
        return splits

    async def last_of_newest_version(self, model_id: int) -> int | None:
        """The last file that a model had when its newest version was made; none where none was made."""
        row = await self._database.fetch_row(_Q["last_of_newest_version"], model_id)
        return None if row is None else row["id"]

    async def keep_splits(self, fence: Fence, splits: Iterable[tuple[RowKey, Split]]) -> None:
        """What rows are in the training of a run; only the owner of the attempt can say so.

        Args:
            fence: of the run.
            splits: each row once. Asked for in a thread: behind it are files of as many lines as a customer sends.
        """
        left = iter(splits)
        while page := await asyncio.to_thread(lambda: list(islice(left, _PAGE))):
            keys, sides = zip(*page, strict=True)
            recordings, starts_ms = zip(*keys, strict=True)
            await self._database.execute(
                _Q["keep_splits"], fence.run_id, fence.attempt, list(recordings), list(starts_ms), list(sides)
            )

    async def set_verdicts(
        self, fence: Fence, model_id: int, verdicts: Sequence[Verdict], digests: Mapping[int, str]
    ) -> None:
        """What a run found out about its files; only the owner of the attempt can say so.

        A page at a time, each holding the model's data as an upload does: uploads and renewals wait for one page only.

        Args:
            fence: of the run.
            model_id: of the run's model.
            verdicts: one a file, ``data_ids`` holding its id and then those of the files it was judged with.
            digests: SHA-256 of the files that were judged, by id; of a file that has been replaced since then, and of
                one that was judged with it, nothing is known; nor of one whose other half came only then. Empty: runs
                of earlier versions knew none, and all count as unchanged.
        """
        for start in range(0, len(verdicts), _PAGE):
            page = verdicts[start : start + _PAGE]
            asked = sorted({item for verdict in page for item in verdict.data_ids})
            async with self._database.brief_transaction() as connection:
                await hold(connection, model_id)
                rows = await connection.fetch(_Q["digests_of"], model_id, asked)
                same = {row["id"] for row in rows if row["sha256"] == digests.get(row["id"], row["sha256"])}
                waiting = [verdict.data_ids[0] for verdict in page if verdict.verdict == "waiting_for_pair"]
                mates = await connection.fetch(_Q["mates_of"], model_id, waiting) if waiting else []
                same -= {row["id"] for row in mates if digests and row["sha256"] != digests.get(row["mate"])}
                known = [verdict for verdict in page if same.issuperset(verdict.data_ids)]
                await connection.execute(
                    _Q["set_verdicts"],
                    fence.run_id,
                    fence.attempt,
                    [verdict.data_ids[0] for verdict in known],
                    [verdict.verdict for verdict in known],
                    [verdict.reason_code for verdict in known],
                    [verdict.reason for verdict in known],
                    [verdict.duration_s for verdict in known],
                    [verdict.recording_s for verdict in known],
                )
