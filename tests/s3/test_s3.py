"""S3 for real: the same promises as files, over TLS, with parts, conditions, signed addresses and faults."""

from __future__ import annotations

import asyncio
import hashlib
import os
import pickle
import random
import shutil
import ssl
import sys
import urllib.error
import urllib.request
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from schemas.digest import tree_digest
from tests.chaos.proxy import Proxy
from worker.errors import NotStored, Spoiled, StorageAway, StorageRefused, TooLarge
from worker.storage import open_storage
from worker.storage.remote import PART_BYTES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from deploy.local.s3_server import S3Server
    from worker.storage import Storage

pytestmark = pytest.mark.s3
LARGE = 3 * PART_BYTES + 12_345


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


async def chunks(data: bytes, size: int = 300_000):
    for start in range(0, len(data), size):
        yield data[start : start + size]


@asynccontextmanager
async def faulty(server: S3Server) -> AsyncIterator[Proxy]:
    """A wire to the server that misbehaves; TLS goes through it untouched."""
    async with Proxy(server.https, postgres=False) as proxy:
        yield proxy


def endpoint(proxy: Proxy) -> str:
    return "https://localhost:" + proxy.url.rpartition(":")[2]


async def test_bytes_come_back_as_they_went_in_over_tls(storage: Storage) -> None:
    key = "organizations/1/Müller & Söhne (2) + 100%.wav"
    assert await storage.put_bytes(key, b"sound")
    assert await storage.size(key) == 5
    assert await storage.get_bytes(key, 5) == b"sound"
    assert [stored.key async for stored in storage.listing("organizations/1")] == [key]
    with pytest.raises(TooLarge):
        await storage.get_bytes(key, 4)


async def test_a_certificate_nobody_vouches_for_is_refused_at_once(opened: Callable[..., Storage]) -> None:
    with pytest.raises(StorageRefused, match="certificate is not trusted"):
        await opened(ca_file=None, patience_s=60.0).size("x")


async def test_wrong_credentials_are_refused_at_once(opened: Callable[..., Storage]) -> None:
    with pytest.raises(StorageRefused, match="403"):
        await opened(secret_access_key="wrong", patience_s=60.0).put_bytes("x", b"x")


async def test_a_bucket_that_is_not_there_is_said_so(opened: Callable[..., Storage]) -> None:
    storage = opened()
    other = open_storage("s3://no-such-bucket", storage.options)
    with pytest.raises(StorageRefused, match="NoSuchBucket"):
        _ = [stored async for stored in other.listing()]


async def test_what_is_not_there_is_said_so(storage: Storage) -> None:
    assert await storage.size("nothing") is None
    for read in (storage.get_bytes("nothing", 9), storage.materialize("nothing")):
        with pytest.raises(NotStored):
            await read
    await storage.delete(["nothing"])
    assert await storage.delete_prefix("nothing") == 0


async def test_a_large_file_goes_up_in_parts_and_comes_down_whole(storage: Storage, tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(noise(LARGE))
    assert await storage.put_file(file, "train/weights") == LARGE
    [stored] = [stored async for stored in storage.listing("train")]
    assert stored.tag.strip('"').endswith("-4")  # four parts: that is how S3 marks them
    digest = hashlib.sha256(noise(LARGE)).hexdigest()
    place = await storage.materialize("train/weights", sha256=digest)
    assert place.read_bytes() == file.read_bytes()
    got = b"".join([piece async for piece in storage.stream("train/weights", PART_BYTES - 3, PART_BYTES + 4)])
    assert got == noise(LARGE)[PART_BYTES - 3 : PART_BYTES + 4]
    assert await storage.put_file(file, "train/moved", move=True) == LARGE
    assert not file.exists()


async def test_an_upload_that_streams_in_is_stored_under_its_digest_or_not_at_all(storage: Storage) -> None:
    data = noise(PART_BYTES + 1)
    size, sha256 = await storage.put_stream(lambda digest: f"data/{digest}", chunks(data), LARGE)
    assert (size, sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert b"".join([piece async for piece in storage.stream(f"data/{sha256}")]) == data
    with pytest.raises(TooLarge):
        await storage.put_stream("data/x", chunks(data), 1_000_000)
    assert [stored.key async for stored in storage.listing()] == [f"data/{sha256}"]


async def test_of_many_conditional_writers_one_wins(opened: Callable[..., Storage]) -> None:
    writers = [opened() for _ in range(8)]
    won = await asyncio.gather(
        *(writer.put_bytes("race", b"%d" % n, only_if_absent=True) for n, writer in enumerate(writers))
    )
    assert sum(won) == 1
    assert await writers[0].get_bytes("race", 9) == b"%d" % won.index(True)
    assert not await writers[won.index(True)].put_bytes("race", b"%d" % won.index(True), only_if_absent=True)


async def test_a_listing_has_every_key_however_many_there_are(storage: Storage) -> None:
    names = [f"runs/1/{n:04}" for n in range(1_050)]

    async def put(name: str) -> None:
        await storage.put_bytes(name, b"")

    for start in range(0, len(names), 50):
        await asyncio.gather(*map(put, names[start : start + 50]))
    await storage.put_bytes("runs/10/x", b"")
    assert [stored.key async for stored in storage.listing("runs/1")] == names
    assert await storage.delete_prefix("runs/1") == len(names)
    assert [stored.key async for stored in storage.listing()] == ["runs/10/x"]


async def test_a_folder_goes_up_and_comes_down_once_for_its_content(storage: Storage, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.bin", "sub/b.bin", "sub/empty"):
        (folder / name).write_bytes(b"" if name.endswith("empty") else noise(100_000) + name.encode())
    whole = tree_digest(folder)
    files = await storage.upload_folder(folder, "runs/1/1/train")
    assert [file.path for file in files] == ["a.bin", "sub/b.bin", "sub/empty"]
    places = await asyncio.gather(*(storage.materialize("runs/1/1/train", sha256=whole) for _ in range(4)))
    assert len(set(places)) == 1
    assert tree_digest(places[0]) == whole
    assert await storage.materialize("runs/1/1/train") != places[0]
    await storage.delete_prefix("runs/1/1/train")
    assert await storage.materialize("runs/1/1/train", sha256=whole) == places[0]  # kept on this host by its digest


async def test_other_bytes_than_the_digest_says_are_never_handed_out(storage: Storage, tmp_path: Path) -> None:
    await storage.put_bytes("checkpoint", b"spoiled")
    with pytest.raises(Spoiled):
        await storage.materialize("checkpoint", sha256=hashlib.sha256(b"good").hexdigest())
    assert not list((tmp_path / "cache").glob("[0-9a-f][0-9a-f]/*"))
    assert not list((tmp_path / "cache/.partial").iterdir())


async def test_a_signed_address_works_without_credentials_and_only_as_signed(
    storage: Storage, server: S3Server
) -> None:
    await storage.put_bytes("a b/ü.txt", b"hello")
    trusting = ssl.create_default_context(cafile=str(server.ca_file))

    def ask(url: str, method: str, body: bytes | None = None) -> tuple[int, bytes]:
        request = urllib.request.Request(url, data=body, method=method)
        try:
            with urllib.request.urlopen(request, context=trusting, timeout=20) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, b""

    read, write = await storage.signed_url("a b/ü.txt", 60), await storage.signed_url("new", 60, "PUT")
    assert await asyncio.to_thread(ask, read, "GET") == (200, b"hello")
    assert (await asyncio.to_thread(ask, read, "PUT", b"evil"))[0] == 403
    assert (await asyncio.to_thread(ask, read.replace("Expires=60", "Expires=600"), "GET"))[0] == 403
    assert (await asyncio.to_thread(ask, read.partition("?")[0], "GET"))[0] == 403
    assert (await asyncio.to_thread(ask, write, "PUT", b"made"))[0] == 200
    assert await storage.get_bytes("new", 10) == b"made"
    assert await storage.address("new", 60) != await storage.address("a b/ü.txt", 60)


# --- faults ----------------------------------------------------------------------------------------------------


async def test_a_wire_that_breaks_again_and_again_costs_time_only(
    server: S3Server, opened: Callable[..., Storage], tmp_path: Path
) -> None:
    file = tmp_path / "weights"
    file.write_bytes(noise(LARGE))
    async with faulty(server) as proxy:
        storage = opened(endpoint=endpoint(proxy), patience_s=60.0)
        cuts = 0

        async def cut_now_and_then() -> None:
            nonlocal cuts
            while cuts < 6:
                await asyncio.sleep(0.15)
                cuts += proxy.cut()

        cutting = asyncio.create_task(cut_now_and_then())
        while not cutting.done():
            await storage.put_file(file, "weights")
            await storage.materialize("weights", sha256=hashlib.sha256(noise(LARGE)).hexdigest())
            assert await storage.put_stream("stream", chunks(noise(LARGE)), LARGE) == (
                LARGE,
                hashlib.sha256(noise(LARGE)).hexdigest(),
            )
            await storage.delete(["stream"])
            for kept in (tmp_path / "cache").glob("[0-9a-f][0-9a-f]"):
                await asyncio.to_thread(_remove, kept)
        await cutting
        assert cuts >= 6
        assert await storage.size("weights") == LARGE


def _remove(folder: Path) -> None:
    shutil.rmtree(folder)


async def test_a_server_that_is_away_for_a_while_is_waited_for(
    server: S3Server, opened: Callable[..., Storage]
) -> None:
    async with faulty(server) as proxy:
        storage = opened(endpoint=endpoint(proxy))
        await storage.put_bytes("before", b"1")
        proxy.refuse()
        waiting = asyncio.create_task(storage.put_bytes("after", b"2"))
        done, _ = await asyncio.wait({waiting}, timeout=1)
        assert not done
        proxy.resume()
        assert await waiting
        assert await storage.get_bytes("after", 9) == b"2"


async def test_patience_ends_with_an_error_of_ours(server: S3Server, opened: Callable[..., Storage]) -> None:
    async with faulty(server) as proxy:
        storage = opened(endpoint=endpoint(proxy), patience_s=1.0)
        proxy.refuse()
        for act in (storage.size("x"), storage.put_bytes("x", b""), storage.materialize("x"), storage.delete(["x"])):
            with pytest.raises(StorageAway):
                await act
        with pytest.raises(StorageAway):
            _ = [stored async for stored in storage.listing()]


async def test_a_conditional_write_whose_answer_was_lost_is_known_as_our_own(
    server: S3Server, opened: Callable[..., Storage]
) -> None:
    async with faulty(server) as proxy:
        storage, direct = opened(endpoint=endpoint(proxy), patience_s=30.0), opened()
        # The connection stands already, so that only the answer is lost and no part of a handshake.
        await storage.put_bytes("before", b"", only_if_absent=True)
        proxy.swallow()
        writing = asyncio.create_task(storage.put_bytes("once", b"mine", only_if_absent=True))
        while await direct.size("once") is None:
            await asyncio.sleep(0.02)
        proxy.cut()
        proxy.resume()
        assert await writing is True
        assert await direct.get_bytes("once", 10) == b"mine"


async def test_a_frozen_server_is_given_up_and_used_again_when_it_wakes(
    server: S3Server, opened: Callable[..., Storage]
) -> None:
    storage = opened(patience_s=40.0)
    await storage.put_bytes("x", b"1")
    server.freeze()
    try:
        reading = asyncio.create_task(storage.get_bytes("x", 9))
        done, _ = await asyncio.wait({reading}, timeout=1)
        assert not done
    finally:
        server.thaw()
    assert await reading == b"1"


async def test_memory_stays_flat_however_large_the_file(storage: Storage, tmp_path: Path) -> None:
    """Measured in a process of its own: what it needs at most grows by far less than the file."""
    file = tmp_path / "large"
    with file.open("wb") as out:
        for n in range(200):
            out.write(noise(1 << 20)[n:] + bytes(n))
    program = """
import asyncio, pickle, resource, sys
from worker.storage import open_storage
url, options, path = pickle.loads(bytes.fromhex(sys.argv[1]))
async def main():
    storage = open_storage(url, options)
    await storage.put_bytes("small", b"x")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    await storage.put_file(path, "large")
    await storage.materialize("large")
    async def chunks():
        with path.open("rb") as file:
            while piece := file.read(65536):
                yield piece
    await storage.put_stream("again", chunks(), 1 << 30)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
asyncio.run(main())
"""
    told = pickle.dumps((storage.url, storage.options, file)).hex()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, told, stdout=asyncio.subprocess.PIPE, env=os.environ | {"PYTHONPATH": "."}
    )
    said, _ = await process.communicate()
    assert process.returncode == 0
    assert int(said) < 120 * 1024  # kilobytes, for a file of 200 MB
