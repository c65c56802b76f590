"""What was fetched is kept by its content, and the oldest goes first."""

import asyncio
import hashlib
import os
import time

import pytest
from obstore.store import LocalStore

from worker.storage.cache import Cache
from worker.storage.interface import StorageOptions
from worker.storage.remote import RemoteStorage

DAY = 86_400.0
OLD, NEWER = "aa" + "0" * 62, "bb" + "0" * 62


async def fill(folder):
    (folder / "x").write_bytes(b"x" * 1000)


async def test_content_is_fetched_once_however_many_ask(tmp_path):
    cache, fetched = Cache(tmp_path), 0

    async def fetch(folder):
        nonlocal fetched
        fetched += 1
        await asyncio.sleep(0)
        await fill(folder)

    places = await asyncio.gather(*(cache.kept(OLD, fetch) for _ in range(5)))
    assert (len(set(places)), fetched) == (1, 1)
    assert await Cache(tmp_path).kept(OLD, fetch) == places[0]
    assert fetched == 1


async def test_a_fetch_that_fails_leaves_nothing_and_the_next_one_may_succeed(tmp_path):
    cache = Cache(tmp_path)

    async def broken(folder):
        await fill(folder)
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await cache.kept(OLD, broken)
    assert list((tmp_path / ".partial").iterdir()) == []
    assert ((await cache.kept(OLD, fill)) / "x").stat().st_size == 1000


async def test_trimming_takes_what_was_used_longest_ago_and_never_what_is_in_use(tmp_path):
    cache = Cache(tmp_path)
    for digest in (OLD, NEWER):
        place = await cache.kept(digest, fill)
        os.utime(place, (1, 1 if digest == OLD else 2))
    assert cache.trim(keep_bytes=1500, unused_s=3600) == 1000
    assert [path.name for path in tmp_path.glob("[0-9a-f][0-9a-f]/*")] == [NEWER]
    await cache.kept(NEWER, fill)  # used just now
    assert cache.trim(keep_bytes=0, unused_s=3600) == 0


async def test_what_was_not_used_for_long_goes_however_much_room_there_is(tmp_path):
    cache, now = Cache(tmp_path), time.time()
    for digest, unused_s in ((OLD, 8 * DAY), (NEWER, 6 * DAY)):
        os.utime(await cache.kept(digest, fill), (now, now - unused_s))
    assert cache.trim(keep_bytes=1 << 40, unused_s=2 * DAY, oldest_s=7 * DAY) == 1000
    assert [path.name for path in tmp_path.glob("[0-9a-f][0-9a-f]/*")] == [NEWER]


async def test_what_was_fetched_from_a_place_goes_when_that_is_deleted_and_nothing_else_does(tmp_path):
    cache = Cache(tmp_path)
    for digest, origins in ((OLD, ("a/b", "c")), (NEWER, ("a",))):
        for origin in origins:
            await cache.kept(digest, fill, origin)
            place = await cache.kept(digest, fill, origin)
        os.utime(place, (1, 1))
    assert cache.origins(unused_s=3600) == {"a", "a/b", "c"}
    assert cache.forget({"b", "a/"}, unused_s=3600) == 0
    assert cache.forget({"c"}, unused_s=3600) == 1000
    assert cache.origins(unused_s=3600) == {"a"}
    await cache.kept(NEWER, fill)  # used just now
    assert (cache.origins(unused_s=3600), cache.forget({"a"}, unused_s=3600)) == (set(), 0)
    assert cache.trim(keep_bytes=0, unused_s=0) == 1000


async def test_a_remote_storage_knows_where_it_fetched_what_it_keeps(tmp_path):
    storage = RemoteStorage(
        "s3://bucket", StorageOptions(cache=tmp_path / "cache", access_key_id="a", secret_access_key="b")
    )
    (tmp_path / "bucket").mkdir()
    storage._store = LocalStore(tmp_path / "bucket")  # another of obstore's stores: no server is needed to fetch
    digests = {}
    for key in ("organizations/1/models/2/data/a", "organizations/1/models/3/data/b"):
        await storage.put_bytes(key, key.encode())
        digests[key] = hashlib.sha256(key.encode()).hexdigest()
        assert (await storage.materialize(key, sha256=digests[key])).read_bytes() == key.encode()
    assert await storage.fetched(0) == set(digests)
    gone, stays = digests
    assert await storage.forget_fetched({gone}, 0) == len(gone)
    assert await storage.fetched(0) == {stays}
    assert (await storage.materialize(gone, sha256=digests[gone])).read_bytes() == gone.encode()
    assert await storage.tidy(1 << 40, 0, 1e9, oldest_s=0) == len(gone) + len(stays)
