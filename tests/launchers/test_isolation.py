"""What a step that has been taken over can reach: real launcher, real supervisor, no capabilities, made-up secrets."""

import ast
import json
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import pytest

from schemas.steps import Step, StepSpec
from tests.launchers import unprivileged
from worker import confinement
from worker.cli import doctor
from worker.confinement import IsolationUnavailable, Means, Rules
from worker.launchers import step_rules
from worker.launchers.local import LocalLauncher, LocalOptions
from worker.settings import Settings

ROOT = Path(__file__).parent.parent.parent
PRISONER = Path(__file__).parent / "prisoner.py"
needs_landlock = pytest.mark.skipif(not confinement.means().enough, reason=str(confinement.means()))


def names(which: str) -> set[str]:
    """The keys of a table in the prisoner's program."""
    for node in ast.parse(PRISONER.read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == which:
            return {ast.literal_eval(key) for key in node.value.keys}
    raise AssertionError(which)


TRIES, ALLOWED = names("TRIES"), names("ALLOWED")
OWNER = """
import asyncio, json, os, sys
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4
from schemas.steps import Step, StepSpec
from worker.launchers.local import LocalLauncher, LocalOptions
from worker.settings import Settings
folder, options, parameters = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
if sys.argv[4] == "closed":
    from worker.hardening import forbid_inspection
    forbid_inspection()
async def main():
    launcher = LocalLauncher(LocalOptions(
        command=(sys.executable, parameters["program"]), scratch_root=folder / "scratch",
        added_environment={"PYTHONPATH": os.getcwd()}, **options))
    spec = StepSpec(run_id=uuid4(), attempt=1, step=Step.PREPARE, recipe="x", recipe_version="1", seed=1,
                    inputs={"manifest": parameters["manifest"]}, output=str(folder / "output"),
                    parameters=parameters | {"worker": os.getpid()})
    handle = await launcher.start(spec, lease_s=100, log=folder / "log")
    print((await handle.wait()).detail, file=sys.stderr)
asyncio.run(main())
"""


@pytest.fixture
def world(tmp_path) -> Iterator[dict]:
    """Two organizations' recordings in one storage, secrets, a home, and services that listen."""
    files = {}
    for who in ("mine", "theirs"):
        files[who] = tmp_path / "storage" / who / "recording.wav"
        files[who].parent.mkdir(parents=True)
        files[who].write_bytes(b"sound")
    (tmp_path / "output").mkdir()
    (tmp_path / "home").mkdir()
    (tmp_path / "secret").write_text("the password of the database")
    (tmp_path / "manifest.jsonl").write_text(json.dumps({"audio": str(files["mine"])}) + "\n")
    with socket.create_server(("127.0.0.1", 0)) as postgres, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "unix"))
        unix.listen()
        yield {
            "program": str(PRISONER),
            **{name: str(path) for name, path in files.items()},
            "manifest": str(tmp_path / "manifest.jsonl"),
            "secret": str(tmp_path / "secret"),
            "home": str(tmp_path / "home"),
            "port": postgres.getsockname()[1],
            "unix": str(tmp_path / "unix"),
        }
    Path(f"/tmp/prisoner-{os.getpid()}").unlink(missing_ok=True)


def reached(tmp_path: Path, world: dict, closed: str = "closed", **options) -> dict[str, str]:
    told = [str(tmp_path), json.dumps(options), json.dumps(world), closed]
    environment = os.environ | {"WORKER_DATABASE_URL": "postgresql://training:password@localhost/training"}
    done = unprivileged.run("-c", OWNER, *told, cwd=ROOT, env=environment)
    found = tmp_path / "output" / "found.json"
    assert found.exists(), done.stderr
    return json.loads(found.read_text())


def done(found: dict[str, str]) -> set[str]:
    return {name for name, how in found.items() if how == "done"}


@needs_landlock
def test_a_step_that_is_taken_over_reaches_its_own_files_and_nothing_else(tmp_path, world):
    found = reached(tmp_path, world, isolation="required")
    assert {name: found[name] for name in TRIES if found[name] == "done"} == {}
    assert {name: found[name] for name in ALLOWED if found[name] != "done"} == {}
    assert Path(world["theirs"]).read_bytes() == Path(world["mine"]).read_bytes() == b"sound"


def test_without_isolation_the_same_step_reaches_nearly_everything(tmp_path, world):
    """How it was; and the proof that the test above does not stay green for want of anything to reach."""
    found = reached(tmp_path, world, "open", isolation="none")
    # these take privileges, or a kernel that offers them
    never = {"a raw socket", "io_uring", "keys of the kernel", "its own network"}
    assert TRIES - never - done(found) == set()


def test_what_closes_the_worker_needs_no_isolation(tmp_path, world):
    found = reached(tmp_path, world, isolation="none")
    closed = {"the worker's environment", "the worker's memory", "trace the worker", "a descriptor of the worker"}
    assert not done(found) & closed


@needs_landlock
def test_a_step_may_use_the_network_where_the_operator_says_so_and_still_no_other_files(tmp_path, world):
    found = reached(tmp_path, world, isolation="required", network=True)
    assert done(found) >= {"Postgres", "a name server", "listen"}
    assert not done(found) & {"another organization's recording", "secrets", "the worker's home", "kill the worker"}


def test_isolation_that_is_required_and_cannot_be_had_is_refused_in_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(step_rules, "means", lambda: Means(landlock=0, seccomp=True))
    with pytest.raises(IsolationUnavailable, match=r"WORKER_TRAINER_ISOLATION=required.*not isolated: files"):
        LocalLauncher(LocalOptions(command=("x",), scratch_root=tmp_path, isolation="required"))


def test_processes_of_one_training_are_not_called_isolated_where_the_kernel_cannot_tell_ports_apart(
    monkeypatch, tmp_path
):
    """They need TCP; before Landlock 4 (Linux 6.7) that is all of TCP, Postgres' port included."""
    for landlock, several, isolated in ((2, 1, True), (2, 2, False), (4, 2, True)):
        monkeypatch.setattr(step_rules, "means", lambda landlock=landlock: Means(landlock=landlock, seccomp=True))
        options = LocalOptions(command=("x",), scratch_root=tmp_path, processes=several)
        assert LocalLauncher(options).means.network is isolated
        if isolated:
            LocalLauncher(replace(options, isolation="required"))
            continue
        with pytest.raises(IsolationUnavailable, match=r"not isolated: network.*Linux 6\.7"):
            LocalLauncher(replace(options, isolation="required"))


def test_a_network_that_was_given_is_not_called_isolated_and_is_no_reason_to_refuse(monkeypatch, tmp_path):
    monkeypatch.setattr(step_rules, "means", lambda: Means(landlock=7, seccomp=True))
    launcher = LocalLauncher(LocalOptions(command=("x",), scratch_root=tmp_path, isolation="required", network=True))
    assert "not isolated: network" in str(launcher.means)


async def test_what_a_host_cannot_isolate_does_not_keep_a_step_from_starting(monkeypatch, tmp_path):
    monkeypatch.setattr(step_rules, "means", lambda: Means(landlock=0, seccomp=False))
    launcher = LocalLauncher(
        LocalOptions(command=(sys.executable, "-c", "raise SystemExit(7)"), scratch_root=tmp_path / "scratch")
    )
    handle = await launcher.start(spec(tmp_path), lease_s=100, log=tmp_path / "log")
    assert (await handle.wait()).exit_code == 7


def spec(tmp_path: Path, **inputs: str) -> StepSpec:
    (tmp_path / "output").mkdir(exist_ok=True)
    return StepSpec(
        run_id=uuid4(), attempt=1, step=Step.TRAIN, recipe="x", recipe_version="1", seed=1,
        inputs=inputs, output=str(tmp_path / "output"),
    )  # fmt: skip


def readable(tmp_path: Path, **inputs: str) -> set[Path]:
    rules = step_rules.rules_of(
        spec(tmp_path, **inputs),
        tmp_path / "scratch",
        programs=(),
        readable=(),
        writable=(),
        network=False,
        processes=1,
    )
    return set(rules.readable)


def test_a_link_that_an_earlier_step_left_in_an_inputs_place_gives_nothing(tmp_path):
    (tmp_path / "dataset").symlink_to("/etc")
    assert not {tmp_path / "dataset", Path("/etc")} & readable(tmp_path, dataset=str(tmp_path / "dataset"))


def test_base_weights_that_are_links_into_a_hubs_cache_can_be_read(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "1234").write_text("weights")
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "model.safetensors").symlink_to("../blobs/1234")
    assert tmp_path / "blobs" / "1234" in readable(tmp_path, base=str(tmp_path / "base"))


def test_a_manifest_gives_its_recordings_one_by_one(tmp_path):
    places = [str(tmp_path / "a.wav"), "/nowhere/b.wav", "https://storage/c.wav"]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps({"audio": place}) + "\n" for place in places))
    given = readable(tmp_path, manifest=str(tmp_path / "m.jsonl"))
    assert {path for path in given if path.suffix == ".wav"} == {tmp_path / "a.wav", Path("/nowhere/b.wav")}


@needs_landlock
def test_a_folder_that_is_not_there_needs_no_rule_and_spoils_none(tmp_path):
    ruleset = confinement.ruleset_of(Rules(readable=[tmp_path / "gone", tmp_path]), confinement.means())
    assert ruleset is not None
    os.close(ruleset)


def environment_in(folder: Path) -> Sequence[Path]:
    """What a trainer may read of a Python environment that lies in a folder."""
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho \'[["{folder}", "/usr"], ["", "{folder}/lib/python3/site-packages"]]\'\n')
    python.chmod(0o700)
    return step_rules.program_folders([str(python), "-m", "x"], {"PATH": "/usr/bin:/bin"})


def test_an_environment_in_somebodys_home_is_given_without_the_home(tmp_path, monkeypatch):
    """A service's user whose home is the folder that it is installed in: without pyvenv.cfg Python finds no library."""
    monkeypatch.setattr(step_rules, "pwd", SimpleNamespace(getpwuid=lambda _: SimpleNamespace(pw_dir=str(tmp_path))))
    given = environment_in(tmp_path)
    assert {tmp_path / "pyvenv.cfg", tmp_path / "bin", tmp_path / "lib"} <= set(given)
    assert tmp_path not in given


@pytest.mark.parametrize("data", ["output", "scratch", "manifest", "recording"])
def test_an_environment_that_shares_its_folder_with_data_is_given_without_them(tmp_path, data):
    """Or every step could read everybody's recordings as if they were programs."""
    programs = environment_in(tmp_path / "env")
    assert tmp_path / "env" in programs
    manifest = tmp_path / ("env" if data == "manifest" else "elsewhere") / "m.jsonl"
    manifest.parent.mkdir(exist_ok=True)
    manifest.write_text(json.dumps({"audio": str(tmp_path / ("env" if data == "recording" else "a") / "a.wav")}))
    rules = step_rules.rules_of(
        spec(tmp_path / "env" if data == "output" else tmp_path, manifest=str(manifest)),
        tmp_path / ("env" if data == "scratch" else "elsewhere") / "scratch",
        programs=programs, readable=(), writable=(), network=False, processes=1,
    )  # fmt: skip
    assert tmp_path / "env" not in rules.programs
    assert {tmp_path / "env" / "pyvenv.cfg", tmp_path / "env" / "lib"} <= set(rules.programs)


@pytest.mark.parametrize("network", [True, False])
def test_a_step_with_network_finds_name_servers_also_after_their_file_was_replaced(tmp_path, network):
    rules = step_rules.rules_of(
        spec(tmp_path), tmp_path / "scratch", programs=(), readable=(), writable=(), network=network, processes=1
    )
    assert (Path("/run/systemd/resolve") in rules.readable) is network


async def test_doctor_says_what_keeps_trainers_apart():
    (found,) = await doctor._isolation(Settings(trainer_isolation="none"))
    assert found.ok
    assert "not isolated: files, network, signals" in found.what
    (found,) = await doctor._isolation(Settings())
    assert str(confinement.means()) in found.what
    assert bool(found.mend) is not confinement.means().enough


async def test_doctor_complains_where_isolation_is_required_and_cannot_be_had(monkeypatch):
    monkeypatch.setattr(step_rules, "means", lambda: Means(landlock=3, seccomp=False))
    (found,) = await doctor._isolation(Settings(trainer_isolation="required"))
    assert not found.ok
    assert "libseccomp" in found.mend


async def test_the_first_line_of_a_steps_log_says_what_it_was_kept_from(tmp_path):
    launcher = LocalLauncher(LocalOptions(command=(sys.executable, "-c", ""), scratch_root=tmp_path / "scratch"))
    await (await launcher.start(spec(tmp_path), lease_s=100, log=tmp_path / "log")).wait()
    assert (tmp_path / "log").read_text().splitlines()[0] == str(confinement.means())


@needs_landlock
async def test_a_step_of_several_processes_talks_over_the_loopback_and_not_to_postgres(tmp_path):
    """The processes of one training meet at ports that the kernel gives out; services have others."""
    program = """
import json, socket, sys
out = json.loads(sys.stdin.read())["output"]
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname())
server.accept()[0].sendall(b"met")
said = [client.recv(3).decode()]
for port in (5432, 5672, 80):
    try:
        socket.create_connection(("127.0.0.1", port), 5)
    except OSError as error:
        said.append(type(error).__name__)
try:
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
except OSError as error:
    said.append(type(error).__name__)
open(out + "/said", "w").write(" ".join(said))
"""
    launcher = LocalLauncher(
        LocalOptions(command=(sys.executable, "-c", program), scratch_root=tmp_path / "scratch", processes=2)
    )
    ended = await (await launcher.start(spec(tmp_path), lease_s=100, log=tmp_path / "log")).wait()
    assert ended.exit_code == 0, ended.detail
    # refused by a rule (PermissionError), not for want of a listener (ConnectionRefusedError)
    assert (tmp_path / "output" / "said").read_text() == "met" + 4 * " PermissionError"


@needs_landlock
async def test_two_thousand_recordings_cost_a_steps_start_little(tmp_path):
    """Counted in rules, not in seconds: one for each, and none that grows with their number."""
    for number in range(2_000):
        (tmp_path / f"{number}.wav").touch()
    rows = (json.dumps({"audio": str(tmp_path / f"{number}.wav")}) + "\n" for number in range(2_000))
    (tmp_path / "m.jsonl").write_text("".join(row for one in rows for row in (one, one)))
    rules = step_rules.rules_of(
        spec(tmp_path, manifest=str(tmp_path / "m.jsonl")), tmp_path, programs=(), readable=(), writable=(),
        network=False, processes=1,
    )  # fmt: skip
    assert sum(path.suffix == ".wav" for path in rules.readable) == 2_000
    ruleset = confinement.ruleset_of(rules, confinement.means())
    assert ruleset is not None
    os.close(ruleset)
