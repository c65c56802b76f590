"""The embedded storage: files below a folder."""

import asyncio
import errno
import hashlib
import os
from pathlib import Path

import pytest

from schemas.digest import tree_digest
from worker.errors import NotStored, Spoiled, StorageAway, StorageFull, StorageRefused, TooLarge
from worker.storage import FileStorage, open_storage
from worker.storage.keys import check_key


@pytest.fixture
async def storage(tmp_path):
    files = FileStorage(tmp_path / "kept")
    yield files
    await files.aclose()


def unfinished(storage: FileStorage) -> list[Path]:
    return list((storage.root / ".partial").iterdir())


async def chunks(*pieces: bytes):
    for piece in pieces:
        yield piece


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/a",
        "a/",
        "a//b",
        "../a",
        "a/../b",
        "a/./b",
        "a\\b",
        "a\nb",
        "a\0b",
        "x" * 241,
        "y/" * 451 + "y",
        ".partial/x",
        "a\u202eb",
    ],
)
def test_a_key_that_would_leave_its_place_is_refused(key):
    with pytest.raises(ValueError, match="storage key"):
        check_key(key)


def test_keys_of_any_language_are_allowed():
    assert check_key("organizations/1/Müller - 東京 (2).wav")


def test_only_addresses_of_storages_open(tmp_path):
    with pytest.raises(ValueError, match="absolute"):
        open_storage("file://relative/folder")
    with pytest.raises(ValueError, match="not the address"):
        open_storage("ftp://somewhere/x")
    assert open_storage((tmp_path / "a b").as_uri()).url == (tmp_path / "a b").as_uri()


async def test_bytes_come_back_as_they_went_in(storage):
    assert await storage.put_bytes("a/b/c.txt", b"one")
    assert await storage.get_bytes("a/b/c.txt", 10) == b"one"
    assert await storage.size("a/b/c.txt") == 3
    assert await storage.size("a/b") is None
    assert await storage.put_bytes("a/b/c.txt", b"two")
    assert await storage.get_bytes("a/b/c.txt", 3) == b"two"
    assert unfinished(storage) == []


async def test_a_conditional_write_leaves_what_is_there(storage):
    assert await storage.put_bytes("once", b"first", only_if_absent=True)
    assert not await storage.put_bytes("once", b"second", only_if_absent=True)
    assert await storage.get_bytes("once", 99) == b"first"


async def test_of_many_conditional_writers_one_wins(storage):
    won = await asyncio.gather(*(storage.put_bytes("race", b"%d" % n, only_if_absent=True) for n in range(16)))
    assert sum(won) == 1
    assert await storage.get_bytes("race", 99) == b"%d" % won.index(True)


async def test_what_is_not_there_is_said_so(storage):
    with pytest.raises(NotStored):
        await storage.get_bytes("nothing", 1)
    with pytest.raises(NotStored):
        await storage.materialize("nothing")
    with pytest.raises(NotStored):
        _ = [piece async for piece in storage.stream("nothing")]
    await storage.put_bytes("folder/x", b"")
    with pytest.raises(NotStored):
        await storage.get_bytes("folder", 1)


async def test_reading_is_bounded(storage):
    await storage.put_bytes("big", b"x" * 11)
    with pytest.raises(TooLarge):
        await storage.get_bytes("big", 10)


async def test_a_stream_is_stored_under_its_own_digest(storage):
    data = [b"a" * 700_000, b"b" * 700_000, b"", b"c"]
    whole = b"".join(data)
    size, sha256 = await storage.put_stream(lambda digest: f"data/{digest}", chunks(*data), 2_000_000)
    assert (size, sha256) == (len(whole), hashlib.sha256(whole).hexdigest())
    assert b"".join([piece async for piece in storage.stream(f"data/{sha256}")]) == whole


async def test_a_stream_that_is_too_long_leaves_nothing(storage):
    with pytest.raises(TooLarge):
        await storage.put_stream("data/x", chunks(b"a" * 10, b"b" * 10), 15)
    assert [stored async for stored in storage.listing()] == []
    assert unfinished(storage) == []


async def test_a_stream_that_breaks_leaves_nothing(storage):
    async def broken():
        yield b"half"
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await storage.put_stream("data/x", broken(), 100)
    assert await storage.size("data/x") is None
    assert unfinished(storage) == []


async def test_a_part_of_an_object_can_be_streamed(storage):
    await storage.put_bytes("digits", b"0123456789")
    assert b"".join([piece async for piece in storage.stream("digits", 3, 6)]) == b"345"
    assert b"".join([piece async for piece in storage.stream("digits", 8)]) == b"89"
    assert b"".join([piece async for piece in storage.stream("digits", 12)]) == b""


async def test_a_listing_counts_whole_segments(storage):
    for key in ("runs/1/a", "runs/1/b/c", "runs/10/a", "other"):
        await storage.put_bytes(key, key.encode())
    assert [stored.key async for stored in storage.listing("runs/1")] == ["runs/1/a", "runs/1/b/c"]
    assert [(stored.key, stored.bytes) async for stored in storage.listing("other")] == []
    assert len([stored async for stored in storage.listing()]) == 4


async def test_deleting_is_harmless_when_repeated_and_leaves_no_empty_folders(storage):
    for key in ("runs/1/a", "runs/1/b/c", "runs/2/a"):
        await storage.put_bytes(key, b"x")
    assert await storage.delete_prefix("runs/1") == 2
    assert await storage.delete_prefix("runs/1") == 0
    await storage.delete(["runs/1/a", "never/was"])
    assert [stored.key async for stored in storage.listing()] == ["runs/2/a"]
    assert not (storage.root / "runs/1").exists()
    with pytest.raises(ValueError, match="prefix"):
        await storage.delete_prefix("")


async def test_moving_takes_the_file_copying_leaves_it(storage, tmp_path):
    file = tmp_path / "weights"
    file.write_bytes(b"w" * 100)
    assert await storage.put_file(file, "m/copy") == 100
    assert file.exists()
    inode = file.stat().st_ino
    assert await storage.put_file(file, "m/moved", move=True) == 100
    assert not file.exists()
    assert (storage.root / "m/moved").stat().st_ino == inode


async def test_moving_across_file_systems_copies_whole(storage, tmp_path, monkeypatch):
    file = tmp_path / "weights"
    file.write_bytes(b"w" * 100)
    replace = Path.replace

    def other_file_system(self, target):
        if self == file:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", other_file_system)
    assert await storage.put_file(file, "m/moved", move=True) == 100
    assert not file.exists()
    assert await storage.get_bytes("m/moved", 100) == b"w" * 100


async def test_a_full_disk_is_said_so_and_loses_nothing(storage, monkeypatch, tmp_path):
    file = tmp_path / "weights"
    file.write_bytes(b"w")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    await storage.put_bytes("old", b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageFull, match="no room left"):
        await storage.put_bytes("old", b"new")
    with pytest.raises(StorageFull):
        await storage.put_file(file, "new", move=True)
    with pytest.raises(StorageFull):
        await storage.put_stream("new", chunks(b"x"), 10)
    monkeypatch.undo()
    assert file.read_bytes() == b"w"
    assert await storage.get_bytes("old", 10) == b"old"
    assert unfinished(storage) == []


async def test_a_folder_goes_up_with_a_digest_for_each_file(storage, tmp_path):
    folder = tmp_path / "out"
    (folder / "sub").mkdir(parents=True)
    (folder / "b.bin").write_bytes(b"b")
    (folder / "sub/a.bin").write_bytes(b"aa")
    whole = tree_digest(folder)
    files = await storage.upload_folder(folder, "runs/1/1/train")
    assert [(file.path, file.bytes) for file in files] == [("b.bin", 1), ("sub/a.bin", 2)]
    assert files[0].sha256 == hashlib.sha256(b"b").hexdigest()
    place = await storage.materialize("runs/1/1/train", sha256=whole)
    assert place == storage.local_path("runs/1/1/train")
    (place / "b.bin").write_bytes(b"B")
    with pytest.raises(Spoiled):
        await storage.materialize("runs/1/1/train", sha256=whole)


async def test_a_link_in_a_folder_is_refused(storage, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "model").symlink_to("/etc/hostname")
    with pytest.raises(ValueError, match="neither file nor folder"):
        await storage.upload_folder(folder, "runs/1/1/train")


async def test_storing_next_to_a_delete_that_empties_the_folder_works(storage):
    async def churn(n: int) -> None:
        for _ in range(30):
            await storage.put_bytes(f"hot/folder/{n}", b"x")
            await storage.delete([f"hot/folder/{n}"])

    await asyncio.gather(*(churn(n) for n in range(4)))
    assert [stored async for stored in storage.listing()] == []


async def test_a_folder_taken_away_and_made_again_by_others_in_the_middle_loses_nothing(storage, monkeypatch):
    replace, unlucky = Path.replace, iter(range(5))

    def too_late(source: Path, target: Path) -> Path:
        if next(unlucky, None) is not None:
            raise FileNotFoundError(target)  # although the folder is there again when we look
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", too_late)
    await storage.put_bytes("hot/folder/a", b"x")
    assert [stored.key async for stored in storage.listing()] == ["hot/folder/a"]


async def test_files_have_no_signed_addresses_but_a_path(storage):
    await storage.put_bytes("a", b"")
    with pytest.raises(StorageRefused):
        await storage.signed_url("a", 60)
    assert await storage.address("a", 60) == str(storage.root / "a")


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageAway):
        FileStorage(tmp_path / "file" / "below")


async def test_what_is_stored_is_compared_with_its_digest_without_a_copy(storage: FileStorage, tmp_path: Path):
    made = tmp_path / "made"
    (made / "deep").mkdir(parents=True)
    (made / "a").write_bytes(b"one")
    (made / "deep" / "b").write_bytes(b"two")
    await storage.upload_folder(made, "runs/1/train")
    await storage.check("runs/1/train", tree_digest(made))
    await storage.check("runs/1/train/a", hashlib.sha256(b"one").hexdigest())
    with pytest.raises(Spoiled):
        await storage.check("runs/1/train", tree_digest(made / "deep"))
    with pytest.raises(NotStored):
        await storage.check("runs/2", "0" * 64)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can put files into another user's hands")
async def test_what_root_stores_in_another_users_folder_is_that_users(tmp_path):
    """An operator who types `import` as root leaves recordings that the worker can read."""
    root = tmp_path / "storage"
    root.mkdir()
    os.chown(root, 10_001, 10_002)
    (tmp_path / "a.wav").write_bytes(b"moved")
    (tmp_path / "b.wav").write_bytes(b"copied")
    files = FileStorage(root)
    await files.put_bytes("bases/en/config.json", b"{}")
    await files.put_bytes("bases/en/once.json", b"{}", only_if_absent=True)
    await files.put_file(tmp_path / "a.wav", "organizations/1/a.wav", move=True)
    await files.put_file(tmp_path / "b.wav", "organizations/1/b.wav")
    await files.aclose()
    found = [root, *root.rglob("*")]
    assert len(found) == 10
    assert {(path.stat().st_uid, path.stat().st_gid) for path in found} == {(10_001, 10_002)}
