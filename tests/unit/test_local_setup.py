"""What is kept between runs is whole, and what is missing is named with what to do."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from deploy.local import cache, install
from deploy.local.ports import free_ports, kept_ports
from deploy.local.report import MissingPieceError
from deploy.local.venv import Venv

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPEECH_WORKER_CACHE", str(tmp_path / "cache"))
    for name in ("WORKER_AMQP_URL", "WORKER_DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)


def _setup(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/bash", str(ROOT / "deploy/local/setup.sh"), "trainer"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_interrupted_maker_leaves_nothing_that_a_later_run_would_use(tmp_path: Path):
    final = tmp_path / "thing"

    def interrupted(part: Path) -> None:
        (part / "half").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.made_whole(final, interrupted)
    assert list(tmp_path.iterdir()) == []
    cache.made_whole(final, lambda part: (part / "whole").write_text("whole") and None)
    assert [entry.name for entry in final.iterdir()] == ["whole"]


def test_maker_killed_half_way_is_swept_by_the_next_one(tmp_path: Path):
    (tmp_path / "thing.part-dead").mkdir()
    cache.made_whole(tmp_path / "thing", lambda part: (part / "whole").write_text("whole") and None)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thing"]


def test_thing_that_is_there_is_not_made_again(tmp_path: Path):
    (tmp_path / "thing").mkdir()
    assert cache.made_whole(tmp_path / "thing", lambda _: pytest.fail("made again")) == tmp_path / "thing"


def test_environment_is_named_after_what_it_is_made_from(monkeypatch: pytest.MonkeyPatch):
    first = Venv.for_project(ROOT, ["trainer"])
    assert Venv.for_project(ROOT, ["trainer"]).folder == first.folder
    assert Venv.for_project(ROOT, ["trainer", "dev"]).folder != first.folder
    monkeypatch.setenv("SPEECH_WORKER_TORCH", "torch")
    assert Venv.for_project(ROOT, ["trainer"]).folder != first.folder


def test_extra_that_does_not_exist_is_named():
    with pytest.raises(MissingPieceError, match="no extra named 'traner'"):
        Venv.for_project(ROOT, ["traner"])


def test_full_disk_is_named_before_anything_is_downloaded(monkeypatch: pytest.MonkeyPatch):
    full = shutil.disk_usage("/")._replace(free=5_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.raises(MissingPieceError, match=r"1,800 MB of disk are needed .* 5 MB are free"):
        install.check_disk([install.Piece("packages", present=False, download_mb=490, disk_mb=1800)])


def test_what_is_there_already_asks_for_no_disk(monkeypatch: pytest.MonkeyPatch):
    full = shutil.disk_usage("/")._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    install.check_disk([install.Piece("packages", present=True, download_mb=490, disk_mb=1800)])


def test_machine_without_apt_docker_or_addresses_is_told_what_to_do(tmp_path: Path):
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("bash", "dirname", "python3"):
        found = shutil.which(name)
        assert found
        (programs / name).symlink_to(found)
    told = _setup({"PATH": str(programs)})
    assert told.returncode == 1
    assert "no RabbitMQ to be had" in told.stderr
    assert "WORKER_AMQP_URL" in told.stderr
    assert told.stdout == ""


def test_machine_without_a_fitting_python_is_told_what_to_do(tmp_path: Path):
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "dirname").symlink_to(shutil.which("dirname") or "")
    told = _setup({"PATH": str(programs), "SPEECH_WORKER_PYTHON": "/bin/false"})
    assert told.returncode == 1
    assert "no Python 3.11" in told.stderr


def test_ports_are_free_different_and_kept(tmp_path: Path):
    assert len(set(free_ports(20))) == 20
    kept = kept_ports(tmp_path / "ports.json", ["amqp", "epmd"])
    assert kept_ports(tmp_path / "ports.json", ["amqp", "epmd"]) == kept
