"""Files of a folder that another program is changing: nothing outside of it is ever read."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from obstore.store import MemoryStore

from schemas.digest import tree_digest
from worker.errors import StorageRefused
from worker.storage import FileStorage, StorageOptions
from worker.storage.beneath import digest_beneath, files_beneath, open_beneath, open_plain
from worker.storage.disk import own_folder
from worker.storage.remote import PART_BYTES, RemoteStorage


@pytest.fixture
def step(tmp_path):
    """A step's folder, and beside it what the step must not read."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "model").write_bytes(b"the worker's own")
    folder = tmp_path / "step"
    (folder / "checkpoint" / "deep").mkdir(parents=True)
    (folder / "checkpoint" / "model").write_bytes(b"weights")
    (folder / "checkpoint" / "deep" / "state").write_bytes(b"state")
    return folder


def test_files_are_found_opened_and_digested_as_they_lie(step):
    assert files_beneath(step, "checkpoint") == ["deep/state", "model"]
    with open_beneath(step, "checkpoint/deep/state") as file:
        assert file.read() == b"state"
    assert digest_beneath(step, "checkpoint") == tree_digest(step / "checkpoint")
    assert digest_beneath(step) == tree_digest(step)


@pytest.mark.parametrize("name", ["../secret/model", "/etc/passwd", "checkpoint/../../secret/model", ".", "a//b", ""])
def test_no_name_leads_out(step, name):
    with pytest.raises(ValueError, match="neither file nor folder"):
        open_beneath(step, name)


def swapped(step: Path, what: str) -> None:
    """What a hostile step puts in the place of its checkpoint."""
    if what == "file":
        (step / "checkpoint" / "model").unlink()
        (step / "checkpoint" / "model").symlink_to(step.parent / "secret" / "model")
    elif what == "folder":
        (step / "checkpoint").rename(step / "gone")
        (step / "checkpoint").symlink_to(step.parent / "secret")
    elif what == "root":
        step.rename(step.parent / "gone")
        step.symlink_to(step.parent / "secret")
    elif what == "pipe":
        (step / "checkpoint" / "model").unlink()
        os.mkfifo(step / "checkpoint" / "model")


@pytest.mark.parametrize("what", ["file", "folder", "root", "pipe"])
async def test_what_is_swapped_between_the_look_and_the_read_is_refused_and_never_stored(
    step, tmp_path, monkeypatch, what
):
    """The step strikes when its files have been listed, which is the last moment before each is opened."""
    storage = FileStorage(tmp_path / "storage")
    listed = files_beneath(step, "checkpoint")
    swapped(step, what)
    monkeypatch.setattr("worker.storage.interface.files_beneath", lambda *_: listed)
    with pytest.raises((ValueError, FileNotFoundError)):
        await storage.upload_folder(step, "runs/1/1/checkpoints/1", "checkpoint")
    await storage.aclose()
    stored = [path.read_bytes() for path in (tmp_path / "storage").rglob("*") if path.is_file()]
    assert b"the worker's own" not in stored
    assert not any(path.is_symlink() for path in (tmp_path / "storage").rglob("*"))


async def test_a_link_is_stored_neither_as_a_link_nor_as_what_it_leads_to(step, tmp_path):
    storage = FileStorage(tmp_path / "storage")
    swapped(step, "file")
    for move in (False, True):
        with pytest.raises(ValueError, match="neither file nor folder"):
            await storage.put_file(step / "checkpoint" / "model", "log", move=move)
    assert await storage.size("log") is None
    await storage.aclose()


def test_a_pipe_is_not_waited_for(step):
    swapped(step, "pipe")
    with pytest.raises(ValueError, match="neither file nor folder"):
        open_plain(step / "checkpoint" / "model")


async def test_files_and_folders_are_for_their_owner_alone_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        source = tmp_path / "source"
        source.write_bytes(b"recording")
        (tmp_path / "out" / "deep").mkdir(parents=True)
        (tmp_path / "out" / "deep" / "model").write_bytes(b"weights")
        storage = FileStorage(tmp_path / "storage" / "below")
        await storage.put_bytes("a/b/bytes", b"x")
        await storage.put_bytes("a/b/new", b"x", only_if_absent=True)
        await storage.put_file(source, "a/copied")
        await storage.put_file(source, "a/c/moved", move=True)
        await storage.upload_folder(tmp_path / "out", "runs/1")

        async def chunks():
            yield b"recording"

        await storage.put_stream("a/d/streamed", chunks(), 100)
        await storage.aclose()
    finally:
        os.umask(before)
    modes = {path.relative_to(tmp_path): path.stat().st_mode & 0o7777 for path in (tmp_path / "storage").rglob("*")}
    assert len([path for path in modes if (tmp_path / path).is_file()]) == 6
    for path, mode in modes.items():
        assert mode == (0o700 if (tmp_path / path).is_dir() else 0o600), (path, oct(mode))


async def test_a_group_that_shares_the_storage_gets_its_rights(tmp_path):
    before = os.umask(0)
    try:
        storage = FileStorage(tmp_path / "storage", mask=0o027)
        await storage.put_bytes("a/b", b"x")
        await storage.aclose()
    finally:
        os.umask(before)
    assert (tmp_path / "storage" / "a").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "storage" / "a" / "b").stat().st_mode & 0o777 == 0o640


def test_a_command_makes_nothing_that_others_can_read(tmp_path):
    program = "import os, sys; os.umask(0); from worker.cli.parser import main; main(['doctor', '--json'])"
    environment = os.environ | {
        "WORKER_STORAGE_URL": f"file://{tmp_path}/storage",
        "WORKER_SCRATCH": f"{tmp_path}/scratch",
        "WORKER_LAUNCHER": "noop",
        "WORKER_DATABASE_URL": "postgresql://127.0.0.1:1/none",
        "WORKER_AMQP_URL": "amqp://127.0.0.1:1/",
    }
    subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=False, timeout=60)
    made = list(tmp_path.rglob("*"))
    assert made
    assert [path for path in made if path.stat().st_mode & 0o077] == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to somebody else")
@pytest.mark.parametrize("as_link", [False, True])
def test_a_folder_that_somebody_else_made_first_is_refused_with_a_sentence(tmp_path, as_link):
    folder = tmp_path / "speech-training"
    if as_link:
        (tmp_path / "mine").mkdir()
        folder.symlink_to(tmp_path / "mine")
        os.chown(folder, 4711, 4711, follow_symlinks=False)
    else:
        folder.mkdir()
        os.chown(folder, 4711, 4711)
    with pytest.raises(
        StorageRefused, match=r"WORKER_SCRATCH=.*speech-training belongs to user 4711.*Remove it, or set"
    ):
        own_folder(folder, "WORKER_SCRATCH", 0o077)


def test_a_folder_of_our_own_is_made_for_us_alone_and_used_again(tmp_path):
    before = os.umask(0)
    try:
        for _ in range(2):
            own_folder(tmp_path / "a" / "b", "WORKER_SCRATCH", 0o077)
    finally:
        os.umask(before)
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in ("a", "a/b")} == {0o700}


async def test_a_remote_storage_gets_the_file_that_was_opened_and_no_link(step, tmp_path):
    storage = RemoteStorage(
        "s3://bucket", StorageOptions(cache=tmp_path / "cache", access_key_id="a", secret_access_key="b")
    )
    storage._store = MemoryStore()
    large = os.urandom(PART_BYTES + 1)
    (step / "large").write_bytes(large)
    with open_beneath(step, "large") as file:
        (step / "large").unlink()
        (step / "large").symlink_to(tmp_path / "secret" / "model")
        assert await storage.put_open(file, "large") == len(large)
    assert await storage.get_bytes("large", len(large)) == large
    files = await storage.upload_folder(step, "runs/1", "checkpoint")
    assert [(file.path, file.bytes) for file in files] == [("deep/state", 5), ("model", 7)]
    assert await storage.get_bytes("runs/1/model", 100) == b"weights"
    for move in (False, True):
        with pytest.raises(ValueError, match="neither file nor folder"):
            await storage.put_file(step / "large", "log", move=move)
    with pytest.raises(ValueError, match="neither file nor folder"):
        await storage.upload_folder(step, "runs/2")
    await storage.aclose()
