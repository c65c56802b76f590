"""The folder of a step on its node."""

import fcntl
import os
import time
from pathlib import Path

import pytest

from worker.launchers.node_scratch import node_scratch


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def old(folder: Path) -> Path:
    folder.mkdir()
    (folder / "recording").write_text("of a customer")
    hour_ago = time.time() - 3600
    os.utime(folder, (hour_ago, hour_ago))
    return folder


def test_it_is_private_and_gone_afterwards(node: Path):
    with node_scratch() as scratch:
        assert scratch.parent == node
        assert scratch.stat().st_mode & 0o077 == 0
    assert list(node.iterdir()) == []


def test_what_a_killed_step_left_is_removed_by_the_next_one_and_nothing_else(node: Path):
    left, held = old(node / "speech-step-left"), old(node / "speech-step-held")
    other, young = old(node / "speech-training"), node / "speech-step-young"
    young.mkdir()
    (node / "speech-step-link").symlink_to(other)
    descriptor = os.open(held, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with node_scratch():
            assert not left.exists()
            assert held.exists()
            assert young.exists()
            assert (other / "recording").exists()
    finally:
        os.close(descriptor)
