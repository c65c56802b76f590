"""Training data as the API stores, pairs, shows and removes it. Writes take the caller's transaction."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID

from worker.domain.data import stem_of
from worker.errors import Busy
from worker.store.database import Connection, Database, Record, queries

_Q: Final = queries("api_data")
_ADD: Final = queries("data")["add_data"]
_NAMES_AT_ONCE: Final = 20_000
_FILES_AT_ONCE: Final = 5_000


@dataclass(frozen=True)
class NewItem:
    """A file whose bytes are stored.

    Attributes:
        audio_names: what a manifest names; empty for everything else.
        same_as: where the same bytes lie already, seen there, as those of the model's file of this name.
    """

    name: str
    kind: str
    bytes: int
    sha256: str
    address: str
    duration_s: float | None
    split: str | None
    audio_names: tuple[str, ...] = ()
    same_as: str | None = None

    @property
    def stem(self) -> str:
        """What audio and transcript of a pair share."""
        return stem_of(self.name)


class DataStore:
    """What the API reads of training data, and what it writes outside of a request's transaction."""

    def __init__(self, database: Database) -> None:
        self.database = database

    async def page(self, model_id: int, offset: int, limit: int) -> Sequence[Record]:
        """A page of a model's data."""
        return await self.database.fetch(_Q["data_page"], model_id, offset, limit)

    async def intend(self, model_id: int, sizes: Mapping[str, int], announced: int = 0) -> None:
        """See `intend`, in a transaction of its own."""
        async with self.database.connection() as connection:
            await intend(connection, model_id, sizes, announced)

    async def unowned(self, model_id: int, addresses: Sequence[str]) -> list[str]:
        """Those of a request's addresses that no file owns."""
        return [row["address"] for row in await self.database.fetch(_Q["unowned"], model_id, addresses)]

    async def named(self, model_id: int, names: Sequence[str]) -> Sequence[Record]:
        """What a model has under these names."""
        return await self.database.fetch(_Q["named"], model_id, names)

    async def settle(self, model_id: int, addresses: Sequence[str]) -> None:
        """What a request wrote down as about to be stored lies in storage no more."""
        await self.database.execute(_Q["settle_intent"], model_id, addresses)

    async def upload(self, model_id: int, upload_id: UUID) -> Record | None:
        """A file on its way."""
        return await self.database.fetch_row(_Q["upload_of"], upload_id, model_id)

    async def add_part(self, model_id: int, upload_id: UUID, offset: int, size: int, address: str) -> Record | None:
        """The next part of a file; None: another part was faster."""
        return await self.database.fetch_row(_Q["add_part"], upload_id, model_id, offset, size, address)


async def hold(connection: Connection, model_id: int) -> None:
    """One change of a model's data at a time."""
    await connection.execute(_Q["hold_data"], model_id)


async def try_hold(connection: Connection, model_id: int) -> None:
    """The same, at once or not at all.

    Raises:
        Busy: another change is under way; waited for without this connection.
    """
    row = await connection.fetchrow(_Q["try_hold_data"], model_id)
    assert row is not None
    if not row["mine"]:
        raise Busy(f"the data of model {model_id} is being changed")


async def intend(connection: Connection, model_id: int, sizes: Mapping[str, int], announced: int = 0) -> None:
    """Write down what is about to be stored, so that nothing is left behind if we die before it has an owner.

    Args:
        connection: in a transaction.
        model_id: whose data it will be.
        sizes: bytes, by address.
        announced: bytes of these that count already, as those of an unfinished upload.
    """
    left = announced
    counted = []
    for size in sizes.values():
        counted.append(max(0, size - left))
        left = max(0, left - size)
    await connection.execute(_Q["intend"], model_id, list(sizes), counted)


async def named(connection: Connection, model_id: int, names: Sequence[str]) -> Sequence[Record]:
    """What a model has under these names."""
    return await connection.fetch(_Q["named"], model_id, names)


async def item(connection: Connection, model_id: int, data_id: int) -> Record | None:
    """One item of a model."""
    return await connection.fetchrow(_Q["data_item"], model_id, data_id)


async def add(
    connection: Connection, model_id: int, organization_id: int, items: Sequence[NewItem]
) -> Sequence[Record]:
    """Files of a model, each replacing one of its name, paired with what is there; as they are shown.

    The caller holds the model's data. A file that holds what its predecessor held keeps the bytes of that one, so that
    what runs made of it stays of use; the new ones are the caller's to remove.
    """
    ids: list[int] = []
    before_now = {row["name"]: row for row in await named(connection, model_id, [new.name for new in items])}
    items = [_on_known_bytes(new, before_now.get(new.name)) for new in items]
    manifests = False
    for new in sorted(items, key=lambda item: item.name):
        verdict = "waiting_for_run" if new.kind == "manifest" else "waiting_for_pair"
        row = await connection.fetchrow(
            _ADD, model_id, organization_id, new.name, new.stem, new.kind, new.bytes, new.sha256, new.address,
            new.duration_s, new.split, None, verdict, None, None,
        )  # fmt: skip
        assert row is not None
        ids.append(row["id"])
        if new.kind == "manifest":
            manifests = True
            await _name_audio(connection, model_id, row["id"], new.audio_names)
    await recheck(connection, model_id, {new.stem for new in items if new.kind != "manifest"}, changed=True)
    if manifests:
        await _recheck_audio(connection, model_id)
    kept = {new.address for new in items}
    replaced = [row for row in before_now.values() if row["address"] not in kept]
    await _give_up(connection, model_id, replaced)
    await connection.execute(_Q["settle_intent"], model_id, list(kept))
    return await connection.fetch(_Q["items"], model_id, ids)


def _on_known_bytes(new: NewItem, known: Record | None) -> NewItem:
    same = known is not None and known["sha256"] == new.sha256 and known["address"] == new.same_as
    return replace(new, address=new.same_as) if same and new.same_as is not None else new


async def _give_up(connection: Connection, model_id: int, rows: Sequence[Record]) -> None:
    """Files that were removed or replaced: their bytes go, and what runs made of them."""
    await may_remove(connection, model_id, {row["address"]: row["bytes"] for row in rows})
    if rows:
        await connection.execute(_Q["erase"], model_id, [row["name"] for row in rows])


async def _name_audio(connection: Connection, model_id: int, data_id: int, audio_names: Sequence[str]) -> None:
    """Keep what a manifest names, a batch at a time: no single statement is long, however many names there are."""
    await connection.execute(_Q["forget_manifest_names"], data_id)
    for start in range(0, len(audio_names), _NAMES_AT_ONCE):
        names = audio_names[start : start + _NAMES_AT_ONCE]
        await connection.execute(_Q["keep_manifest_names"], data_id, model_id, names)


async def recheck(connection: Connection, model_id: int, stems: Collection[str], *, changed: bool) -> None:
    """Say of the files of some stems whether their other half is there."""
    if stems:
        await connection.execute(_Q["recheck_stems"], model_id, list(stems), changed)


async def _recheck_audio(connection: Connection, model_id: int) -> None:
    """Say of every recording of a model whether its other half is there."""
    last: int | None = 0
    while last is not None:
        row = await connection.fetchrow(_Q["recheck_audio"], model_id, last, _FILES_AT_ONCE)
        last = None if row is None else row["last"]


async def delete(connection: Connection, model_id: int, row: Record) -> None:
    """One item of a model; its bytes follow when nobody can need them. The caller holds the model's data."""
    await connection.execute(_Q["delete_item"], model_id, row["id"])
    if row["kind"] == "manifest":
        await _recheck_audio(connection, model_id)
    else:
        await recheck(connection, model_id, {row["stem"]}, changed=False)
    await _give_up(connection, model_id, [row])


async def may_remove(connection: Connection, model_id: int, sizes: Mapping[str, int]) -> None:
    """Bytes that lost their owner: how many, by address. The caller has locked the model, or locks none after this."""
    if sizes:
        await connection.execute(_Q["may_remove"], model_id, list(sizes), list(sizes.values()))


def parts_of(row: Record) -> dict[str, int]:
    """Bytes of an upload's parts by address: all with the first, for only their sum is known."""
    return {address: row["received"] if at == 0 else 0 for at, address in enumerate(row["parts"])}


async def create_upload(  # noqa: PLR0913 - a row has that many columns
    connection: Connection,
    upload_id: UUID,
    model_id: int,
    organization_id: int,
    name: str,
    split: str | None,
    size: int,
) -> Record:
    """A large file begins."""
    row = await connection.fetchrow(_Q["create_upload"], upload_id, model_id, organization_id, name, split, size)
    assert row is not None
    return row


async def count_uploads(connection: Connection, model_id: int) -> int:
    """How many files are on their way to a model."""
    row = await connection.fetchrow(_Q["count_uploads"], model_id)
    assert row is not None
    return int(row["n"])


async def end_upload(connection: Connection, model_id: int, upload_id: UUID) -> bool:
    """The file has arrived or is not wanted; its parts can go. False: there is none."""
    row = await connection.fetchrow(_Q["end_upload"], upload_id, model_id)
    if row is None:
        return False
    await may_remove(connection, model_id, parts_of(row))
    return True
