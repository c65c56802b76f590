"""Training data: what a model may train on, and what runs found out about it."""

from collections.abc import AsyncIterator, Sequence
from typing import Final

from schemas.steps import Verdict
from worker.domain.data import DataItem
from worker.domain.run import Fence
from worker.store.database import Database, queries

_Q: Final = queries("data")
_PAGE: Final = 1_000


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

    async def set_verdicts(self, fence: Fence, verdicts: Sequence[Verdict]) -> None:
        """What a run found out about its files, one verdict a file; only the owner of the attempt can say so."""
        one_each = {verdict.data_ids[0]: verdict for verdict in verdicts}
        ids = sorted(one_each)  # one lock order for all
        await self._database.execute(
            _Q["set_verdicts"],
            fence.run_id,
            fence.attempt,
            ids,
            [one_each[item].verdict for item in ids],
            [one_each[item].reason_code for item in ids],
            [one_each[item].reason for item in ids],
            [one_each[item].duration_s for item in ids],
        )
