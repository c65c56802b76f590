"""Settings: what an operator may write, and that the example says all of it."""

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

import worker.settings
from deploy.settings_table import TARGET, render
from worker.api.settings import ApiSettings
from worker.app import retention_of
from worker.launchers.remote import RemoteLauncher
from worker.placement import launcher_of
from worker.settings import Settings, read_settings
from worker.storage import FileStorage


def test_env_example_is_made_from_the_settings() -> None:
    assert TARGET.read_text(encoding="utf-8") == render(), "run `python -m deploy.settings_table`"


def test_env_example_names_every_setting_of_worker_and_api_once() -> None:
    named = re.findall(r"^#(WORKER_\w+)=", render(), re.MULTILINE)
    wanted = {f"WORKER_{name.upper()}" for model in (Settings, ApiSettings) for name in model.model_fields}
    assert len(named) == len(set(named))
    assert set(named) == wanted


def test_every_setting_says_what_it_is() -> None:
    for model in (Settings, ApiSettings):
        for name, field in model.model_fields.items():
            assert field.description, name


def test_what_worker_and_api_share_has_the_same_meaning_for_both() -> None:
    shared = set(Settings.model_fields) & set(ApiSettings.model_fields)
    assert shared
    for name in shared:
        ours, theirs = Settings.model_fields[name], ApiSettings.model_fields[name]
        assert (ours.annotation, ours.default, ours.description) == (
            theirs.annotation,
            theirs.default,
            theirs.description,
        ), name


def test_the_example_itself_can_be_read_back_as_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for line in render().splitlines():
        if match := re.match(r"#(WORKER_\w+)=(.*)", line):
            monkeypatch.setenv(match[1], match[2])
    read = read_settings().model_dump(exclude={"trainer_python"})
    assert read == Settings.model_construct().model_dump(exclude={"trainer_python"})


def test_a_value_that_does_not_fit_names_its_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_SLOTS", "many")
    with pytest.raises(ValidationError) as caught:
        read_settings()
    assert caught.value.errors()[0]["loc"] == ("slots",)


def test_a_secret_can_come_from_a_file(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "worker_database_url").write_text("postgresql://from-a-file/training\n")
    monkeypatch.setattr(worker.settings, "SECRETS_FOLDER", tmp_path)
    monkeypatch.delenv("WORKER_DATABASE_URL", raising=False)
    assert read_settings().database_url.get_secret_value() == "postgresql://from-a-file/training"


def test_secrets_do_not_show_when_settings_are_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_DATABASE_URL", "postgresql://user:hunter2@host/training")
    assert "hunter2" not in repr(read_settings())


CLUSTER = {"WORKER_LAUNCHER": "ray", "WORKER_SCRATCH": "/shared/scratch", "WORKER_CACHE": "/shared/cache"}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, "needs WORKER_EXCHANGE"),
        ({"WORKER_EXCHANGE": "/elsewhere"}, "WORKER_SCRATCH=/shared/scratch"),
        ({"WORKER_EXCHANGE": "/shared", "WORKER_CACHE": "/tmp/cache"}, "WORKER_CACHE=/tmp/cache"),
        ({"WORKER_EXCHANGE": "/shared", "WORKER_RAY_HEADERS": "[]"}, "WORKER_RAY_HEADERS"),
    ],
)
def test_cluster_that_cannot_see_our_files_is_named_at_start(
    monkeypatch: pytest.MonkeyPatch, changed: dict[str, str], said: str
) -> None:
    for name, value in (CLUSTER | changed).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError, match=said):
        read_settings()


STORAGE = {"WORKER_LAUNCHER": "ray", "WORKER_EXCHANGE_KIND": "storage"}


@pytest.mark.parametrize("url", ["file:///var/lib/speech-training", "gs://bucket", "az://container"])
def test_steps_that_share_nothing_but_storage_need_one_that_signs_addresses(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    for name, value in (STORAGE | {"WORKER_STORAGE_URL": url}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError, match=f"WORKER_STORAGE_URL={url} has none"):
        read_settings()


def test_steps_that_share_nothing_but_storage_need_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (STORAGE | {"WORKER_STORAGE_URL": "s3://bucket/prefix"}).items():
        monkeypatch.setenv(name, value)
    assert read_settings().exchange is None


@pytest.mark.parametrize(
    ("name", "value"), [("WORKER_LEASE_S", "45"), ("WORKER_PAUSE_S", "59.5"), ("WORKER_RENEW_S", "45")]
)
def test_a_trainer_that_would_go_on_beyond_its_lease_is_refused(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError, match=f"{name}={value}.*stands still"):
        read_settings()


def test_a_training_that_could_never_have_its_devices_is_named_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_TRAINER_PROCESSES", "3")
    for devices in ("", "cpu", "0,1,2"):
        monkeypatch.setenv("WORKER_DEVICES", devices)
        assert read_settings().trainer_processes == 3
    monkeypatch.setenv("WORKER_DEVICES", "0,1")
    with pytest.raises(ValidationError, match="WORKER_TRAINER_PROCESSES=3"):
        read_settings()


def test_what_steps_ask_of_a_cluster_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {
        "WORKER_EXCHANGE": "/shared",
        "WORKER_RAY_RESOURCES": '{"a100": 0.5}',
        "WORKER_RAY_HEADERS": '{"Authorization": "Bearer x"}',
        "WORKER_SLURM_ARGUMENTS": "--partition=gpu --comment='two words'",
        "WORKER_SLURM_PROGRAMS": "",
    }
    for name, value in (CLUSTER | asked).items():
        monkeypatch.setenv(name, value)
    settings = read_settings()
    assert settings.ray_resources == {"a100": 0.5}
    assert settings.ray_header_map() == {"Authorization": "Bearer x"}
    assert settings.slurm_argument_list() == ["--partition=gpu", "--comment=two words"]
    assert settings.slurm_programs is None
    assert isinstance(launcher_of(settings, FileStorage(tmp_path)), RemoteLauncher)


@pytest.mark.parametrize(("oldest_s", "run_s"), [(3_600, 86_400), (604_800, 86_400), (604_800, 1_000_000)])
def test_nothing_leaves_the_cache_while_the_run_that_it_was_fetched_for_may_still_use_it(
    oldest_s: float, run_s: float
) -> None:
    kept = retention_of(Settings(cache_oldest_s=oldest_s, run_limit_s=run_s))
    assert run_s <= kept.cache_unused_s <= kept.cache_oldest_s
    assert kept.cache_oldest_s == max(oldest_s, run_s)
